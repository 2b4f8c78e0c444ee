"""What an objective compares with: log-probabilities of passes by the model before training, computed once on the same
trees and kept in a file for a run that goes on; and those of passes that stand in another pack of the same batch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import gather_object

from flexmask.model.loss import token_losses
from flexmask.model.support import evaluating
from flexmask.objectives.log_probs import log_probs_here
from flexmask.objectives.preference import Preference
from flexmask.training.batches import conversations_at_once
from flexmask.training.checkpoints import CheckpointingTrainer
from flexmask.training.trainer_inputs import datasets_of
from flexmask.tree.layouts import Row
from flexmask.tree.packing import Pack


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


class ReferencingTrainer(CheckpointingTrainer):
    """A Trainer that knows the reference of its data. objective: what compares with it; None: fine-tuning."""

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
            dataset.values = self._reference_of(dataset.rows)

    def _reference_of(self, rows: Sequence[Sequence[Row]]) -> list[np.ndarray]:
        """The `values` of `ReferencedRows`, computed by all processes together."""
        found, size = [], conversations_at_once(self.args)
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            mine = list(self._pass_log_probs(self.data_collator(batch)["packs"]).items())
            of_all = dict(gather_object(mine) if self.args.world_size > 1 else mine)
            for group, of_one in enumerate(batch):
                found.append(np.array([of_all[group, turn] for turn in np.sort(of_one[0].passes.turn).tolist()]))
        return found

    def _with_log_probs(self, batch: dict[str, Any]) -> list[Pack]:
        """The packs of a batch. Where passes that compete stand in several packs, each knows the log-probabilities of
        those in the others, for which the model runs once more."""
        if not batch["figures"].divided:
            return batch["packs"]
        known = self._pass_log_probs(batch["packs"])
        found = []
        for one in batch["packs"]:
            table = one.passes
            keys = zip(table.group.tolist(), table.turn.tolist(), strict=True)
            elsewhere = [np.nan if is_here else known[key] for key, is_here in zip(keys, table.is_here, strict=True)]
            found.append(replace(one, passes=replace(table, log_prob=np.array(elsewhere, dtype=np.float64))))
        return found

    @torch.no_grad()
    def _pass_log_probs(self, packs: Sequence[Pack]) -> dict[tuple[int, int], float]:
        """The log-probability of each pass that stands in `packs`, weighed as the loss, by (group, turn)."""
        found: dict[tuple[int, int], float] = {}
        for one in packs:
            one = one.to(self.args.device, non_blocking=True)
            losses = token_losses(self.model, one, self.data_collator.block_size).losses
            table, sums = one.passes, log_probs_here(-losses, one).tolist()
            keys = zip(table.group.tolist(), table.turn.tolist(), strict=True)
            found |= {key: value for key, value, is_here in zip(keys, sums, table.is_here, strict=True) if is_here}
        return found
