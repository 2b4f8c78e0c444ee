"""Calls of a model that share a context, for histories that no conversation tells: a summary in place of old messages,
results of tools that were cleared, the work of a sub-agent that shrank to its result.

    {"calls": [{"prompt": [{"role": "user", "content": "Warm in Lund?"}],
                "completion": {"role": "assistant", "reasoning_content": "Look it up.", "content": "Seven degrees."}},
               {"prompt": [{"role": "user", "content": "So far: Lund has seven degrees. And Visby?"}],
                "completion": {"role": "assistant", "content": "Nine."}, "weight": 0.5},
               {"prompt": [151644, 872, 198], "completion": [24, 151645]}]}

Each call says what the model was given and what it answered; what calls have in common is found from their tokens, as
for the turns of a conversation. Messages go through the chat template as a turn does. Token ids are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flexmask.conversations.beside import TEMPLATE_KEYS, TOOL_KEYS, describes
from flexmask.conversations.conversation import Conversation, check_weight
from flexmask.conversations.reading import AUTO, LISTS, read_conversation
from flexmask.conversations.values import brief, is_empty, shown

CALLS = "calls"
FORMAT = "calls of a model"
# Of a record beside its calls, and of every call without its own.
_SHARED = (*TOOL_KEYS, "chat_template_kwargs", *TEMPLATE_KEYS)
# Stands where the answer is given in token ids: prompts do not depend on it.
_QUESTION, _ANSWER = {"role": "user", "content": "-"}, {"role": "assistant", "content": "-"}

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One call: what the model was given and what it answered.

    conversation: the messages of the prompt with the answer behind them, the only one that has a weight; None where the
    prompt is `prompt_ids`. completion_ids: the answer as the model gave it, in place of that message. weight: by which
    its loss is multiplied. name: with which errors about it begin, and what its chat is called. candidate: which of the
    competing continuations of the record it belongs to.
    """

    name: str
    conversation: Conversation | None
    prompt_ids: Ids | None = None
    completion_ids: Ids | None = None
    weight: float = 1.0
    candidate: int = 0


@dataclass(frozen=True)
class Calls:
    """The calls of one record, in order. `format`, `unread` and `notes` are as in `Conversation`.

    rewards: of its candidates, where they compete; a higher one is better.
    """

    name: str
    calls: tuple[Call, ...]
    rewards: tuple[float, ...] = ()
    format: str = field(default=FORMAT, compare=False)
    unread: tuple[str, ...] = field(default=(), compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)


def read_record(
    record: Mapping[str, Any], name: str, *, thinking_tags: str | Sequence[str] | None = AUTO
) -> Conversation | Calls:
    """What one record holds: calls of a model, if it has `calls`, or else a conversation (`read_conversation`).

    Each call has a `prompt` and a `completion`: a list of messages and an assistant message, in any format of
    `read_conversation`, or token ids; or, as servers log them, `messages` and `choices` of one. It may have a `weight`
    (0 or `"train": false`: context only), `tools` and arguments of the template of its own, and a `name` for errors.

    Raises ValueError naming the record, the call (from 0), the value found and what to do.
    """
    from flexmask.conversations.competing import competes, read_competing

    if not isinstance(record, Mapping) or CALLS not in record:
        if isinstance(record, Mapping) and competes(record):
            return read_competing(record, name, thinking_tags)
        return read_conversation(record, name, thinking_tags=thinking_tags)
    given = record[CALLS]
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)) or not given:
        raise ValueError(f"{name}: {CALLS!r} is {shown(given)}, not a list of calls with 'prompt' and 'completion'")
    shared = {key: record[key] for key in _SHARED if record.get(key) is not None}
    if held := [key for key in (*LISTS, "prompt") if record.get(key)]:
        raise ValueError(f"{name}: both {CALLS!r} and {held[0]!r}; keep one")
    calls = [_call(one, f"{name}: call {i}", shared, thinking_tags) for i, one in enumerate(given)]
    read = [one for _, one in calls if one is not None]
    unread = [key for key in record if key not in (CALLS, *_SHARED) and not (describes(key) or is_empty(record[key]))]
    return Calls(
        name,
        tuple(call for call, _ in calls),
        unread=tuple(dict.fromkeys([*unread, *(key for one in read for key in one.unread)])),
        notes=tuple(dict.fromkeys(note for one in read for note in one.notes)),
    )


def _call(given: Any, where: str, shared: Mapping[str, Any], thinking_tags: Any) -> tuple[Call, Conversation | None]:
    """A call, and what was read of its messages."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} is {shown(given)}, not an object with 'prompt' and 'completion'")
    left = {key: value for key, value in given.items() if value is not None}
    if (name := left.pop("name", None)) is not None:
        where = f"{where} ({name})"
    prompt = _one_of(left, ("prompt", "messages"), where)
    completion = _one_of(left, ("completion", "choices"), where)
    weight = _weight(left, where)
    if isinstance(completion, Sequence) and len(completion) == 1 and isinstance(completion[0], Mapping):
        choice = completion[0]  # or a list of one message
        ended = {key: choice[key] for key in ("finish_reason",) if key in choice}
        completion = {**choice["message"], **ended} if isinstance(choice.get("message"), Mapping) else choice
    prompt_ids, completion_ids = _ids(prompt, f"{where}: 'prompt'"), _ids(completion, f"{where}: 'completion'")
    for key, ids in (("prompt", prompt_ids), ("completion", completion_ids)):
        if ids is not None and not ids:
            raise ValueError(f"{where}: {key!r} is empty; remove the call")
    if prompt_ids is not None:
        if completion_ids is None:
            raise ValueError(
                f"{where}: 'prompt' is token ids and 'completion' is a message, whose tokens would be a guess; give "
                "its token ids too"
            )
        if left:
            raise ValueError(f"{where}: {brief(next(iter(left)))} beside token ids, which say all there is; remove it")
        return Call(where, None, prompt_ids, completion_ids, weight), None
    if not isinstance(prompt, Sequence) or isinstance(prompt, (str, bytes)):
        raise ValueError(f"{where}: 'prompt' is {shown(prompt)}; give a list of messages, or token ids")
    if completion_ids is None and not isinstance(completion, Mapping):
        raise ValueError(f"{where}: 'completion' is {shown(completion)}; give an assistant message, or token ids")
    answer = dict(completion) if completion_ids is None else _ANSWER
    if answer.setdefault("role", "assistant") != "assistant":
        raise ValueError(f"{where}: 'completion' has the role {brief(answer['role'])}; give an assistant message")
    # With a question between, nothing of the prompt joins the answer.
    record = {**shared, **left, "messages": [*prompt, _QUESTION, answer]}
    read = read_conversation(record, where, thinking_tags=thinking_tags)
    *before, _, last = read.messages
    if before and before[-1]["role"] == "assistant":
        raise ValueError(
            f"{where}: 'prompt' ends with an assistant message, which 'completion' would go on with; give the whole "
            "answer as 'completion'"
        )
    context = tuple(one | {"weight": 0} if one["role"] == "assistant" else one for one in before)
    messages = (*context, {key: value for key, value in last.items() if key != "weight"})
    conversation = Conversation(where, messages, read.tools, read.template_kwargs, read.thinks)
    return Call(where, conversation, None, completion_ids, weight * last.get("weight", 1)), read


def _one_of(left: dict[str, Any], keys: tuple[str, str], where: str) -> Any:
    found = [key for key in keys if key in left]
    if len(found) != 1:
        said = f"both {keys[0]!r} and {keys[1]!r}; keep one" if found else f"no {keys[0]!r} (found {sorted(left)})"
        raise ValueError(f"{where}: {said}")
    return left.pop(found[0])


def _weight(left: dict[str, Any], where: str) -> float:
    train, weight = left.pop("train", True), left.pop("weight", 1)
    if not isinstance(train, bool):
        raise ValueError(f"{where}: 'train' is {shown(train)}; write true or false")
    check_weight(weight, f"{where}: 'weight'")
    return float(weight) * train


def _ids(value: Any, where: str) -> Ids | None:
    """Token ids; None for anything that is no list of numbers. Raises ValueError for numbers that are none."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        return None
    if value and not any(isinstance(one, (int, float)) for one in value):
        return None
    if wrong := [one for one in value if not isinstance(one, int) or isinstance(one, bool) or one < 0]:
        raise ValueError(f"{where} holds {shown(wrong[0])} among token ids, which are integers of at least 0")
    return tuple(value)
