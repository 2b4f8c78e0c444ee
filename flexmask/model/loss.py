"""Pack -> loss: `sum_i weight[i] * CE(logits[previous[i]], input_ids[i])`, and nothing is shifted; or an objective of
the log-probabilities of the trained tokens.

Logits exist only where a trained token is predicted, and never more of them at once than `LOGITS_BYTES`: the model's
head runs over one chunk of trained tokens after the other, and a chunk's gradients are taken before the next one is
computed. So the memory of the loss depends neither on the length of the row nor on how many of its tokens are trained.
An objective that is not linear in them needs all log-probabilities first: its chunks are computed twice.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from flexmask.errors import UnsupportedModelError
from flexmask.model.head import Head, replaced
from flexmask.model.state_branches import StateBranches
from flexmask.model.state_layers import expected_calls
from flexmask.model.support import inputs_of, takes_block_masks, unwrapped
from flexmask.text.rendering import Role
from flexmask.tree.packing import Pack

# Of the logits of one chunk in float32; with log-probabilities and gradients there are three times as many bytes. Each
# chunk adds once to the gradient of the head, which has as many columns as the logits: at 151,936 tokens of vocabulary
# and 883 in a chunk that is a few percent of the head's time.
LOGITS_BYTES = 512 * 2**20

_ROLES = {"thinking": Role.THINKING, "answer": Role.ANSWER}


@dataclass(frozen=True, eq=False)
class TokenLosses:
    """Cross-entropy of each trained token of a pack, all of shape [T], in row order, and their weighted sum.

    `losses` float32 (float64 for a float64 model), without gradients; `weights` are the loss weights, `roles` tell
    thinking from answer, `indices` are the tokens' places in the pack. `total` is a scalar with gradients: the pack's
    part of the loss, not yet divided by the target weight of the step. `figures` are sums that the objective adds.
    """

    losses: Tensor
    weights: Tensor
    roles: Tensor
    indices: Tensor
    total: Tensor
    figures: dict[str, Tensor] = field(default_factory=dict)

    def sums_by_role(self) -> dict[str, Tensor]:
        """Unweighted loss sums and token counts (`thinking_loss_sum`, `thinking_tokens`, `answer_loss_sum`,
        `answer_tokens`); tensors, so that nothing waits for the device before a log."""
        sums = {}
        for name, role in _ROLES.items():
            of_role = self.roles == role
            sums[f"{name}_loss_sum"] = torch.where(of_role, self.losses, 0).sum()
            sums[f"{name}_tokens"] = of_role.sum()
        return sums | self.figures


def loss_by_role(sums: Mapping[str, Any]) -> dict[str, float]:
    """Mean token losses of `TokenLosses.sums_by_role`, which may be added up over packs: `thinking_loss` and
    `answer_loss`. A role that was not trained is left out."""
    return {
        f"{name}_loss": float(sums[f"{name}_loss_sum"] / sums[f"{name}_tokens"])
        for name in _ROLES
        if sums[f"{name}_tokens"] > 0
    }


# (log-probabilities of the trained tokens of a pack, [T], in row order; the pack) -> (its part of the loss, sums to
# log). Called once for a pack, with gradients.
Objective = Callable[[Tensor, Pack], tuple[Tensor, Mapping[str, Tensor]]]


def token_losses(
    model: nn.Module, pack: Pack, block_size: int = 128, objective: Objective | None = None
) -> TokenLosses:
    """Run the model over a pack and return the loss of every trained token, and their weighted sum with gradients, or
    in its place what `objective` makes of them (flexmask.objectives).

    `model` is a prepared model (`prepare_model`), in whatever wraps it; the pack must lie on its device. A model that
    was left its own attention, because the state of its layers does not branch, takes packs of a single chain. Whatever
    the model does to its logits (scaling, soft-capping) is done: its own forward makes them.
    Raises UnsupportedModelError for a pack that is no chain where it must be, for a layer whose state has not branched,
    and for a model that makes no logits from the states of its decoder alone.
    """
    # Places are looked up on the CPU: a device that is asked for them would have to finish its work first.
    host, device = pack.on_host, pack.input_ids.device
    trained, previous = host.loss_weights[0] > 0, host.previous[0]
    if host.context is not None:  # whoever has the state behind which a token stands predicts it
        trained &= host.context.owner[previous] == host.context.process
        previous = host.context.places[previous]
    places = torch.nonzero(trained).flatten()
    indices, previous = places.to(device), previous[places].to(device)
    inner = unwrapped(model)
    branches = None
    with contextlib.ExitStack() as stack:
        if takes_block_masks(inner):
            inputs: dict[str, Any] = dict(stack.enter_context(inputs_of(inner, pack, block_size)))
            if calls := expected_calls(inner):
                branches = inputs["state_branches"] = StateBranches(host.previous, device)
        else:
            _check_chain(inner, pack)
            inputs = dict(input_ids=pack.input_ids)
        targets, weights = pack.input_ids[0, indices], pack.loss_weights[0, indices]
        figures: dict[str, Tensor] = {}
        of_losses = None if objective is None else _of_losses(objective, pack, figures)
        stack.enter_context(_loss_in_place_of_logits(inner, previous, targets, weights, of_losses))
        found = model(**inputs, use_cache=False)
    if branches is not None:
        _check_branched(inner, branches.calls, calls)
    losses = found["losses"]
    return TokenLosses(losses, weights.to(losses.dtype), pack.roles[0, indices], indices, found["total"], figures)


def _of_losses(objective: Objective, pack: Pack, figures: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """Token losses [T] -> what the objective makes of them; what it has to log is added to `figures`."""

    def total(losses: Tensor) -> Tensor:
        value, sums = objective(-losses, pack)
        figures.update({name: one.detach() for name, one in sums.items()})
        return value.to(losses.dtype)

    return total


@contextlib.contextmanager
def _loss_in_place_of_logits(
    model: PreTrainedModel,
    previous: Tensor,
    targets: Tensor,
    weights: Tensor,
    of_losses: Callable[[Tensor], Tensor] | None,
) -> Iterator[None]:
    """`model` returns {"total": scalar, "losses": [N]} for the tokens that stand behind `previous` [N].

    of_losses: makes the total of the losses; None: it is their sum, weighed by `weights`.

    The loss is made inside the model's own call: there a wrapper that shards parameters has them whole, and what it
    does to outputs (DistributedDataParallel's static graph, FSDP's hooks for backward) it does to the loss. Hooks of
    the model itself do not get to see logits.
    """
    forward = model.forward

    def loss_forward(**inputs: Any) -> dict[str, Tensor]:
        head = Head(model, forward)
        states = head.states(inputs)[previous]
        if not is_whole(model, head.parameters):
            # Sharded apart from the model: whoever shards them follows each call of the head until backward.
            losses = F.cross_entropy(head(states), targets, reduction="none")
            total = of_losses(losses) if of_losses else (losses * weights.to(losses.dtype)).sum()
            return {"total": total, "losses": losses.detach()}
        enabled = torch.is_grad_enabled()
        total, losses = _ChunkedLoss.apply(states, head, targets, weights, of_losses, enabled, *head.parameters)
        return {"total": total, "losses": losses}

    with replaced(vars(model), "forward", loss_forward):
        yield


def is_whole(model: nn.Module, parameters: Sequence[nn.Parameter]) -> bool:
    """Whether these are all the parameters asked for, and each is there as a plain tensor: nothing is sharded."""
    fully_sharded = any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
    return not fully_sharded and not any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in parameters)


class _ChunkedLoss(torch.autograd.Function):
    """(states [N, D], head, targets [N], weights [N], of_losses, whether gradients are wanted, *parameters of the head)
    -> total, losses [N].

    The total is linear in what comes from above, so its gradients are known in forward, and no logits are kept for
    backward. A weighted sum takes them chunk by chunk. What `of_losses` makes of all losses has them as weights once
    these are known.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        head: Head,
        targets: Tensor,
        weights: Tensor,
        of_losses: Callable[[Tensor], Tensor] | None,
        enabled: bool,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        need = [enabled and needed for needed in (ctx.needs_input_grad[0], *ctx.needs_input_grad[6:])]
        aliases = [parameter.detach().requires_grad_(enabled) for parameter in parameters]
        grad_states = torch.empty_like(states) if need[0] else None
        grads: list[Tensor | None] = [None] * len(parameters)
        totals: list[Tensor] = []
        losses: list[Tensor] = []
        with head.with_parameters(aliases):
            chunks = _chunks(len(states), states, head)
            if of_losses is not None:
                total, weights, each = _linear(of_losses, states, head, targets, chunks)
                if not any(need):
                    return total, each
            for start, end in chunks:
                with torch.set_grad_enabled(any(need)):
                    chunk = states[start:end].detach().requires_grad_(need[0])
                    loss = F.cross_entropy(head(chunk), targets[start:end], reduction="none")
                    weighted = (loss * weights[start:end].to(loss.dtype)).sum()
                totals.append(weighted.detach())
                losses.append(loss.detach())
                if any(need):
                    wanted = [chunk, *aliases] if need[0] else aliases
                    of_chunk = list(_gradients(weighted, wanted))
                    if grad_states is not None:
                        of_states = of_chunk.pop(0)
                        assert of_states is not None  # logits are made from the states
                        grad_states[start:end] = of_states
                    grads = [_sum(grad, more) for grad, more in zip(grads, of_chunk, strict=True)]
        if of_losses is None:
            total, each = sum(totals[1:], totals[0]), torch.cat(losses)
        ctx.save_for_backward(grad_states, *grads)
        ctx.mark_non_differentiable(each)
        return total, each

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_states, *grads = (None if grad is None else grad * grad_total for grad in ctx.saved_tensors)
        return grad_states, None, None, None, None, None, *grads


def _linear(
    of_losses: Callable[[Tensor], Tensor],
    states: Tensor,
    head: Head,
    targets: Tensor,
    chunks: Sequence[tuple[int, int]],
) -> tuple[Tensor, Tensor, Tensor]:
    """(total, weights [N], losses [N]): what `of_losses` makes of all losses, and the weights with which a sum of them
    has the same gradient."""
    with torch.no_grad():
        found = [F.cross_entropy(head(states[i:j]), targets[i:j], reduction="none") for i, j in chunks]
    losses = torch.cat(found).requires_grad_()
    with torch.enable_grad():
        total = of_losses(losses)
    (weights,) = torch.autograd.grad(total, losses)
    return total.detach(), weights, losses.detach()


def _chunks(length: int, states: Tensor, head: Callable) -> list[tuple[int, int]]:
    """Stretches of `length` trained tokens, as even as can be, whose logits fit in `LOGITS_BYTES`."""
    with torch.no_grad():
        vocabulary = head(states[:0]).shape[-1]
    count = max(1, -(-length * vocabulary * 4 // LOGITS_BYTES))
    borders = [length * i // count for i in range(count + 1)]
    return list(zip(borders[:-1], borders[1:], strict=True))


def _gradients(loss: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    # Gradients take the dtypes of the forward pass, which autocast would change again.
    with torch.autocast(loss.device.type, enabled=False):
        return torch.autograd.grad(loss, tensors, allow_unused=True)


def _sum(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    if total is None or more is None:
        return total if more is None else more
    return total.add_(more)


def _check_chain(model: PreTrainedModel, pack: Pack) -> None:
    if not (pack.on_host.visible_until == len(pack)).all():
        raise UnsupportedModelError(
            f"{type(model).__name__} runs with its own attention, which would let branches and packed rows see each "
            f"other (pack with {', '.join(sorted(set(pack.rows)))}): call prepare_model first, or, for layers "
            'whose state does not branch, use layout="per_turn" and one row a pack'
        )


def _check_branched(model: PreTrainedModel, calls: int, expected: int) -> None:
    """Whatever else may replace a layer's code, or keep the argument from it, never trains with state that leaks."""
    if calls != expected:
        raise UnsupportedModelError(
            f"{type(model).__name__}: state branched in {calls} of the {expected} functions of its layers, so branches "
            "leak into each other: call prepare_model first; if that was done, something in the installed transformers "
            f"{transformers.__version__} stands between the model and its layers' functions; where that is a "
            "kernel for whole layers, load the model with use_kernels=False"
        )
