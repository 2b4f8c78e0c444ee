"""Write docs/settings.md: every key of conf/, with its type, its default and what it does.

    python docs/settings.py     make docs does that before it builds the site; tests/docs holds the page to it

Types and defaults come from the dataclasses and from composing the files of conf/; what a key does is the comment
beside it in the dataclass, which is the only place where that is written. A key without one is an error.
"""

import ast
import inspect
import io
import re
import sys
import tokenize
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from recipes.benchmarking.config import BenchmarkConfig  # noqa: E402
from recipes.configuration import CONF_DIR  # noqa: E402
from recipes.configuration import compose as _registers  # noqa: E402, F401
from recipes.configuration.schema import ContextConfig, SourceConfig, TrainConfig  # noqa: E402

PAGE = ROOT / "docs" / "settings.md"
# Entries of what is typed as a plain dict or as Any, because Hydra cannot fill them in on a command line otherwise.
ENTRIES = {"data.sources": SourceConfig, "evaluation.context": ContextConfig}
PLAIN = {
    "str": "text",
    "int": "integer",
    "float": "number",
    "bool": "true or false",
    "NoneType": "null",
    "Any": "any of those named",
}

HEAD = """\
# Settings

Written by `make docs` from [recipes/configuration/schema.py](../recipes/configuration/schema.py) and [conf/](../conf);
do not edit. Every setting is given as `key=value` behind a command, or chosen by the name of a file:

```
make train ARGS="duplication=per_turn trainer.steps=300 seed=1"
```

`duplication=per_turn` takes the file `conf/duplication/per_turn.yaml`; `trainer.steps=300` sets one key. A misspelt key
or a wrong type is an error before anything is loaded. A default is that of a run with nothing given; where other files
of the group have another value, it stands below, behind their names. `null` means that there is none.
"""

SCRIPT = """\
## In a script: OnePassConfig

`flexmask.OnePassConfig` has the settings that shape rows and packs as arguments, beside all those of
`transformers.TrainingArguments`. They do what the key of the same line does.

| argument | key | default here | default of the key |
|---|---|---|---|
"""
TRAINING_ARGUMENTS = """
Arguments of `transformers.TrainingArguments` that have another default here:

| argument | default here | default of transformers |
|---|---|---|
"""


# ---- what the source says ----


def comments_of(module: types.ModuleType) -> dict[tuple[str, str], str]:
    """The comment on each field and each value of an Enum: that behind it, or else the lines right above it."""
    source = inspect.getsource(module)
    behind, alone = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            kind = behind if token.line[: token.start[1]].strip() else alone
            kind[token.start[0]] = token.string.removeprefix("#").strip()
    found = {}
    for one in ast.parse(source).body:
        for node in one.body if isinstance(one, ast.ClassDef) else []:
            if isinstance(node, ast.AnnAssign | ast.Assign):
                name = ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])
                above, line = [], node.lineno - 1
                while line in alone:
                    above.insert(0, alone[line])
                    line -= 1
                found[one.name, name] = behind.get(node.end_lineno) or " ".join(above)
    return found


def parts_of(kind: Any) -> tuple[Any, ...]:
    """A type and all that stands in it: `list[ArmName] | None`: list, ArmName, None."""
    return (kind, *(part for inner in typing.get_args(kind) for part in parts_of(inner)))


def dataclass_in(kind: Any, key: str) -> type | None:
    """What the entries of a setting are made of, where it is no plain value."""
    return ENTRIES.get(key) or next((one for one in parts_of(kind) if is_dataclass(one)), None)


def type_of(kind: Any) -> str:
    """A type, in words of a person who writes YAML."""
    if isinstance(kind, types.UnionType):
        return " or ".join(type_of(one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return f"list of {type_of(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) is dict:
        return "mapping"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{one.value}`" for one in kind)
    name = getattr(kind, "__name__", str(kind))
    return PLAIN.get(name, name)


def effect_of(owner: type, field: Field, kind: Any, key: str) -> str:
    """What a setting does: its comment, and those on the values that it may have. Raises ValueError without any."""
    said = [comments_of(sys.modules[owner.__module__])[owner.__name__, field.name]]
    for values in (one for one in parts_of(kind) if isinstance(one, type) and issubclass(one, Enum)):
        of_values = comments_of(sys.modules[values.__module__])
        said += [f"`{one.value}`: {text}" for one in values if (text := of_values[values.__name__, one.name])]
    if not any(said):
        raise ValueError(f"{key}: nothing says what it does; write a comment on {owner.__name__}.{field.name}")
    return "; ".join(re.sub(r"(?<!\.)\.$", "", one) for one in said if one)


# ---- what conf/ says ----


def composed(name: str, *overrides: str) -> dict[str, Any]:
    """A configuration as it stands in the files, interpolations as they are written."""
    return OmegaConf.to_container(compose(name, overrides=list(overrides)), enum_to_str=True)


def value_at(config: Any, key: str) -> Any:
    """MISSING where a part of the way is not there."""
    for part in key.split("."):
        if not isinstance(config, dict) or part not in config:
            return MISSING
        config = config[part]
    return config


def files_of(group: str) -> list[Path]:
    """The files that may be chosen for a group, with the default first."""
    return sorted((Path(CONF_DIR) / group).glob("*.yaml"), key=lambda path: path.stem)


def first_words(path: Path) -> str:
    """The first sentence of the comment with which a file of conf/ begins."""
    comment = re.match(r"(?:#.*\n)*", path.read_text(encoding="utf-8"))[0]
    lines = [line.removeprefix("#").strip() for line in comment.splitlines() if "@package" not in line]
    text = " ".join(lines).partition("  ")[0]
    return re.split(r"\.(?:\s|$)|:\s+(?=\S+=)|:$", text)[0].strip()


def shown(value: Any) -> str:
    """A value as it is written in YAML."""
    if value is MISSING or value == "???":
        return "must be given"
    value = value.value if isinstance(value, Enum) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().removesuffix("\n...").strip()
    return f"`{text}`"


def cell(text: str) -> str:
    """Text as it stands in a table: nothing in it is markup but for code and line breaks."""
    text = re.sub(r"`[^`]*`|<br>|<", lambda found: "&lt;" if found[0] == "<" else found[0], text)
    return text.replace("|", "\\|").replace("\n", " ")


# ---- the page ----


def table(owner: type, prefix: str, defaults: dict[str, dict[str, Any]], heading: str = "##") -> Iterator[str]:
    """The lines of a dataclass, then a table for each that stands in it.

    defaults: by the name of the file of the group; "" is what a run has with nothing given.
    """
    kinds, within = typing.get_type_hints(owner), []
    plain = []
    for field in fields(owner):
        key = f"{prefix}{field.name}"
        inner = dataclass_in(kinds[field.name], key)
        if inner is not None:
            within.append((inner, key, kinds[field.name]))
        if inner is None or key in ENTRIES:
            plain.append((field, key))
    if plain:
        yield from ("| key | type | default | what it does |", "|---|---|---|---|")
    for field, key in plain:
        kind = kinds[field.name]
        usual = value_at(defaults[""], key)
        if "<name>" in key or prefix in tuple(f"{one}." for one in ENTRIES):
            usual = field.default_factory() if field.default_factory is not MISSING else field.default
        others: dict[str, list[str]] = {}
        for name, config in defaults.items():
            if name and (value := value_at(config, key)) not in (usual, MISSING):
                others.setdefault(shown(value), []).append(name)
        default = "<br>".join([shown(usual), *(f"{', '.join(names)}: {value}" for value, names in others.items())])
        line = (f"`{key}`", type_of(kind), default, effect_of(owner, field, kind, key))
        yield "| " + " | ".join(map(cell, line)) + " |"
    yield ""
    for inner, key, kind in within:
        entry = key in ("data.sources",) or typing.get_origin(kind) is dict
        below = f"{key}.<name>." if entry else f"{key}."
        yield from (f"{heading}{'#' if prefix else ''} `{below.removesuffix('.')}`", "")
        yield from introduction(inner, key)
        group = {} if prefix else {path.stem: composed("config", f"{key}={path.stem}") for path in files_of(key)}
        yield from table(inner, below, defaults if prefix else {"": defaults[""], **group}, heading)


def introduction(owner: type, key: str) -> Iterator[str]:
    """What a dataclass says of itself, and the files that its group is filled from."""
    said = inspect.getdoc(owner) or ""
    if said and not said.startswith(f"{owner.__name__}("):  # what @dataclass writes where there is none
        yield from (said.splitlines()[0], "")
    if "." not in key and (files := files_of(key)):
        yield from ("| file | what it is |", "|---|---|")
        yield from (f"| `{key}={path.stem}` | {cell(first_words(path))} |" for path in files)
        yield ""


def script() -> Iterator[str]:
    """Arguments of OnePassConfig beside the keys of the same name."""
    from transformers import TrainingArguments

    from flexmask import OnePassConfig

    usual = composed("config")
    keys = {key.rpartition(".")[2]: key for key in reversed(list(keys_of(TrainConfig))) if "<name>" not in key}
    own = {field.name: field for field in fields(OnePassConfig)}
    theirs = {field.name: field for field in fields(TrainingArguments)}
    yield SCRIPT.rstrip("\n")
    for name, field in own.items():
        if name in theirs:
            continue
        key = "context" if name == "context" else keys.get(name)
        of_key = "as `context=template`" if name == "context" else shown(value_at(usual, key)) if key else ""
        yield f"| `{name}` | {f'`{key}`' if key else field.metadata['help']} | {shown(field.default)} | {of_key} |"
    yield TRAINING_ARGUMENTS.rstrip("\n")
    for name, field in own.items():
        if name in theirs and field.default != theirs[name].default:
            yield f"| `{name}` | {shown(field.default)} | {shown(theirs[name].default)} |"


def keys_of(owner: type, prefix: str = "") -> Iterator[str]:
    """Every key, entries as `data.sources.<name>.path`."""
    for field in fields(owner):
        kind, key = typing.get_type_hints(owner)[field.name], f"{prefix}{field.name}"
        inner = dataclass_in(kind, key)
        if inner is None or key in ENTRIES:
            yield key
        if inner is not None:
            named = key == "data.sources" or typing.get_origin(kind) is dict
            yield from keys_of(inner, f"{key}.<name>." if named else f"{key}.")


def page() -> str:
    """The text of docs/settings.md."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        lines = [
            HEAD,
            "## The run",
            "",
            *table(TrainConfig, "", {"": composed("config")}),
            "## The benchmark",
            "",
            "`make bench` has settings of its own, in [conf/benchmark.yaml](../conf/benchmark.yaml).",
            "",
            *table(BenchmarkConfig, "", {"": composed("benchmark")}, "###"),
            *script(),
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
