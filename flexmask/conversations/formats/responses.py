r"""Items of OpenAI's Responses API: messages, reasoning, calls and their outputs stand side by side.

    {"instructions": "Be brief.",
     "input": [{"role": "user", "content": [{"type": "input_text", "text": "Warm in Lund?"}]}],
     "output": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "Look it up."}]},
                {"type": "function_call", "call_id": "c1", "name": "temperature", "arguments": "{\"town\": \"Lund\"}"},
                {"type": "function_call_output", "call_id": "c1", "output": "7"},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Seven."}]}]}

What of an assistant stands in `input` beside an `output` is context and not trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flexmask.conversations.calls import read_call
from flexmask.conversations.messages import ENCRYPTED, joined_text, refuse_other_keys, text_of
from flexmask.conversations.values import shown

NAME = "Responses items"
# Calls of custom tools have free text as input, which no chat template writes.
_CUSTOM = {"custom_tool_call", "custom_tool_call_output"}


def fits(message: Mapping[str, Any]) -> bool:
    """Whether a message is an item that no other format has, or its content holds parts of this one."""
    kind = message.get("type")
    if isinstance(kind, str) and kind in {"function_call", "function_call_output", "reasoning", "message", *_CUSTOM}:
        return True
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return any(isinstance(part, Mapping) and part.get("type") in ("input_text", "output_text") for part in parts)


def pieces(message: dict[str, Any], where: str) -> Iterator[dict[str, Any] | str]:
    """The item as a piece of a message."""
    kind = message.pop("type", "message")
    identity = message.pop("call_id", None)
    if kind == "reasoning":
        full, summary = (_reasoning(message.pop(key, None) or "", where) for key in ("content", "summary"))
        encrypted = message.pop("encrypted_content", None)
        if full and summary not in ("", full):
            yield "summaries of thinking that stands beside them in full are left out"
        if full or summary:
            yield {"role": "assistant", "reasoning_content": full or summary, **message}
            return
        if encrypted:
            yield ENCRYPTED
        refuse_other_keys(message, ("role", "weight"), where)
    elif kind == "function_call":
        weight = {"weight": message.pop("weight")} if "weight" in message else {}
        yield {"role": "assistant", "tool_calls": [read_call(message, where, identity)], **weight}
    elif kind == "function_call_output":
        answered = {} if identity is None else {"tool_call_id": identity}
        if message.pop("content", None):
            raise ValueError(f"{where}: 'content' beside 'output'; keep one")
        yield {"role": "tool", "content": joined_text(message.pop("output", ""), where), **answered, **message}
    elif kind == "message":
        yield {**message, "content": joined_text(message.get("content"), where)}
    elif isinstance(kind, str) and kind in _CUSTOM:
        raise ValueError(
            f"{where}: {kind} has free text as input, and chat templates write calls with named arguments; make it a "
            "function with an argument for the text, or remove the conversation"
        )
    else:
        raise ValueError(f"{where}: items of the type {shown(kind)} cannot be trained on; remove the conversation")


def _reasoning(parts: Any, where: str) -> str:
    if isinstance(parts, str):
        return parts
    if not isinstance(parts, list):
        raise ValueError(f"{where}: the reasoning is {shown(parts)}, not a list of texts")
    return "\n\n".join(text_of(part, where, (None, "reasoning_text", "summary_text", "text")) for part in parts)
