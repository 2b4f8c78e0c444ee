"""What a training run has spent so far, over interruptions, and the figures of its log."""

import time
from collections import Counter
from typing import Any, cast

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from flexmask.attention.masks import build_block_mask
from flexmask.model.loss import TokenLosses, loss_by_role
from flexmask.tree.packing import Pack

_SAVED = ("seconds", "loss_sum", "tokens_computed", "tokens_trained", "packs", "capacity")


def _counts(pack: Pack, result: TokenLosses) -> dict[str, int]:
    return dict(tokens_computed=len(pack), tokens_trained=len(result.indices), packs=1, capacity=pack.pack_length)


class RunTotals(TrainerCallback, ExportableState):
    """Totals of a training run; saved in every checkpoint's trainer state and taken up again from it.

    seconds: wall time of training, interruptions not counted. loss_sum: of the losses of all steps up to the last
    checkpoint. capacity: `pack_length` of every pack. Tokens and packs are those of this process.
    """

    def __init__(self) -> None:
        self._start_anew()
        self._started: float | None = None

    def _start_anew(self) -> None:
        self.seconds = self.loss_sum = self.earlier_loss_sum = 0.0
        self.tokens_computed = self.tokens_trained = self.packs = self.capacity = 0

    def count(self, pack: Pack, result: TokenLosses) -> None:
        """Add one pack that was trained."""
        for name, count in _counts(pack, result).items():
            setattr(self, name, getattr(self, name) + count)

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
        self.earlier_loss_sum = self.loss_sum
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
    """Losses by role, speed and fill of the packs that this process has trained since the last log."""

    def __init__(self) -> None:
        self._start_anew()

    def _start_anew(self) -> None:
        self._tally: Counter[str] = Counter()
        self._started = time.perf_counter()

    def count(self, pack: Pack, result: TokenLosses) -> None:
        """Add one pack that was trained."""
        self._last_pack = pack
        self._tally.update(_counts(pack, result) | result.sums_by_role())

    def take(self, block_size: int) -> dict[str, float]:
        """The figures, and a new interval; none where nothing was trained."""
        if not self._tally:
            return {}
        tally, seconds = self._tally, time.perf_counter() - self._started
        self._start_anew()
        return loss_by_role(tally) | {
            "tokens_per_second": tally["tokens_computed"] / seconds,
            "trained_tokens_per_second": tally["tokens_trained"] / seconds,
            "pack_fill": tally["tokens_computed"] / tally["capacity"],
            "block_sparsity": build_block_mask(self._last_pack.visible_until, block_size).sparsity() / 100,
        }
