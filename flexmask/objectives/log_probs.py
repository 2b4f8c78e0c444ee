"""Log-probabilities of the trained tokens of a pack -> those of its passes, and of the candidates that compete."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flexmask.tree.packing import Pack
from flexmask.tree.passes import PassTable, terms_of


@dataclass(frozen=True, eq=False)
class TermTensors:
    """The terms of a pack (`flexmask.tree.passes.Terms`) on its device, [N] each.

    place: of the token among the trained tokens of the pack, whose losses `token_losses` makes. of: the pass, as an
    index in the table. weight: float64.
    """

    place: Tensor
    of: Tensor
    weight: Tensor

    @classmethod
    def of_pack(cls, pack: Pack) -> TermTensors:
        """The terms of all passes of a pack, on its device."""
        host, device = pack.on_host, pack.input_ids.device
        terms = terms_of(pack.passes, host.visible_until[0].numpy(), host.position_ids[0].numpy())
        trained = np.flatnonzero(host.loss_weights[0].numpy() > 0)
        place, of = torch.from_numpy(np.searchsorted(trained, terms.token)), torch.from_numpy(terms.of)
        weight = torch.from_numpy(terms.weight.astype(np.float64))
        return cls(*(one.to(device, non_blocking=True) for one in (place, of, weight)))


def pass_log_probs(log_probs: Tensor, pack: Pack) -> Tensor:
    """float64 [P]: of each pass in the pack's table the sum of its tokens' log-probabilities, times their loss weights.

    log_probs: [T], of the trained tokens of the pack in row order. Of passes that stand in other packs it is the
    table's `log_prob`, a constant. Raises ValueError where that is not known.
    """
    table = pack.passes
    if np.isnan(table.log_prob[~table.is_here]).any():
        raise ValueError(
            f"the passes that compete in {', '.join(sorted(set(pack.rows)))} are divided over several packs, and their "
            "log-probabilities are not known in each; raise pack_length, or train with OnePassTrainer, which computes "
            "them first"
        )
    elsewhere = torch.from_numpy(np.where(table.is_here, 0, table.log_prob)).to(log_probs.device)
    return elsewhere + log_probs_here(log_probs, pack)


def log_probs_here(log_probs: Tensor, pack: Pack) -> Tensor:
    """As `pass_log_probs`, with 0 for the passes that stand in other packs."""
    terms = TermTensors.of_pack(pack)
    sums = torch.zeros(len(pack.passes), dtype=torch.float64, device=log_probs.device)
    return sums.index_add(0, terms.of, log_probs.double()[terms.place] * terms.weight)


@dataclass(frozen=True, eq=False)
class Candidates:
    """The candidates of the records in a table of passes, in arrays of shape [C], those of a record together.

    of_pass: int64 [P], the candidate of each pass, as an index into the others. group: the record of each, reward: its
    reward. counted: bool, whether the record is counted in this pack: where it is divided over several, in the one that
    holds its first pass.
    """

    of_pass: np.ndarray
    group: np.ndarray
    reward: np.ndarray
    counted: np.ndarray

    @classmethod
    def of(cls, table: PassTable) -> Candidates:
        """The candidates of all passes of a table."""
        keys = np.stack([table.group, table.candidate], axis=1)
        _, first, of_pass = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        group = table.group[first]
        by_turn = np.lexsort((table.turn, table.group))  # the first entry of each group is its first pass
        groups, at = np.unique(table.group[by_turn], return_index=True)
        counted = table.is_here[by_turn][at][np.searchsorted(groups, group)]
        return cls(of_pass.reshape(-1), group, table.reward[first], counted)

    def __len__(self) -> int:
        return len(self.group)

    def sums(self, of_passes: Tensor) -> Tensor:
        """[C]: the values of passes, [P], added up over each candidate."""
        of_pass = torch.from_numpy(self.of_pass).to(of_passes.device)
        return of_passes.new_zeros(len(self)).index_add(0, of_pass, of_passes)
