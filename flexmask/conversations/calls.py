"""Tool calls and tool schemas, in the shapes that people write, as Hugging Face chat templates take them."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from flexmask.conversations.values import brief, parse_json, shown

_ARGUMENTS = ("arguments", "parameters", "input")
# Of a call: what says nothing of what is called.
_DESCRIBING = {"type", "index", "status", "caller"}


def read_call(call: Any, where: str, identity: Any = None) -> dict[str, Any]:
    """`{"id"?, "type": "function", "function": {"name", "arguments"}}` of a call, nested or flat.

    Arguments are an object. None at all (no key, null, "", "null", []) are `{}`; JSON text is parsed.
    Raises ValueError beginning with `where`.
    """
    if not isinstance(call, Mapping):
        raise ValueError(f"{where}: a tool call is an object with a name and arguments, not {shown(call)}")
    outer = {key: value for key, value in call.items() if key not in _DESCRIBING and value not in (None, "")}
    function = outer.pop("function", None)
    if isinstance(function, Mapping):
        function = {key: value for key, value in function.items() if value not in (None, "")}
    else:
        if isinstance(function, str):  # {"function": "add", "arguments": {...}}
            outer["name"] = function
        function = {key: outer.pop(key) for key in ("name", *_ARGUMENTS) if key in outer}
    name = function.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"{where}: a tool call without a name: {shown(call)}; give it one")
    given = [key for key in _ARGUMENTS if key in function]
    arguments = _arguments(
        function.pop(given[0]) if given else None, f"{where}: the arguments of the call of {brief(name)}"
    )
    identity = outer.pop("id", None) or identity
    if unknown := [*outer, *function]:
        raise ValueError(f"{where}: unknown key {brief(unknown[0])} in the call of {brief(name)}; remove or rename it")
    identified = {} if identity is None else {"id": identity}
    return {**identified, "type": "function", "function": {"name": name, "arguments": arguments}}


def _arguments(given: Any, where: str) -> dict[str, Any]:
    arguments = given
    if isinstance(arguments, str):
        arguments = parse_json(arguments, where) if arguments.strip() else None
    if arguments is None or arguments == []:  # some languages write an empty object so
        return {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{where} are {shown(given)}; give an object, or its JSON text")
    return dict(arguments)


def read_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """The calls of a list of them, of its JSON text, or of one alone."""
    if isinstance(calls, str):
        calls = parse_json(calls, f"{where}: 'tool_calls'")
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise ValueError(f"{where}: 'tool_calls' is {shown(calls)}, not a list of calls")
    return [read_call(call, where) for call in calls]


def parse_text(text: str, where: str) -> Any:
    """The value of a text that holds JSON, or what Python prints of the same (`{'a': None}`)."""
    try:
        return parse_json(text.strip(), where)
    except ValueError as malformed:
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            raise malformed from None


def calls_in_text(text: str, where: str) -> list[dict[str, Any]]:
    """The call, or the list of calls, that a text holds."""
    value = parse_text(text, f"{where}: a tool call")
    return read_calls(value if isinstance(value, (Mapping, list)) else [value], where)


def read_tools(tools: Any, key: str, name: str) -> tuple[dict[str, Any], ...] | None:
    """`{"type": "function", "function": {"name", "description", "parameters"}}` of each schema; None where there are
    none.

    tools: a list of schemas, nested or flat, with `parameters` or Anthropic's `input_schema`; or its JSON text, or a
    list of JSON texts. key: under which they stand, for errors, which begin with `name`.
    """
    where = f"{name}: {key!r}"
    if isinstance(tools, str):
        if not tools.strip():
            return None
        tools = parse_text(tools, f"{where} is a string that is not JSON")
    if isinstance(tools, Mapping) and "name" in (tools.get("function") or tools):
        tools = [tools]
    if tools is None or tools == [] or tools == ():
        return None
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise ValueError(f"{where} is {shown(tools)}, not a list of function schemas")
    tools = [parse_json(tool, where) if isinstance(tool, str) else tool for tool in tools]
    return tuple(_schema(tool, where) for tool in tools)


def _schema(tool: Any, where: str) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if isinstance(function, Mapping):
        schema = {**tool, "function": dict(function)}
    elif isinstance(tool, Mapping):
        function = dict(tool)
        if function.get("type") in ("function", "custom"):
            del function["type"]
        if "input_schema" in function and "parameters" not in function:
            function = {"parameters" if key == "input_schema" else key: inner for key, inner in function.items()}
        schema = {"type": "function", "function": function}
    else:
        raise ValueError(f"{where} holds {shown(tool)}, which is no function schema")
    if not isinstance(schema["function"].get("name"), str):
        raise ValueError(f"{where} holds {shown(tool)}, a function schema without a name; give it one")
    return schema


# Keywords whose value may be null in a schema that nobody's table has filled in.
_NULLABLE = ("default", "const", "enum", "example", "examples")


def filled_by_table(schema: Any) -> bool:
    """Whether a schema has nulls where JSON Schema knows none: a table gives every object the keys of all others."""
    if isinstance(schema, Mapping):
        inner = [value for key, value in schema.items() if key not in _NULLABLE]
        return any(value is None or filled_by_table(value) for value in inner)
    return isinstance(schema, (list, tuple)) and any(map(filled_by_table, schema))


def drop_undeclared_nulls(call: dict[str, Any], tools: Sequence[dict[str, Any]]) -> None:
    """Take the nulls out of the arguments of `call`, in place, whose keys the schema of the function does not declare:
    JSON lines that were written from a table have them."""
    function = call["function"]
    schema: Mapping[str, Any] = next(
        (one["function"] for one in tools if one["function"]["name"] == function["name"]), {}
    )
    function["arguments"] = _declared(function["arguments"], schema.get("parameters"))


def _declared(value: Any, schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return value
    properties = schema.get("properties")
    if isinstance(value, Mapping) and isinstance(properties, Mapping):
        return {
            key: _declared(inner, properties.get(key))
            for key, inner in value.items()
            if inner is not None or key in properties
        }
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        return [_declared(inner, schema["items"]) for inner in value]
    return value


def holds_null(value: Any) -> bool:
    """Whether an object somewhere in `value` has a key whose value is null."""
    if isinstance(value, Mapping):
        return any(inner is None or holds_null(inner) for inner in value.values())
    return isinstance(value, (list, tuple)) and any(map(holds_null, value))
