"""Nulls of a record: those that a table has filled in, which go, and those that somebody wrote, which stay.

A table gives every object the keys of all others that stand in its place, in any of its records, and fills them with
null. JSON lines that were written from one are known by it: all objects in one place have the same keys, also the
messages of a user and those of an assistant, and some are null that nobody writes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

# Where somebody may write a null: in the arguments of calls, and as a value that a schema is about.
ARGUMENTS = ("arguments", "parameters", "input")
VALUES = ("default", "const", "enum", "example", "examples")
FILLED = (
    "nulls in tool schemas, or in arguments of tool calls, are left out: a table has filled them in, or the schema of "
    "the function does not know the argument. To keep one, declare it and give the arguments as JSON text"
)
TRAINED = "tool calls have arguments that are null, and are trained so; if a table has filled them in, remove them"


def filled_by_table(objects: Any, written: Collection[str]) -> bool:
    """Whether all objects of a list that stand in one place have the same keys, and some are null other than below one
    of the keys `written`, where a null may be somebody's."""
    keys: dict[tuple[Any, ...], Any] = {}
    found = False
    left: list[tuple[Any, tuple[Any, ...]]] = [(objects, ())]
    while left:
        value, place = left.pop()
        if isinstance(value, Mapping):
            if keys.setdefault(place, value.keys()) != value.keys():
                return False
            left.extend((inner, (*place, key)) for key, inner in value.items())
            found = found or (
                any(inner is None and key not in written for key, inner in value.items())
                and not any(key in written for key in place)
            )
        elif isinstance(value, (list, tuple)):
            left.extend((inner, (*place, 0)) for inner in value)
    return found


def arguments_hold_null(messages: Any) -> bool:
    """Whether an argument of a call, wherever it stands in `messages`, is null."""
    if isinstance(messages, Mapping):
        return any(
            holds_null(inner) if key in ARGUMENTS else arguments_hold_null(inner) for key, inner in messages.items()
        )
    return isinstance(messages, (list, tuple)) and any(map(arguments_hold_null, messages))


def holds_null(value: Any) -> bool:
    """Whether an object somewhere in `value` has a key whose value is null."""
    if isinstance(value, Mapping):
        return any(inner is None or holds_null(inner) for inner in value.values())
    return isinstance(value, (list, tuple)) and any(map(holds_null, value))


def parameters_of(call: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> Any:
    """The schema of the arguments of a call; None where no tool declares them."""
    name = call["function"]["name"]
    return next((one["function"].get("parameters") for one in tools if one["function"]["name"] == name), None)


def without_undeclared_nulls(call: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of a call without the nulls whose keys the schema of the function does not know."""
    arguments: dict[str, Any] = _declared(call["function"]["arguments"], parameters_of(call, tools))
    return arguments


def _declared(value: Any, schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return value
    properties = schema.get("properties")
    if isinstance(value, Mapping) and isinstance(properties, Mapping):
        others = bool(schema.get("additionalProperties"))  # the schema takes names that it does not list
        return {
            key: _declared(inner, properties.get(key))
            for key, inner in value.items()
            if inner is not None or properties.get(key) is not None or others
        }
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        return [_declared(inner, schema["items"]) for inner in value]
    return value
