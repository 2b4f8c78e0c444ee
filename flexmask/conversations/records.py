"""One record of any kind -> a conversation, or the calls of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flexmask.conversations.competing import competes, read_competing
from flexmask.conversations.conversation import Conversation
from flexmask.conversations.model_calls import CALL_RECORDS, CALLS, Calls, read_calls
from flexmask.conversations.reading import AUTO, read_conversation
from flexmask.conversations.values import MOST_NESTED


def read_record(
    record: Mapping[str, Any],
    name: str,
    *,
    thinking_tags: str | Sequence[str] | None = AUTO,
    episode_key: str | Sequence[str] | None = AUTO,
) -> Conversation | Calls:
    """What one record holds: calls of a model, if it has `calls`, is in a format of CALL_RECORDS or has answers that
    compete (`flexmask.conversations.competing`), or else a conversation (`read_conversation`).

    Each call has a `prompt` and a `completion`: a list of messages and an assistant message, in any format of
    `read_conversation`, or token ids, with a `completion_mask` where not all of them are the model's; or, as servers
    log them, `messages` and `choices` of one. It may have a `weight` (0 or `"train": false`: context only), `tools` and
    arguments of the template of its own, a `name` for errors, and the number of its `candidate` where the record has
    `rewards` of several. episode_key: see `episodes.episode_of`.

    Raises ValueError naming the record, the call (from 0), the value found and what to do.
    """
    try:
        return _read(record, name, thinking_tags, episode_key)
    except RecursionError:
        raise ValueError(
            f"{name}: brackets stand inside brackets more than {MOST_NESTED} deep; simplify or remove it"
        ) from None


def _read(record: Any, name: str, thinking_tags: Any, episode_key: Any) -> Conversation | Calls:
    if not isinstance(record, Mapping):
        return read_conversation(record, name, thinking_tags=thinking_tags)
    has_calls = record.get(CALLS) is not None
    if not has_calls and competes(record):
        return read_competing(record, name, thinking_tags)
    reader = next((one for one in CALL_RECORDS if one.fits(record)), None)
    if reader is not None or has_calls:
        return read_calls(record, name, reader, thinking_tags, episode_key)
    return read_conversation(record, name, thinking_tags=thinking_tags)
