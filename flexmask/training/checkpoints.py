"""A Trainer whose run goes on from a checkpoint as if it had never stopped, in whatever number of processes.

What the Trainer of transformers (5.23) leaves out of a checkpoint, or does otherwise in a run that goes on, is here:
what has been spent and not yet logged, a step too many, the mean of all losses, sharded weights.
"""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from accelerate.utils import DistributedType
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from flexmask.model.support import unwrapped
from flexmask.training.collator import OnePassCollator
from flexmask.training.run_totals import IntervalFigures, RunTotals
from flexmask.training.sharding import allow_on_cpu, shard, told_apart, whole_state


class CheckpointingTrainer(Trainer):
    """`interval`: the figures since the last log, which the training fills."""

    # The Trainer allows for more of each.
    model: nn.Module
    data_collator: OnePassCollator

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.add_callback(RunTotals())
        self.add_callback(_AtTheStart(self._begin))  # behind the totals, which it reads
        self.interval = IntervalFigures(self.args.world_size, self.data_collator.objective)

    @property
    def run_totals(self) -> RunTotals:
        """What the run has spent so far. The Trainer may put another object in its place when it resumes."""
        return next(one for one in self.callback_handler.callbacks if isinstance(one, RunTotals))

    def add_up(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Sums over all processes, each of which has the same names."""
        device = self.args.device
        values = [torch.as_tensor(value, dtype=torch.float64, device=device) for value in sums.values()]
        return dict(zip(sums, self.accelerator.reduce(torch.stack(values), "sum").tolist(), strict=True))

    # ---- Going on ----

    def _begin(self) -> None:
        """Right before the first step. Where the run goes on from a checkpoint, so do the losses that its next log is a
        mean of, and those of `train_loss`, which the Trainer both begins at zero; and the best checkpoint is that of
        this folder, wherever it lay when its path was written down."""
        totals, state = self.run_totals, self.state
        self._total_loss_scalar = totals.loss_sum
        if unlogged := totals.unlogged:
            self._tr_loss += unlogged["loss"]
            self._globalstep_last_logged -= unlogged["steps"]
            self.interval.go_on(unlogged["interval"], adds=self.accelerator.is_main_process)
        if state.best_global_step:
            best = os.path.join(cast(str, self.args.output_dir), f"checkpoint-{state.best_global_step}")
            state.best_model_checkpoint = best if os.path.isdir(best) else None

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer trains one step too many when it resumes from the last one."""
        finished = self.state.global_step >= self.state.max_steps or any(
            one.early_stopping_patience_counter >= one.early_stopping_patience
            for one in self.callback_handler.callbacks
            if isinstance(one, EarlyStoppingCallback)
        )
        if finished:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        """The Trainer divides by the steps since the run was resumed; here all of them count."""
        totals = self.run_totals
        self._total_loss_scalar, self._initial_global_step = self._total_loss_scalar + self._unlogged_loss(), 0
        self._tr_loss.zero_()
        return super()._finalize_training(trial, num_train_samples, time.time() - totals.elapsed)

    def _unlogged_loss(self) -> float:
        """The sum of the losses of the steps since the last log."""
        return self.accelerator.gather(self._tr_loss).mean().item()

    # ---- Saving ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.run_totals.loss_sum = self._total_loss_scalar
        self.run_totals.unlogged = {
            "loss": self._unlogged_loss(),
            "steps": self.state.global_step - self._globalstep_last_logged,
            "interval": self.interval.saved(self.add_up),
        }
        # The Trainer knows the best checkpoint by its folder, and looks for it before sharded weights are there.
        os.makedirs(os.path.join(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}"), exist_ok=True)
        super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A model that `from_pretrained` loads, also of a sharded one, whose checkpoints stay in parts. It is there
        when this returns, in every process."""
        if self.is_fsdp_enabled and not _internal_call:
            self._save(output_dir, whole_state(self.accelerator, self.model))
        else:
            super().save_model(output_dir, _internal_call)
        self.accelerator.wait_for_everyone()

    def _save_rng_state(self, output_dir: str) -> None:
        """Of each process its own; all are there before the trainer state, which says that a checkpoint is whole."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if (inner := unwrapped(self.model)) is not self.model:  # peft saves adapters, and not how to generate with them
            inner.generation_config.save_pretrained(cast(str, output_dir or self.args.output_dir))

    # ---- Sharding ----

    def create_accelerator_and_postprocess(self) -> None:
        """The Trainer's, with parameters sharded on CPUs as well."""
        super().create_accelerator_and_postprocess()
        allow_on_cpu(self.accelerator, self.args)
        self.is_fsdp_enabled = self.accelerator.distributed_type is DistributedType.FSDP

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_fsdp_enabled:
            shard(self.model, self.accelerator.state.fsdp_plugin)
        with told_apart(self.model):
            return super()._prepare_for_training(*args, **kwargs)


class _AtTheStart(TrainerCallback):
    """Calls a function when a training begins, after what is to go on has been loaded."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer calls it right before the first step."""
        self._function()
