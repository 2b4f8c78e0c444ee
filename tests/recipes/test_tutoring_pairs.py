"""The embedded preferences: right and careless answers, checked by the verifier of the dialogues."""

import itertools
import re

from recipes.sources.tutoring import generate, number_in, split_of, verify
from recipes.sources.tutoring_pairs import CARELESS, careless, pairs

PAIRS = list(itertools.islice(pairs(0, "train"), 300))
EQUATION = re.compile(r"(\d+) ([+-]) (\d+)(?: [+-] (1))? = (\d+)")


# Breaks if an answer that is wrong is called right, or the two say the same.
def test_the_chosen_answer_is_right_and_the_other_is_ten_off():
    dialogues = {}
    for record in generate(3000, 0, "train"):
        verify(record)
        for end, message in enumerate(record["messages"]):
            if message["role"] == "assistant":
                dialogues[str(record["messages"][:end])] = message
    for pair in PAIRS:
        (better,), (worse,) = pair["chosen"], pair["rejected"]
        assert dialogues[str(pair["prompt"])] == better
        assert abs(number_in(better["content"]) - number_in(worse["content"])) == 10
        assert f"Result {number_in(worse['content'])}." in worse["reasoning_content"]


# Breaks if the careless answer goes wrong anywhere but where a ten is carried.
def test_what_is_forgotten_is_the_carry():
    for pair in PAIRS:
        better, worse = (pair[key][0]["reasoning_content"].split("\n") for key in ("chosen", "rejected"))
        differing = [(a, b) for a, b in zip(better, worse, strict=True) if a != b]
        (right, wrong), _ = differing
        ones, tens = EQUATION.findall(right)
        assert re.search(r"(?:[+-] 1) = \d+\.$", right) and EQUATION.findall(wrong)[0] == ones
        assert wrong.rpartition(", ")[2].startswith(" ".join(tens[:3]) + " = ")


def test_the_same_in_every_process_and_apart_between_splits():
    assert list(itertools.islice(pairs(0, "train"), 300)) == PAIRS
    asked = {str(pair["prompt"]) for pair in itertools.islice(pairs(0, "heldout"), 300)}
    assert not asked & {str(pair["prompt"]) for pair in PAIRS}


# Breaks if the careless tutor is careful, or what is said later does not follow from what was said.
def test_the_careless_tutor_is_careless_and_goes_on_with_what_was_said():
    said = careful = 0
    for record in itertools.islice(careless(0, "train"), 300):
        assert split_of(record) == "train"
        stated = []
        for message in record["messages"]:
            if message["role"] != "assistant":
                continue
            for which, number in re.findall(r"Recall (last|first) (\d+)\.", message.get("reasoning_content", "")):
                assert int(number) == (stated[-1] if which == "last" else stated[0])
            for left, sign, right, one, result in EQUATION.findall(message.get("reasoning_content", "")):
                value = int(left) + int(right) * (1 if sign == "+" else -1)
                value += (1 if sign == "+" else -1) if one else 0
                assert value == int(result)
            lines = message.get("reasoning_content", "").split("\n")
            for line in lines:
                if found := re.search(r"(?:Add|Subtract) (\d+) ([+-]) (\d+):", line):
                    left, right, plus = int(found[1]), int(found[3]), found[2] == "+"
                    carries = left % 10 + right % 10 > 9 if plus else left % 10 < right % 10
                    said += carries
                    careful += carries and bool(re.search(r"[+-] \d+ [+-] 1 = \d+\.$", line))
            if (number := number_in(message["content"])) is not None:
                stated.append(number)
    assert said > 200 and 1 - CARELESS - 0.1 < careful / said < 1 - CARELESS + 0.1
