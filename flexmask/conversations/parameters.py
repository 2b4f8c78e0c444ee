"""Arguments that a call gives as text (in XML), and the types that the schema of the function declares for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flexmask.conversations.calls import parse_text
from flexmask.conversations.nulls import parameters_of
from flexmask.conversations.values import shown

_PYTHON_TYPES = {
    str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null", dict: "object", list: "array"
}  # fmt: skip


class ParameterText(str):
    """The text of an argument whose type stands in the schema of the function, in a message that `where` names."""

    where: str


# What those write who think of Python.
_ALIASES = {kind.__name__: name for kind, name in _PYTHON_TYPES.items()}


def typed(call: dict[str, Any], tools: Sequence[dict[str, Any]]) -> bool:
    """Give the arguments of a call that are texts of parameters the type that the schema of the function declares, in
    place. False where one has no declared type, and stays text.

    Raises ValueError for a text that is not of the type.
    """
    function, all_declared = call["function"], True
    parameters = parameters_of(call, tools)
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    for name, text in function["arguments"].items():
        if not isinstance(text, ParameterText):
            continue
        declared = properties.get(name) if isinstance(properties, Mapping) else None
        types = _types(declared)
        all_declared = all_declared and bool(types)
        function["arguments"][name] = _of_types(
            text, types, f"the argument {name!r} of the call of {function['name']!r}"
        )
    return all_declared


def _types(schema: Any) -> set[str]:
    """The types that a schema declares, those of its alternatives included."""
    if not isinstance(schema, Mapping):
        return set()
    given = schema.get("type")
    named = given if isinstance(given, list) else [given]
    found = {_ALIASES.get(one, one) for one in named if isinstance(one, str)} & set(_PYTHON_TYPES.values())
    for key in ("anyOf", "oneOf"):
        if isinstance(alternatives := schema.get(key), list):
            found = found.union(*map(_types, alternatives))
    if not found and isinstance(schema.get("enum"), list):
        found = {_PYTHON_TYPES[type(one)] for one in schema["enum"] if type(one) in _PYTHON_TYPES}
    return found


def _of_types(text: ParameterText, types: set[str], what: str) -> Any:
    if not types:
        return str(text)
    if "string" in types:
        return None if "null" in types and text.strip() in ("null", "None") else str(text)
    words = {"true": True, "false": False, "none": None}  # templates write them as Python does, or as JSON
    value: Any = words.get(text.strip().lower(), text)
    if value is text:
        value = parse_text(text, f"{text.where}: {what}")
    kind = _PYTHON_TYPES.get(type(value), "")
    if kind not in types and not (kind == "integer" and "number" in types):
        raise ValueError(
            f"{text.where}: {what} is {shown(str(text))}, and its schema declares {' or '.join(sorted(types))}; repair "
            "one of the two"
        )
    return value
