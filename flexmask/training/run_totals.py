"""What a training run has spent so far, over interruptions, and the figures of its log."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, cast

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from flexmask.attention.masks import build_block_mask
from flexmask.model.loss import TokenLosses, loss_by_role
from flexmask.objectives.preference import Preference
from flexmask.training.collator import BatchFigures
from flexmask.tree.packing import Pack

_COUNTED = ("tokens_computed", "tokens_trained", "packs")
_SAVED = ("seconds", "loss_sum", "unlogged", *_COUNTED)


class RunTotals(TrainerCallback, ExportableState):
    """Totals of a training run; saved in every checkpoint's trainer state and taken up again from it.

    seconds: wall time of training, interruptions not counted. tokens_computed, tokens_trained, packs: of all processes.
    As they were at the last checkpoint: loss_sum, of the losses of all logged steps, and unlogged, of what was trained
    since (`loss`, `steps`, and `IntervalFigures.saved`).
    """

    def __init__(self) -> None:
        self._start_anew()
        self._started: float | None = None

    def _start_anew(self) -> None:
        self.seconds = self.loss_sum = 0.0
        self.unlogged: dict[str, Any] = {}
        self.tokens_computed = self.tokens_trained = self.packs = 0

    def count(self, figures: BatchFigures) -> None:
        """Add a batch that was trained."""
        for name in _COUNTED:
            setattr(self, name, getattr(self, name) + getattr(figures, name))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin at zero, or with the totals of the checkpoint that the run resumes from."""
        self._start_anew()
        if state.global_step:
            # A list only until the Trainer has made the state.
            saved = cast(dict[str, dict], state.stateful_callbacks).get(type(self).__name__, {})
            for name, value in saved.get("attributes", {}).items():
                setattr(self, name, value)
        self._started = time.perf_counter()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the clock."""
        self.seconds = self.elapsed
        self._started = None

    def state(self) -> dict:
        """What transformers saves of a callback in the trainer state of a checkpoint."""
        return {"args": {}, "attributes": {name: getattr(self, name) for name in _SAVED} | {"seconds": self.elapsed}}

    @property
    def elapsed(self) -> float:
        """Seconds of training up to now."""
        return self.seconds + (0.0 if self._started is None else time.perf_counter() - self._started)


class IntervalFigures:
    """Losses by role, speed and fill of packs since the last log; of all processes but for `block_sparsity`."""

    def __init__(self, processes: int, objective: Preference | None) -> None:
        self._processes, self._objective = processes, objective
        self._start_anew()

    def _start_anew(self) -> None:
        self._tally: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()  # of tensors, so that nothing waits for the device before a log
        self._spreads: list[float] = []
        self._started = time.perf_counter()

    def saved(self, add_up: Callable[[dict[str, Any]], dict[str, float]]) -> dict[str, Any]:
        """What a checkpoint keeps of it. add_up: sums over processes, by name."""
        sums = add_up(self._sums) if self._sums else {}
        return {"tally": dict(self._tally), "sums": sums, "spreads": list(self._spreads)}

    def go_on(self, saved: Mapping[str, Any], adds: bool) -> None:
        """Begin with what `saved` has kept. adds: whether this is the one process that brings in the sums."""
        self._start_anew()
        self._tally.update(saved["tally"])
        self._spreads += saved["spreads"]
        if adds:
            self._sums.update(saved["sums"])

    def count_batch(self, figures: BatchFigures) -> None:
        """Add a batch that was trained."""
        self._tally.update({name: getattr(figures, name) for name in _COUNTED})
        self._spreads.append(figures.spread)

    def count_pack(self, pack: Pack, result: TokenLosses) -> None:
        """Add a pack that this process has trained."""
        self._last_pack = pack
        self._sums.update(result.sums_by_role())

    def take(self, blocks: tuple[int, int], add_up: Callable[[dict[str, Any]], dict[str, float]]) -> dict[str, float]:
        """The figures, and a new interval; none where nothing was trained. add_up: sums over processes, by name."""
        if not self._spreads:
            return {}
        tally, sums, seconds = self._tally, add_up(self._sums), time.perf_counter() - self._started
        spread = {"rank_spread": sum(self._spreads) / len(self._spreads)} if self._processes > 1 else {}
        last = self._last_pack
        self._start_anew()
        compared = self._objective.means(sums) if self._objective else {}
        return (
            loss_by_role(sums)
            | compared
            | {
                "tokens_per_second": tally["tokens_computed"] / seconds,
                "trained_tokens_per_second": tally["tokens_trained"] / seconds,
                "pack_fill": tally["tokens_computed"] / (tally["packs"] * last.pack_length),
                "block_sparsity": build_block_mask(last.visible_until, blocks).sparsity() / 100,
                **spread,
            }
        )
