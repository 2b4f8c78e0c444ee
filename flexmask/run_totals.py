"""What a training run has spent so far, over interruptions."""

import time
from collections.abc import Mapping

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

_SAVED = ("seconds", "loss_sum", "tokens_computed", "tokens_trained", "packs", "capacity")


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

    def count(self, counts: Mapping[str, int]) -> None:
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + count)

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._start_anew()
        if state.global_step:
            saved = state.stateful_callbacks.get(type(self).__name__, {})
            for name, value in saved.get("attributes", {}).items():
                setattr(self, name, value)
        self.earlier_loss_sum = self.loss_sum
        self._started = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.seconds = self.elapsed
        self._started = None

    def state(self) -> dict:
        return {"args": {}, "attributes": {name: getattr(self, name) for name in _SAVED} | {"seconds": self.elapsed}}

    @property
    def elapsed(self) -> float:
        """Seconds of training up to now."""
        return self.seconds + (0.0 if self._started is None else time.perf_counter() - self._started)
