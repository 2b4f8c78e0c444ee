"""The typed configuration of the benchmark: conf/benchmark.yaml -> BenchmarkConfig, checked as that of a run is."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import ConfigKeyError

from recipes.configuration.rules import ConfigError


class Device(StrEnum):
    cpu = "cpu"
    cuda = "cuda"


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float64 = "float64"


class Section(StrEnum):
    grid = "grid"
    packing = "packing"
    attention = "attention"
    mask = "mask"
    loss = "loss"
    preparation = "preparation"
    recompiles = "recompiles"
    state = "state"
    plans = "plans"
    sharing = "sharing"
    calls = "calls"


class ArmName(StrEnum):
    one_pass = "one_pass"
    one_pass_flash = "one_pass_flash"  # FlexAttention with its FLASH backend
    one_pass_paths = "one_pass_paths"  # varlen attention node by node over keys gathered along its path
    one_pass_compiled = "one_pass_compiled"  # torch.compile of decoder layers
    one_pass_liger = "one_pass_liger"  # Liger's fused loss in place of the chunked one
    per_turn_packed = "per_turn_packed"
    per_turn_varlen = "per_turn_varlen"  # FlashAttention over packed passes of any length
    per_turn_naive = "per_turn_naive"
    paper_dense = "paper_dense"
    keep_thinking = "keep_thinking"  # trains something else, for less


@dataclass
class ShapeConfig:
    """Sizes of a Qwen3-architecture model with random weights."""

    vocab_size: int = MISSING  # tokens that there are
    hidden_size: int = MISSING  # numbers of a token's state between layers
    intermediate_size: int = MISSING  # width of the feed-forward part of a layer
    layers: int = MISSING  # decoder layers
    heads: int = MISSING  # of queries, in each layer
    kv_heads: int = MISSING  # of keys and values
    head_dim: int = MISSING  # numbers of a head


@dataclass
class MixConfig:
    """Shares of a turn's tokens; they need not add up to 1."""

    question: float = MISSING  # share of the question
    thinking: float = MISSING  # share of the thinking
    answer: float = MISSING  # share of the answer


@dataclass
class DeviceConfig:
    """What of the benchmark depends on the device, where the command line does not say."""

    shape: str = MISSING  # the model's, of shapes
    dtype: Dtype = MISSING  # of the weights
    pack_length: int = MISSING  # most tokens of a forward pass
    conversation_tokens: int = MISSING  # of grid.conversation_tokens
    turn_tokens: int = MISSING  # of grid.turn_tokens
    arms: list[ArmName] = MISSING  # what is compared


@dataclass
class GridConfig:
    """Conversations of each cell, and how often its arms are timed."""

    turns: list[int] = MISSING  # of a conversation: a cell for each number
    mixes: list[str] = MISSING  # of `mixes`, each with every number of turns; or a data set, with its own
    turn_tokens: int = MISSING  # mean tokens of question, thinking and answer together
    # Tokens of a cell in one pass: conversations are added while they fit, one at least.
    conversation_tokens: int = MISSING
    repeats: int = MISSING  # timed runs of each arm, interleaved
    cell_seconds: float = MISSING  # no further repeat of a cell is begun after that long


@dataclass
class BenchmarkConfig:
    device: Device = MISSING  # that everything runs on
    sections: list[Section] = MISSING  # what is measured, a table or more each
    arms: list[ArmName] = MISSING  # what the grid compares
    shape: str = MISSING  # the model's, of `shapes`
    dtype: Dtype = MISSING  # of the weights
    pack_length: int = MISSING  # most tokens of a forward pass
    block_size: int = MISSING  # tokens on a side of a block of the mask
    gradient_checkpointing: bool = MISSING  # keep one layer's activations alone
    dense_mask_gib: float = MISSING  # an arm that would make a larger mask is reported as too large
    threads: int | None = MISSING  # of torch on CPU; null: its default
    seed: int = MISSING  # of weights and conversations
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
    try:
        # Once more under the schema: Hydra's + goes past it, and would leave a misspelt key without effect.
        config = OmegaConf.to_object(OmegaConf.merge(BenchmarkConfig, OmegaConf.to_container(composed)))
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: has no value; give one with {error.full_key}=...") from None
    except ConfigKeyError as error:
        raise ConfigError(f"{error.full_key}: no such key; see recipes/benchmarking/config.py") from None
    assert isinstance(config, BenchmarkConfig)
    if problems := list(_benchmark(config)):
        raise ConfigError("\n".join(problems))
    return config


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
