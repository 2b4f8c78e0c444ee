"""What a run reports while it trains and at its end: lines, metrics, the picture of a mask, chats."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Self

import matplotlib
import matplotlib.pyplot as plt
from transformers import TrainerCallback

from flexmask import OnePassTrainer
from flexmask.viz import plot_pack
from recipes.distributed.ranks import rank
from recipes.evaluation.replies import ChatResult
from recipes.run.destinations import Nowhere, Reporter
from recipes.run.folder import MASK
from recipes.terminal.progress import duration, progress

matplotlib.use("Agg")
PRINTED = {
    "loss": "loss",
    "thinking_loss": "thinking",
    "answer_loss": "answer",
    "preference_accuracy": "preferred",
    "preference_margin": "margin",
}


class ReportingCallback(TrainerCallback):
    """Passes the Trainer's logs on: to the Reporter, and a line each to the terminal, with a bar below them.

    A context manager, so that the bar is gone whatever ends the training.
    """

    def __init__(self, reporter: Reporter | Nowhere) -> None:
        self.reporter = reporter
        self._bar = ExitStack()
        self._rate = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._started, self._first = time.monotonic(), state.global_step
        self._advance = self._bar.enter_context(progress(state.max_steps, "training", lines=False))
        self._advance(state.global_step)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self._advance(note=self._rate)
        if state.global_step >= state.max_steps:
            control.should_log = True  # the last loss of a run is reported, whatever `log_every`

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._bar.close()

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        # transformers says "eval" of the data set that a user knows as held out.
        values = {
            name.replace("eval_", "heldout_", 1): value
            for name, value in logs.items()
            if isinstance(value, (int, float))
        }
        self.reporter.log(state.global_step, values)
        where = f"step {state.global_step:>5}/{state.max_steps}"
        if "loss" in logs:
            self._rate = f"{logs['tokens_per_second']:,.0f} tokens/s"
            print(f"{where}  {_losses(logs)}  {self._rate}{self._left(state)}", flush=True)
        elif "eval_loss" in logs:
            print(f"{where}  held out: {_losses(logs, 'eval_')}", flush=True)

    def _left(self, state) -> str:
        done, left = state.global_step - self._first, state.max_steps - state.global_step
        return f", {duration((time.monotonic() - self._started) / done * left)} left" if done and left else ""


def _losses(logs: dict[str, float], prefix: str = "") -> str:
    found = {label: logs[prefix + name] for name, label in PRINTED.items() if prefix + name in logs}
    return ", ".join(f"{label} {value:.3f}" for label, value in found.items())


def report_mask(reporter: Reporter, trainer: OnePassTrainer) -> None:
    """Save and send the picture of the mask of a pack as this trainer makes them."""
    if rank() > 0:
        return
    conversations = trainer.train_dataset[: trainer.args.per_device_train_batch_size]
    pack = trainer.data_collator(conversations)["packs"][0]
    path = reporter.folder / MASK
    figure = plot_pack(pack, trainer.data_collator.block_size)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    reporter.image("block_mask", path, step=0)


def report_chats(reporter: Reporter, chats: Sequence[ChatResult], step: int) -> None:
    """Save and send the chats, a row each turn; a turn that was not asked has the reason in `unasked`. `asked` is what
    stands in front of the turn, behind the answer before."""
    columns = [
        "conversation",
        "history",
        "turn",
        "asked",
        "thinking",
        "answer",
        "expected",
        "correct",
        "thinks",
        "ended",
    ]
    rows = []
    for chat in chats:
        for turn in chat.turns:
            said = [
                turn.asked,
                turn.thinking,
                turn.answer,
                turn.expected,
                turn.correct,
                str(turn.reply.state),
                turn.reply.ended,
            ]
            rows.append([chat.name, chat.history, turn.turn, *said, None])
        rows += [[chat.name, chat.history, turn, *[None] * 7, reason] for turn, reason in chat.unasked.items()]
    reporter.table("chats", [*columns, "unasked"], rows, step)
