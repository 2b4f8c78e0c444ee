"""Which answers of the data are good enough to be trained (`data.filter`).

A filter takes (message, record): an answer as it was read, with its thinking in `reasoning_content`, and the record as
it stands in the data. It returns why the answer is not to be trained, as text, or None. Such an answer stays in the
history of later turns; a conversation without any other is not trained. Where answers of a record compete, all of them
go with one. The reasons are said, each with the number of conversations; what is held out is not filtered.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from types import NoneType
from typing import Any

from flexmask.conversations.conversation import Conversation
from flexmask.conversations.model_calls import Call, Calls
from recipes.configuration.functions import named_function
from recipes.sources.numbers import last_number, numbers

Filter = Callable[[Mapping[str, Any], Mapping[str, Any]], str | None]

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
# Numbers joined by signs, and what they come to: "7 + 3 = 10", "4*6=24". They begin a line, or stand behind a word or a
# sign of punctuation, and end there: behind any other sign (a bracket, a root, a sign of multiplication that is not
# ASCII, a percent) they are a part of something that is not read.
_EQUATION = re.compile(
    rf"(?:^|(?<=\n)|(?<=[a-z] )|(?<=[,.;:!?] ))(?P<left>(?:{_DIGITS})(?:\s*[-+*/]\s*(?:{_DIGITS}))+)"
    rf"\s*=\s*(?P<right>-?(?:{_DIGITS}))(?=\s*(?:$|\n|[;!?]|[.,](?!\d)|\s[a-z]))",
)
# Words that join numbers, or change what they are.
_OPERATORS = {"times", "plus", "minus", "over", "by", "mod", "x", "of", "squared", "cubed", "root", "percent", "and"}
_TERMS = re.compile(rf"{_DIGITS}|[-+*/]")


def equations(message: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
    """Answers whose thinking has an equation of plain numbers that does not hold. A quotient may be rounded or cut off
    to the digits that are written (2/3=0.67, 2/3=0.66); all else is exact. What is no plain equation is not judged."""
    wrong = any(not _holds(one) for one in plain_equations(message.get("reasoning_content") or ""))
    return "an equation in the thinking does not hold" if wrong else None


def plain_equations(text: str) -> list[re.Match[str]]:
    """The equations in a text of which nothing but ASCII numbers and signs is a part."""
    found = []
    for one in _EQUATION.finditer(text):
        before = re.search(r"([a-z]+) $", text[: one.start()])
        behind = re.match(r" +([a-z]+|\d)", text[one.end() :])
        if re.search(r"\b0\d", one.group()):  # a date, not a sum
            continue
        if not ({match[1] for match in (before, behind) if match} & _OPERATORS or (behind and behind[1].isdigit())):
            found.append(one)
    return found


def result(message: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
    """Answers with a number whose last one does not stand in their thinking."""
    thinking, stated = message.get("reasoning_content"), last_number(message.get("content") or "")
    if not thinking or stated is None or stated in numbers(thinking):
        return None
    return "the last number of the answer does not stand in the thinking"


def thinks(message: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
    """Answers without thinking."""
    return None if message.get("reasoning_content") else "there is no thinking"


def succeeded(message: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
    """Answers of a record that does not say, in `correct`, `success`, `resolved` or `reward`, beside its messages or in
    its `metadata`, that its task was done: true, or a number above 0."""
    metadata = record.get("metadata")
    for place in (record, metadata if isinstance(metadata, Mapping) else {}):
        for key in _SUCCESS:
            if isinstance(value := place.get(key), (bool, int, float)):
                return None if value > 0 else f"its {key} says that it failed"
    return f"its record has none of {', '.join(_SUCCESS)}, nor in its metadata"


_SUCCESS = ("correct", "success", "resolved", "reward")
_OWN: dict[str, Filter] = {one.__name__: one for one in (equations, result, thinks, succeeded)}


def load_filters(names: Sequence[str]) -> tuple[Filter, ...]:
    """The filters that `data.filter` names: of ours, or functions as `package.module:function`.

    Raises ConfigError when there is none of that name, or it cannot be called with a message and a record.
    """
    return tuple(map(_load, names))


@functools.cache  # asked for with every record
def _load(name: str) -> Filter:
    return named_function("data.filter", name, _OWN, ("message", "record"))[0]


def filtered(found: Conversation | Calls, record: Mapping[str, Any], filters: Sequence[Filter]) -> Conversation | Calls:
    """The conversation, or calls, without loss on what the filters refuse, which its notes name. An answer of token ids
    is given as a message without text. Raises ValueError for a filter that gives neither text nor None."""
    if isinstance(found, Calls):
        why = [_refused(_answer(call), call.weight, record, filters) for call in found.calls]
        competing = found.rewards and any(why)
        calls = tuple(
            replace(call, weight=0.0) if reasons or competing else call
            for call, reasons in zip(found.calls, why, strict=True)
        )
        changed: Conversation | Calls = replace(found, calls=calls)
    else:
        why = [_refused(one, one.get("weight", 1), record, filters) for one in found.messages]
        messages = tuple(
            message | {"weight": 0} if reasons else message
            for message, reasons in zip(found.messages, why, strict=True)
        )
        changed = replace(found, messages=messages)
    all_reasons = dict.fromkeys(reason for reasons in why for reason in reasons)
    notes = (f"data.filter: answers are not trained: {reason}" for reason in all_reasons)
    return replace(changed, notes=(*found.notes, *notes)) if all_reasons else found


def _answer(call: Call) -> Mapping[str, Any]:
    of_text = call.conversation is not None and call.completion_ids is None
    return call.conversation.messages[-1] if of_text else {"role": "assistant", "content": ""}  # type: ignore[union-attr]


def _refused(
    message: Mapping[str, Any], weight: float, record: Mapping[str, Any], filters: Sequence[Filter]
) -> list[str]:
    """Why a message is not to be trained; nothing where it is not an answer, or is not trained anyway."""
    if message["role"] != "assistant" or not weight:
        return []
    reasons = []
    for one in filters:
        try:
            reason = one(message, record)
        except Exception as error:  # a function of the user's may raise anything
            reason = f"{one.__name__} raised {type(error).__name__}: {error}"
        if not isinstance(reason, (str, NoneType)):
            raise ValueError(f"data.filter: {one.__name__} gave {reason!r}; it must give a reason, as text, or None")
        reasons += [reason] if reason else []
    return reasons


def _holds(equation: re.Match[str]) -> bool:
    terms = _TERMS.findall(equation["left"])
    try:
        left = _computed(terms)
    except ZeroDivisionError:
        return False
    right = _value(equation["right"].lstrip("-")) * (-1 if equation["right"].startswith("-") else 1)
    if "/" not in terms:
        return left == right
    last_digit = Fraction(1, 10 ** len(equation["right"].partition(".")[2]))
    return abs(left - right) <= last_digit / 2 or 0 <= abs(left) - abs(right) < last_digit


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
