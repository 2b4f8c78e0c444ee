"""Which answers of the data are good enough to be trained (`data.filter`).

A filter takes (message, record): an answer as it was read, with its thinking in `reasoning_content`, and the record as
it stands in the data. It returns why the answer is not to be trained, or None. Such an answer stays in the history of
later turns; a conversation without any other is left out. What the filters do to answers is counted and said.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from flexmask.conversations.conversation import Conversation
from flexmask.conversations.model_calls import Call, Calls
from flexmask.importing import function_at, is_import_path
from recipes.configuration.rules import ConfigError

Filter = Callable[[Mapping[str, Any], Mapping[str, Any]], str | None]

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
# Numbers joined by signs, and what they come to: "7 + 3 = 10", "4*6=24". No part of something longer, which may have
# brackets, letters or units that change what it means.
_EQUATION = re.compile(
    rf"(?<![\w.)%*/+=$-])(?<![-+*/=] )(?P<left>(?:{_NUMBER})(?:\s*[-+*/]\s*(?:{_NUMBER}))+)"
    rf"\s*=\s*(?P<right>-?(?:{_NUMBER}))"
    r"(?![\d,]*\d|\.\d|\s*[-+*/(%]|\w)"
)
_TERMS = re.compile(rf"{_NUMBER}|[-+*/]")


def equations(message: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
    """Answers whose thinking has an equation of numbers that does not hold, as far as its digits go: 10/3=3.33 does."""
    wrong = [one for one in _EQUATION.finditer(message.get("reasoning_content", "")) if not _holds(one)]
    return "an equation in the thinking does not hold" if wrong else None


def result(message: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
    """Answers whose last number does not stand in their thinking."""
    thinking = message.get("reasoning_content")
    stated = re.findall(_NUMBER, message.get("content") or "")
    if not thinking or not stated:
        return None
    known = {_value(one) for one in re.findall(_NUMBER, thinking)}
    return None if _value(stated[-1]) in known else "the last number of the answer does not stand in the thinking"


def thinks(message: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
    """Answers without thinking."""
    return None if message.get("reasoning_content") else "there is no thinking"


def succeeded(message: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
    """Answers of a record that says in `correct`, `success`, `resolved` or `reward`, beside its messages or in its
    `metadata`, that its task was not done. Raises ValueError where it says nothing."""
    metadata = record.get("metadata")
    for place in (record, metadata if isinstance(metadata, Mapping) else {}):
        for key in _SUCCESS:
            if isinstance(value := place.get(key), (bool, int, float)):
                return None if value > 0 else f"its {key} is {value}"
    raise ValueError(f"data.filter=succeeded: has none of {', '.join(_SUCCESS)}, nor in its metadata")


_SUCCESS = ("correct", "success", "resolved", "reward")
_OWN: dict[str, Filter] = {one.__name__: one for one in (equations, result, thinks, succeeded)}


def load_filters(names: Sequence[str]) -> tuple[Filter, ...]:
    """The filters that `data.filter` names: of ours, or functions as `package.module:function`.

    Raises ConfigError when there is none of that name, or it cannot be called with a message and a record.
    """
    return tuple(map(_load, names))


def _load(name: str) -> Filter:
    if name in _OWN:
        return _OWN[name]
    key = f"data.filter={name}"
    if not is_import_path(name):
        raise ConfigError(f"{key}: no such filter; there are {', '.join(_OWN)}, and yours as package.module:function")
    try:
        function = function_at(name)
        inspect.signature(function).bind("message", "record")
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{key}: {error}") from error
    return function


def filtered(found: Conversation | Calls, record: Mapping[str, Any], filters: Sequence[Filter]) -> Conversation | Calls:
    """The conversation, or calls, without loss on what the filters refuse, which its notes name."""
    reasons: dict[str, None] = {}
    if isinstance(found, Calls):
        calls = tuple(_filtered_call(call, record, filters, reasons) for call in found.calls)
        changed: Conversation | Calls = replace(found, calls=calls)
    else:
        messages = tuple(
            message | {"weight": 0} if _refused(message, record, filters, reasons) else message
            for message in found.messages
        )
        changed = replace(found, messages=messages)
    notes = (f"data.filter: answers are not trained: {reason}" for reason in reasons)
    return replace(changed, notes=(*found.notes, *notes)) if reasons else found


def _filtered_call(call: Call, record: Mapping[str, Any], filters: Sequence[Filter], reasons: dict[str, None]) -> Call:
    """A call whose answer is token ids says nothing that a filter could read."""
    answer = call.conversation.messages[-1] if call.conversation and call.completion_ids is None else {}
    refused = call.weight and _refused(answer, record, filters, reasons)
    return replace(call, weight=0.0) if refused else call


def _refused(
    message: Mapping[str, Any], record: Mapping[str, Any], filters: Sequence[Filter], reasons: dict[str, None]
) -> bool:
    if message.get("role") != "assistant" or not message.get("weight", 1):
        return False
    found = [reason for one in filters if (reason := one(message, record))]
    reasons.update(dict.fromkeys(found))
    return bool(found)


def _holds(equation: re.Match[str]) -> bool:
    terms = _TERMS.findall(equation["left"])
    try:
        left = _computed(terms)
    except ZeroDivisionError:
        return False
    right = _value(equation["right"].lstrip("-")) * (-1 if equation["right"].startswith("-") else 1)
    decimals = len(equation["right"].partition(".")[2])
    # What is divided is rounded to the digits that are written; all else is exact.
    return abs(left - right) <= Fraction(1, 2 * 10**decimals) if "/" in terms else left == right


def _computed(terms: list[str]) -> Fraction:
    """Numbers and signs, in turn: first what is multiplied and divided, then the rest."""
    total, product, sign = Fraction(0), _value(terms[0]), 1
    for operator, number in zip(terms[1::2], map(_value, terms[2::2]), strict=True):
        if operator in "*/":
            product = product * number if operator == "*" else product / number
        else:
            total, product, sign = total + sign * product, number, 1 if operator == "+" else -1
    return total + sign * product


def _value(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))
