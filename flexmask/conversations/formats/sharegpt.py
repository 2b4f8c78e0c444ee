r"""ShareGPT's turns, `from` and `value`, with the speakers that tool data of this format has.

    {"system": "Help.", "tools": "[{\"name\": \"temperature\", \"parameters\": {}}]",
     "conversations": [{"from": "human", "value": "Warm in Lund?"},
                       {"from": "function_call", "value": "{\"name\": \"temperature\", \"arguments\": {}}"},
                       {"from": "observation", "value": "7"},
                       {"from": "gpt", "value": "<think>\nThe tool says 7.\n</think>\n\nSeven."}]}

A call may have its thinking in front of it, as text in `<think>` tags; calls that follow each other are one message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flexmask.conversations.conversation import ROLES
from flexmask.conversations.formats.agentic import Step, turn
from flexmask.conversations.values import shown

NAME = "sharegpt"
SPEAKERS: dict[str, str | Step] = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "function_call": Step.CALL,
    "tool_call": Step.CALL,
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    **{role: role for role in ROLES},
}


def fits(message: Mapping[str, Any]) -> bool:
    """Whether a message has one of the two keys of this format."""
    return "from" in message or "value" in message


def pieces(message: dict[str, Any], where: str) -> Iterator[dict[str, Any] | str]:
    """The turn under the role that its speaker stands for."""
    if mixed := [key for key in ("role", "content") if key in message]:
        raise ValueError(f"{where}: 'from'/'value' and {mixed[0]!r} in one message; keep one pair")
    speaker = message.pop("from", None)
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise ValueError(f"{where}: unknown 'from' {shown(speaker)}; known: {', '.join(SPEAKERS)}")
    yield turn(SPEAKERS[speaker], message.pop("value", None), message, where)
