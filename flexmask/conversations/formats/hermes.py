r"""Tool calls in the XML of Hermes: `<tool_call>` and `<tool_response>` in messages, `<tools>` in the system text.

    {"conversations": [
        {"from": "system", "value": "Here are functions: <tools>[{\"name\": \"weather\", \"parameters\": {}}]</tools>"},
        {"from": "human", "value": "Warm in Lund?"},
        {"from": "gpt", "value": "<tool_call>\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_call>"},
        {"from": "tool", "value": "<tool_response>\n7\n</tool_response>"},
        {"from": "gpt", "value": "Seven."}]}

Qwen's coders write a call in a block as XML, whose values have the types that the schema of the function declares:

    <tool_call>\n<function=weather>\n<parameter=town>\nLund\n</parameter>\n</function>\n</tool_call>

They become calls, results and schemas, so that the chat template writes them as at inference. Sentences of the system
text that explain the tags go with them: the template has its own.
"""

from __future__ import annotations

import re
from typing import Any

from flexmask.conversations.calls import calls_in_text, parse_text, read_call, read_tools
from flexmask.conversations.parameters import ParameterText
from flexmask.conversations.thinking import unquoted
from flexmask.conversations.values import shown

NAME = "Hermes calls"
OPEN, CLOSE = "<tool_call>", "</tool_call>"
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_FUNCTION = re.compile(r"\s*<function=([^<>\n]+)>(.*)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^<>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_RESPONSE = re.compile(r"\s*<tool_response>\n?(.*?)\n?</tool_response>\s*", re.DOTALL)
_TOOLS = re.compile(r"<tools>((?:(?!<tools>).)*?)</tools>", re.DOTALL)
_EXAMPLE = re.compile(r"<tool_call>\s*(?:\{.*?\})?\s*</tool_call>", re.DOTALL)
_TAG = re.compile(r"</?(?:tools|tool_call|tool_response)>")
# A title, or what ends in a colon or speaks of calls.
_ANNOUNCES = re.compile(r"^\s*#|[:}]\s*$|\b(?:call|tool|function)s?\b", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
NOTE = (
    "sentences of a system text about <tools> and <tool_call> are left out: calls are read as such, and the chat "
    "template explains how to call"
)


def calls(text: str, where: str) -> tuple[str, list[dict[str, Any]]]:
    """(the text in front of them, the calls) of an answer; no calls where it has no `<tool_call>` but in quotes.

    Raises ValueError for a call that is not closed or holds no call, and for text between or behind calls.
    """
    opened = unquoted(text, OPEN)
    if not opened:
        return text, []
    before, rest = text[: opened[0].start()], text[opened[0].start() :]
    found = [call for block in _CALL.findall(rest) for call in _calls_of(block, where)]
    if behind := _CALL.sub("", rest).strip():
        what = f"{OPEN} that is not closed" if OPEN in behind else f"text {shown(behind)} behind a call"
        raise ValueError(f"{where}: {what}; calls come last in a message. Repair it, or remove the conversation")
    return before.rstrip("\n"), found


def _calls_of(block: str, where: str) -> list[dict[str, Any]]:
    if not block.lstrip().startswith("<function="):
        return calls_in_text(block, where)
    function = _FUNCTION.fullmatch(block)
    outside = _PARAMETER.sub("", function[2]).strip() if function else block
    if function is None or outside:
        raise ValueError(
            f"{where}: {shown(outside)} in a call in XML is neither a function nor a parameter of it; repair it"
        )
    arguments: dict[str, ParameterText] = {}
    for name, value in _PARAMETER.findall(function[2]):
        if name in arguments:
            raise ValueError(f"{where}: the parameter {name!r} stands twice in the call of {function[1]!r}; keep one")
        arguments[name] = ParameterText(value)
        arguments[name].where = where
    return [read_call({"name": function[1], "arguments": arguments}, where)]


def results(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The results that the text of a tool or user message consists of, a message each; else the message itself."""
    text = message.get("content")
    if not isinstance(text, str) or "<tool_response>" not in text or _RESPONSE.sub("", text):
        return [message]
    return [{**message, "role": "tool", "content": found} for found in _RESPONSE.findall(text)]


def declared_tools(text: str, name: str) -> tuple[str, tuple[dict[str, Any], ...] | None]:
    """(the system text without what explains calls, the schemas that it declares); None where it declares none."""
    blocks = [block for block in _TOOLS.findall(text) if block.lstrip().startswith(("{", "["))]
    if not blocks:
        return text, None
    where = f"{name}: the <tools> of the system text"
    schemas: list[Any] = []
    for block in blocks:
        try:
            values = [parse_text(block, where)]
        except ValueError:
            values = [parse_text(line, where) for line in block.splitlines() if line.strip()]
        for value in values:
            schemas.extend(value if isinstance(value, (list, tuple)) else [value])
    marked = _EXAMPLE.sub(OPEN, _TOOLS.sub("<tools>", text))
    ends = [found.end() for found in _SENTENCE.finditer(marked)]
    sentences = [marked[start:end] for start, end in zip([0, *ends], [*ends, len(marked)], strict=True)]
    kept: list[str] = []
    # Going backwards: whether the sentence behind goes, so that one that only announces it, or is its title, does too.
    leads_to_tag = False
    for sentence in reversed(sentences):
        announces = not sentence.strip() or _ANNOUNCES.search(sentence)
        leads_to_tag = bool(_TAG.search(sentence)) or bool(leads_to_tag and announces)
        if not leads_to_tag:
            kept.insert(0, sentence)
    return "".join(kept).strip(), read_tools(schemas, "<tools>", name)
