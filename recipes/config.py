"""The typed configuration of a run: what a recipe can be told, with types, units and defaults.

Hydra composes the YAML files in conf/ into `TrainConfig`; a misspelt key or a wrong type fails while
composing. `to_dataclass` then checks what types cannot say (`validate`) and gives the recipes plain
dataclasses. Nothing here imports torch or transformers: a wrong setting fails before anything is loaded.

A recipe is `@hydra.main(version_base="1.3", config_path=CONF_DIR, config_name="config")` and begins with
`config = to_dataclass(composed)`.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import OverrideParseException
from omegaconf import MISSING, DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONF_DIR = str(Path(__file__).resolve().parent.parent / "conf")


class ConfigError(ValueError):
    """A setting that no run can start with; the message has a line for each, with its key."""


class ModelKind(StrEnum):
    tiny = "tiny"  # built in-process with its tokenizer, random weights
    hub = "hub"  # a Hugging Face hub id or a local folder


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float64 = "float64"


class DataKind(StrEnum):
    tutoring = "tutoring"  # generated, no download
    gsm8k_socratic = "gsm8k_socratic"
    mathchatsync = "mathchatsync"
    jsonl = "jsonl"


class ControlTokens(StrEnum):
    refuse = "refuse"
    escape = "escape"


class OnInvalid(StrEnum):
    error = "error"
    drop = "drop"


class Layout(StrEnum):
    one_pass = "one_pass"
    per_turn = "per_turn"
    keep_thinking = "keep_thinking"
    last_turn = "last_turn"


class TooLong(StrEnum):
    error = "error"
    drop = "drop"


class Schedule(StrEnum):
    constant_with_warmup = "constant_with_warmup"  # transformers' plain "constant" ignores warmup_steps
    linear = "linear"
    cosine = "cosine"


class MixedPrecision(StrEnum):
    none = "none"
    bf16 = "bf16"


class WandbMode(StrEnum):
    auto = "auto"  # online when an API key is configured, else offline
    online = "online"
    offline = "offline"
    off = "off"  # wandb is not even imported


# Where a default depends on what is chosen in conf/, it stands there and is MISSING here: each has one home.
# The dataclasses are not frozen: OmegaConf makes a frozen one read-only, and no YAML file could fill it.


@dataclass
class TinyConfig:
    """Sizes of the tiny Qwen3-architecture model, as `recipes.tiny.build_model` takes them."""

    hidden_size: int = MISSING
    layers: int = MISSING
    heads: int = MISSING
    kv_heads: int = MISSING
    head_dim: int = MISSING
    intermediate_size: int = MISSING


@dataclass
class ModelConfig:
    kind: ModelKind = MISSING
    name_or_path: str | None = None  # hub id or local folder; only with kind=hub
    from_scratch: bool = False  # random weights; with kind=hub in the shape of name_or_path
    dtype: Dtype = Dtype.float32  # of the weights in memory
    gradient_checkpointing: bool = False
    chat_template: str | None = None  # path of a Jinja file that replaces the tokenizer's template
    tiny: TinyConfig | None = None  # only with kind=tiny


@dataclass
class DataConfig:
    kind: DataKind = MISSING
    path: str | None = None  # a local file; taken in place of the hub
    hub_id: str | None = None
    hub_config: str | None = None
    split: str = "train"  # of the hub's data
    train_conversations: int | None = None  # null: all that are not held out
    heldout_conversations: int = MISSING  # never trained
    seed: int = 0  # of generation and of the held-out choice; not of the run
    control_tokens: ControlTokens = ControlTokens.refuse  # special tokens inside message text
    on_invalid: OnInvalid = OnInvalid.error  # a malformed conversation; drop counts what it leaves out
    # How thinking is generated where the template does not render it, "{thinking}" standing for it. auto: a <think>
    # block under a template that never reads thinking; null: such conversations are refused.
    thinking_format: str | None = "auto"
    template_kwargs: dict[str, Any] = field(default_factory=dict)  # given to the chat template
    processes: int | None = None  # that render conversations; null: one a processor
    date: str = "${now:%Y-%m-%d}"  # year-month-day: what a template that writes today's date shows, in all of the run


@dataclass
class DuplicationConfig:
    """How the turns of a conversation are laid out for training, and what of them is trained."""

    layout: Layout = MISSING
    thinking_weight: float = 1.0  # loss weight of a thinking token
    answer_weight: float = 1.0  # loss weight of an answer token
    turns: str = "all"  # assistant turns that are trained: all, or indices and slices ("0,2", "1:", "-1")
    too_long: TooLong = TooLong.error  # a single pass longer than pack_length; drop counts what it leaves out
    pack_length: int = 2048  # most tokens of one forward pass


@dataclass
class TrainerConfig:
    steps: int = MISSING  # optimizer steps
    conversations_per_step: int = MISSING  # over all processes
    learning_rate: float = MISSING  # the highest
    schedule: Schedule = MISSING
    warmup_steps: int = MISSING
    adam_beta1: float = MISSING
    adam_beta2: float = MISSING
    weight_decay: float = MISSING
    max_grad_norm: float = MISSING
    mixed_precision: MixedPrecision = MixedPrecision.none
    log_every: int = MISSING  # steps
    save_every: int = MISSING  # steps between checkpoints to resume from; 0: none
    keep_checkpoints: int = MISSING


@dataclass
class AttentionConfig:
    block_size: int = MISSING  # tokens on a side of a block of the mask


@dataclass
class EvaluationConfig:
    """Chat with the trained model on held-out conversations."""

    conversations: int = 100  # 0: no evaluation
    max_new_tokens: int = 256  # a turn; a reply that is longer counts as wrong
    batch_size: int = 64  # conversations


@dataclass
class WandbConfig:
    mode: WandbMode = MISSING
    project: str = "flexmask"
    name: str | None = None  # null: the run folder's name
    tags: list[str] = field(default_factory=list)


@dataclass
class TrainConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    duplication: DuplicationConfig = field(default_factory=DuplicationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    seed: int = 0  # of the weights and the order of conversations
    resume: str | None = None  # folder of an interrupted run to go on with
    output_dir: str = MISSING  # Hydra's run folder


ConfigStore.instance().store(name="train_schema", node=TrainConfig)
OmegaConf.register_new_resolver("run_folder", lambda resume, fresh: resume or fresh, replace=True)


def to_dataclass(composed: DictConfig) -> TrainConfig:
    """The composed configuration as plain dataclasses, checked.

    Raises ConfigError naming every key that is unknown, has no value, or that `validate` refuses.
    """
    # Hydra's `+key=value` adds keys past the schema (hydra 1.3), and to_object would keep them.
    if unknown := list(_unknown_keys(composed, TrainConfig, "")):
        raise ConfigError("\n".join(f"{key}: no such key; see recipes/config.py" for key in unknown))
    try:
        config = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: has no value; give one with {error.full_key}=...") from None
    assert isinstance(config, TrainConfig)  # what the schema makes of every composition
    validate(config)
    return config


def _unknown_keys(node: DictConfig, schema: type, prefix: str) -> Iterator[str]:
    known = {field_.name: field_.type for field_ in fields(schema)}
    for key in node:
        if key not in known:
            yield f"{prefix}{key}"
            continue
        nested = [kind for kind in (known[key], *get_args(known[key])) if is_dataclass(kind)]
        if nested and OmegaConf.is_dict(node._get_node(key)) and node[key] is not None:
            yield from _unknown_keys(node[key], nested[0], f"{prefix}{key}.")


def compose(overrides: Sequence[str] = (), output_dir: str | Path = "runs/composed") -> TrainConfig:
    """Compose conf/ without Hydra's command line: for tests, notebooks and scripts.

    Raises hydra.errors.HydraException (a misspelt key, a wrong type) or ConfigError.
    """
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        return to_dataclass(hydra_compose("config", overrides=[*overrides, f"output_dir='{output_dir}'"]))


RUN_CONFIG = "config.yaml"


def save_run_config(config: TrainConfig, folder: Path) -> None:
    """Write the whole configuration of a run, with every default, to `folder`/config.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = OmegaConf.structured(replace(config, resume=None))  # a resumed run is still the same run
    (folder / RUN_CONFIG).write_text(OmegaConf.to_yaml(saved), encoding="utf-8")


def load_run_config(folder: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration of a run that `save_run_config` left, changed by `key=value` overrides.

    `output_dir` is `folder`, also where the folder has moved. Raises ConfigError naming the file or the key.
    """
    path = folder / RUN_CONFIG
    if not path.is_file():
        raise ConfigError(f"{folder}: no run folder, it has no {RUN_CONFIG}")
    try:
        loaded = OmegaConf.merge(TrainConfig, OmegaConf.load(path), {"output_dir": str(folder)})
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            if override.type is not OverrideType.CHANGE or override.is_sweep_override():
                raise ConfigError(f"{override.input_line}: only key=value changes a run's configuration")
            OmegaConf.update(loaded, override.key_or_group, override.value())
    except (OmegaConfBaseException, OverrideParseException) as error:
        raise ConfigError(f"{path} with {list(overrides)}: {error}") from error
    return to_dataclass(loaded)


def validate(config: TrainConfig) -> None:
    """Check what types cannot say, before anything is loaded.

    Raises ConfigError with one line a problem: the key, the value found and what to do.
    """
    checks = (_numbers, _model, _data, _duplication, _trainer, _paths)
    if problems := [problem for check in checks for problem in check(config)]:
        raise ConfigError("\n".join(problems))


_AT_LEAST_ONE = (
    "model.tiny.hidden_size",
    "model.tiny.layers",
    "model.tiny.heads",
    "model.tiny.kv_heads",
    "model.tiny.head_dim",
    "model.tiny.intermediate_size",
    "data.train_conversations",
    "data.processes",
    "duplication.pack_length",
    "trainer.steps",
    "trainer.conversations_per_step",
    "trainer.log_every",
    "trainer.keep_checkpoints",
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
    "evaluation.conversations",
)
_ABOVE_ZERO = ("trainer.learning_rate", "trainer.max_grad_norm")
_BELOW_ONE = ("trainer.adam_beta1", "trainer.adam_beta2")


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


def _model(config: TrainConfig) -> Iterator[str]:
    model = config.model
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


def _data(config: TrainConfig) -> Iterator[str]:
    data = config.data
    if data.kind is DataKind.tutoring:
        if data.path is not None:
            yield f"data.path={data.path}: tutoring dialogues are generated; choose data=jsonl to read a file"
        if data.train_conversations is None:
            yield "data.train_conversations=null: tutoring dialogues have no end; give the number to generate"
    elif data.path is None and data.hub_id is None:
        yield "data.path: has no value; give a local file (or data.hub_id, data of the hub)"
    if data.thinking_format not in (None, "auto") and data.thinking_format.count("{thinking}") != 1:
        yield f"data.thinking_format={data.thinking_format!r}: must be auto or hold {{thinking}} once"
    try:
        date.fromisoformat(data.date)
    except ValueError:
        yield f"data.date={data.date}: must be a date written 2026-01-31"
    if config.evaluation.conversations > data.heldout_conversations:
        yield (
            f"evaluation.conversations={config.evaluation.conversations}: only data.heldout_conversations="
            f"{data.heldout_conversations} are held out; lower the first or raise the second"
        )


_TURN = r"\s*(-?\d+|(-?\d+)?\s*:\s*(-?\d+)?(\s*:\s*(-?0*[1-9]\d*)?)?)\s*"


def _duplication(config: TrainConfig) -> Iterator[str]:
    duplication = config.duplication
    if duplication.thinking_weight == 0 and duplication.answer_weight == 0:
        yield "duplication.thinking_weight and duplication.answer_weight are both 0: nothing would be trained"
    if duplication.turns != "all" and not re.fullmatch(rf"{_TURN}(,{_TURN})*", duplication.turns):
        yield (f'duplication.turns="{duplication.turns}": write all, or indices and slices such as "-1", "1:" or "0,2"')


def _trainer(config: TrainConfig) -> Iterator[str]:
    trainer = config.trainer
    if trainer.warmup_steps > trainer.steps:
        yield f"trainer.warmup_steps={trainer.warmup_steps}: is more than trainer.steps={trainer.steps}"


def _paths(config: TrainConfig) -> Iterator[str]:
    template = config.model.chat_template
    if template is not None and not Path(template).is_file():
        yield f"model.chat_template={template}: no such file"
    if config.data.path is not None and not Path(config.data.path).is_file():
        yield f"data.path={config.data.path}: no such file"
    if config.resume is not None and not Path(config.resume).is_dir():
        yield f"resume={config.resume}: no such run folder"


# ---- the benchmark: conf/benchmark.yaml -> BenchmarkConfig (recipes/benchmark.py) ----


class Device(StrEnum):
    cpu = "cpu"
    cuda = "cuda"


class Section(StrEnum):
    grid = "grid"
    packing = "packing"
    attention = "attention"
    mask = "mask"
    loss = "loss"
    preparation = "preparation"
    recompiles = "recompiles"
    state = "state"


class ArmName(StrEnum):
    one_pass = "one_pass"
    one_pass_flash = "one_pass_flash"  # FlexAttention with its FLASH backend
    per_turn_packed = "per_turn_packed"
    per_turn_varlen = "per_turn_varlen"  # FlashAttention over packed passes of any length
    per_turn_naive = "per_turn_naive"
    paper_dense = "paper_dense"
    keep_thinking = "keep_thinking"  # trains something else, for less


@dataclass
class ShapeConfig:
    """Sizes of a Qwen3-architecture model with random weights."""

    vocab_size: int = MISSING
    hidden_size: int = MISSING
    intermediate_size: int = MISSING
    layers: int = MISSING
    heads: int = MISSING
    kv_heads: int = MISSING
    head_dim: int = MISSING


@dataclass
class MixConfig:
    """Shares of a turn's tokens; they need not add up to 1."""

    question: float = MISSING
    thinking: float = MISSING
    answer: float = MISSING


@dataclass
class DeviceConfig:
    """What of the benchmark depends on the device, where the command line does not say."""

    shape: str = MISSING
    dtype: Dtype = MISSING
    pack_length: int = MISSING
    conversation_tokens: int = MISSING
    turn_tokens: int = MISSING


@dataclass
class GridConfig:
    """Conversations of each cell, and how often its arms are timed."""

    turns: list[int] = MISSING
    mixes: list[str] = MISSING  # of `mixes`, each with every number of turns; or a data set, with its own
    turn_tokens: int = MISSING  # mean tokens of question, thinking and answer together
    # Tokens of a cell in one pass: conversations are added while they fit, one at least.
    conversation_tokens: int = MISSING
    repeats: int = MISSING  # timed runs of each arm, interleaved
    cell_seconds: float = MISSING  # no further repeat of a cell is begun after that long


@dataclass
class BenchmarkConfig:
    device: Device = MISSING
    sections: list[Section] = MISSING
    arms: list[ArmName] = MISSING
    shape: str = MISSING  # of `shapes`
    dtype: Dtype = MISSING
    pack_length: int = MISSING  # tokens
    block_size: int = MISSING  # tokens on a side of a block of the mask
    gradient_checkpointing: bool = MISSING
    dense_mask_gib: float = MISSING  # an arm that would make a larger mask is reported as too large
    threads: int | None = MISSING  # of torch on CPU; null: its default
    seed: int = MISSING
    gsm8k_path: str | None = MISSING  # GSM8K-Socratic file to draw lengths from; null: from its stored quantiles
    create_block_mask: bool = MISSING  # compare with torch's own, on CPU 25 s and 11 GB, where that much is free
    grid: GridConfig = field(default_factory=GridConfig)
    mixes: dict[str, MixConfig] = MISSING
    shapes: dict[str, ShapeConfig] = MISSING
    devices: dict[str, DeviceConfig] = MISSING
    output_dir: str = MISSING  # Hydra's run folder


DATA_MIXES = ("gsm8k_socratic", "mathchatsync")  # lengths and turns as in the data
REQUIRED_ARMS = (ArmName.one_pass, ArmName.per_turn_packed)  # what every figure is compared with

ConfigStore.instance().store(name="benchmark_schema", node=BenchmarkConfig)


def to_benchmark(composed: DictConfig) -> BenchmarkConfig:
    """The composed benchmark configuration as plain dataclasses, checked.

    Raises ConfigError with one line a problem: the key, the value found and what to do.
    """
    unknown = []
    named = {"mixes": MixConfig, "shapes": ShapeConfig, "devices": DeviceConfig}
    plain = OmegaConf.masked_copy(composed, [key for key in composed if key not in named])
    unknown += _unknown_keys(plain, BenchmarkConfig, "")
    for key, schema in named.items():
        for name in composed[key]:
            unknown += _unknown_keys(composed[key][name], schema, f"{key}.{name}.")
    if unknown:
        raise ConfigError("\n".join(f"{key}: no such key; see BenchmarkConfig in recipes/config.py" for key in unknown))
    try:
        config = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: has no value; give one with {error.full_key}=...") from None
    assert isinstance(config, BenchmarkConfig)
    if problems := list(_benchmark(config)):
        raise ConfigError("\n".join(problems))
    return config


def compose_benchmark(overrides: Sequence[str] = (), output_dir: str | Path = "runs/composed") -> BenchmarkConfig:
    """`compose` for conf/benchmark.yaml."""
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        return to_benchmark(hydra_compose("benchmark", overrides=[*overrides, f"output_dir='{output_dir}'"]))


def _benchmark(config: BenchmarkConfig) -> Iterator[str]:
    grid = config.grid
    positive = {
        "pack_length": config.pack_length,
        "block_size": config.block_size,
        "threads": config.threads,
        "grid.turn_tokens": grid.turn_tokens,
        "grid.conversation_tokens": grid.conversation_tokens,
        "grid.repeats": grid.repeats,
        **{f"grid.turns[{i}]": turns for i, turns in enumerate(grid.turns)},
        **{f"shapes.{name}.{key}": size for name, shape in config.shapes.items() for key, size in vars(shape).items()},
    }
    for key, value in positive.items():
        if value is not None and value < 1:
            yield f"{key}={value}: must be at least 1"
    for name, mix in config.mixes.items():
        if not all(0 < share < math.inf for share in vars(mix).values()):
            yield f"mixes.{name}={vars(mix)}: every share must be greater than 0"
    for key, value in (("dense_mask_gib", config.dense_mask_gib), ("grid.cell_seconds", grid.cell_seconds)):
        if not 0 <= value < math.inf:
            yield f"{key}={value}: must be 0 or more"
    if config.seed < 0:
        yield f"seed={config.seed}: must be 0 or more"
    if config.shape not in config.shapes:
        yield f"shape={config.shape}: is none of shapes: {', '.join(config.shapes)}"
    for mix in grid.mixes:
        if mix not in config.mixes and mix not in DATA_MIXES:
            yield f"grid.mixes: {mix} is neither one of mixes ({', '.join(config.mixes)}) nor {', '.join(DATA_MIXES)}"
    for required in REQUIRED_ARMS:
        if required not in config.arms:
            yield f"arms: {required} must be among them, all others are compared with it"
    if config.gsm8k_path is not None and not Path(config.gsm8k_path).is_file():
        yield f"gsm8k_path={config.gsm8k_path}: no such file"
