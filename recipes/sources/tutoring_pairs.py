"""Tutoring dialogues up to some turn, with the right answer to it and a wrong one: preferences, without a download.

The wrong answer goes wrong in one place and is consistent behind it, as a model's mistakes are: another number is
recalled than the one that was stated, or a digit of the result is off by one.

    chosen     Recall last 40.  Add 40 + 32: 0 + 2 = 2, 4 + 3 = 7.  Result 72.    That makes seventy two.
    rejected   Recall last 60.  Add 60 + 32: 0 + 2 = 2, 6 + 3 = 9.  Result 92.    That makes ninety two.

Both begin alike, and one tree holds the two. `recipes.sources.tutoring` makes the dialogues.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from recipes.sources.tutoring import LEAST, MOST, Split, dialogues, in_words, number_in, written_out

_RECALL = re.compile(r"(?<=^Recall )(first|last) (\d+)", re.MULTILINE)
_SUM = re.compile(r"^(?:Add|Subtract) (\d+) ([+-]) (\d+):.*$", re.MULTILINE)
_RESULT = re.compile(r"^Result (\d+)\.$", re.MULTILINE)
_DIGITS = re.compile(r"(?<=^In digits, )(first|last) (\d+)")


def pairs(seed: int, split: Split) -> Iterator[dict]:
    """Records `{"prompt": [...], "chosen": [...], "rejected": [...]}`, without end; the same for the same arguments in
    every process. Those of a split are of its dialogues, so that no question of one is asked in the other."""
    rng = random.Random(f"pairs/{split}/{seed}")
    for record in dialogues(seed, split):
        messages = record["messages"]
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        at = rng.choice(answers)
        wrong = wrong_answer(messages[at], rng)
        yield {"prompt": messages[:at], "chosen": [messages[at]], "rejected": [wrong]}


def wrong_answer(right: dict, rng: random.Random) -> dict:
    """An answer that goes wrong where `right` does not."""
    while True:  # until the wrong result is a number that an answer can state
        found = _misread(right, rng) if rng.random() < 0.5 else _miscounted(right, rng)
        if found is not None and found["content"] != right["content"]:
            return found


def _misread(right: dict, rng: random.Random) -> dict | None:
    """Another number is recalled, and all behind it follows from that."""
    if "reasoning_content" not in right:
        return right | {
            "content": _DIGITS.sub(lambda found: f"{found[1]} {rng.randint(LEAST + 1, MOST)}", right["content"])
        }
    thinking = right["reasoning_content"]
    recalled = _RECALL.search(thinking)
    if recalled is None:
        return None
    before, after = recalled[2], str(rng.randint(LEAST + 1, MOST))
    thinking = thinking[: recalled.start(2)] + after + thinking[recalled.end(2) :]
    sum_ = _SUM.search(thinking)
    if sum_ is None:
        return _stated(right, thinking, int(after[::-1]))  # the digits were swapped
    left, sign, other = (after if part == before else part for part in sum_.groups())
    result = int(left) + int(other) if sign == "+" else int(left) - int(other)
    if not 0 <= result <= MOST:
        return None
    line = written_out(int(left), sign, int(other))
    return _stated(right, thinking[: sum_.start()] + line + thinking[sum_.end() :], result)


def _miscounted(right: dict, rng: random.Random) -> dict | None:
    """A digit of the result is off by one."""
    by = rng.choice((-10, -1, 1, 10))
    if "reasoning_content" not in right:
        return None
    thinking = right["reasoning_content"]
    value = int(_RESULT.search(thinking)[1])
    if value % 10 + by in (-1, 10):
        return None
    if (sum_ := _SUM.search(thinking)) is not None:
        which = -1 if abs(by) == 10 else 0  # tens stand last
        equations = list(re.finditer(r"= (\d+)", sum_[0]))
        digit = equations[which]
        at = sum_.start() + digit.start(1)
        changed = int(digit[1]) + by // (10 if abs(by) == 10 else 1)
        if changed < 0:
            return None
        thinking = thinking[:at] + str(changed) + thinking[sum_.start() + digit.end(1) :]
    return _stated(right, thinking, value + by)


def _stated(right: dict, thinking: str, result: int) -> dict | None:
    """The answer that states `result`; None where no answer can."""
    if not LEAST < result <= MOST:
        return None
    words = in_words(number_in(right["content"]))
    return right | {
        "reasoning_content": _RESULT.sub(f"Result {result}.", thinking),
        "content": right["content"].replace(words, in_words(result)),
    }
