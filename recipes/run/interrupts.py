"""SIGINT (Ctrl-C) and SIGTERM (what a scheduler sends): the step is finished, a checkpoint saved, and the run ends."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Self

from transformers import TrainerCallback

from recipes.distributed import ranks
from recipes.run.folder import last_checkpoint
from recipes.terminal.command import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds in which a second signal is the first one again: Ctrl-C reaches a process from the terminal and from torchrun.
_TWICE = 3.0


class StopAfterStep(TrainerCallback):
    """Context manager and callback of the Trainer. While training, the first signal asks for a checkpoint and the end
    after this step; anywhere else in the run, and at the second signal, the process stops at once.

    `message`: how to go on, for whoever sent a signal outside of training. Raises Interrupted.
    """

    def __init__(self, message: str) -> None:
        self.message = message
        self.received: int | None = None
        self.stopping = False  # whether this or another process of the run was asked to
        self._training = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.received is not None and ranks.launched() and time.monotonic() - self._at < _TWICE:
            return
        if self.received is not None:  # the second one
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received, self._at = number, time.monotonic()
        if not self._training:
            raise Interrupted(number, f"stopped by {signal.Signals(number).name}. {self.message}")
        if ranks.rank() == 0:
            print(
                "stopping after this step, with a checkpoint; a second signal stops at once",
                file=sys.stderr,
                flush=True,
            )

    def check(self, step: int, steps: int, folder: Path) -> None:
        """Raise Interrupted where a signal has ended the training of `folder`, after `step` of `steps`."""
        if not self.stopping:
            return
        saved = last_checkpoint(folder)
        kept = f"with a checkpoint of step {saved[1]}" if saved else "without a checkpoint"
        raise Interrupted(
            self.received or signal.SIGTERM, f"stopped after step {step} of {steps}, {kept}. {self.message}"
        )

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._training = True

    def on_step_end(self, args, state, control, **kwargs) -> None:
        # All processes stop behind the same step, or they would wait for each other forever.
        self.stopping = ranks.any_of(self.received is not None)
        self._stop(control)

    def on_log(self, args, state, control, **kwargs) -> None:
        # The Trainer saves behind this and the next, and a signal may come between the end of a step and its saving.
        self.stopping = self.stopping or (self.received is not None and ranks.count() == 1)
        self._stop(control)

    on_evaluate = on_log

    def _stop(self, control) -> None:
        if self.stopping:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._training = False
