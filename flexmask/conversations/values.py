"""Plain values as records hold them: read from JSON text, freed of what a table filled in, checked, shown in errors."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

# How token ids are given, for errors (`flexmask.conversations.model_calls`).
AS_CALLS = '{"calls": [{"prompt": [<ids>], "completion": [<ids>]}]}'
# Brackets inside brackets. Deeper ones end in RecursionError somewhere on the way to text.
MOST_NESTED = 100
_MOST_BITS = 10_000  # Python (3.11) writes no more than 4,300 digits


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text. A key given twice in one object is an error: Python would keep the last.

    Raises ValueError beginning with `where`.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        found = error.doc[error.pos : error.pos + 40]
        raise ValueError(
            f"{where}: malformed JSON at {place(error)}: {error.msg}, found {found!r}; repair it"
        ) from error
    except RecursionError as error:
        raise ValueError(f"{where}: brackets stand inside brackets too deep to be read; no conversation is") from error
    except _TwiceError as error:
        raise ValueError(f"{where}: the key {error} stands twice in one object; keep one") from error
    except ValueError as error:  # Python (3.11) converts no more than 4,300 digits
        raise ValueError(f"{where}: holds a number of more digits than can be read; write it as text") from error


def place(error: json.JSONDecodeError) -> str:
    """Where in a text JSON is malformed."""
    return f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"


class _TwiceError(ValueError):
    """A key that stands twice in one object."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _TwiceError(repr(twice))
    return dict(pairs)


def is_empty(value: Any) -> bool:
    """Whether a value is null, "", [] or {}: a key that has it says no more than one that is not there."""
    return value is None or (isinstance(value, (str, list, tuple, Mapping)) and not value)


def are_given(record: Mapping[Any, Any], keys: Collection[str]) -> bool:
    """Whether a record has all of these keys, and not null under each: a table fills that in for other records'."""
    return all(key in record for key in keys) and any(record[key] is not None for key in keys)


def difference(one: Any, other: Any, place: str = "") -> str | None:
    """Where two values differ first, `place` and the keys behind it; None where they are equal."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys([*one, *other]):
            inner = f"{place}.{key}" if place else str(key)
            if key not in one or key not in other:
                return inner
            if found := difference(one[key], other[key], inner):
                return found
        return None
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next(filter(None, (difference(*pair, f"{place}[{index}]") for index, pair in pairs)), None)
    return None if one == other else place or "all of it"


def without_nulls(value: Any) -> Any:
    """A value of a table without the keys whose value is null: a table fills in each key that another record has.

    Left in, they would be shown to the model in tool schemas, and trained in the arguments of tool calls.
    """
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def as_object(value: Any, where: str) -> dict[Any, Any]:
    """A copy of an object, empty for None. Raises ValueError beginning with `where` for anything else."""
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{where} is {shown(value)}, not an object")
    return dict(value or {})


def as_list(value: Any, where: str) -> list[Any]:
    """A list, empty for what `is_empty`. Raises ValueError beginning with `where` for anything else."""
    if not is_empty(value) and not isinstance(value, (list, tuple)):
        raise ValueError(f"{where} is {shown(value)}, not a list")
    return list(value or ())


def check_values(value: Any, where: str) -> None:
    """Raise ValueError, beginning with `where`, unless `value` can be written as JSON text and encoded: half surrogate
    pairs, numbers that JSON has not, brackets deeper than MOST_NESTED and objects of Python are refused."""
    _check(value, where, ())


def _check(value: Any, where: str, path: tuple[str | int, ...]) -> None:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{_place(where, path)} has half a surrogate pair ({value[error.start]!r}) at character {error.start}, "
                "which no tokenizer can encode; repair the text"
            ) from error
    elif isinstance(value, (Mapping, list, tuple)):
        if len(path) >= MOST_NESTED:
            raise ValueError(
                f"{where}: brackets stand inside brackets more than {MOST_NESTED} deep; simplify or remove it"
            )
        if not isinstance(value, Mapping):
            for index, inner in enumerate(value):
                _check(inner, where, (*path, index))
            return
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{_place(where, path)} has the key {shown(key)}, and keys are text; write it as text")
            _check(key, f"{where}: a key", ())
            _check(inner, where, (*path, key))
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{_place(where, path)} is {value}, which JSON has not; write it as text or leave it out")
    elif isinstance(value, int):
        if value.bit_length() > _MOST_BITS:
            raise ValueError(f"{_place(where, path)} is a number of more digits than can be written; write it as text")
    elif value is not None:
        raise ValueError(f"{_place(where, path)} is {shown(value)}, a value that JSON has not; write it as text")


def _place(where: str, path: tuple[str | int, ...]) -> str:
    return where + "".join(f"[{one}]" if isinstance(one, int) else f".{one[:40]}" for one in path)


def shown(value: Any) -> str:
    """A value for an error message: its beginning and its type."""
    return f"{brief(value)} ({type(value).__name__})"


def brief(value: Any, limit: int = 80) -> str:
    """The beginning of a value for an error message."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # too deep, or of too many digits
        return "what cannot be shown"
    return text if len(text) <= limit else text[:limit] + "..."
