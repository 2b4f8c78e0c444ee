"""What the readers of all formats share: a message without what says nothing, its text, its weight, and how the pieces
of one assistant message that stand apart in a format become one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from flexmask.conversations.conversation import check_weight
from flexmask.conversations.values import brief, is_empty, shown

# The keys under which a record has its messages.
LISTS = ("messages", "conversations", "conversation")
# Keys of a message that describe it: what it says is the same without them.
DESCRIBING = frozenset(
    "id uuid message_id parent_id index idx turn turn_id timestamp time date created created_at updated_at object "
    "model status finish_reason stop_reason stop_sequence usage logprobs token_count num_tokens annotations citations "
    "metadata meta lang language score rating".split()
)
# Keys of a part of a content that describe it.
_DESCRIBING_PART = DESCRIBING | {"signature", "cache_control", "format", "closed"}
_ORDER = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name", "weight")
ENCRYPTED = "thinking that is encrypted cannot be trained and is left out"
# The keys of an assistant message that a model generates, in the order in which it does.
GENERATED = ("reasoning_content", "content", "tool_calls")


def plain(message: Mapping[Any, Any], where: str) -> dict[Any, Any]:
    """A copy of a message without keys that describe it or hold nothing, and with one `weight`, absent where it is 1.

    `train: false` is a weight of 0, as is `loss: false`. The text (`content`; `value` beside `from`) is kept though it
    is empty. Raises ValueError beginning with `where`.
    """
    text = "content" if is_empty(message.get("from")) else "value"
    kept = {
        key: value
        for key, value in message.items()
        if key not in DESCRIBING and (not is_empty(value) or (key == text and value is not None))
    }
    weights = []
    for key in ("train", "loss", "weight"):
        if key not in kept:
            continue
        weight = kept.pop(key)
        if key != "weight":
            if not isinstance(weight, bool):
                raise ValueError(f"{where}: {key!r} is {shown(weight)}; give true or false, or a factor as 'weight'")
            weight = int(weight)
        check_weight(weight, f"{where}: {key!r}")
        weights.append(weight)
    if len(set(weights)) > 1:
        raise ValueError(f"{where}: contradicting weights {shown(weights)}; keep one of 'weight', 'train' and 'loss'")
    if weights and weights[0] != 1:
        kept["weight"] = weights[0]
    return kept


def joined_text(content: Any, where: str) -> Any:
    """Content as one string: a list of text parts is joined without separator, anything else is left as it is."""
    if not isinstance(content, list):
        return content
    return "".join(text_of(part, where) for part in content)


def text_of(part: Any, where: str, kinds: Collection[str | None] = ("text", "input_text", "output_text")) -> str:
    """The text of a part of a content. Raises ValueError for anything that is not text."""
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") in kinds:
        text = part.get("text")
        if isinstance(text, str):
            refuse_other_keys(part, ("type", "text"), where)
            return text
    raise ValueError(f"{where}: content part {shown(part)} is not text; only text can be trained on")


def refuse_other_keys(part: Mapping[Any, Any], read: Collection[str], where: str) -> None:
    """Raise ValueError for a key of a part of a content that is not among those that are `read`, does not describe it
    and holds something."""
    for key, value in part.items():
        if key not in read and key not in _DESCRIBING_PART and not is_empty(value):
            raise ValueError(
                f"{where}: unknown key {brief(key)} with value {shown(value)} in a part of its content; remove or "
                "rename it"
            )


def join_pieces(pieces: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages of pieces: thinking, an answer and calls that follow each other are one assistant message as long as
    they stand in this order, which is that of generation. A piece has the keys of a message, without `content` where it
    has none."""
    messages: list[dict[str, Any]] = []
    for piece in pieces:
        if messages and _continues(messages[-1], piece):
            last = messages[-1]
            for key, value in piece.items():
                if key == "tool_calls":
                    last[key] = [*last.get(key, []), *value]
                elif key == "reasoning_content" and key in last:
                    last[key] += f"\n\n{value}"
                else:
                    last[key] = value
        else:
            messages.append(dict(piece))
    complete = [{"content": "", **message} for message in messages]
    return [{key: message[key] for key in _ORDER if key in message} for message in complete]


def _continues(last: dict[str, Any], piece: dict[str, Any]) -> bool:
    if not last.get("role") == piece.get("role") == "assistant":
        return False
    before, now = ([i for i, key in enumerate(GENERATED) if key in one] for one in (last, piece))
    if not before or not now:
        return False
    beside = (("weight", 1), ("name", None))
    same = all(last.get(key, default) == piece.get(key, default) for key, default in beside)
    takes_over = before == [0] and not any(key in last for key, _ in beside)  # thinking says no more than it is
    in_order = max(before) < min(now) or max(before) == min(now) != GENERATED.index("content")
    return in_order and (same or takes_over)
