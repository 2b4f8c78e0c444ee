"""Pack -> loss: `sum_i weight[i] * CE(logits[previous[i]], input_ids[i])`, and nothing is shifted."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from flexmask.models import UnsupportedModelError, attention_masks, takes_block_masks
from flexmask.packing import Pack
from flexmask.rendering import Role


@dataclass(frozen=True, eq=False)
class TokenLosses:
    """Cross-entropy of each trained token of a pack, all of shape [T], in row order.

    `losses` carries gradients, float32 (float64 for a float64 model); `weights` are the loss weights, `roles`
    tell thinking from answer, `indices` are the tokens' places in the pack.
    """

    losses: torch.Tensor
    weights: torch.Tensor
    roles: torch.Tensor
    indices: torch.Tensor

    def weighted_sum(self) -> torch.Tensor:
        """Scalar with gradients: the pack's part of the loss, not yet divided by the target weight of the step."""
        return (self.losses * self.weights).sum()

    def sums_by_role(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Unweighted loss sum and token count, apart for thinking and answer; detached."""
        losses = self.losses.detach()
        picked = {"thinking": self.roles == Role.THINKING, "answer": self.roles == Role.ANSWER}
        return {name: (losses[pick].sum(), pick.sum()) for name, pick in picked.items()}


def token_losses(model: nn.Module, pack: Pack, block_size: int = 128) -> TokenLosses:
    """Run the model over a pack and return the loss of every trained token.

    Logits are computed only where a trained token is predicted (`logits_to_keep`). The pack must lie on the
    model's device and its length must be a multiple of `block_size`. A model that `prepare_model` left its own
    attention, because its layers carry state, runs over the pack without padding; the pack must be a single chain.
    Raises UnsupportedModelError where it is not, or where the model ignores `logits_to_keep`.
    """
    indices = torch.nonzero(pack.loss_weights[0] > 0).flatten()
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if takes_block_masks(inner):
        inputs = dict(
            input_ids=pack.input_ids,
            position_ids=pack.position_ids,
            attention_mask=attention_masks(inner.config, pack, block_size),
        )
    else:
        _check_chain(model, pack)
        inputs = dict(input_ids=pack.input_ids[:, : pack.tokens])
    output = model(**inputs, logits_to_keep=pack.previous[0, indices], use_cache=False)
    logits = output.logits[0]
    if len(logits) != len(indices):
        raise UnsupportedModelError(
            f"{type(model).__name__} returned {len(logits):,} rows of logits for {len(indices):,} trained tokens: it "
            "does not take logits_to_keep, as causal language models of transformers 5 do"
        )
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    losses = F.cross_entropy(logits, pack.input_ids[0, indices], reduction="none")
    weights = pack.loss_weights[0, indices].to(losses.dtype)
    return TokenLosses(losses, weights, pack.roles[0, indices], indices)


def _check_chain(model: nn.Module, pack: Pack) -> None:
    if not (pack.visible_until[0, : pack.tokens] == pack.tokens).all():
        raise UnsupportedModelError(
            f"{type(model).__name__} runs with its own attention, which would let branches and packed rows see each "
            f"other (pack with {', '.join(sorted(set(pack.rows)))}): call prepare_model first, or, for layers that "
            'carry state, use layout="per_turn" and one row a pack'
        )
