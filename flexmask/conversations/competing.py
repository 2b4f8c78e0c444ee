"""Answers that compete behind one prompt: pairs of a better and a worse one, and groups with rewards.

    {"prompt": [{"role": "user", "content": "2+2?"}], "chosen": [{"role": "assistant", "content": "4"}],
     "rejected": [{"role": "assistant", "content": "5"}]}
    {"prompt": "2+2?", "completions": ["4", "5", "four"], "rewards": [1, 0, 0.5]}

Prompt and answers are texts or messages, as in `formats/prompt_completion.py`; an answer may be several turns with
results of tools and questions between them, each of which the model is trained on. `chosen` and `rejected` may be whole
conversations: what they begin with in common is the prompt. Each turn becomes a call, and knows its candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flexmask.conversations.conversation import Conversation
from flexmask.conversations.messages import LISTS
from flexmask.conversations.model_calls import Call, Calls, read_rewards
from flexmask.conversations.reading import read_conversation
from flexmask.conversations.values import are_given, is_empty, parse_json, shown

PAIR = ("chosen", "rejected")
GROUP = ("completions", "rewards")
_OF_PAIR = (1.0, 0.0)
_SAME = "answers that compete and are the same, from which nothing is learned"


def competes(record: Mapping[str, Any]) -> bool:
    """Whether a record has answers that compete."""
    return bool(_kinds(record))


def read_competing(record: Mapping[str, Any], name: str, thinking_tags: Any) -> Calls:
    """The calls of a record with `chosen` and `rejected`, or `completions` and `rewards`.

    Raises ValueError naming the record, the answer, the value found and what to do.
    """
    keys, *others = _kinds(record)
    if others:
        raise ValueError(f"{name}: both 'chosen' and 'completions'; keep one")
    if held := [key for key in LISTS if record.get(key)]:
        raise ValueError(f"{name}: both {keys[0]!r} and {held[0]!r}; keep one, or call the latter 'prompt'")
    left = {key: value for key, value in record.items() if key not in (*keys, "prompt")}
    if keys is PAIR:
        answers = {key: record[key] for key in PAIR}
        rewards: tuple[float, ...] = _OF_PAIR
    else:
        given, rewards = record["completions"], read_rewards(record["rewards"], name)
        if not isinstance(given, Sequence) or isinstance(given, (str, bytes)) or len(given) != len(rewards):
            count = f"{len(given)} answers" if isinstance(given, (list, tuple)) else shown(given)
            raise ValueError(f"{name}: 'completions' is {count} beside {len(rewards)} rewards; give a list of as many")
        answers = {f"completion {i}": answer for i, answer in enumerate(given)}
    if nothing := [key for key, answer in answers.items() if is_empty(answer)]:
        raise ValueError(f"{name}: {nothing[0]!r} is empty; remove the record")
    answers = {key: _parsed(answer, f"{name}: {key!r}") for key, answer in answers.items()}
    prompt, answers = _apart(record.get("prompt"), answers, name)
    read = [
        read_conversation(
            {**left, "prompt": prompt, "completion": answer}, f"{name}: {key}", thinking_tags=thinking_tags
        )
        for key, answer in answers.items()
    ]
    note = [_SAME] if any(one.messages == read[0].messages for one in read[1:]) else []
    return Calls(
        name,
        tuple(call for number, one in enumerate(read) for call in _calls_of_turns(one, candidate=number)),
        rewards=rewards,
        format=read[0].format.replace("completion", " and ".join(keys)),
        unread=tuple(dict.fromkeys(key for one in read for key in one.unread)),
        notes=tuple(dict.fromkeys([*note, *(text for one in read for text in one.notes)])),
    )


def _kinds(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """PAIR, GROUP, or both: those whose keys the record has."""
    return [keys for keys in (PAIR, GROUP) if are_given(record, keys)]


def _calls_of_turns(conversation: Conversation, candidate: int) -> list[Call]:
    """A call for each turn of a conversation that is trained, behind all that stands before it."""
    calls, messages = [], conversation.messages
    for at, message in enumerate(messages):
        if message["role"] != "assistant" or not message.get("weight", 1):
            continue
        name = f"{conversation.name}, message {at}"
        calls.append(Call.behind(messages[:at], message, name, conversation, candidate=candidate))
    return calls


def _parsed(answer: Any, where: str) -> Any:
    """An answer, decoded where it is messages that a table holds as JSON text; other text is the answer itself."""
    if isinstance(answer, str) and answer.lstrip().startswith('[{"'):
        return parse_json(answer, where)
    return answer


def _apart(prompt: Any, answers: dict[str, Any], name: str) -> tuple[Any, dict[str, Any]]:
    """(prompt, what each answer adds to it), where answers may be whole conversations. Raises ValueError where there is
    no prompt, or an answer adds nothing to it."""
    lists = [
        list(answer) for answer in answers.values() if isinstance(answer, Sequence) and not isinstance(answer, str)
    ]
    if is_empty(prompt):
        if len(lists) < len(answers):
            raise ValueError(f"{name}: no 'prompt', and {next(iter(answers))!r} is no list of messages; give both")
        shared = 0
        while all(shared < len(one) for one in lists) and all(one[shared] == lists[0][shared] for one in lists):
            shared += 1
        if not shared:
            raise ValueError(f"{name}: no 'prompt', and the answers begin with nothing in common; give it")
        prompt = lists[0][:shared]
    whole = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(whole, Sequence):
        return prompt, answers  # which reading refuses by name
    begin = list(whole)
    if len(lists) == len(answers) and all(one[: len(begin)] == begin for one in lists):
        answers = {key: list(answer)[len(begin) :] for key, answer in answers.items()}
        if over := [key for key, answer in answers.items() if not answer]:
            raise ValueError(f"{name}: {over[0]!r} adds nothing to the prompt; remove the record")
    return prompt, answers
