"""Messages whose content is a list of blocks, as the API of Anthropic has them, and Mistral's thinking parts.

    {"system": "Be brief.", "tools": [{"name": "temperature", "input_schema": {"type": "object", "properties": {}}}],
     "messages": [{"role": "user", "content": "Warm in Lund?"},
                  {"role": "assistant", "content": [{"type": "thinking", "thinking": "Look it up.", "signature": "x"},
                                                    {"type": "text", "text": "Let me see."},
                                                    {"type": "tool_use", "id": "t1", "name": "temperature",
                                                     "input": {}}]},
                  {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "7"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "Seven."}]}]}

A message is thinking, then text, then calls; thinking behind text or text behind a call is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flexmask.conversations.calls import read_call
from flexmask.conversations.messages import ENCRYPTED, GENERATED, joined_text, refuse_other_keys, text_of
from flexmask.conversations.values import brief, is_empty, shown

NAME = "content blocks"
_BLOCKS = {"thinking", "reasoning", "redacted_thinking", "tool_use", "tool_result"}


def fits(message: Mapping[str, Any]) -> bool:
    """Whether some part of the content is a block that no other format has."""
    content = message.get("content")
    return isinstance(content, list) and any(isinstance(one, Mapping) and _kind(one) in _BLOCKS for one in content)


def _kind(block: Mapping[str, Any]) -> str:
    kind = block.get("type")
    return kind if isinstance(kind, str) else ""


def pieces(message: dict[str, Any], where: str) -> Iterator[dict[str, Any] | str]:
    """Thinking, text, calls and results of a message, a piece each; texts that follow each other are one."""
    blocks = message.pop("content")
    if message.get("type") == "message":
        del message["type"]
    if message.get("role") == "assistant":
        readable = [one for one in blocks if not _is_encrypted(one, where)]
        if len(readable) < len(blocks):
            yield ENCRYPTED
        yield _assistant(readable, message, where)
        return
    texts: list[str] = []
    for block in blocks:
        if isinstance(block, Mapping) and _kind(block) == "tool_result":
            if texts:
                yield {**message, "content": "".join(texts)}
                texts = []
            if block.get("is_error"):
                yield "'is_error' of tool results is not shown; their text says it"
            yield _result(block, message, where)
        else:
            texts.append(text_of(block, where))
    if texts:
        yield {**message, "content": "".join(texts)}


def _is_encrypted(block: Any, where: str) -> bool:
    """Whether a block is thinking of which only a signature, or what nobody can read, is given."""
    if not isinstance(block, Mapping) or _kind(block) not in ("thinking", "redacted_thinking"):
        return False
    if _kind(block) == "redacted_thinking":
        refuse_other_keys(block, ("type", "data"), where)
        return True
    return not is_empty(block.get("signature")) and not _thinking(block, "thinking", where).strip()


def _assistant(blocks: list[Any], message: dict[str, Any], where: str) -> dict[str, Any]:
    found: dict[str, list[Any]] = {}
    for block in blocks:
        kind = _kind(block) if isinstance(block, Mapping) else ""
        value: Any
        if kind in ("thinking", "reasoning"):
            key, value = "reasoning_content", _thinking(block, kind, where)
        elif kind == "tool_use":
            key, value = "tool_calls", read_call({k: v for k, v in block.items() if k != "cache_control"}, where)
        else:
            key, value = "content", text_of(block, where)
            if not value and key not in found:
                continue
        later = GENERATED[GENERATED.index(key) + 1 :]
        if behind := [one for one in later if one in found]:
            raise ValueError(
                f"{where}: a block {kind or 'text'!r} stands behind {behind[-1]!r}; a message is thinking, then text, "
                "then calls. Split it where the model began anew, or remove the conversation"
            )
        found.setdefault(key, []).append(value)
    if twice := [key for key in found if key in message]:
        raise ValueError(f"{where}: {twice[0]!r} beside blocks of the same; keep one")
    piece = dict(message)
    if "reasoning_content" in found:
        piece["reasoning_content"] = "\n\n".join(found["reasoning_content"])
    if "content" in found:
        piece["content"] = "".join(found["content"])
    if "tool_calls" in found:
        piece["tool_calls"] = found["tool_calls"]
    return piece


def _thinking(block: Mapping[str, Any], kind: str, where: str) -> str:
    refuse_other_keys(block, ("type", kind, "text", "content"), where)
    given = {key: block[key] for key in (kind, "text", "content") if not is_empty(block.get(key))}
    texts = [joined_text(value, where) for value in given.values()] or [""]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: thinking is {shown(texts[0])}, not text")
    if len(set(texts)) > 1:
        raise ValueError(f"{where}: contradicting thinking in {' and '.join(map(repr, given))} of a block; keep one")
    return str(texts[0])


def _result(block: Mapping[str, Any], message: Mapping[str, Any], where: str) -> dict[str, Any]:
    role = message.get("role")
    if role not in ("user", "tool"):
        raise ValueError(f"{where}: a tool result in a message of role {shown(role)}; make the role 'user' or 'tool'")
    if "name" in message and role == "user":  # that of a tool result is the name of the tool
        raise ValueError(f"{where}: a tool result of a user with the name {brief(message['name'])}; remove the name")
    refuse_other_keys(block, ("type", "content", "tool_use_id", "is_error"), where)
    content = joined_text(block.get("content"), where)
    identity = block.get("tool_use_id")
    return {
        **message,
        "role": "tool",
        "content": "" if content is None else content,
        **({} if is_empty(identity) else {"tool_call_id": identity}),
    }
