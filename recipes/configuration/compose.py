"""From the YAML files in conf/ and the command line to a checked `TrainConfig`, and a run's own config.yaml.

A misspelt key or a wrong type fails while composing. `to_dataclass` then checks what types cannot say
(`recipes.configuration.rules`) and gives the recipes plain dataclasses. Nothing here imports torch or transformers: a
wrong setting fails before anything is loaded.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipes.configuration import CONF_DIR
from recipes.configuration.overrides import checked_overrides, given_keys
from recipes.configuration.rules import ConfigError, validate
from recipes.configuration.schema import ContextConfig, SourceConfig, TrainConfig
from recipes.storage.whole import write_whole

Entry = TypeVar("Entry", SourceConfig, ContextConfig)

ConfigStore.instance().store(name="train_schema", node=TrainConfig)


def to_dataclass(composed: DictConfig, given: Sequence[str] = ()) -> TrainConfig:
    """The composed configuration as plain dataclasses, checked.

    given: the overrides of the command line. If they set only one of `trainer.steps` and `trainer.epochs`, the other,
    which a file has set, is cleared.
    Raises ConfigError naming every key that has no value or that the rules refuse.
    """
    try:
        config = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: has no value; give one with {error.full_key}=...") from None
    assert isinstance(config, TrainConfig)  # what the schema makes of every composition
    if config.data.thinking_format is not None:  # on a command line a newline is easier written than typed
        config.data.thinking_format = config.data.thinking_format.replace("\\n", "\n")
    config.data.sources = {
        name: _entry(SourceConfig, f"data.sources.{name}", values) for name, values in config.data.sources.items()
    }
    if config.evaluation.context is not None:
        config.evaluation.context = _entry(ContextConfig, "evaluation.context", config.evaluation.context)
    lengths = {"trainer.steps", "trainer.epochs"}
    if len(chosen := lengths & given_keys(given)) == 1:
        (other,) = lengths - chosen
        setattr(config.trainer, other.removeprefix("trainer."), None)
    validate(config)
    return config


def _entry(schema: type[Entry], key: str, values: Any) -> Entry:
    """What stands under `key`, which Hydra (1.3) cannot fill in on the command line when its type is a dataclass."""
    if isinstance(values, schema):
        return values
    try:
        return OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.create(values)))
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error


def compose(overrides: Sequence[str] = (), output_dir: str | Path = "runs/composed") -> TrainConfig:
    """Compose conf/ without Hydra's command line: for tests, notebooks and scripts.

    Raises hydra.errors.HydraException (a misspelt key, a wrong type) or ConfigError.
    """
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        composed = hydra_compose("config", overrides=[*checked_overrides(overrides), f"output_dir='{output_dir}'"])
        return to_dataclass(composed, overrides)


RUN_CONFIG = "config.yaml"


def save_run_config(config: TrainConfig, folder: Path) -> None:
    """Write the whole configuration of a run, with every default, to `folder`/config.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = OmegaConf.structured(replace(config, resume=None))  # a resumed run is still the same run
    write_whole(folder / RUN_CONFIG, OmegaConf.to_yaml(saved))


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
            OmegaConf.update(loaded, override.key_or_group, override.value(), merge=False)
    except (OmegaConfBaseException, OverrideParseException, yaml.YAMLError) as error:
        raise ConfigError(f"{path} with {list(overrides)}: {error}") from error
    return to_dataclass(loaded, overrides)
