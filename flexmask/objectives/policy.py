"""Policy gradients over the rollouts of a pack: REINFORCE, GRPO, DAPO.

With r = p(token) / p_old(token), A the advantage of the rollout that generated it, and k = log p_ref - log p:

    loss of a token   -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + kl (exp(k) - k - 1)

    REINFORCE  one step on fresh samples: p_old is p, so r is 1, and the gradient is -A times that of log p
    GRPO       clip_low = clip_high, average="rollouts"     Shao et al. 2024, arXiv 2402.03300, equations 3 and 4
    DAPO       clip_high > clip_low, average="tokens"       Yu et al. 2025, arXiv 2503.14476, equations 8 to 12

A token that several rollouts share has a term in each, with the advantage of each, as if they stood apart.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from flexmask.model.loss import TokenLosses, token_losses
from flexmask.objectives.log_probs import Candidates, TermTensors
from flexmask.tree.packing import Pack
from flexmask.tree.passes import PassTable


def policy_loss(
    model: nn.Module,
    pack: Pack,
    advantages: Tensor,
    *,
    old_log_probs: Tensor | None = None,
    reference_log_probs: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float | None = None,
    kl: float = 0.0,
    average: str = "tokens",
    block_size: int = 128,
) -> TokenLosses:
    """Run a prepared model over a pack of rollouts; `total` is the sum of their losses, with gradients.

    advantages: [P], of each pass in `pack.passes` (`group_advantages`), as a constant.
    old_log_probs: [N], of the terms of the pack, as `term_log_probs` gives them by the model that sampled; None: that
        is the model as it is.
    reference_log_probs: the same by the reference of the KL term, whose factor is `kl`; None without one (kl=0).
    clip_low, clip_high: how far the ratio r may move below and above 1; clip_high=None is clip_low.
    average: "tokens", where `total` is a sum over tokens, to be divided by the number of those that a step trains; or
        "rollouts", where it is a sum over rollouts of the means over their tokens, to be divided by their number (those
        of a record that is divided over packs are counted in one of them). Loss weights multiply terms in either.

    `figures` has the sums `clipped`, of terms whose gradient is cut off, `kl_sum`, and `count`, of what `average` is
    over: the weights of all tokens, or the rollouts.
    Raises ValueError for another `average`, values of another shape, and `kl` without a reference or the reverse.
    """
    if average not in ("tokens", "rollouts"):
        raise ValueError(f'average={average!r}: write "tokens" or "rollouts"')
    if (reference_log_probs is None) != (kl == 0):
        raise ValueError(f"kl={kl:g}: it takes kl above 0 and reference_log_probs together, or neither")
    terms = TermTensors.of_pack(pack)
    weight, count = _weights(terms, pack.passes, average)
    high = clip_low if clip_high is None else clip_high
    for name, values, shape in (
        ("advantages", advantages, (len(pack.passes),)),
        ("old_log_probs", old_log_probs, terms.of.shape),
        ("reference_log_probs", reference_log_probs, terms.of.shape),
    ):
        if values is not None and values.shape != shape:
            raise ValueError(f"{name} has the shape {tuple(values.shape)}, and the pack needs {tuple(shape)}")
    advantage = advantages.detach().to(weight)[terms.of]

    def objective(log_probs: Tensor, pack: Pack) -> tuple[Tensor, Mapping[str, Tensor]]:
        here = log_probs.double()[terms.place]
        old = here.detach() if old_log_probs is None else old_log_probs.to(here)
        ratio = (here - old).exp()
        plain, clipped = ratio * advantage, ratio.clamp(1 - clip_low, 1 + high) * advantage
        losses = -torch.minimum(plain, clipped)
        figures = {"clipped": (clipped < plain).sum(), "count": count}
        if reference_log_probs is not None:
            k = reference_log_probs.to(here) - here
            apart = k.exp() - k - 1
            losses = losses + kl * apart
            figures["kl_sum"] = (apart * weight).sum()
        return (losses * weight).sum(), figures

    return token_losses(model, pack, block_size, objective)


def _weights(terms: TermTensors, table: PassTable, average: str) -> tuple[Tensor, Tensor]:
    """(what each term counts, [N], and what they add up to)."""
    if average == "tokens":
        return terms.weight, terms.weight.sum()
    candidates = Candidates.of(table)
    tokens = candidates.sums(torch.from_numpy(table.weight).to(terms.weight))
    of_pass = torch.from_numpy(candidates.of_pass).to(terms.of)
    counts = torch.from_numpy(candidates.counted).to(terms.of.device)
    return terms.weight / tokens[of_pass[terms.of]], ((tokens > 0) & counts).sum()


@torch.no_grad()
def term_log_probs(model: nn.Module, pack: Pack, block_size: int = 128) -> Tensor:
    """[N]: log-probabilities of the terms of a pack (`flexmask.tree.passes.Terms`), without gradients."""
    return -token_losses(model, pack, block_size).losses.double()[TermTensors.of_pack(pack).place]


def group_advantages(table: PassTable, scale: bool = True) -> Tensor:
    """float64 [P]: of each pass the reward of its rollout, less the mean over the rollouts of its record and, with
    `scale`, divided by their standard deviation (that of a sample, as TRL takes it; all alike: 0). Without `scale` it
    is the advantage of Dr. GRPO.

    Raises ValueError for passes without a reward.
    """
    candidates = Candidates.of(table)
    if np.isnan(candidates.reward).any():
        raise ValueError("passes without a reward; give 'rewards' beside the completions of each record")
    advantages = np.zeros(len(candidates))
    for group in np.unique(candidates.group):
        within = candidates.group == group
        rewards = candidates.reward[within].astype(np.float64)
        spread = rewards.std(ddof=1) if scale and len(rewards) > 1 else 1.0
        advantages[within] = (rewards - rewards.mean()) / (spread + 1e-4 if scale else 1.0)
    return torch.from_numpy(advantages[candidates.of_pass])
