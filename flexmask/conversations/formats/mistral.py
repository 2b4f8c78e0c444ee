r"""Calls in the text of an answer as Mistral's models write them: a list, or names with arguments.

{"messages": [{"role": "user", "content": "Warm in Lund?"},
              {"role": "assistant", "content": "[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": {}}]"},
              {"role": "tool", "content": "7"},
              {"role": "assistant", "content": "[TOOL_CALLS]weather[ARGS]{\"town\": \"Lund\"}"}]}
"""

from __future__ import annotations

import re
from typing import Any

from flexmask.conversations.calls import calls_in_text, read_call
from flexmask.conversations.thinking import unquoted

NAME = "Mistral calls"
_OPEN = "[TOOL_CALLS]"
_NAMED = re.compile(r"\s*([^\s\[\]{}]+)(?:\[CALL_ID\](\w+))?\[ARGS\](.*)", re.DOTALL)


def calls(text: str, where: str) -> tuple[str, list[dict[str, Any]]]:
    """(the text in front of them, the calls) of an answer; no calls where it has no `[TOOL_CALLS]` but in quotes.

    Raises ValueError for what follows and is no call.
    """
    opened = unquoted(text, _OPEN)
    if not opened:
        return text, []
    before, rest = text[: opened[0].start()], text[opened[0].end() :].strip().removesuffix("</s>")
    found: list[dict[str, Any]] = []
    for part in rest.split(_OPEN):
        if named := _NAMED.fullmatch(part):
            found.append(read_call({"name": named[1], "arguments": named[3].strip()}, where, named[2]))
        else:
            found.extend(calls_in_text(part, where))
    return before.strip(), found
