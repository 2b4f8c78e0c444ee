"""A Trainer with an objective that has a reference: what the model gave the passes of the data before it was trained.
It is computed once, on the same trees, and kept in a file for a run that goes on."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from flexmask.model.loss import token_losses
from flexmask.model.support import evaluating
from flexmask.objectives.log_probs import log_probs_here
from flexmask.objectives.preference import Preference
from flexmask.training.batches import conversations_at_once
from flexmask.training.checkpoints import CheckpointingTrainer
from flexmask.training.collator import OnePassCollator
from flexmask.training.trainer_inputs import datasets_of
from flexmask.tree.layouts import Row
from flexmask.tree.packing import Pack

# (group, turn) of a pass in a batch -> its log-probability.
LogProbs = dict[tuple[int, int], float]


class ReferencedRows(Sequence):
    """Rows of a data set, with the reference in their tables once it is known (`values`).

    values: of each conversation, float64 [P], those of its turns in ascending order; None: not known yet.
    """

    def __init__(self, rows: Sequence[Sequence[Row]]) -> None:
        self.rows = rows
        self.values: list[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        rows = self.rows[index]
        if self.values is None:
            return rows
        values, turns = self.values[index], np.sort(rows[0].passes.turn)
        return tuple(
            replace(row, passes=replace(row.passes, reference=values[np.searchsorted(turns, row.passes.turn)]))
            for row in rows
        )

    def save(self, path: Path) -> None:
        """Write the values to a file, which is there whole or not at all."""
        assert self.values is not None
        partial = path.with_suffix(".partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, lengths=[len(one) for one in self.values], values=np.concatenate(self.values))
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Take the values of a file. Raises ValueError where there is none, or it is of other data."""
        if not path.is_file():
            raise ValueError(
                f"{path} is not there: the reference of a run is what the model was before it, and this one goes on; "
                "begin a new run"
            )
        with np.load(path, allow_pickle=False) as saved:
            lengths, values = saved["lengths"], saved["values"]
        if lengths.tolist() != [len(rows[0].passes) for rows in self.rows]:
            raise ValueError(f"{path} is the reference of other data than this run has now; begin a new run")
        self.values = np.split(values, np.cumsum(lengths)[:-1])


def reference_of(
    rows: Sequence[Sequence[Row]],
    collator: OnePassCollator,
    at_once: int,
    log_probs: Callable[[Pack], Tensor],
    gather: Callable[[list], list],
) -> list[np.ndarray]:
    """The `values` of `ReferencedRows`, computed by all processes together.

    at_once: conversations of a batch. log_probs: those of the trained tokens of a pack, [T], by the reference. gather:
    the entries of the lists of all processes.
    """
    found = []
    for start in range(0, len(rows), at_once):
        batch = rows[start : start + at_once]
        mine = of_passes(collator(batch)["packs"], log_probs)
        of_all = dict(gather(list(mine.items())))
        for group, of_one in enumerate(batch):
            found.append(np.array([of_all[group, turn] for turn in np.sort(of_one[0].passes.turn).tolist()]))
    return found


@torch.no_grad()
def of_passes(packs: Iterable[Pack], log_probs: Callable[[Pack], Tensor]) -> LogProbs:
    """The log-probability of each pass that stands in `packs`, weighed as the loss."""
    found: LogProbs = {}
    for one in packs:
        sums = log_probs_here(log_probs(one), one).tolist()
        table = one.passes
        for group, turn, is_here, value in zip(table.group, table.turn, table.is_here, sums, strict=True):
            if is_here:
                found[int(group), int(turn)] = value
    return found


def with_log_probs(one: Pack, known: LogProbs) -> Pack:
    """The pack, with the log-probabilities of passes that stand in others."""
    table = one.passes
    values = [
        np.nan if is_here else known[int(group), int(turn)]
        for group, turn, is_here in zip(table.group, table.turn, table.is_here, strict=True)
    ]
    return replace(one, passes=replace(table, log_prob=np.array(values, dtype=np.float64)))


class ReferencingTrainer(CheckpointingTrainer):
    """`objective`: that has a reference; None: fine-tuning, which has none."""

    objective: Preference | None
    train_dataset: Any

    def _begin(self) -> None:
        super()._begin()
        self._settle_references()

    def _with_reference(self, dataset: Any) -> Any:
        return dataset if self.objective is None or isinstance(dataset, ReferencedRows) else ReferencedRows(dataset)

    def _settle_references(self) -> None:
        """Before the first step: the reference of all data, computed now, or that of the run that goes on."""
        folder, goes_on = Path(cast(str, self.args.output_dir)), self.state.global_step > 0
        for name, dataset in ({"train": self.train_dataset} | datasets_of(self.eval_dataset, "eval")).items():
            if isinstance(dataset, ReferencedRows):
                path = folder / f"reference-{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}.npz"
                if goes_on:
                    dataset.load(path)
                    continue
                self._settle_reference(dataset, name)
                if self.is_world_process_zero():
                    dataset.save(path)

    def _settle_reference(self, dataset: Any, name: str) -> None:
        if not isinstance(dataset, ReferencedRows) or dataset.values is not None:
            return
        if self.state.global_step:
            raise ValueError(
                f"{name}: the reference is the model as it was before training, and it has been trained; give this "
                "data to the trainer as eval_dataset"
            )
        with evaluating(self.model), self.accelerator.autocast():
            gather = gather_object if self.args.world_size > 1 else list
            at_once = conversations_at_once(self.args)
            dataset.values = reference_of(dataset.rows, self.data_collator, at_once, self._log_probs, gather)

    def _log_probs(self, one: Pack) -> torch.Tensor:
        """Log-probabilities of the trained tokens of a pack, [T], by the model as it is."""
        one = one.to(self.args.device, non_blocking=True)
        return -token_losses(self.model, one, self.data_collator.block_size).losses
