"""What counts as a right answer when a model is chatted with: the matchers of `evaluation.matcher`.

A matcher takes (answer, expected), both text, and says whether the answer is right: True, False, or None where
`expected` gives it nothing to compare with. Such a reply is left out of accuracy, and counted. One that takes a third
argument is given the messages that were said before the answer as well, the model's own among them: for answers that
are right by what was asked for and by what they change.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from recipes.configuration.functions import named_function
from recipes.sources.numbers import last_number

Matcher = Callable[[str, str, Sequence[Mapping[str, Any]]], bool | None]
_Plain = Callable[[str, str], bool | None]


def exact(answer: str, expected: str) -> bool:
    """The same text, but for white space around it."""
    return answer.strip() == expected.strip()


def number(answer: str, expected: str) -> bool | None:
    """The last number of both has the same value, as GSM8K is scored; None where `expected` has no number."""
    wanted = last_number(expected)
    return None if wanted is None else last_number(answer) == wanted


def contains(answer: str, expected: str) -> bool | None:
    """The expected text stands in the answer, whatever the case and the white space; None where it is empty.

    A Latin letter or digit at an end of it is the end of a word there: "4" does not stand in "42".
    """
    answer, expected = (" ".join(text.split()).casefold() for text in (answer, expected))
    if not expected:
        return None
    return re.search(rf"(?<![a-z0-9](?=[a-z0-9])){re.escape(expected)}(?!(?<=[a-z0-9])[a-z0-9])", answer) is not None


_OWN: dict[str, _Plain] = {"exact": exact, "number": number, "contains": contains}


def load_matcher(name: str, key: str = "evaluation.matcher") -> Matcher:
    """The matcher that a setting names: one of ours, or a function as `package.module:function`, which is looked for in
    the current folder as well.

    Raises ConfigError when there is none, or it can be called neither with two texts nor with the messages beside them.
    """
    function, takes = named_function(key, name, _OWN, ("answer", "expected"), ("answer", "expected", "messages"))
    return function if len(takes) == 3 else without_history(function)


def without_history(function: _Plain) -> Matcher:
    """The matcher of a function of two texts."""
    return lambda answer, expected, messages: function(answer, expected)
