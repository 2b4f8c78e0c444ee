"""Tool calls and tool schemas, in the shapes that people write, as Hugging Face chat templates take them."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flexmask.conversations.nulls import ARGUMENTS
from flexmask.conversations.thinking import quoted
from flexmask.conversations.values import brief, difference, is_empty, parse_json, shown

# Of a call: what says nothing of what is called.
_DESCRIBING = {"type", "index", "status", "caller"}
# What opens a call in the text of models whose calls are not read from text.
_UNREAD = re.compile(
    r"<\|python_tag\|>|<function=|<\|tool_call\|>|<\|tool_call_start\|>|<\|tool_calls_section_begin\|>"
    "|<\uff5ctool\u2581calls\u2581begin\uff5c>|<\\|START_ACTION\\|>|<\\|action_start\\|>|<tool_calls>|<function_calls>"
    "|<minimax:tool_call>|<\\|recipient\\|>|<\uff5cDSML\uff5c[a-z_]+>|<invoke name=|\u273fFUNCTION\u273f"
)


def read_call(call: Any, where: str, identity: Any = None) -> dict[str, Any]:
    """`{"id"?, "type": "function", "function": {"name", "arguments"}}` of a call, nested or flat.

    Arguments are an object. None at all (no key, null, "", "null", []) are `{}`; JSON text is parsed. A key that is
    null or empty counts as absent.
    Raises ValueError beginning with `where`.
    """
    if not isinstance(call, Mapping):
        raise ValueError(f"{where}: a tool call is an object with a name and arguments, not {shown(call)}")
    if call.get("type") == "custom":
        raise ValueError(
            f"{where}: the call of a custom tool has free text as input, and chat templates write calls with named "
            "arguments; make it a function with an argument for the text, or remove the conversation"
        )
    outer = {key: value for key, value in call.items() if key not in _DESCRIBING and not is_empty(value)}
    function = outer.pop("function", None)
    if isinstance(function, Mapping):
        function = {key: value for key, value in function.items() if not is_empty(value)}
    else:
        if isinstance(function, str):  # {"function": "add", "arguments": {...}}
            outer["name"] = function
        function = {key: outer.pop(key) for key in ("name", *ARGUMENTS) if key in outer}
    name = function.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"{where}: a tool call without a name: {shown(call)}; give it one")
    given = [key for key in ARGUMENTS if key in function]
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


def read_calls(calls: Any, where: str, key: str = "tool_calls") -> list[dict[str, Any]]:
    """The calls of a list of them, of its JSON text, or of one alone, which stand under `key`."""
    if isinstance(calls, str):
        calls = parse_json(calls, f"{where}: {key!r}")
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise ValueError(f"{where}: {key!r} is {shown(calls)}, not a list of calls")
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


def refuse_unread_calls(text: str, where: str) -> None:
    """Raise ValueError for the text of an answer that holds calls in a form which is not read: it would teach to write
    that form, whatever the chat template writes. In quotes it is the topic of the text."""
    for found in _UNREAD.finditer(text):
        if not quoted(text, found):
            raise ValueError(
                f"{where}: {found.group()} in the text of an answer opens a call in a form that is not read; give the "
                "calls in 'tool_calls', or put it in quotes where it is what the text is about"
            )


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
    return tuple(read_schema(tool, where) for tool in tools)


def read_schema(tool: Any, where: str) -> dict[str, Any]:
    """`{"type": "function", "function": {"name", ...}}` of one schema, nested or flat. Raises ValueError beginning with
    `where`."""
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if isinstance(function, Mapping):
        schema = {**tool, "function": dict(function)}
    elif isinstance(tool, Mapping):
        beside = ("type", "function", "parameters", "input_schema")
        function = {key: inner for key, inner in tool.items() if not (key in beside and inner is None)}
        if function.get("type") == "custom" and not {"parameters", "input_schema"} & function.keys():
            raise ValueError(
                f"{where} holds {shown(tool)}, a custom tool, whose input is free text; make it a function with "
                "parameters, or remove the conversation"
            )
        if function.get("type") in ("function", "custom"):
            del function["type"]
        if "input_schema" in function:
            if differs := difference(function.get("parameters", function["input_schema"]), function["input_schema"]):
                raise ValueError(
                    f"{where} holds {shown(tool)}, whose 'parameters' and 'input_schema' differ in {differs}; keep one"
                )
            function["parameters"] = function.pop("input_schema")
        schema = {"type": "function", "function": function}
    else:
        raise ValueError(f"{where} holds {shown(tool)}, which is no function schema")
    if not isinstance(schema["function"].get("name"), str):
        raise ValueError(f"{where} holds {shown(tool)}, a function schema without a name; give it one")
    return schema
