r"""Chat messages as the API of OpenAI, chat templates and most data sets have them.

    {"messages": [{"role": "user", "content": "Warm in Lund?"},
                  {"role": "assistant", "content": null, "reasoning_content": "Look it up.",
                   "tool_calls": [{"id": "c1", "type": "function",
                                   "function": {"name": "temperature", "arguments": "{\"town\": \"Lund\"}"}}]},
                  {"role": "tool", "tool_call_id": "c1", "content": "7"},
                  {"role": "assistant", "content": "Seven."}]}

Content is text, or a list of text parts. Old exports have `function_call` for one call and the role `function` for its
result. Thinking stands in `reasoning_content`, `reasoning`, `thinking` or `reasoning_details`. Every message that no
other format fits is read as one of this.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flexmask.conversations.messages import joined_text

NAME = "chat messages"


def pieces(message: dict[str, Any], where: str) -> Iterator[dict[str, Any] | str]:
    """The message itself, its text joined."""
    if message.get("role") == "function":
        message["role"] = "tool"
    content = message.get("content")
    message["content"] = "" if content is None and "tool_calls" in message else joined_text(content, where)
    yield message
