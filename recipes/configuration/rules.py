"""What the types of the settings cannot say, checked before anything is loaded."""

import glob
import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from flexmask.conversations.contexts import Rule, load_rule
from flexmask.conversations.episodes import check_key
from flexmask.conversations.thinking import tags_of
from flexmask.importing import is_import_path
from recipes.configuration.schema import (
    GENERATED,
    SPLIT,
    AdapterConfig,
    AdapterKind,
    ContextConfig,
    DataConfig,
    DataKind,
    DuplicationConfig,
    Flaw,
    Layout,
    ModelConfig,
    ModelKind,
    ObjectiveKind,
    ParallelKind,
    SourceConfig,
    TrainConfig,
    TrainerConfig,
)


class ConfigError(ValueError):
    """A setting that no run can start with; the message has a line for each, with its key."""


def validate(config: TrainConfig) -> None:
    """Check what types cannot say, before anything is loaded.

    Raises ConfigError with one line a problem: the key, the value found and what to do.
    """
    problems = [
        *_numbers(config),
        *_model(config.model),
        *_adapter(config.adapter, config.model),
        *_data(config.data),
        *_duplication(config.duplication),
        *_context(config.context, "context"),
        *_context(config.evaluation.context, "evaluation.context"),
        *_trainer(config.trainer),
        *_run(config),
    ]
    if problems:
        raise ConfigError("\n".join(problems))


_AT_LEAST_ONE = (
    "model.tiny.hidden_size",
    "model.tiny.layers",
    "model.tiny.heads",
    "model.tiny.kv_heads",
    "model.tiny.head_dim",
    "model.tiny.intermediate_size",
    "data.processes",
    "duplication.pack_length",
    "trainer.steps",
    "trainer.conversations_per_step",
    "trainer.log_every",
    "trainer.keep_checkpoints",
    "trainer.early_stopping",
    "adapter.r",
    "adapter.lora_alpha",
    "attention.block_size",
    "evaluation.max_new_tokens",
    "evaluation.batch_size",
)
_AT_LEAST_ZERO = (
    "seed",
    "data.seed",
    "data.heldout_conversations",
    "duplication.thinking_weight",
    "duplication.answer_weight",
    "trainer.warmup_steps",
    "trainer.weight_decay",
    "trainer.save_every",
    "trainer.evaluate_every",
    "trainer.loader_workers",
    "trainer.neftune_noise_alpha",
    "evaluation.conversations",
)
_ABOVE_ZERO = ("trainer.learning_rate", "trainer.max_grad_norm", "trainer.epochs", "objective.beta")
_BELOW_ONE = ("trainer.adam_beta1", "trainer.adam_beta2", "adapter.lora_dropout")


def _numbers(config: TrainConfig) -> Iterator[str]:
    rules = (
        (_AT_LEAST_ONE, "must be at least 1", lambda value: value >= 1),
        (_AT_LEAST_ZERO, "must be 0 or more", lambda value: 0 <= value < math.inf),
        (_ABOVE_ZERO, "must be greater than 0", lambda value: 0 < value < math.inf),
        (_BELOW_ONE, "must be from 0 to less than 1", lambda value: 0 <= value < 1),
    )
    for keys, rule, holds in rules:
        for key in keys:
            value: Any = config
            for part in key.split("."):
                value = getattr(value, part, None)  # None: model.tiny of another model
            if value is not None and not holds(value):
                yield f"{key}={value}: {rule}"


def _model(model: ModelConfig) -> Iterator[str]:
    if model.kind is ModelKind.hub and not model.name_or_path:
        yield "model.name_or_path: has no value; give a hub id or a local folder"
    if model.kind is ModelKind.tiny and model.name_or_path is not None:
        yield (
            f"model.name_or_path={model.name_or_path}: the tiny model is built, not loaded; "
            "add model=hub to load another one"
        )
    if model.kind is ModelKind.tiny and not model.from_scratch:
        yield "model.from_scratch=false: the tiny model has no weights to load; choose model=hub to load some"
    if model.kind is ModelKind.tiny and model.tiny is None:
        yield "model.tiny: has no value; give the sizes of the tiny model, as model=tiny does"
    if model.kind is ModelKind.hub and model.tiny is not None:
        yield "model.tiny: sizes are only for model=tiny; a model of the hub brings its own"
    if model.tiny is not None and model.tiny.kv_heads > 0 and model.tiny.heads % model.tiny.kv_heads:
        yield f"model.tiny.kv_heads={model.tiny.kv_heads}: must divide model.tiny.heads={model.tiny.heads}"
    if model.chat_template is not None and not Path(model.chat_template).is_file():
        yield f"model.chat_template={model.chat_template}: no such file"


def _adapter(adapter: AdapterConfig, model: ModelConfig) -> Iterator[str]:
    unused = AdapterConfig(kind=AdapterKind.none)
    if adapter.kind is AdapterKind.none:
        for key, value in vars(adapter).items():
            if value != getattr(unused, key):
                yield f"adapter.{key}={value}: there is no adapter; choose adapter=lora or qlora, or leave it out"
    elif model.from_scratch:
        yield f"adapter={adapter.kind}: adapts weights that are trained already; choose model=hub, or adapter=none"


def _data(data: DataConfig) -> Iterator[str]:
    if data.kind is DataKind.mix:
        if not data.sources:
            yield "data.sources: has no value; give one entry for each source of the mix, as conf/data/mix.yaml shows"
        for key in ("path", "hub_id", "hub_config", "train_conversations"):
            if (value := getattr(data, key)) is not None:
                yield f"data.{key}={value}: a mix has it for each source (data.sources.<name>.{key}); set it to null"
        for name, source in data.sources.items():
            yield from _source(source, f"data.sources.{name}")
            if not 0 < source.weight < math.inf:
                yield f"data.sources.{name}.weight={source.weight}: must be greater than 0"
    else:
        if data.sources:
            yield f"data.sources: only for data=mix, and this is data.kind={data.kind}"
        yield from _source(data, "data")
    if data.flaws and data.kind not in GENERATED - {DataKind.tutoring_pairs}:
        yield f"data.flaws={data.flaws}: only for generated conversations, and this is data.kind={data.kind}"
    for flaw, share in data.flaws.items():
        if flaw not in list(Flaw):
            yield f"data.flaws.{flaw}: no such flaw; there are {', '.join(Flaw)}"
        elif not 0 <= share <= 1:
            yield f"data.flaws.{flaw}={share}: must be from 0 to 1"
    if round(sum(data.flaws.values()), 9) > 1:  # 0.33 + 0.56 + 0.11 is a little more in floating point
        yield f"data.flaws={data.flaws}: more than 1 together; a turn has one flaw"
    if data.thinking_format not in (None, "auto") and data.thinking_format.count("{thinking}") != 1:
        yield f"data.thinking_format={data.thinking_format!r}: must be auto or hold {{thinking}} once"
    for check, value in ((tags_of, data.thinking_tags), (check_key, data.episode_key)):
        try:
            check(value)
        except ValueError as error:
            yield f"data.{error}"
    try:
        date.fromisoformat(data.date)
    except ValueError:
        yield f"data.date={data.date}: must be a date written 2026-01-31"


def _source(source: SourceConfig, key: str) -> Iterator[str]:
    """Rules for what `data` and each entry of `data.sources` have in common."""
    if source.train_conversations is not None and source.train_conversations < 1:
        yield f"{key}.train_conversations={source.train_conversations}: must be at least 1"
    if source.path is not None and not glob.glob(source.path) and not Path(source.path).exists():
        yield f"{key}.path={source.path}: no such file or folder, and no file of that pattern"
    of_files = source.path is not None and source.hub_id is None  # beside a path, a split is the hub's, as its id is
    if source.split != SPLIT and (of_files or source.kind in GENERATED):
        yield f"{key}.split={source.split}: only data of the hub has splits; name the file of that split in {key}.path"
    if source.kind is DataKind.mix:
        yield f"{key}.kind=mix: a mix cannot be a source of another; name its sources here"
    elif source.kind in GENERATED:
        if source.path is not None:
            yield f"{key}.path={source.path}: {source.kind} is generated; {key}.kind=records reads a file"
        if source.train_conversations is None:
            yield f"{key}.train_conversations=null: {source.kind} has no end; give the number to generate"
    elif source.kind is DataKind.records and source.path is None and source.hub_id is None:
        yield f"{key}.path: has no value; give a local file (or {key}.hub_id, data of the hub)"


_TURN = r"\s*(-?\d+|(-?\d+)?\s*:\s*(-?\d+)?(\s*:\s*(-?0*[1-9]\d*)?)?)\s*"


def _duplication(duplication: DuplicationConfig) -> Iterator[str]:
    if duplication.thinking_weight == 0 and duplication.answer_weight == 0:
        yield "duplication.thinking_weight and duplication.answer_weight are both 0: nothing would be trained"
    if duplication.turns != "all" and not re.fullmatch(rf"{_TURN}(,{_TURN})*", duplication.turns):
        yield (f'duplication.turns="{duplication.turns}": write all, or indices and slices such as "-1", "1:" or "0,2"')


def _context(context: ContextConfig | None, key: str) -> Iterator[str]:
    if context is None or (context.rule is not None and is_import_path(context.rule)):
        return  # a function of the user's is imported by who needs it, not by everybody who reads settings
    try:
        rule_of(context, key)
    except ConfigError as error:
        yield str(error)


def rule_of(context: ContextConfig, key: str = "context") -> Rule | None:
    """The context rule that the settings under `key` stand for. Raises ConfigError where there is none."""
    try:
        return load_rule(asdict(context))
    except ValueError as error:
        raise ConfigError(f"{key}.{error}") from error


def _trainer(trainer: TrainerConfig) -> Iterator[str]:
    if trainer.steps is None and trainer.epochs is None:
        yield "trainer.epochs and trainer.steps: have no value; give one of the two"
    if trainer.steps is not None and trainer.epochs is not None:
        yield (
            f"trainer.epochs={trainer.epochs} and trainer.steps={trainer.steps}: a run has one length; set one of the "
            "two to null"
        )
    if trainer.steps is not None and trainer.warmup_steps > trainer.steps:
        yield f"trainer.warmup_steps={trainer.warmup_steps:g}: is more than trainer.steps={trainer.steps}"
    if (trainer.keep_best or trainer.early_stopping) and not trainer.evaluate_every:
        yield (
            f"trainer.keep_best={trainer.keep_best}, trainer.early_stopping={trainer.early_stopping}: both go by the "
            "held-out loss during training; give trainer.evaluate_every=<steps>"
        )
    elif trainer.keep_best and trainer.save_every != trainer.evaluate_every:
        yield (
            f"trainer.save_every={trainer.save_every}: trainer.keep_best chooses among saved checkpoints, so there "
            f"must be one for each measurement; set it to trainer.evaluate_every={trainer.evaluate_every}"
        )


def _run(config: TrainConfig) -> Iterator[str]:
    if config.context.rule is not None and config.duplication.layout is Layout.keep_thinking:
        yield (
            f"context.rule={config.context.rule}: says itself what stands in the history, beside "
            "duplication=keep_thinking; choose another duplication, or context=template"
        )
    if config.objective.kind is ObjectiveKind.dpo and config.parallel.context_parallel:
        yield (
            "objective=dpo: compares whole answers, of which parallel.context_parallel=true gives each process a part; "
            "leave one of the two out"
        )
    if config.objective.kind is ObjectiveKind.dpo and config.duplication.layout is Layout.keep_thinking:
        yield "objective=dpo: duplication=keep_thinking is for conversations; choose one_pass or per_turn"
    if config.parallel.kind is ParallelKind.fsdp and config.adapter.kind is AdapterKind.qlora:
        yield "parallel=fsdp: weights in 4 bits cannot be divided; choose parallel=ddp, or adapter=lora"
    if config.seed >= 2**32:
        yield f"seed={config.seed}: must be less than {2**32}"
    if config.output_dir is not None and not config.output_dir.strip():
        yield "output_dir: is empty, which would be the folder you are in; name one, or leave it out for a new one"
    if config.resume not in (None, "auto") and not Path(config.resume).is_dir():
        yield f"resume={config.resume}: no such run folder"
