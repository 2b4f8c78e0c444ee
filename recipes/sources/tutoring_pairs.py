"""Preferences without a download: turns of a tutor who forgets to carry, beside what is right.

    chosen     Recall last 47.  Add 47 + 15: 7 + 5 = 12, 4 + 1 + 1 = 6.  Result 62.    That makes sixty two.
    rejected   Recall last 47.  Add 47 + 15: 7 + 5 = 12, 4 + 1 = 5.      Result 52.    That makes fifty two.

`careless` are dialogues of that tutor, most of whose sums go wrong where a ten is carried or borrowed: a model that
learns from them makes this mistake. `pairs` are turns like those with the right answer and the careless one, which
begin alike, so that one tree holds the two; with objective=dpo the model unlearns it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from recipes.sources.tutoring import LEAST, MOST, Split, Turn, dialogues, in_words

CARELESS = 0.8  # of the sums in which something is carried
_CARRIED = re.compile(r", (\d+) ([+-]) (\d+) \2 1 = (\d+)\.$", re.MULTILINE)  # the tens, with the one that is carried


def careless(seed: int, split: Split) -> Iterator[dict]:
    """Records as `dialogues` makes them, without end, of the careless tutor; later turns go on with what was said."""
    return dialogues(seed, split, lambda turn, rng: careless_turn(turn) if rng.random() < CARELESS else None)


def careless_turn(turn: Turn) -> Turn | None:
    """The turn without what is carried; None where nothing is, or the result is no number that an answer can state."""
    steps = "\n".join(turn.steps)
    found = _CARRIED.search(steps)
    if turn.value is None or found is None:
        return None
    left, sign, right, tens = found.groups()
    by = -1 if sign == "+" else 1
    value = turn.value + 10 * by
    if not LEAST < value < MOST:
        return None
    line = f", {left} {sign} {right} = {int(tens) + by}."
    said = steps[: found.start()] + line + steps[found.end() :].replace(f"Result {turn.value}.", f"Result {value}.")
    answer = turn.answer.replace(in_words(turn.value), in_words(value))
    return Turn(turn.skill, answer, value, tuple(said.split("\n")), turn.n, turn.m)


def pairs(seed: int, split: Split) -> Iterator[dict]:
    """Records `{"prompt": [...], "chosen": [...], "rejected": [...]}`, without end; the same for the same arguments in
    every process. No question of one split is asked in the other."""
    rng = random.Random(f"pairs/{split}/{seed}")
    wrong: list[Turn | None] = []  # what the careless tutor would have said

    def note(turn: Turn, _: random.Random) -> None:
        """Sees each turn as it is made, and changes none."""
        wrong.append(careless_turn(turn))

    for record in dialogues(seed, split, note):
        # Behind the turns of dialogues of the other split, which were made too and are not given.
        of_turns, wrong[:] = wrong[-len(record["turns"]) :], []
        messages = record["messages"]
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        choices = [(at, turn) for at, turn in zip(answers, of_turns, strict=True) if turn is not None]
        if choices:
            at, turn = rng.choice(choices)
            yield {"prompt": messages[:at], "chosen": [messages[at]], "rejected": [turn.reply()]}
