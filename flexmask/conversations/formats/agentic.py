r"""Roles for the steps of an agent, as Nemotron's agentic data and ms-swift's have them: what an assistant thinks,
calls and answers stands in messages of their own.

    {"messages": [{"role": "user", "content": "Warm in Lund?"},
                  {"role": "reasoning", "content": "Look it up."},
                  {"role": "tool_call", "content": "{\"name\": \"weather\", \"arguments\": {\"town\": \"Lund\"}}"},
                  {"role": "tool_output", "content": "7"},
                  {"role": "answer", "content": "Seven."}]}

Steps that follow each other are one message: thinking, answer, calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flexmask.conversations.messages import joined_text
from flexmask.conversations.values import shown

NAME = "agentic roles"
# A piece whose `content` is the text of a call, perhaps with thinking in front of it.
CALL = "call"
_ROLES = {
    "reasoning": "thinking",
    "thinking": "thinking",
    "tool_call": CALL,
    "function_call": CALL,
    "tool_output": "tool",
    "tool_response": "tool",
    "observation": "tool",
    "answer": "assistant",
}


def fits(message: Mapping[str, Any]) -> bool:
    """Whether a message has a role that no other format has."""
    role = message.get("role")
    return isinstance(role, str) and role in _ROLES


def pieces(message: dict[str, Any], where: str) -> Iterator[dict[str, Any] | str]:
    """The step under the role that it stands for."""
    role = message.pop("role", None)
    content = joined_text(message.pop("content", None), where)
    yield turn(_ROLES.get(role, role) if isinstance(role, str) else role, content, message, where)


def turn(role: Any, text: Any, others: dict[str, Any], where: str) -> dict[str, Any]:
    """A piece of a message: what `role` says, with the other keys of the message."""
    if role == "thinking":
        if not isinstance(text, str):
            raise ValueError(f"{where}: thinking is {shown(text)}, not text")
        if "reasoning_content" in others:
            raise ValueError(f"{where}: 'reasoning_content' beside thinking; keep one")
        return {"role": "assistant", "reasoning_content": text, **others}
    if role == CALL:
        if not isinstance(text, str):
            raise ValueError(f"{where}: a tool call is {shown(text)}, not the JSON text of one")
        return {"role": "assistant", CALL: text, **others}
    return {"role": role, "content": text, **others}
