"""Rows of a batch of conversations -> the packs of each process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flexmask.attention.context import divide
from flexmask.objectives.preference import Preference
from flexmask.tree.layouts import Row
from flexmask.tree.packing import Pack, lay_end_to_end, pack_groups, weightless_pack
from flexmask.tree.sharing import even_groups, row_cost, spread, token_costs


@dataclass(frozen=True)
class BatchFigures:
    """What all processes together train of a batch; each knows it without asking the others.

    rows: their names, sorted. target_weight: sum of loss weights, or the number of conversations whose passes an
    objective compares. tokens_computed, tokens_trained: of the rows. packs: with rows in them. spread: the cost of the
    process that has most to do over the mean of all. divided: whether passes that compete stand in several packs.
    """

    rows: tuple[str, ...]
    target_weight: float
    tokens_computed: int
    tokens_trained: int
    packs: int
    spread: float
    divided: bool = False


class OnePassCollator:
    """Pack the rows of a batch of conversations: `[rows, ...] -> {"packs": [Pack, ...], "figures": BatchFigures}`.

    Every process is given the whole batch and packs its own share of the rows, shares being as even as can be in what
    they cost. All get as many packs, because some wrappers have the processes run each pass together: where one has
    fewer, packs of one token without weight follow.

    pack_length: most tokens of one forward pass. The mask is made for so many in every pack, so that a compiled kernel
        sees one shape; nothing else is padded.
    block_size: of the mask; attention computes or skips whole blocks.
    context_parallel: every process is given all packs and computes some blocks of each (flexmask.attention.context),
        for packs that one alone cannot hold.
    backend: which kernels compute attention on CUDA, "auto", "triton" or "flash" (`flexmask.attention.kernels`).
    one_row_per_pack: no packing, for layers whose state runs on from row to row. processes, process_index: how many
        share a batch, and which of them this one is. pair_cost: see `flexmask.tree.sharing.row_cost`. objective: that
        compares the passes of a conversation, whose rows then go to one process. `OnePassTrainer` sets these.

    Raises ValueError for rows whose passes compete, without an objective that compares them, and what its `check`
    raises.
    """

    def __init__(
        self,
        pack_length: int,
        *,
        block_size: int = 128,
        context_parallel: bool = False,
        backend: str = "auto",
        one_row_per_pack: bool = False,
        processes: int = 1,
        process_index: int = 0,
        pair_cost: float = 0.0,
        objective: Preference | None = None,
    ) -> None:
        if pack_length <= 0:
            raise ValueError(f"pack_length={pack_length:,} must be positive")
        self.pack_length = pack_length
        self.block_size = block_size
        self.context_parallel = context_parallel
        self.backend = backend
        self.one_row_per_pack = one_row_per_pack
        self.processes, self.process_index = processes, process_index
        self.pair_cost = pair_cost
        self.objective = objective

    def __call__(self, conversations: Iterable[Sequence[Row]]) -> dict[str, Any]:
        """The packs of this process, and the figures of the batch: the rows of each of its conversations."""
        conversations = list(conversations)
        for of_one in conversations:
            check_objective(of_one, self.objective)
        rows = [
            replace(row, passes=row.passes.moved(0, group))
            for group, of_one in enumerate(conversations)
            for row in of_one
        ]
        if self.context_parallel and self.processes > 1:
            own, packs, sums = self._parts(rows)
        else:
            own, packs, sums = self._shares(rows)
        figures = BatchFigures(
            rows=tuple(sorted({row.name for row in rows})),
            target_weight=float(sum(row.loss_weights.sum(dtype=np.float64) for row in rows))
            if self.objective is None
            else len(conversations),
            tokens_computed=sum(map(len, rows)),
            tokens_trained=sum(int((row.loss_weights > 0).sum()) for row in rows),
            packs=packs,
            spread=spread(sums) if rows else 1.0,
            divided=not all(row.passes.is_here.all() for row in rows),
        )
        return {"packs": own, "figures": figures}

    def _shares(self, rows: Sequence[Row]) -> tuple[list[Pack], int, list[float]]:
        """(packs of this process's share of the rows, packs of all processes, what each process has to do)."""
        # One process has it all, and nothing to weigh.
        costs = [row_cost(row, self.pair_cost) if self.processes > 1 else len(row) for row in rows]
        # What stays together: a row, or those whose passes are compared.
        units: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            units.setdefault(i if self.objective is None else _group_of(row), []).append(i)
        together = list(units.values())
        shares = [
            [i for unit in share for i in together[unit]]
            for share in even_groups([sum(costs[i] for i in unit) for unit in together], self.processes)
        ]
        groups = [self._groups([rows[i] for i in share]) for share in shares]
        own = [self._pack(group) for group in groups[self.process_index]]
        own += [weightless_pack(rows[0], self.pack_length)] * (max(map(len, groups)) - len(own))
        return own, sum(map(len, groups)), [sum(costs[i] for i in share) for share in shares]

    def _pack(self, rows: Sequence[Row]) -> Pack:
        return lay_end_to_end(rows, self.pack_length, [_group_of(row) for row in rows])

    def _parts(self, rows: Sequence[Row]) -> tuple[list[Pack], int, list[float]]:
        """The same where each process computes a part of every pack."""
        own, sums = [], np.zeros(self.processes)
        for group in self._groups(rows):
            whole = self._pack(group)
            costs = token_costs(whole.position_ids[0].numpy(), self.pair_cost)
            contexts, of_each = divide(costs, self.pack_length, self.block_size, self.processes)
            own.append(replace(whole, context=contexts[self.process_index]))
            sums += of_each
        return own, len(own), sums.tolist()

    def _groups(self, rows: Sequence[Row]) -> list[list[Row]]:
        groups = [[row] for row in rows] if self.one_row_per_pack else [list(rows)]
        return [one for group in groups for one in pack_groups(group, self.pack_length)]


def _group_of(row: Row) -> int:
    return int(row.passes.group[0])


def check_objective(rows: Sequence[Row], objective: Preference | None) -> None:
    """Raise ValueError for the rows of a conversation that `objective` cannot train; None: fine-tuning."""
    if objective is not None and rows:
        objective.check(rows)
    elif any(row.passes.competes for row in rows):
        raise ValueError(
            f"{rows[0].name}: its answers compete (chosen and rejected, or completions with rewards), and fine-tuning "
            "would train all of them alike; train with an objective that compares them (objective=Preference(), "
            "objective=dpo on the command line), or give the answers that are to be trained as 'messages'"
        )
