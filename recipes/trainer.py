"""The configuration as the Trainer takes it, and what a run reports while it trains."""

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from transformers import TrainerCallback, TrainingArguments

from flexmask import OnePassCollator, Pack
from flexmask.viz import plot_pack
from recipes.chat import ChatResult
from recipes.config import TrainConfig
from recipes.reporting import Reporter

matplotlib.use("Agg")
PRINTED = {"loss": "loss", "thinking_loss": "thinking", "answer_loss": "answer"}
SAMPLE_CHATS = 20


def training_arguments(config: TrainConfig, checkpoints: Path) -> TrainingArguments:
    """`trainer` as transformers' TrainingArguments; batch sizes count conversations.

    Raises ValueError under several processes, each of which would write the same run folder.
    """
    trainer = config.trainer
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: this recipe runs in one process; under torchrun use OnePassTrainer"
            " in a script of your own"
        )
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=trainer.steps,
        per_device_train_batch_size=trainer.conversations_per_step,
        learning_rate=trainer.learning_rate,
        lr_scheduler_type=trainer.schedule,
        warmup_steps=trainer.warmup_steps,
        adam_beta1=trainer.adam_beta1,
        adam_beta2=trainer.adam_beta2,
        weight_decay=trainer.weight_decay,
        max_grad_norm=trainer.max_grad_norm,
        bf16=trainer.mixed_precision == "bf16",
        activation_checkpointing=config.model.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=trainer.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a loss that is not finite stops the run; it is never smoothed over
        save_strategy="steps" if trainer.save_every else "no",
        save_steps=trainer.save_every or trainer.steps,
        save_total_limit=trainer.keep_checkpoints,
        seed=config.seed,
        dataloader_pin_memory=False,  # a batch holds packs, which move as a whole
        disable_tqdm=True,
        report_to=[],
    )


class ReportingCallback(TrainerCallback):
    """Passes the Trainer's logs on: to the Reporter, and a line each to the terminal."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if not state.is_world_process_zero:
            return
        values = {name: value for name, value in logs.items() if isinstance(value, (int, float))}
        self.reporter.log(state.global_step, values)
        if "loss" in logs:
            losses = ", ".join(f"{label} {logs[name]:.3f}" for name, label in PRINTED.items() if name in logs)
            speed = f"{logs['tokens_per_second']:,.0f} tokens/s"
            print(f"step {state.global_step:>5}/{state.max_steps}  {losses}  {speed}", flush=True)


def report_mask(reporter: Reporter, pack: Pack, collator: OnePassCollator) -> None:
    """Save and send the picture of one pack's mask."""
    path = reporter.folder / "block_mask.png"
    figure = plot_pack(pack, collator.block_size)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    reporter.image("block_mask", path, step=0)


def report_chats(reporter: Reporter, chats: Sequence[ChatResult], step: int) -> None:
    """Save and send the first few chats, a row each turn."""
    rows = [
        [chat.name, i, turn.thinking, turn.answer, turn.expected, turn.correct]
        for chat in chats[:SAMPLE_CHATS]
        for i, turn in enumerate(chat.turns)
    ]
    reporter.table("chats", ["conversation", "turn", "thinking", "answer", "expected", "correct"], rows, step)
