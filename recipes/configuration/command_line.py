"""A configuration -> the words of a command line that compose it: what a run has changed of the defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf

from recipes.configuration import CONF_DIR
from recipes.configuration.overrides import checked_overrides, override
from recipes.configuration.rules import ConfigError
from recipes.configuration.schema import TrainConfig

# What does not belong to a repetition: it has a folder of its own.
_OF_ONE_RUN = ("output_dir", "resume")
_ABSENT = object()


@dataclass(frozen=True)
class Choices:
    """groups: of each group of conf/ the file that is nearest, where that is not the default one. changed: the settings
    that differ from these files, by their dotted keys, each with its value and the file's."""

    groups: dict[str, str]
    changed: dict[str, tuple[Any, Any]]

    @property
    def words(self) -> list[str]:
        """As `recipes.train` takes them."""
        chosen = [f"{group}={name}" for group, name in self.groups.items()]
        return chosen + [word(key, value) for key, (value, _) in self.changed.items()]


def choices_of(config: Mapping[str, Any]) -> Choices | None:
    """How a command line says a configuration, as config.yaml has it; None where none can.

    Reads conf/ alone: neither the data nor the model that the settings name need to be there.
    """
    wanted = {key: value for key, value in config.items() if key not in _OF_ONE_RUN}
    default = _composed(())
    groups = {}
    for group in (one for one in wanted if Path(CONF_DIR, one).is_dir()):
        found = min(_files(group), key=lambda name: _distance(group, name, wanted[group], default[group]))
        if _kept(group, found) != default[group]:
            groups[group] = found
    base = _composed(tuple(f"{group}={name}" for group, name in groups.items()))
    changed = {key: (value, was) for key, value, was in _differences(wanted, base, TrainConfig)}
    found = Choices(groups, changed)
    try:
        composed = _composed(tuple(found.words))
    except (HydraException, ConfigError):
        return None
    return found if all(composed[key] == value for key, value in wanted.items()) else None


def word(key: str, value: Any) -> str:
    """The word that sets a key to a value of any kind that YAML has."""
    if isinstance(value, str):
        return override(key, value.replace("\n", "\\n"))  # which is a newline again where one makes sense
    return f"{key}={_written(value)}"


def _written(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return override("", value).removeprefix("=") if value else "''"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_written(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return repr(value)


@cache
def _composed(words: tuple[str, ...]) -> dict[str, Any]:
    """What Hydra makes of the words, without the rules that look at files and devices."""
    running = GlobalHydra.instance().hydra  # of a command that has read its own settings with Hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(CONF_DIR, version_base="1.3"):
            composed = hydra_compose("config", overrides=checked_overrides(words))
    finally:
        GlobalHydra.instance().hydra = running
    found = OmegaConf.to_container(composed, enum_to_str=True)
    if found["data"]["thinking_format"]:
        found["data"]["thinking_format"] = found["data"]["thinking_format"].replace("\\n", "\n")
    return {key: value for key, value in found.items() if key not in _OF_ONE_RUN}


def _files(group: str) -> list[str]:
    return sorted(path.stem for path in Path(CONF_DIR, group).glob("*.yaml"))


def _file(group: str, name: str) -> Any:
    """What a file of a group says, with the files of the group that it begins with."""
    own = OmegaConf.load(Path(CONF_DIR, group, f"{name}.yaml"))
    before = own.pop("defaults", [])
    return OmegaConf.merge(*(_file(group, one) for one in before), own)


@cache
def _kept(group: str, name: str) -> dict[str, Any]:
    """The settings of a group under one of its files."""
    schema = OmegaConf.structured(get_type_hints(TrainConfig)[group])
    return OmegaConf.to_container(OmegaConf.merge(schema, _file(group, name)), enum_to_str=True)


def _distance(group: str, name: str, wanted: Mapping[str, Any], default: Mapping[str, Any]) -> tuple:
    """How far a file is from what is wanted; a file that says something that no word takes back is farthest."""
    kept, said = _kept(group, name), _file(group, name)
    differ = list(_differences(wanted, kept, get_type_hints(TrainConfig)[group]))
    stays = any(isinstance(was, Mapping) and set(was) - set(value or ()) for _, value, was in differ)
    unsaid = sum(key.partition(".")[0] not in said for key, _, _ in differ)
    return (stays, len(differ) + (kept != default), len(differ), unsaid, name)


def _differences(wanted: Mapping[str, Any], base: Mapping[str, Any], schema: type, inside: str = ""):
    """(dotted key, value, value of the base) of each setting that differs, in the order of the schema."""
    for name, kind in get_type_hints(schema).items():
        value, was = wanted.get(name, _ABSENT), base.get(name)
        nested = next((one for one in (kind, *get_args(kind)) if is_dataclass(one)), None)
        if value is _ABSENT or value == was:
            continue
        if nested and isinstance(value, Mapping) and isinstance(was, Mapping):
            yield from _differences(value, was, nested, f"{inside}{name}.")
        else:
            yield f"{inside}{name}", value, was
