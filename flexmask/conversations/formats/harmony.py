"""The channels of gpt-oss in the text of an answer: analysis is thinking, final the answer, commentary to a function a
call.

    <|channel|>analysis<|message|>Look it up.<|end|><|start|>assistant<|channel|>final<|message|>Seven.<|return|>
"""

from __future__ import annotations

import re
from typing import Any

from flexmask.conversations.calls import read_call
from flexmask.conversations.values import shown

NAME = "harmony channels"
_CHANNEL = re.compile(
    r"(?:<\|start\|>assistant)?(?:\s*to=functions\.(?P<before>[\w.-]+))?<\|channel\|>(?P<channel>analysis|commentary|final)"
    r"(?:\s*to=functions\.(?P<to>[\w.-]+))?\s*(?:<\|constrain\|>\s*)?(?:json)?\s*<\|message\|>(?P<text>.*?)"
    r"(?:<\|end\|>|<\|return\|>|<\|call\|>|\Z)",
    re.DOTALL,
)


def fits(text: str) -> bool:
    """Whether a text begins with a channel."""
    return text.lstrip().startswith(("<|channel|>", "<|start|>assistant<|channel|>"))


def piece(text: str, where: str) -> dict[str, Any]:
    """Thinking, answer and calls of a text in channels. Raises ValueError for text outside of them, or in another order
    than that of a message."""
    found: dict[str, Any] = {}
    if outside := _CHANNEL.sub("", text).strip():
        raise ValueError(f"{where}: text {shown(outside)} outside of the channels; repair the message or remove it")
    for channel in _CHANNEL.finditer(text):
        called, inside = channel["to"] or channel["before"], channel["text"]
        if called:
            found.setdefault("tool_calls", []).append(read_call({"name": called, "arguments": inside}, where))
            continue
        key = "reasoning_content" if channel["channel"] == "analysis" else "content"
        if "tool_calls" in found or "content" in found:
            raise ValueError(
                f"{where}: channel {channel['channel']} stands behind the answer or a call; repair it or remove it"
            )
        found[key] = f"{found[key]}\n\n{inside}" if key in found else inside
    return {"content": "", **found}
