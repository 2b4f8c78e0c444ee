r"""Calls in the text of an answer as Glaive's data has them, and their results in the text that follows.

    {"conversations": [{"from": "human", "value": "Warm in Lund?"},
                       {"from": "gpt", "value": "<functioncall> {\"name\": \"weather\", \"arguments\": '{}'}"},
                       {"from": "human", "value": "FUNCTION RESPONSE: 7"},
                       {"from": "gpt", "value": "Seven."}]}

The arguments stand as JSON text in single quotes, which nothing inside of them escapes.
"""

from __future__ import annotations

import re
from typing import Any

from flexmask.conversations.calls import calls_in_text, read_call
from flexmask.conversations.thinking import unquoted
from flexmask.conversations.values import parse_json

NAME = "Glaive calls"
_OPEN = "<functioncall>"
_RESULT = "FUNCTION RESPONSE:"
_CALL = re.compile(r"""\{\s*"name":\s*"([^"]*)",\s*"arguments":\s*'(.*)'\s*\}""", re.DOTALL)


def calls(text: str, where: str) -> tuple[str, list[dict[str, Any]]]:
    """(the text in front of it, the call) of an answer; no calls where it has no `<functioncall>` but in quotes.

    Raises ValueError for what follows and is no call.
    """
    opened = unquoted(text, _OPEN)
    if not opened:
        return text, []
    before, rest = text[: opened[0].start()], text[opened[0].end() :]
    rest = rest.strip().removesuffix("<|endoftext|>").strip()
    if call := _CALL.fullmatch(rest):
        arguments = parse_json(call[2], f"{where}: the arguments of the call of {call[1]!r}") if call[2].strip() else {}
        return before.strip(), [read_call({"name": call[1], "arguments": arguments}, where)]
    return before.strip(), calls_in_text(rest, where)


def results(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The result that the text of a tool or user message is; else the message itself."""
    text = message.get("content")
    if not isinstance(text, str) or not text.lstrip().startswith(_RESULT):
        return [message]
    return [{**message, "role": "tool", "content": text.lstrip().removeprefix(_RESULT).strip()}]
