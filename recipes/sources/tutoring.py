"""Tutoring dialogues for the embedded default: seeded, varied in wording, and checkable.

A dialogue has 3 to 8 turns about things that people count. The first question holds its numbers; every later one
needs the value of an earlier *answer* ("Then Mia finds 15 more", "Take your first result and add 30"). The tutor
works in digits and answers in words:

    user       Say Mia has 27 apples and finds 13 more. How many?
    thinking   Add 27 + 13: 7 + 3 = 10, 2 + 1 + 1 = 4.
               Result 40.
    assistant  We start at forty.
    user       After that Mia buys 32 more apples. How many is that?
    thinking   Recall last 40.
               Add 40 + 32: 0 + 2 = 2, 4 + 3 = 7.
               Result 72.
    assistant  That makes seventy two.

So the digits that a turn needs stand ready in the thinking before it, which inference hides; a model has to read
the words of the answers instead. One that was trained with thinking left in the history never learns to.

`generate` makes records; `verify` recomputes every answer from the structured turns and the earlier answers'
text alone, with code that shares nothing with the generator.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from recipes.sources.splits import Split, seeded

NAMES = ("Mia", "Tom", "Ana", "Ben", "Zoe", "Sam", "Eva", "Leo", "Ida", "Max")
THINGS = ("apples", "coins", "books", "shells", "stamps", "cards", "pens", "beads")
SYSTEM_PROMPTS = (
    "You are a patient tutor.",
    "Work in digits and answer in words.",
    "Think step by step, then answer in one sentence.",
)
LEAST, MOST = 20, 99  # every number that an answer states lies here: two digits, and no "thirteen"

TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Several wordings a skill. {name} and {things} are for colour, {n} is an amount, {m} a second one.
WORDINGS = {
    "start": (
        "Say {name} has {m} {things} and finds {n} more. How many?",
        "Today {name} starts with {m} {things} and buys {n} more. How many is that?",
        "A box holds {m} {things}. Now {name} adds {n}. How many {things}?",
    ),
    "gain": (
        "Then {name} finds {n} more. How many now?",
        "After that {name} buys {n} more {things}. How many is that?",
        "Add {n} to your last result.",
    ),
    "lose": (
        "Then {name} gives away {n}. How many are left?",
        "After that {name} loses {n} of the {things}. How many now?",
        "Subtract {n} from your last result.",
    ),
    "double": (
        "Then {name} doubles the {things}. How many now?",
        "What is twice your last result?",
    ),
    "price": (
        "Each of the {things} costs 2 dollars. What does {name} pay for all?",
        "At 2 dollars each, what do the {things} cost?",
    ),
    "swap": (
        "Swap the digits of your last result.",
        "Now write your last result backwards.",
    ),
    "gain_first": (
        "Take your first result and add {n}.",
        "What if {name} had found {n} more at the start?",
    ),
    "lose_first": (
        "Take your first result and subtract {n}.",
        "What if {name} had lost {n} at the start?",
    ),
    "rise": (
        "How much is your last result above the first?",
        "How many {things} did {name} gain since the start?",
    ),
    "sum": (
        "Add your first and your last result.",
        "What do your first and last result make together?",
    ),
    "digits_last": (
        "Write your last result in digits.",
        "What was your last result in digits?",
    ),
    "digits_first": (
        "Write your first result in digits.",
        "What was your first result in digits?",
    ),
}


@dataclass(frozen=True)
class Turn:
    """One question's skill and amounts, with its thinking and answer."""

    skill: str
    answer: str
    value: int | None = None  # the number that the answer states in words
    steps: tuple[str, ...] = ()  # lines of thinking; none for a plain look-up
    n: int = 0
    m: int = 0

    def reply(self) -> dict:
        """The assistant's message."""
        reply = {"role": "assistant", "content": self.answer}
        return reply | {"reasoning_content": "\n".join(self.steps)} if self.steps else reply


@dataclass
class World:
    """What the dialogue has established so far."""

    rng: random.Random
    numbers: list[int] = field(default_factory=list)  # that answers have stated, in order

    @property
    def first(self) -> int:
        return self.numbers[0]

    @property
    def last(self) -> int:
        return self.numbers[-1]


def generate(count: int, seed: int, split: Split) -> list[dict]:
    """`count` records `{"messages": [...], "turns": [...]}`; the same for the same arguments in every process.

    Assistant messages that think carry `reasoning_content`; the expected answers are the `content` strings.
    `turns` holds the skill and amounts of each question, which is what `verify` needs. No conversation of one
    split has the same questions as one of the other, whatever the seeds: a hash of the questions decides.
    Raises ValueError for a split that does not exist.
    """
    return list(itertools.islice(dialogues(seed, split), count))


def dialogues(
    seed: int, split: Split, instead: Callable[[Turn, random.Random], Turn | None] = lambda turn, rng: None
) -> Iterator[dict]:
    """The records that `generate` begins with, and all others behind them, without end. instead: what the tutor says in
    place of a turn; None: the turn."""
    rng = seeded(split, seed)
    while True:
        record = _dialogue(rng, instead)
        if split_of(record) == split:
            yield record


def split_of(record: dict) -> Split:
    """The split that a record belongs to: one in ten is held out, by a hash of its questions."""
    questions = "\n".join(message["content"] for message in record["messages"] if message["role"] == "user")
    return "heldout" if hashlib.sha256(questions.encode()).digest()[0] % 10 == 0 else "train"


def in_words(value: int) -> str:
    """42 -> "forty two"; for numbers from 20 to 99."""
    tens, ones = divmod(value, 10)
    return TENS[tens - 2] + (f" {ONES[ones - 1]}" if ones else "")


def _dialogue(rng: random.Random, instead: Callable[[Turn, random.Random], Turn | None]) -> dict:
    world = World(rng)
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    messages: list[dict] = []
    turns: list[dict] = []
    if rng.random() < 0.25:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    for _ in range(rng.randint(3, 8)):
        turn = _next_turn(world)
        turn = instead(turn, rng) or turn
        if turn.value is not None:
            world.numbers.append(turn.value)
        question = rng.choice(WORDINGS[turn.skill]).format(name=name, things=things, n=turn.n, m=turn.m)
        messages += [{"role": "user", "content": question}, turn.reply()]
        turns.append({"skill": turn.skill, "n": turn.n, "m": turn.m})
    return {"messages": messages, "turns": turns}


def _next_turn(world: World) -> Turn:
    if not world.numbers:
        return _start(world)
    while True:  # a skill that the numbers do not allow gives None; digits always fit
        turn = world.rng.choices(list(_SKILLS), list(_SKILLS.values()))[0](world)
        if turn is not None:
            return turn


# --- thinking: arithmetic written out digit by digit ---------------------------------------------------------


def _add(left: int, right: int) -> str:
    """`42 + 39` written out: ones, then tens with the carry."""
    ones = left % 10 + right % 10
    carry = " + 1" if ones > 9 else ""
    tens = left // 10 + right // 10 + ones // 10
    return f"Add {left} + {right}: {left % 10} + {right % 10} = {ones}, {left // 10} + {right // 10}{carry} = {tens}."


def _subtract(left: int, right: int) -> str:
    """`62 - 35` written out: ones (ten borrowed where needed), then tens."""
    borrow = left % 10 < right % 10
    top = left % 10 + 10 * borrow
    tens = left // 10 - right // 10 - borrow
    lent = " - 1" if borrow else ""
    return (
        f"Subtract {left} - {right}: {top} - {right % 10} = {top - right % 10}, "
        f"{left // 10} - {right // 10}{lent} = {tens}."
    )


def _makes(skill: str, value: int, *steps: str, n: int = 0) -> Turn | None:
    """The turn whose thinking ends in `value`, or None where that number cannot be stated."""
    if not LEAST < value < MOST or value % 10 == 0:  # only the first result is round
        return None
    return Turn(skill, f"That makes {in_words(value)}.", value, (*steps, f"Result {value}."), n=n)


# --- skills: each gives a turn, or None where the numbers do not allow it ------------------------------------


def _start(world: World) -> Turn:
    value = 10 * world.rng.randint(3, 9)  # round, so that looking the first result up is one look-up, not two
    m = world.rng.randint(10, value - 10)
    steps = (_add(m, value - m), f"Result {value}.")
    return Turn("start", f"We start at {in_words(value)}.", value, steps, n=value - m, m=m)


def _gain(world: World) -> Turn | None:
    n = world.rng.randint(10, 60)
    return _makes("gain", world.last + n, f"Recall last {world.last}.", _add(world.last, n), n=n)


def _lose(world: World) -> Turn | None:
    n = world.rng.randint(10, 60)
    if n > world.last:
        return None
    return _makes("lose", world.last - n, f"Recall last {world.last}.", _subtract(world.last, n), n=n)


def _double(world: World) -> Turn | None:
    return _makes("double", 2 * world.last, f"Recall last {world.last}.", _add(world.last, world.last))


def _price(world: World) -> Turn | None:
    return _makes("price", 2 * world.last, f"Recall last {world.last}.", _add(world.last, world.last))


def _swap(world: World) -> Turn | None:
    if world.last % 10 == world.last // 10:
        return None
    swapped = 10 * (world.last % 10) + world.last // 10
    return _makes("swap", swapped, f"Recall last {world.last}.")


def _gain_first(world: World) -> Turn | None:
    n = world.rng.randint(10, 60)
    return _makes("gain_first", world.first + n, f"Recall first {world.first}.", _add(world.first, n), n=n)


def _lose_first(world: World) -> Turn | None:
    n = world.rng.randint(10, 60)
    if n > world.first:
        return None
    return _makes("lose_first", world.first - n, f"Recall first {world.first}.", _subtract(world.first, n), n=n)


def _rise(world: World) -> Turn | None:
    last, first = world.last, world.first
    if last < first:
        return None
    return _makes("rise", last - first, f"Recall last {last}.", f"Recall first {first}.", _subtract(last, first))


def _sum(world: World) -> Turn | None:
    last, first = world.last, world.first
    return _makes("sum", first + last, f"Recall first {first}.", f"Recall last {last}.", _add(first, last))


def _digits_last(world: World) -> Turn:
    return Turn("digits_last", f"In digits, last {world.last}.")


def _digits_first(world: World) -> Turn:
    return Turn("digits_first", f"In digits, first {world.first}.")


_SKILLS: dict[Callable[[World], Turn | None], float] = {
    _gain: 3,
    _lose: 3,
    _double: 2,
    _price: 2,
    _swap: 2,
    _gain_first: 2,
    _lose_first: 2,
    _rise: 1.5,
    _sum: 1.5,
    _digits_last: 0.8,
    _digits_first: 0.8,
}


# --- the verifier: shares no code with the skills above ------------------------------------------------------

_WORD_VALUES = {word: 10 * (i + 2) for i, word in enumerate(TENS)} | {word: i + 1 for i, word in enumerate(ONES)}


def verify(record: dict) -> None:
    """Recompute every answer of a record; raises ValueError naming the turn where one is wrong.

    Answer k is worked out from the structured turn k and the *text* of the answers before it, so what passes
    can be answered from the visible history. The amounts must stand in the question, and every equation in
    the thinking must hold.
    """
    replies = [message for message in record["messages"] if message["role"] == "assistant"]
    questions = [message for message in record["messages"] if message["role"] == "user"]
    if not len(replies) == len(questions) == len(record["turns"]):
        raise ValueError(f"{len(questions)} questions, {len(replies)} replies, {len(record['turns'])} turns")
    answers: list[str] = []
    for index, (turn, question, reply) in enumerate(zip(record["turns"], questions, replies, strict=True)):
        where = f"turn {index} ({turn['skill']})"
        expected = solve(turn, answers)
        if not _says(reply["content"], expected):
            raise ValueError(f"{where}: the answer is {reply['content']!r}, expected {expected}")
        for amount in (turn["n"], turn["m"]):
            if amount and str(amount) not in re.findall(r"\d+", question["content"]):
                raise ValueError(f"{where}: {amount} is not in the question {question['content']!r}")
        _check_thinking(reply.get("reasoning_content", ""), where)
        answers.append(reply["content"])


def solve(turn: dict, answers: list[str]) -> int:
    """What the answer to a structured turn must state, given the text of all earlier answers: a number.
    Raises ValueError where the answers do not state the number it needs.
    """
    n, skill = turn["n"], turn["skill"]
    if skill == "start":
        return turn["m"] + n
    stated = [number for answer in answers if (number := number_in(answer)) is not None]
    if not stated:
        raise ValueError(f"no number in the earlier answers {answers}")
    first, last = stated[0], stated[-1]
    results: dict[str, Callable[[], int]] = {
        "gain": lambda: last + n,
        "lose": lambda: last - n,
        "double": lambda: last * 2,
        "price": lambda: last * 2,
        "swap": lambda: int(str(last)[::-1]),
        "gain_first": lambda: first + n,
        "lose_first": lambda: first - n,
        "rise": lambda: last - first,
        "sum": lambda: first + last,
        "digits_last": lambda: last,
        "digits_first": lambda: first,
    }
    if skill not in results:
        raise ValueError(f"unknown skill {skill!r}")
    return results[skill]()


def number_in(text: str) -> int | None:
    """The number that a sentence states in words, or None."""
    values = [_WORD_VALUES[word] for word in re.findall(r"[a-z]+", text) if word in _WORD_VALUES]
    return sum(values) if values else None


def _says(answer: str, expected: int) -> bool:
    if answer.startswith("In digits"):
        return re.findall(r"\d+", answer) == [str(expected)]
    return number_in(answer) == expected


def _check_thinking(thinking: str, where: str) -> None:
    for left, right in re.findall(r"(\d+(?: [+-] \d+)+) = (\d+)", thinking):
        if sum(int(term) for term in re.findall(r"[+-]?\d+", left.replace(" ", ""))) != int(right):
            raise ValueError(f"{where}: the thinking says {left} = {right}")
