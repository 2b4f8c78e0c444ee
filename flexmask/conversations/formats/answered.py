r"""Messages that a model was given, with the message that it answered beside them: sets of single turns have them, one
turn of a dialog a record (AReaL's of tau2-bench).

    {"messages": [{"role": "user", "content": "Warm in Lund?"}],
     "answer": {"role": "assistant", "thinking": "Look it up.", "content": "", "tool_calls": [{"name": "temperature",
                "arguments": {"town": "Lund"}}]}, "metadata": {"source_dialog_id": "d1"}}

`completion`, `response` and `output` are read likewise. What an assistant says among the messages is context and not
trained. Behind messages that end with an answer of their own, none of these is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flexmask.conversations.conversation import REASONING_KEYS
from flexmask.conversations.formats import agentic, sharegpt
from flexmask.conversations.formats.prompt_completion import is_generated
from flexmask.conversations.messages import LISTS
from flexmask.conversations.values import is_empty, parse_json, shown

NAME = "messages and answer"
_KEYS = ("answer", "completion", "response", "output")
# Of a message without a role: what only an answer has.
_SAID = ("content", "tool_calls", *REASONING_KEYS)
# The speakers, in any format, of an answer.
_ANSWERING = {speaker for speaker, role in (agentic.ROLES | sharegpt.SPEAKERS).items() if role == "assistant"}


def fits(record: Mapping[str, Any]) -> bool:
    """Whether a record has messages that end without an answer, and one beside them."""
    return is_empty(record.get("calls")) and _prompt(record) is not None and bool(_answers(record))


def as_calls(record: Mapping[str, Any], name: str, notes: list[str]) -> dict[str, Any]:
    """The record with its call in `calls`. Raises ValueError beginning with `name`."""
    answer, *others = _answers(record)
    if others:
        raise ValueError(f"{name}: both {answer!r} and {others[0]!r} hold an answer; keep one")
    left = {key: value for key, value in record.items() if key not in LISTS}
    return left | {"calls": [{"prompt": _prompt(record), "completion": left.pop(answer)}]}


def is_message(value: Any) -> bool:
    """Whether a value is a message, or a list that holds one, whose role says that a model has answered it."""
    if isinstance(value, (list, tuple)):
        return any(map(is_message, value))
    speaker = value.get("role", value.get("from")) if isinstance(value, Mapping) else None
    return isinstance(speaker, str) and speaker in _ANSWERING


def refuse_unread(left: Mapping[Any, Any], name: str, last_role: str) -> None:
    """Raise ValueError for an answer among the keys `left` that nothing has read, where the messages end with one of
    another role: what would be trained is the history of the turn that the record is of."""
    for key, value in left.items():
        if is_message(value) or (key in _KEYS and not is_empty(value)):
            give = 'give what the model answered as a message under \'answer\' ({"role": "assistant", "content": ...})'
            if key in _KEYS and _is_answer(value):
                give = "read_record reads it, as a call, and read_conversation does not"
            raise ValueError(
                f"{name}: the last message is of the role {last_role!r}, and {key!r} beside the messages is "
                f"{shown(value)}, which is not read; {give}, or remove {key!r}"
            )


def _prompt(record: Mapping[str, Any]) -> Sequence[Any] | None:
    """The messages, perhaps given as JSON text; None where there are none, or they end with an answer."""
    given = [record[key] for key in LISTS if not is_empty(record.get(key))]
    messages = given[0] if len(given) == 1 else None
    if isinstance(messages, str) and messages.lstrip().startswith("["):
        try:
            messages = parse_json(messages, "")
        except ValueError:  # which reading a conversation says
            return None
    is_list = isinstance(messages, Sequence) and not isinstance(messages, (str, bytes))
    return messages if is_list and messages and not is_generated(messages[-1]) else None


def _answers(record: Mapping[str, Any]) -> list[str]:
    """The keys that hold an answer as a message."""
    return [key for key in _KEYS if _is_answer(record.get(key))]


def _is_answer(value: Any) -> bool:
    if isinstance(value, list) and len(value) == 1:
        return _is_answer(value[0])
    if not isinstance(value, Mapping) or "from" in value:
        return False
    return is_message(value) if not is_empty(value.get("role")) else any(value.get(one) is not None for one in _SAID)
