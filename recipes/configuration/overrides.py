"""The words of a command line, `key=value`, before Hydra sees them."""

import contextlib
import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import OverrideParseException

from recipes.configuration import CONF_DIR
from recipes.configuration.rules import ConfigError
from recipes.configuration.schema import TrainConfig


def checked_overrides(words: Sequence[str]) -> list[str]:
    """The same words, as Hydra takes them.

    A setting that holds keys of the user's choice (`data.template_kwargs={enable_thinking:false}`) may be written like
    any other: Hydra wants plus signs before it. Raises ConfigError for each key that is neither a setting nor a group
    of conf/, with the one that was probably meant; Hydra would advise to add it.
    """
    keys, groups = set(_keys(TrainConfig)), groups_of_conf()
    free = [key for key, kind in _keys(TrainConfig).items() if str(kind).startswith("dict[")]
    result, problems = [], []
    other_model = any(word.startswith("model=") and word != "model=tiny" for word in words)
    for word in words:
        key = _key(word)
        if key is None:
            result.append(word)
        elif key == "hydra.run.dir":
            problems.append("hydra.run.dir: the recipes make the folder of a run; name it with output_dir=<folder>")
        elif other_model and key.startswith("model.tiny."):
            problems.append(f"{key}: sizes are only for model=tiny; a model of the hub brings its own")
        elif key in groups and (problem := _no_such_choice(key, word, words)):
            problems.append(problem)
        elif any(key == one or key.startswith(f"{one}.") for one in free):
            result.append(f"++{word.lstrip('+')}")
        elif key in keys or key in groups or key.startswith("hydra"):
            result.append(word)
        else:
            problems.append(f"{key}: no such setting; {_meant(key, [*keys, *groups])}")
    if problems:
        raise ConfigError("\n".join(problems))
    return result


def names_and_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Of a command that takes both: the words that name a conversation, and those that set a key."""
    return [word for word in words if "=" not in word], [word for word in words if "=" in word]


def override(key: str, value: object) -> str:
    """The word that sets a key to this text, in quotes where Hydra would read signs in it as its own."""
    text = str(value)
    with contextlib.suppress(OverrideParseException):
        (read,) = OverridesParser.create().parse_overrides([f"{key}={text}"])
        if not read.is_sweep_override() and read.value() == text:
            return f"{key}={text}"
    # A backslash is one of its own only in front of a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"{key}='{escaped}'"


def _no_such_choice(group: str, word: str, words: Sequence[str]) -> str | None:
    """What is wrong with a choice of a group that has no file in conf/; None where it has, or where other folders of
    files are searched, or several choices are swept over. Hydra says it too, in a screen of search paths."""
    (override,) = OverridesParser.create().parse_overrides([word])
    value = override.value() if not override.is_sweep_override() else None
    elsewhere = any("searchpath" in one or one.startswith("--config-dir") for one in words)
    choices = sorted(path.stem for path in Path(CONF_DIR, group).glob("*.yaml"))
    if not isinstance(value, str) or value in choices or elsewhere:
        return None
    close = difflib.get_close_matches(value, choices, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    return f"{group}={value}: no such choice; {meant}There are {', '.join(choices)}"


def groups_of_conf() -> set[str]:
    """The names of the groups that conf/ offers choices for."""
    return {path.name for path in Path(CONF_DIR).iterdir() if path.is_dir()}


def given_keys(words: Sequence[str]) -> set[str]:
    """The settings and groups that the words of a command line set."""
    return {key for key in map(_key, words) if key is not None}


def _key(word: str) -> str | None:
    """The key that an override sets; None for a word that sets none, or is for Hydra to judge."""
    if word.startswith("-"):
        return None
    try:
        (override,) = OverridesParser.create().parse_overrides([word])
    except OverrideParseException:
        return None
    return None if override.type is OverrideType.DEL else override.key_or_group.partition("@")[0]


def _meant(key: str, known: Sequence[str]) -> str:
    group, _, ending = key.rpartition(".")
    if whole := [one for one in known if key.startswith(f"{one}.") and not any(k.startswith(f"{one}.") for k in known)]:
        inside, value = key.removeprefix(f"{whole[0]}."), "..."
        for one in reversed(inside.split(".")):
            value = f"{{{one}: {value}}}"
        return f"{whole[0]} is given as a whole, '{whole[0]}={value}'"
    close = [one for one in known if one.rpartition(".")[2] == ending]
    inside = [one for one in known if group and one.startswith(f"{group}.")]
    close = close or difflib.get_close_matches(key, inside or known, n=1)
    return f"did you mean {' or '.join(sorted(close))}?" if close else "recipes/configuration/schema.py lists them"


def _keys(schema: type, prefix: str = "") -> dict[str, object]:
    """The type of each setting by its dotted key."""
    found = {}
    for one in fields(schema):
        found[prefix + one.name] = one.type
        for inside in _dataclasses(one.type):
            found |= _keys(inside, f"{prefix}{one.name}.")
    return found


def _dataclasses(kind: object) -> Iterator[type]:
    return (one for one in (kind, *get_args(kind)) if is_dataclass(one))
