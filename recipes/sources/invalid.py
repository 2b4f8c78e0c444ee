"""What is wrong with conversations that cannot be trained on: reasons by name, and how many there are of a kind."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from recipes.storage.whole import write_whole

FILE = "left_out.jsonl"
SHOWN = 20  # kinds of reasons in a summary
_REASONS_SHOWN = 7  # in an error
_NAMES_SHOWN = 3
# What differs between reasons of one kind: where it is, values with their type, numbers.
_PLACE = re.compile(
    r"^(?:(?:message|assistant turn) \d+(?: \(message \d+\))?: |messages\[\d+\](?:\.\w+|\[\d+\])* |tools\[\d+\]\S* )"
)
_VALUE = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"]+)(?:\.\.\.)? \((?:str|int|float|bool|dict|list|NoneType)\)""")


def shown(reasons: list[str]) -> str:
    """The first few, a line each, and how many more there are."""
    more = [f"... and {len(reasons) - _REASONS_SHOWN:,} more"] if len(reasons) > _REASONS_SHOWN else []
    return "\n".join([*reasons[:_REASONS_SHOWN], *more])


def kind(name: str, reason: str) -> str:
    """The reason without what is of one conversation alone."""
    text = reason.split(f"{name}: ", 1)[-1] if name in reason else reason.rpartition("/")[2].partition(": ")[2]
    text = _PLACE.sub("", text).partition("\n")[0].partition("; ")[0]
    return re.sub(r"\d+", "N", _VALUE.sub("...", text))[:120]


def kinds(left_out: Mapping[str, str]) -> Counter[str]:
    """How many conversations there are of each kind of reason. left_out: the reasons by the conversations' names."""
    return Counter(kind(name, reason) for name, reason in left_out.items())


def lines(left_out: Mapping[str, str]) -> list[str]:
    """A line a kind, with the first names of each; the most frequent ones first."""
    names: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        names.setdefault(kind(name, reason), []).append(name)
    found = sorted(names.items(), key=lambda one: -len(one[1]))
    said = [f"{len(some):,} x {what} ({_few(some)})" for what, some in found[:SHOWN]]
    return said + ([f"... and {len(found) - SHOWN:,} more kinds of reasons"] if len(found) > SHOWN else [])


def _few(names: Iterable[str]) -> str:
    some = list(names)
    return ", ".join(some[:_NAMES_SHOWN]) + (", ..." if len(some) > _NAMES_SHOWN else "")


def write(left_out: Mapping[str, str], folder: Path) -> None:
    """All names and reasons as JSON lines in a file of `folder`; none where nothing is left out."""
    if left_out:
        records = ({"conversation": name, "kind": kind(name, why), "reason": why} for name, why in left_out.items())
        text = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
        write_whole(folder / FILE, text, errors="backslashreplace")
