"""Pairs of a better and a worse answer: DPO, its length-normalised form, IPO. The names are TRL's.

With h = log p(better) - log p(worse), less the same by the reference model:

    sigmoid        -log sigmoid(beta h)                 Rafailov et al. 2023, arXiv 2305.18290, equation 7
    sigmoid_norm   the same of means over tokens        Lambert et al. 2024, arXiv 2411.15124, section 5.1.2
    ipo            (h - 1 / (2 beta))^2 of means        Azar et al. 2023, arXiv 2310.12036, equation 17

IPO takes means as TRL (1.16) does, which has asked its authors: sums would grow with the length.

The log-probability of a candidate is the sum over the turns that it generates, whatever the harness shows between them.
Loss weights multiply the log-probabilities of tokens, and tokens are counted by them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flexmask.objectives.log_probs import Candidates, pass_log_probs
from flexmask.tree.layouts import Row
from flexmask.tree.packing import Pack


def _sigmoid(h: Tensor, beta: float) -> Tensor:
    return -F.logsigmoid(beta * h)


def _ipo(h: Tensor, beta: float) -> Tensor:
    return (h - 1 / (2 * beta)) ** 2


# The loss of (h, beta), and whether h is of means over tokens.
KINDS: dict[str, tuple[Callable[[Tensor, float], Tensor], bool]] = {
    "sigmoid": (_sigmoid, False),
    "sigmoid_norm": (_sigmoid, True),
    "ipo": (_ipo, True),
}


class Preference:
    """An `Objective` (flexmask.model.loss) of packs whose rows hold two candidates each, of different rewards.

    kind: a name of `KINDS`. beta: how far the model may move from the reference; larger is nearer.

    The loss of a step is the mean over its pairs. Logged are the share of pairs whose better answer has gained more
    than the worse one (`preference_accuracy`), and how much more (`preference_margin`, beta h).

    Raises ValueError for another kind, or a beta that is not positive.
    """

    def __init__(self, kind: str = "sigmoid", beta: float = 0.1) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}: write one of {', '.join(KINDS)}")
        if not beta > 0:
            raise ValueError(f"beta={beta:g} must be positive")
        self.kind, self.beta = kind, beta

    @staticmethod
    def check(rows: Sequence[Row]) -> None:
        """Raise ValueError for the rows of a record, at least one, that is no pair."""
        # Where a pair is divided over several rows, the table of each has the passes of all.
        rewards = Candidates.of(rows[0].passes).reward
        if len(rewards) == 2 and rewards[0] != rewards[1] and not np.isnan(rewards).any():
            return
        found = (
            "one answer"
            if np.isnan(rewards).any()
            else f"answers of the rewards {', '.join(map('{:g}'.format, rewards))}"
        )
        raise ValueError(
            f"{rows[0].name}: a preference is a pair of a better and a worse answer, and this record has {found}; give "
            "'chosen' and 'rejected', each with a turn to train, or leave the record out"
        )

    def __call__(self, log_probs: Tensor, pack: Pack) -> tuple[Tensor, Mapping[str, Tensor]]:
        """(the sum of the losses of the pairs in a pack, float64; the sums that `means` takes). A pair that is divided
        over packs is computed in each of them, for its gradients there, and counted in one."""
        table, device = pack.passes, log_probs.device
        candidates = Candidates.of(table)
        gained = pass_log_probs(log_probs, pack) - torch.from_numpy(table.reference).to(device)
        of_candidates = candidates.sums(gained)
        loss, by_token = KINDS[self.kind]
        if by_token:
            of_candidates = of_candidates / candidates.sums(torch.from_numpy(table.weight).to(device))
        # Of each record the worse one and then the better one.
        worse, better = torch.from_numpy(np.lexsort((candidates.reward, candidates.group)).reshape(-1, 2).T).to(device)
        h = of_candidates[better] - of_candidates[worse]
        losses = loss(h, self.beta)
        counted = torch.from_numpy(candidates.counted).to(device)[better]
        total = (losses - losses.detach() * ~counted).sum()
        figures = {
            "pairs": counted.sum(),
            "pairs_right": ((h > 0) & counted).sum(),
            "margin_sum": (self.beta * h * counted).sum(),
        }
        return total, figures

    @staticmethod
    def means(sums: Mapping[str, float]) -> dict[str, float]:
        """What is logged, of `figures` added up over packs; nothing where they hold no pair."""
        if not sums.get("pairs"):
            return {}
        return {
            "preference_accuracy": float(sums["pairs_right"] / sums["pairs"]),
            "preference_margin": float(sums["margin_sum"] / sums["pairs"]),
        }
