"""Do the answers of a tutor follow from the thinking? The number that a thinking comes to, against the one in words.

`another_result` is a probe (`evaluation.probe`), `contradicts` a filter (`data.filter`).
"""

import re
from collections.abc import Mapping
from typing import Any

from recipes.sources.tutoring import ONES, TENS, in_words

_IN_WORDS = re.compile(rf"\b({'|'.join(TENS)})( ({'|'.join(ONES)}))?\b")
_RESULT = re.compile(r"\bResult (\d\d)\.")


def another_result(thinking: str, expected: str) -> tuple[str, str] | None:
    """The result that the thinking comes to is another one, which the answer must state.
    None where the thinking states no result, or the answer no number in words."""
    found = _RESULT.search(thinking)
    if found is None or not (stated := _IN_WORDS.search(expected)):
        return None
    # Neither digit is the same.
    tens, ones = (int(digit) for digit in found[1])
    other = 10 * ((tens - 2 + 3) % 8 + 2) + ((ones - 1 + 4) % 9 + 1 if ones else 0)
    changed = f"{thinking[: found.start(1)]}{other}{thinking[found.end(1) :]}"
    return changed, f"{expected[: stated.start()]}{in_words(other)}{expected[stated.end() :]}"


def contradicts(message: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
    """Answers that state a number in words to which their thinking does not come."""
    stated = _IN_WORDS.search(message["content"])
    found = _RESULT.search(message.get("reasoning_content") or "")
    if stated is None or (found and found[1] >= "20" and in_words(int(found[1])) == stated[0]):
        return None
    return "the thinking does not come to the number of the answer"
