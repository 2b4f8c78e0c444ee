"""Calls of a model that share a context, for histories that no conversation tells: a summary in place of old messages,
results of tools that were cleared, the work of a sub-agent that shrank to its result.

    {"calls": [{"prompt": [{"role": "user", "content": "Warm in Lund?"}],
                "completion": {"role": "assistant", "reasoning_content": "Look it up.", "content": "Seven degrees."}},
               {"prompt": [{"role": "user", "content": "So far: Lund has seven degrees. And Visby?"}],
                "completion": {"role": "assistant", "content": "Nine."}, "weight": 0.5},
               {"prompt": [151644, 872, 198], "completion": [24, 151645]}]}

Each call says what the model was given and what it answered; what calls have in common is found from their tokens, as
for the turns of a conversation. Messages go through the chat template as a turn does. Token ids are taken as they are.
`completion_mask` is 0 at those that the model did not give: results of tools in the midst of a completion.

Logs of requests, trajectories and rollouts become such records first (`CALL_RECORDS`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

from flexmask.conversations.beside import SYSTEM_KEYS, TEMPLATE_KEYS, TOOL_KEYS, UNSUPPORTED_KEYS, unread_keys
from flexmask.conversations.conversation import Conversation, check_weight
from flexmask.conversations.episodes import episode_of
from flexmask.conversations.formats import answered, atif, logged, rollouts, verifiers
from flexmask.conversations.formats.prompt_completion import is_generated
from flexmask.conversations.messages import LISTS
from flexmask.conversations.reading import read_conversation
from flexmask.conversations.values import brief, check_values, shown

CALLS = "calls"
FORMAT = "calls of a model"
CALL_RECORDS = (atif, verifiers, logged, rollouts, answered)  # formats that are made records with `calls`
_SINGLE = (logged, answered)  # of them, those with a call of an episode a record
# Of a record beside its calls, and of every call without its own.
_SHARED = (
    *SYSTEM_KEYS, *TOOL_KEYS, "chat_template_kwargs", *TEMPLATE_KEYS, "reasoning", "thinking", *UNSUPPORTED_KEYS
)  # fmt: skip
_WEIGHTS = ("weight", "train")
_QUESTION = {"role": "user", "content": "-"}  # keeps prompt and answer apart while they are read
_ANSWER = {"role": "assistant", "content": "-"}  # in place of one that is token ids, on which no prompt depends

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One call: what the model was given and what it answered.

    name: with which errors about it begin, and what its chat is called. conversation: the messages of the prompt, all
    of them context, and the answer behind them; None where the prompt is `prompt_ids`. completion_ids: the answer as
    the model gave it, in place of that message. completion_mask: which of these ids the model generated; None: all.
    weight: by which the loss is multiplied. candidate: which of the competing continuations of the record it is of.
    """

    name: str
    conversation: Conversation | None
    prompt_ids: Ids | None = None
    completion_ids: Ids | None = None
    weight: float = 1.0
    completion_mask: tuple[bool, ...] | None = None
    candidate: int = 0

    @classmethod
    def behind(
        cls,
        shown: Iterable[Mapping[str, Any]],
        answer: Mapping[str, Any],
        name: str,
        like: Conversation,
        *,
        weight: float = 1.0,
        **other: Any,
    ) -> Call:
        """The call whose prompt was the messages `shown`, and whose answer the message `answer`.

        like: a conversation with the same tools and arguments of the template. weight: times that of the message is
        that of the call. other: further fields of the call.
        """
        context = (dict(one) | {"weight": 0} if one["role"] == "assistant" else dict(one) for one in shown)
        said = {key: value for key, value in answer.items() if key != "weight"}
        conversation = Conversation(name, (*context, said), like.tools, like.template_kwargs, like.thinks)
        return cls(name, conversation, weight=weight * float(answer.get("weight", 1)), **other)


@dataclass(frozen=True)
class Calls:
    """The calls of one record, in order. `format`, `unread` and `notes` are as in `Conversation`. `episode`: the id
    that this record shares with others of its episode (`flexmask.conversations.episodes`), if it has one. rewards: of
    its candidates, where they compete; a higher one is better."""

    name: str
    calls: tuple[Call, ...]
    _: KW_ONLY
    episode: str | None = field(default=None, compare=False)
    rewards: tuple[float, ...] = ()
    format: str = field(default=FORMAT, compare=False)
    unread: tuple[str, ...] = field(default=(), compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)


def read_calls(
    record: Mapping[str, Any], name: str, reader: Any, thinking_tags: Any, episode_key: str | Sequence[str] | None
) -> Calls:
    """The calls of a record with `calls`, or of one that `reader`, of CALL_RECORDS, makes such. Raises ValueError as
    `records.read_record` does."""
    notes: list[str] = []
    canonical = record if reader is None else reader.as_calls(record, name, notes)
    given = canonical[CALLS]
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)) or not given:
        raise ValueError(f"{name}: {CALLS!r} is {shown(given)}, not a list of calls with 'prompt' and 'completion'")
    shared = {key: canonical[key] for key in _SHARED if canonical.get(key) is not None}
    if held := [key for key in (*LISTS, "prompt") if canonical.get(key)]:
        raise ValueError(f"{name}: both {CALLS!r} and {held[0]!r}; keep one")
    alone = reader in (*_SINGLE, rollouts) and len(given) == 1  # the record is the call
    read = [_call(one, name if alone else f"{name}: call {i}", shared, thinking_tags) for i, one in enumerate(given)]
    known = (CALLS, *_SHARED, *_WEIGHTS, *(("rewards",) if reader is None else ()))
    unread = unread_keys({key: value for key, value in canonical.items() if key not in known})
    weight = _weight({key: canonical[key] for key in _WEIGHTS if canonical.get(key) is not None}, name)
    calls = tuple(call if weight == 1 else replace(call, weight=call.weight * weight) for call, _, _ in read)
    rewards = _rewards(record, calls, name) if reader is None else ()
    # Candidates are numbered within a record, so one whose calls compete is joined with no other.
    episode, note = (None, []) if rewards else episode_of(record, name, episode_key, is_single=reader in _SINGLE)
    return Calls(
        name,
        calls,
        episode=episode,
        rewards=rewards,
        format=FORMAT if reader is None else reader.NAME,
        unread=tuple(dict.fromkeys([*unread, *(key for _, some, _ in read for key in some)])),
        notes=tuple(dict.fromkeys([*notes, *note, *(text for _, _, some in read for text in some)])),
    )


def read_rewards(given: Any, name: str) -> tuple[float, ...]:
    """The rewards of candidates. Raises ValueError for what is no list of finite numbers."""
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)) or not given:
        raise ValueError(f"{name}: 'rewards' is {shown(given)}; give a list with a number for each candidate")
    for one in given:
        if not isinstance(one, (int, float)) or isinstance(one, bool) or not math.isfinite(one):
            raise ValueError(f"{name}: 'rewards' holds {shown(one)}; give a number for each candidate")
    return tuple(map(float, given))


def _rewards(record: Mapping[str, Any], calls: Sequence[Call], name: str) -> tuple[float, ...]:
    """The rewards of a record with `calls`, one a candidate; none where nothing competes."""
    given, last = record.get("rewards"), max(call.candidate for call in calls)
    if given is None and not last:
        return ()
    if given is None:
        raise ValueError(f"{name}: calls have a 'candidate', and the record no 'rewards'; give a number for each")
    rewards = read_rewards(given, name)
    if last >= len(rewards):
        raise ValueError(
            f"{name}: a call has the candidate {last}, and there are {len(rewards)} rewards, from 0; give one for each "
            "candidate"
        )
    if missing := [i for i in range(len(rewards)) if all(call.candidate != i for call in calls)]:
        raise ValueError(f"{name}: no call has the candidate {missing[0]}, which has a reward; give it to its calls")
    return rewards


def joined(records: Sequence[Calls]) -> Calls:
    """One record with the calls of several, in their order; its name and notes are those of the first. Raises
    ValueError where calls compete."""
    if found := [one.name for one in records if one.rewards]:
        raise ValueError(f"{found[0]}: calls that compete are a record by themselves; join it with no other")
    return replace(records[0], calls=tuple(call for one in records for call in one.calls))


def _call(
    given: Any, where: str, shared: Mapping[str, Any], thinking_tags: Any
) -> tuple[Call, Sequence[str], Sequence[str]]:
    """A call, its keys that nothing read, and notes."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} is {shown(given)}, not an object with 'prompt' and 'completion'")
    left = {key: value for key, value in given.items() if value is not None}
    if (name := left.pop("name", None)) is not None:
        check_values(name, f"{where}: 'name'")
        where = f"{where} ({name if isinstance(name, str) and len(name) < 80 else brief(name)})"
    prompt = _one_of(left, ("prompt", "messages"), where)
    completion = _one_of(left, ("completion", "choices"), where)
    weight = _weight(left, where)
    candidate = left.pop("candidate", 0)
    if not isinstance(candidate, int) or isinstance(candidate, bool) or candidate < 0:
        raise ValueError(f"{where}: 'candidate' is {shown(candidate)}; give the number of its reward, from 0")
    if isinstance(completion, Sequence) and len(completion) == 1 and isinstance(completion[0], Mapping):
        message = logged.message_of(completion[0])
        completion = completion[0] if message is None else message  # a list of one message, or of one choice
    prompt_ids, completion_ids = _ids(prompt, f"{where}: 'prompt'"), _ids(completion, f"{where}: 'completion'")
    for key, ids in (("prompt", prompt_ids), ("completion", completion_ids)):
        if ids is not None and not ids:
            raise ValueError(f"{where}: {key!r} is empty; remove the call")
    mask = _mask(left.pop("completion_mask", None), completion_ids, f"{where}: 'completion_mask'")
    if mask is not None and not any(mask):
        weight = 0.0
    if prompt_ids is not None:
        if completion_ids is None:
            raise ValueError(
                f"{where}: 'prompt' is token ids and 'completion' is a message, whose tokens would be a guess; give "
                "its token ids too"
            )
        if held := [key for key in _SHARED if key in left]:
            raise ValueError(f"{where}: {brief(held[0])} beside token ids, which say all there is; remove it")
        call = Call(where, None, prompt_ids, completion_ids, weight, mask, candidate)
        return call, unread_keys(left), ()
    if not isinstance(prompt, Sequence) or isinstance(prompt, (str, bytes)):
        raise ValueError(f"{where}: 'prompt' is {shown(prompt)}; give a list of messages, or token ids")
    pieces = [_ANSWER] if completion_ids is not None else _pieces(completion, where)
    record = {**shared, **left, "messages": [*prompt, _QUESTION, *pieces]}
    read = read_conversation(record, where, thinking_tags=thinking_tags)
    *before, asked, last = read.messages
    if asked["role"] != "user" or not all(map(is_generated, pieces)):
        raise ValueError(
            f"{where}: 'completion' is {len(pieces)} messages that are more than one answer; give a call for each, "
            "with what it was given as its prompt"
        )
    if before and before[-1]["role"] == "assistant":
        raise ValueError(
            f"{where}: 'prompt' ends with an assistant message, which 'completion' would go on with; give the whole "
            "answer as 'completion'"
        )
    call = Call.behind(
        before,
        last,
        where,
        read,
        weight=weight,
        completion_ids=completion_ids,
        completion_mask=mask,
        candidate=candidate,
    )
    return call, read.unread, read.notes


def _pieces(completion: Any, where: str) -> list[Mapping[str, Any]]:
    """The messages of a completion: one, or the items that one was divided into."""
    pieces = completion if isinstance(completion, list) else [completion]
    if not all(isinstance(one, Mapping) for one in pieces):
        raise ValueError(f"{where}: 'completion' is {shown(completion)}; give an assistant message, or token ids")
    if len(pieces) > 1:
        return pieces
    answer = {"role": "assistant", **pieces[0]}
    if answer["role"] != "assistant":
        raise ValueError(f"{where}: 'completion' has the role {brief(answer['role'])}; give an assistant message")
    return [answer]


def _one_of(left: dict[str, Any], keys: tuple[str, str], where: str) -> Any:
    """What stands under one of the two keys, taken out of `left`. Raises ValueError where none or both are there."""
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
    if wrong := [one for one in value if not isinstance(one, int) or isinstance(one, bool) or not 0 <= one < 2**31]:
        raise ValueError(f"{where} holds {shown(wrong[0])} among token ids, which are integers from 0 to 2^31")
    return tuple(value)


def _mask(value: Any, ids: Ids | None, where: str) -> tuple[bool, ...] | None:
    """Which of `ids` the model generated. Raises ValueError for a mask of other things, or of another length."""
    if value is None:
        return None
    if ids is None:
        raise ValueError(f"{where} stands beside a message; it is of token ids, so remove it, or give those")
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or len(value) != len(ids):
        raise ValueError(
            f"{where} is {shown(value)}; give a list of 0 and 1, one for each of the {len(ids):,} token ids"
        )
    if wrong := [one for one in value if one not in (0, 1)]:
        raise ValueError(f"{where} holds {shown(wrong[0])}; give 1 where the model gave the token, and 0 elsewhere")
    return tuple(map(bool, value))
