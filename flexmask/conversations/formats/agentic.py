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
from enum import Enum
from typing import Any

from flexmask.conversations.messages import joined_text, refuse_other_keys
from flexmask.conversations.values import shown

NAME = "agentic roles"


class Step(Enum):
    """What an assistant does in a message of its own that is not its answer."""

    THINKING = "thinking"
    CALL = "call"


class CallText(str):
    """The content of a piece that is the text of a call, perhaps with thinking in front of it."""


ROLES: dict[str, str | Step] = {
    "reasoning": Step.THINKING,
    "thinking": Step.THINKING,
    "tool_call": Step.CALL,
    "function_call": Step.CALL,
    "tool_output": "tool",
    "tool_response": "tool",
    "observation": "tool",
    "answer": "assistant",
}


def fits(message: Mapping[str, Any]) -> bool:
    """Whether a message has a role that no other format has."""
    role = message.get("role")
    return isinstance(role, str) and role in ROLES


def pieces(message: dict[str, Any], where: str) -> Iterator[dict[str, Any] | str]:
    """The step under the role that it stands for; none for one that thinks nothing."""
    role, text = ROLES[message.pop("role")], joined_text(message.pop("content", None), where)
    if role is Step.THINKING and isinstance(text, str) and not text.strip():
        refuse_other_keys(message, ("weight",), where)
        return
    yield turn(role, text, message, where)


def turn(role: str | Step, text: Any, others: dict[str, Any], where: str) -> dict[str, Any]:
    """A piece of a message: what `role` says, with the other keys of the message."""
    if role is Step.THINKING:
        if not isinstance(text, str):
            raise ValueError(f"{where}: thinking is {shown(text)}, not text")
        if "reasoning_content" in others:
            raise ValueError(f"{where}: 'reasoning_content' beside thinking; keep one")
        return {"role": "assistant", "reasoning_content": text, **others}
    if role is Step.CALL:
        if not isinstance(text, str):
            raise ValueError(f"{where}: a tool call is {shown(text)}, not the JSON text of one")
        return {"role": "assistant", "content": CallText(text), **others}
    return {"role": role, "content": text, **others}
