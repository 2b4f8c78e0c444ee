"""The configuration as the Trainer takes it, and what a run reports while it trains."""

import logging
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import matplotlib
import matplotlib.pyplot as plt
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames
from transformers.utils.logging import disable_progress_bar

from flexmask import OnePassCollator, Pack
from flexmask.viz import plot_pack
from recipes.models import resolve_precision
from recipes.progress import duration, progress
from recipes.replies import ChatResult
from recipes.reporting import Reporter
from recipes.run_folder import CHECKPOINTS
from recipes.schema import History, MixedPrecision, TrainConfig

matplotlib.use("Agg")
PRINTED = {"loss": "loss", "thinking_loss": "thinking", "answer_loss": "answer"}
SAMPLE_CHATS = 20


def training_arguments(config: TrainConfig, folder: Path, evaluates: bool) -> TrainingArguments:
    """`trainer` as transformers' TrainingArguments; batch sizes count conversations.

    evaluates: whether any conversation is held out.

    Raises ValueError for a name that the installed transformers does not have, for a logger or an optimizer whose
    package is not installed, and under several processes, each of which would write the same run folder.
    """
    trainer = config.trainer
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: this recipe runs in one process; under torchrun use OnePassTrainer"
            " in a script of your own"
        )
    _check_loggers(trainer.report_to)
    evaluates = evaluates and trainer.evaluate_every > 0
    settings = dict(
        output_dir=str(folder / CHECKPOINTS),
        max_steps=trainer.steps or -1,
        num_train_epochs=trainer.epochs or 0,
        per_device_train_batch_size=trainer.conversations_per_step,
        learning_rate=trainer.learning_rate,
        lr_scheduler_type=_named("trainer.schedule", trainer.schedule, SchedulerType),
        lr_scheduler_kwargs=trainer.schedule_args or None,
        warmup_steps=trainer.warmup_steps,
        adam_beta1=trainer.adam_beta1,
        adam_beta2=trainer.adam_beta2,
        weight_decay=trainer.weight_decay,
        max_grad_norm=trainer.max_grad_norm,
        bf16=resolve_precision(config).mixed_precision is MixedPrecision.bf16,
        use_cpu=not torch.accelerator.is_available(),  # transformers takes bf16 on CPU only where it is told of the CPU
        torch_compile=trainer.torch_compile,
        neftune_noise_alpha=trainer.neftune_noise_alpha,
        activation_checkpointing=config.model.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=trainer.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a loss that is not finite stops the run; it is never smoothed over
        save_strategy="steps" if trainer.save_every else "no",
        save_steps=trainer.save_every or 1,
        save_total_limit=trainer.keep_checkpoints,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=trainer.evaluate_every if evaluates else None,
        load_best_model_at_end=trainer.keep_best and evaluates,
        metric_for_best_model="eval_loss" if evaluates else None,
        greater_is_better=False if evaluates else None,
        restore_callback_states_from_checkpoint=True,  # how long early stopping has waited
        seed=config.seed,
        dataloader_pin_memory=False,  # a batch holds packs, which move as a whole
        disable_tqdm=True,
        report_to=list(trainer.report_to),
    )
    if trainer.optimizer != "auto":
        settings["optim"] = _named("trainer.optimizer", trainer.optimizer, OptimizerNames)
        settings["optim_args"] = ",".join(f"{name}={value}" for name, value in trainer.optimizer_args.items()) or None
    arguments = TrainingArguments(**settings)
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, ValueError) as error:  # of a package that is not installed
        raise ValueError(f"trainer.optimizer={trainer.optimizer}: {error}") from error
    return arguments


def check_heldout(config: TrainConfig, heldout: int) -> None:
    """Raise ValueError for settings that go by the held-out loss where nothing is held out."""
    if not heldout and (config.trainer.keep_best or config.trainer.early_stopping):
        raise ValueError(
            f"trainer.keep_best={config.trainer.keep_best}, trainer.early_stopping={config.trainer.early_stopping}: go "
            "by the held-out loss, and no conversation is held out; give data.heldout_conversations=<number>"
        )


def _check_loggers(names: Sequence[str]) -> None:
    for name in names:
        if name == "wandb":
            raise ValueError("trainer.report_to=[wandb]: wandb has settings of its own here; choose wandb=online")
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(
                f"trainer.report_to=[{name}]: transformers has {', '.join(sorted(INTEGRATION_TO_CALLBACK))}"
            )
        if name not in get_available_reporting_integrations():
            raise ValueError(f"trainer.report_to=[{name}]: its Python package is not installed; pip install {name}")


def _named(key: str, value: str, names: type) -> str:
    known = [str(one.value) for one in names]
    if value not in known:
        raise ValueError(f"{key}={value}: the installed transformers has no such name; it has {', '.join(known)}")
    return value


def quiet() -> None:
    """No bars of transformers, since recipes/progress.py shows what takes long, and none of what its Trainer logs about
    its own doings: weights that are stored once though two modules share them, how it sorts checkpoints."""
    disable_progress_bar()
    for name in ("transformers.trainer", "transformers.trainer_utils"):
        logging.getLogger(name).setLevel(logging.ERROR)


def early_stopping(config: TrainConfig) -> list[TrainerCallback]:
    patience = config.trainer.early_stopping
    return [EarlyStoppingCallback(patience)] if patience else []


class ReportingCallback(TrainerCallback):
    """Passes the Trainer's logs on: to the Reporter, and a line each to the terminal, with a bar below them.

    A context manager, so that the bar is gone whatever ends the training.
    """

    def __init__(self, reporter: Reporter) -> None:
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
        if not state.is_world_process_zero:
            return
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


def report_mask(reporter: Reporter, pack: Pack, collator: OnePassCollator) -> None:
    """Save and send the picture of one pack's mask."""
    path = reporter.folder / "block_mask.png"
    figure = plot_pack(pack, collator.block_size)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    reporter.image("block_mask", path, step=0)


def report_chats(reporter: Reporter, chats: Sequence[ChatResult], step: int) -> None:
    """Save and send the first few chats of each history, a row each turn."""
    columns = ["conversation", "history", "turn", "thinking", "answer", "expected", "correct", "thinks", "ended"]
    shown = [one for history in History for one in [chat for chat in chats if chat.history == history][:SAMPLE_CHATS]]
    rows = [
        [
            chat.name,
            chat.history,
            turn.turn,
            turn.thinking,
            turn.answer,
            turn.expected,
            turn.correct,
            str(turn.reply.state),
            turn.reply.ended,
        ]
        for chat in shown
        for turn in chat.turns
    ]
    reporter.table("chats", columns, rows, step)
