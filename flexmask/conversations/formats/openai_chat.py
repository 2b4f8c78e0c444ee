r"""Chat messages as the API of OpenAI, chat templates and most data sets have them.

    {"messages": [{"role": "user", "content": "Warm in Lund?"},
                  {"role": "assistant", "content": null, "reasoning_content": "Look it up.",
                   "tool_calls": [{"id": "c1", "type": "function",
                                   "function": {"name": "temperature", "arguments": "{\"town\": \"Lund\"}"}}]},
                  {"role": "tool", "tool_call_id": "c1", "content": "7"},
                  {"role": "assistant", "content": "Seven."}]}

Content is text, or a list of text parts. Old exports have `function_call` for one call and the role `function` for its
result. Thinking stands in `reasoning_content`, `reasoning`, `thinking` or `reasoning_details`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flexmask.conversations.calls import read_call
from flexmask.conversations.messages import ENCRYPTED, joined_text
from flexmask.conversations.values import shown

NAME = "chat messages"


def fits(message: Mapping[str, Any]) -> bool:
    """Every message that has a role; the other formats are asked before."""
    return "role" in message


def pieces(message: dict[str, Any], where: str) -> Iterator[dict[str, Any] | str]:
    """The message itself, its calls and thinking under the keys of chat templates."""
    if message.get("role") == "function":
        message["role"] = "tool"
    if "function_call" in message:
        if "tool_calls" in message:
            raise ValueError(f"{where}: both 'function_call' and 'tool_calls'; keep one")
        message["tool_calls"] = [read_call(message.pop("function_call"), where)]
    if "reasoning_details" in message:
        details = _details(message.pop("reasoning_details"), where)
        if not details:
            yield ENCRYPTED
        elif "reasoning" not in message:
            message["reasoning"] = details
    content = message.get("content")
    message["content"] = "" if content is None and "tool_calls" in message else joined_text(content, where)
    yield message


def _details(details: Any, where: str) -> str:
    """The text of OpenRouter's `reasoning_details`; what is encrypted has none."""
    if not isinstance(details, list) or not all(isinstance(one, Mapping) for one in details):
        raise ValueError(f"{where}: 'reasoning_details' is {shown(details)}, not a list of objects")
    texts = [one.get("text") or one.get("summary") or "" for one in details]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: 'reasoning_details' is {shown(details)}, whose texts are no strings")
    return "".join(texts)
