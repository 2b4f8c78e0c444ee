"""The settings of a run as transformers' Trainer takes them."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames
from transformers.utils.logging import disable_progress_bar

from flexmask import OnePassCollator
from flexmask.attention.kernels import check_backend
from flexmask.model.head import HALF
from flexmask.objectives.preference import Preference
from flexmask.training.collator import check_objective
from recipes.configuration.schema import (
    MixedPrecision,
    ObjectiveKind,
    ParallelConfig,
    ParallelKind,
    TrainConfig,
    TrainerConfig,
)
from recipes.distributed.ranks import PATIENCE, launched
from recipes.models.precision import resolve_precision
from recipes.preparation.rows import PreparedData
from recipes.run.folder import CHECKPOINTS


def training_arguments(config: TrainConfig, folder: Path, evaluates: bool) -> TrainingArguments:
    """`trainer` as transformers' TrainingArguments; batch sizes count conversations.

    evaluates: whether any conversation is held out.

    Raises ValueError for a name that the installed transformers does not have, for a logger, an optimizer or kernels of
    attention whose package is not installed, for kernels that this device does not have, and for what divides the work
    over processes in one that is none of several.
    """
    trainer = config.trainer
    _check_loggers(trainer.report_to)
    settings = _settings(config, folder, evaluates and trainer.evaluate_every > 0)
    try:
        plain = TrainingArguments(**settings)
    except ValueError as error:  # a schedule that goes by the held-out loss
        if "eval strategy" not in str(error):
            raise
        raise ValueError(
            f"trainer.schedule={trainer.schedule}: goes by the held-out loss during training; give "
            "trainer.evaluate_every=<steps>, and data.heldout_conversations where none is held out"
        ) from error
    given = ",".join(f"{name}={value}" for name, value in trainer.optimizer_args.items()) or None
    arguments = TrainingArguments(**settings, optim_args=given) if given else plain
    if given and _optimizer(arguments, trainer) == _optimizer(plain, trainer):
        raise ValueError(
            f"trainer.optimizer_args={trainer.optimizer_args}: {plain.optim.value} of transformers reads none of these"
        )
    _optimizer(arguments, trainer)
    _check_schedule(arguments, trainer)
    precision = resolve_precision(config.model.dtype, config.adapter.kind, trainer.mixed_precision)
    half = arguments.bf16 or precision.dtype in HALF
    try:
        check_backend(config.attention.backend, arguments.device, config.attention.block_size, half)
    except ValueError as error:
        raise ValueError(f"attention.{error}") from error
    return arguments


def _settings(config: TrainConfig, folder: Path, evaluates: bool) -> dict[str, Any]:
    """The arguments of TrainingArguments but for `optim_args`; evaluates: during training."""
    trainer = config.trainer
    precision = resolve_precision(config.model.dtype, config.adapter.kind, trainer.mixed_precision)
    settings: dict[str, Any] = dict(
        output_dir=str(folder / CHECKPOINTS),
        # A Trainer takes whatever accelerator there is; the block-sparse attention is written for CUDA and CPU.
        use_cpu=not torch.cuda.is_available(),
        max_steps=trainer.steps or -1,
        num_train_epochs=trainer.epochs or 0,
        per_device_train_batch_size=trainer.conversations_per_step,
        accelerator_config={"split_batches": True},  # so many in all processes together, whatever their number
        ddp_timeout=int(PATIENCE.total_seconds()),
        **_sharding(config.parallel),
        learning_rate=trainer.learning_rate,
        lr_scheduler_type=_named("trainer.schedule", trainer.schedule, SchedulerType),
        lr_scheduler_kwargs=trainer.schedule_args or None,
        warmup_steps=trainer.warmup_steps,
        adam_beta1=trainer.adam_beta1,
        adam_beta2=trainer.adam_beta2,
        weight_decay=trainer.weight_decay,
        max_grad_norm=trainer.max_grad_norm,
        bf16=precision.mixed_precision is MixedPrecision.bf16,
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
        dataloader_num_workers=_loader_workers(trainer),
        disable_tqdm=True,
        report_to=list(trainer.report_to),
    )
    if trainer.optimizer != "auto":
        settings["optim"] = _named("trainer.optimizer", trainer.optimizer, OptimizerNames)
    return settings


def _loader_workers(trainer: TrainerConfig) -> int:
    """As many as are asked for; without a word, those that keep a GPU from waiting for packs."""
    if trainer.loader_workers is None:
        return 2 if torch.cuda.is_available() else 0
    return trainer.loader_workers


def collator_of(config: TrainConfig) -> OnePassCollator:
    """What makes packs of the rows of a step."""
    return OnePassCollator(
        config.duplication.pack_length,
        block_size=config.attention.block_size,
        backend=config.attention.backend,
        context_parallel=config.parallel.context_parallel,
        objective=objective_of(config),
    )


def objective_of(config: TrainConfig) -> Preference | None:
    """What compares the answers of a record; None: fine-tuning, which compares nothing."""
    if config.objective.kind is ObjectiveKind.sft:
        return None
    return Preference(str(config.objective.loss), config.objective.beta)


def check_answers(config: TrainConfig, *data: PreparedData) -> None:
    """Raise ValueError for rows of a record whose answers the objective cannot train."""
    objective = objective_of(config)
    for prepared in data:
        if objective is not None or prepared.competing:  # else there is nothing to look for
            for rows in prepared.items:
                check_objective(rows, objective)


def in_one_process(config: TrainConfig) -> TrainConfig:
    """The settings by which a single process looks at a run that may be one of several."""
    parallel = replace(config.parallel, kind=ParallelKind.ddp, context_parallel=False)
    return replace(config, parallel=parallel)


def _sharding(parallel: ParallelConfig) -> dict[str, Any]:
    divides = {
        "parallel=fsdp: divides a model": parallel.kind is ParallelKind.fsdp,
        "parallel.context_parallel=true: divides packs": parallel.context_parallel,
    }
    if not launched() and any(divides.values()):
        what = next(said for said, asked in divides.items() if asked)
        raise ValueError(
            f"{what} over processes, and this is a single one; start them with NPROC=<GPUs> make train, or with "
            "torchrun"
        )
    if parallel.kind is ParallelKind.ddp:
        return {}
    # Each process writes its part of a checkpoint, from which any number of them can go on.
    settings = {"state_dict_type": "SHARDED_STATE_DICT", "reshard_after_forward": parallel.reshard_after_forward}
    return {"fsdp": True, "fsdp_config": settings}


def _optimizer(arguments: TrainingArguments, trainer: TrainerConfig) -> tuple:
    """The class and arguments of the optimizer; ValueError where its package is not installed."""
    try:
        return Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, ValueError) as error:
        given = f", trainer.optimizer_args={trainer.optimizer_args}" if trainer.optimizer_args else ""
        raise ValueError(f"trainer.optimizer={trainer.optimizer}{given}: {error}") from error


def _check_schedule(arguments: TrainingArguments, trainer: TrainerConfig) -> None:
    """Make the schedule once, over a parameter of its own: transformers checks its arguments only there."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=trainer.learning_rate)
    try:
        get_scheduler(
            arguments.lr_scheduler_type,
            optimizer,
            num_warmup_steps=arguments.get_warmup_steps(1000),
            num_training_steps=1000,
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
        )
    except (TypeError, ValueError) as error:
        reason = str(error).replace("lr_scheduler_kwargs", "trainer.schedule_args")
        raise ValueError(
            f"trainer.schedule={trainer.schedule}, trainer.schedule_args={trainer.schedule_args}: {reason}"
        ) from error


def planned_steps(trainer: TrainerConfig, conversations: int) -> tuple[int, float]:
    """How long a run is: optimizer steps, and times through the data.

    Raises ValueError where warming up would take longer than the run.
    """
    an_epoch = math.ceil(conversations / trainer.conversations_per_step)
    steps = trainer.steps or math.ceil(trainer.epochs * an_epoch)
    if trainer.warmup_steps > steps:
        raise ValueError(
            f"trainer.warmup_steps={trainer.warmup_steps:g}: is more than the {steps} steps that trainer.epochs="
            f"{trainer.epochs:g} makes; a number below 1 is a share of them"
        )
    return steps, steps / an_epoch


def check_heldout(trainer: TrainerConfig, heldout: int, searched: bool = False) -> None:
    """Raise ValueError for settings, or a search over them, that go by the held-out loss where nothing is held out."""
    if searched and not heldout:
        raise ValueError(
            "a search goes by the held-out loss, and no conversation is held out; give "
            "data.heldout_conversations=<number>"
        )
    if not heldout and (trainer.keep_best or trainer.early_stopping):
        raise ValueError(
            f"trainer.keep_best={trainer.keep_best}, trainer.early_stopping={trainer.early_stopping}: go by the "
            "held-out loss, and no conversation is held out; give data.heldout_conversations=<number>"
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
    """No bars of transformers, since recipes/terminal shows what takes long, and nothing of what its Trainer logs about
    its own doings: weights that are stored once though two modules share them, how it sorts checkpoints."""
    disable_progress_bar()
    for name in (
        "transformers.trainer",
        "transformers.trainer_utils",
        "transformers.trainer_callback",  # of early stopping, with a setting that is not ours
        "accelerate.utils.fsdp_utils",  # that it writes checkpoints
        "transformers.tokenization_utils_base",  # of long texts, which are refused where they do not fit
    ):
        logging.getLogger(name).setLevel(logging.ERROR)


def early_stopping(trainer: TrainerConfig) -> list[TrainerCallback]:
    patience = trainer.early_stopping
    return [EarlyStoppingCallback(patience)] if patience else []
