"""Which answers of the data are good enough to be trained (`data.filter`).

A filter takes (message, record): an answer as it was read, with its thinking in `reasoning_content`, and the record as
it stands in the data. It returns why the answer is not to be trained, as text, or None. Such an answer stays in the
history of later turns; a conversation without any other is not trained. Where answers of a record compete, all of them
go with one. The reasons are said, each with the number of conversations; what is held out is not filtered.
"""

import copy
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from types import NoneType
from typing import Any

from flexmask.conversations.conversation import Conversation
from flexmask.conversations.model_calls import Call, Calls
from flexmask.conversations.values import brief
from recipes.configuration.functions import named_function
from recipes.configuration.rules import ConfigError
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
# Words that join numbers, or change what they are: before an equation, and behind it. So does a command of LaTeX.
_BEFORE = {
    "times", "plus", "minus", "over", "by", "mod", "x", "of", "squared", "cubed", "root", "percent", "and", "negative",
    "sqrt", "sin", "cos", "tan", "log", "ln", "exp", "half", "twice", "double", "triple", "choose", "less",
    "than", "from",
}  # fmt: skip
_BEHIND = {
    *_BEFORE, "dozen", "hundred", "thousand", "million", "billion", "am", "pm", "o", "short", "below", "under", "fewer",
}  # fmt: skip
_LAST_WORD = re.compile(r"(\\?)([A-Za-z]+) $")
# Behind a result: a word, or a number; and a further number that counts other units ("1 hour and 15 minutes").
_NEXT = re.compile(r" +(?P<word>[a-z]+|\d)(?P<mixed>s? (?:and )?\d)?")
_LONGEST_WORD, _MOST_DIGITS = 20, 40
_TERMS = re.compile(rf"{_DIGITS}|[-+*/]")


def equations(message: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
    """Answers whose thinking has an equation of plain numbers that does not hold. A result with fewer digits than the
    exact one may be rounded or cut off (2/3=0.67, 2/3=0.66). What is no plain equation is not judged."""
    wrong = any(not _holds(one) for one in plain_equations(message.get("reasoning_content") or ""))
    return "an equation in the thinking does not hold" if wrong else None


def plain_equations(text: str) -> list[re.Match[str]]:
    """The equations in a text of which nothing but ASCII numbers and signs is a part."""
    found = []
    for one in _EQUATION.finditer(text):
        before = _LAST_WORD.search(text, max(0, one.start() - _LONGEST_WORD), one.start())
        behind = _NEXT.match(text, one.end())
        joined = before and (before[1] or before[2].lower() in _BEFORE)
        changed = behind and (behind["word"].isdigit() or behind["mixed"] or behind["word"] in _BEHIND)
        a_date = re.search(r"(?<![\d.,])0\d", one.group())
        too_long = re.search(rf"[\d,]{{{_MOST_DIGITS}}}", one.group())
        if not (joined or changed or a_date or too_long):
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
    """Answers of a record that does not say that its task was done: true, or a number above 0, in the first that it has
    of `correct`, `success`, `resolved` and `reward`, beside its messages or else in its `metadata`."""
    metadata = record.get("metadata")
    found = [
        (key, value)
        for place in (record, metadata if isinstance(metadata, Mapping) else {})
        for key in _SUCCESS
        if (value := place.get(key)) is not None
    ]
    for key, value in found:
        if isinstance(value, (bool, int, float)):
            return None if value > 0 else f"its {key} says that it failed"
    if found:
        return f"its {found[0][0]} is neither true or false nor a number"
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
    is given as a message without text. Raises ConfigError, with the name of the answer, for a filter that gives neither
    text nor None, or that changes a message: whatever is done with invalid records, the filter is at fault. Keys of
    the record that a filter looks at are read."""
    record = _Watched(record)
    if isinstance(found, Calls):
        why = [_refused(_answer(call), call.weight, record, filters, call.name) for call in found.calls]
        competing = found.rewards and any(why)
        calls = tuple(
            replace(call, weight=0.0) if reasons or competing else call
            for call, reasons in zip(found.calls, why, strict=True)
        )
        changed: Conversation | Calls = replace(found, calls=calls)
    else:
        why = [
            _refused(one, one.get("weight", 1), record, filters, f"{found.name}: message {index}")
            for index, one in enumerate(found.messages)
        ]
        messages = tuple(
            message | {"weight": 0} if reasons else message
            for message, reasons in zip(found.messages, why, strict=True)
        )
        changed = replace(found, messages=messages)
    all_reasons = dict.fromkeys(reason for reasons in why for reason in reasons)
    notes = (f"{_NOTE}{reason}" for reason in all_reasons)
    unread = tuple(key for key in found.unread if key not in record.read)
    if not all_reasons and unread == found.unread:
        return found
    return replace(changed, notes=(*found.notes, *notes), unread=unread)


class _Watched(dict[str, Any]):
    """A record that knows which of its keys were read."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        super().__init__(record)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default


def without_rare_reasons(notes: Counter[str]) -> tuple[Counter[str], int]:
    """Notes of reading without the rarer ones of many reasons that filters gave, and how many those are: a filter of
    the user's may give every answer a reason of its own."""
    of_filters = Counter({note: count for note, count in notes.items() if note.startswith(_NOTE)})
    said = dict(of_filters.most_common(_REASONS_SAID))
    few = Counter({note: count for note, count in notes.items() if note in said or note not in of_filters})
    return few, len(notes) - len(few)


_NOTE = "data.filter: answers are not trained: "
_REASONS_SAID = 10


def _answer(call: Call) -> Mapping[str, Any]:
    of_text = call.conversation is not None and call.completion_ids is None
    return call.conversation.messages[-1] if of_text else {"role": "assistant", "content": ""}  # type: ignore[union-attr]


def _refused(
    message: Mapping[str, Any], weight: float, record: Mapping[str, Any], filters: Sequence[Filter], where: str
) -> list[str]:
    """Why a message is not to be trained; nothing where it is not an answer, or is not trained anyway."""
    if message["role"] != "assistant" or not weight:
        return []
    reasons, as_given = [], copy.deepcopy(message)
    for one in filters:
        try:
            reason = one(message, record)
        except Exception as error:  # a function of the user's may raise anything
            reason = f"{_name(one)} raised {type(error).__name__}: {error}"
        if not isinstance(reason, (str, NoneType)):
            raise ConfigError(
                f"{where}: data.filter: {_name(one)} gave {brief(reason)}; it must give a reason, as text, or None"
            )
        if message != as_given:
            raise ConfigError(
                f"{where}: data.filter: {_name(one)} has changed the message, which would be trained so; let it change "
                "a copy, copy.deepcopy(message)"
            )
        reasons += [reason] if reason else []
    return reasons


def _name(one: Filter) -> str:
    """Of a function, a partial one, or any object that is called like one."""
    return getattr(getattr(one, "func", one), "__name__", type(one).__name__)


def _holds(equation: re.Match[str]) -> bool:
    """Whether it does, as it is written, or where its points stand between thousands, as in 1.000 + 500 = 1.500."""
    return any(_comes_to(equation["left"], equation["right"], points) for points in (r"(?!)", r"\.(?=\d{3}(?!\d))"))


def _comes_to(left: str, right: str, ignored: str) -> bool:
    left, right = (re.sub(ignored, "", one) for one in (left, right))
    try:
        exact = _computed(_TERMS.findall(left))
    except ZeroDivisionError:
        return False
    stated = _value(right.lstrip("-")) * (-1 if right.startswith("-") else 1)
    last_digit = Fraction(1, 10 ** len(right.partition(".")[2]))
    return abs(exact - stated) <= last_digit / 2 or math.trunc(exact / last_digit) * last_digit == stated


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
