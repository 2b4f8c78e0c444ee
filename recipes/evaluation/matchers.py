"""What counts as a right answer when a model is chatted with: the matchers of `evaluation.matcher`.

A matcher takes (answer, expected), both text, and says whether the answer is right: True, False, or None where
`expected` gives it nothing to compare with. Such a reply is left out of accuracy, and counted. One that takes a third
argument is given the messages that were said before the answer as well, the model's own among them: for answers that
are right by what was asked for and by what they change.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from flexmask.importing import function_at, is_import_path
from recipes.configuration.rules import ConfigError

Matcher = Callable[[str, str, Sequence[Mapping[str, Any]]], bool | None]
_Plain = Callable[[str, str], bool | None]

# A minus is a sign where nothing that it could subtract from, or join to, stands right before it (not in "5-3",
# "GPT-4", "10%-20%"). A currency may stand on either side of it. A comma belongs to a number between thousands.
NUMBER = re.compile(
    r"""(?: (?<![\w%)\]}]) (?P<minus>[-\u2212]) )?  (?: \\?[$€£¥₹] (?P<inner>[-\u2212])? )?
        (?P<digits> (?: \d{1,3}(?:,\d{3})+(?!\d) | \d+ ) (?:\.\d+)? | (?<![\w.])\.\d+ )
        (?P<exponent> [eE][-+]?\d{1,3}(?!\w) )?""",
    re.VERBOSE,
)


def exact(answer: str, expected: str) -> bool:
    """The same text, but for white space around it."""
    return answer.strip() == expected.strip()


def number(answer: str, expected: str) -> bool | None:
    """The last number of both has the same value, as GSM8K is scored; None where `expected` has no number."""
    wanted = last_number(expected)
    return None if wanted is None else last_number(answer) == wanted


def last_number(text: str) -> Decimal | None:
    """The value of the last number in a text, None where there is none.

    Read are signs, decimals, thousands separated by commas and exponents ("-1,234.50", ".5", "2e3"). Currency, percent
    and other units stand beside a number and change nothing: "50%" is 50. A comma is no decimal point: "3,5" ends in 5.
    """
    found = numbers(text)
    return found[-1] if found else None


def numbers(text: str) -> list[Decimal]:
    """The values of the numbers in a text, in order, read as `last_number` says."""
    return [value_of(one) for one in NUMBER.finditer(text)]


def value_of(number: re.Match[str]) -> Decimal:
    """The value of a match of NUMBER."""
    value = Decimal(number["digits"].replace(",", "") + (number["exponent"] or ""))
    return -value if number["minus"] or number["inner"] else value


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
    if name in _OWN:
        return without_history(_OWN[name])
    key = f"{key}={name}"
    if not is_import_path(name):
        raise ConfigError(
            f"{key}: no such matcher; choose {', '.join(_OWN)}, or give a function package.module:function"
        )
    try:
        function = function_at(name)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error
    try:
        signature = inspect.signature(function)
    except ValueError:  # a function in C may not tell its signature
        return without_history(function)
    try:
        signature.bind("answer", "expected")
    except TypeError as error:
        try:
            signature.bind("answer", "expected", ())
        except TypeError:
            raise ConfigError(
                f"{key}: cannot be called with (answer, expected), nor with (answer, expected, messages): {error}"
            ) from error
        return function
    return without_history(function)


def without_history(function: _Plain) -> Matcher:
    """The matcher of a function of two texts."""
    return lambda answer, expected, messages: function(answer, expected)
