"""Tutoring dialogues for the embedded default: seeded, varied in wording, and checkable.

A dialogue has 3 to 8 turns about people who count things. The first question holds its numbers; every later one
needs the value of an earlier *answer* ("Tom has 7 more than Mia", "halve your first answer"), because what was
worked out before stands nowhere else that a later turn can see: thinking is hidden from later turns. Thinking
writes out the look-up and then the arithmetic digit by digit:

    user       Mia has 27 apples and finds 15 more. How many apples does Mia have?
    thinking   27+15 / 7+5=12 / 2+1+1=4 / Mia=42          ("/" stands for a newline)
    assistant  Mia has 42 apples.
    user       Tom has 30 more apples than Mia. How many does Tom have?
    thinking   Mia=42 / 42+30 / 2+0=2 / 4+3=7 / Tom=72
    assistant  Tom has 72 apples.

`generate` makes records; `verify` recomputes every answer from the structured turns and the earlier answers'
text alone, with code that shares nothing with the generator.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Split = Literal["train", "heldout"]

NAMES = ("Mia", "Tom", "Ana", "Ben", "Zoe", "Sam", "Eva", "Leo", "Ida", "Max")
THINGS = ("apples", "coins", "books", "shells", "stamps", "cards", "pens", "beads")
SYSTEM_PROMPTS = (
    "You are a patient tutor.",
    "Help the student with each question.",
    "Think step by step, then answer in one sentence.",
)
LEAST, MOST = 10, 99  # every value that an answer states has two digits

# Several wordings a skill. {a} and {b} are names, {n} an amount, {m} a second one, {things} what is counted.
# A name always follows a space, so that it is the same token wherever it stands.
WORDINGS = {
    "start": (
        "Say {a} has {m} {things} and finds {n} more. How many {things} is that?",
        "Today {a} starts with {m} {things} and buys {n} more. How many now?",
        "A box holds {m} {things}. Now {a} takes it and adds {n}. How many {things}?",
    ),
    "more": (
        "Say {b} has {n} more {things} than {a}. How many does {b} have?",
        "Here {b} counts {n} more than {a}. How many is that?",
        "If {b} has as many {things} as {a} and {n} more, how many is that?",
    ),
    "fewer": (
        "Say {b} has {n} fewer {things} than {a}. How many does {b} have?",
        "Here {b} counts {n} fewer than {a}. How many is that?",
        "Here {a} is ahead of {b} by {n} {things}. How many for {b}?",
    ),
    "twice": (
        "Say {b} has twice as many {things} as {a}. How many is that?",
        "Here {b} has double what {a} has. How many {things}?",
    ),
    "together": (
        "How many {things} do {a} and {b} have together?",
        "Put the {things} of {a} and {b} in one box. How many?",
        "What is the sum for {a} and {b}?",
    ),
    "difference": (
        "How many more {things} does {a} have than {b}?",
        "By how many {things} is {a} ahead of {b}?",
        "What is the difference between {a} and {b}?",
    ),
    "compare": (
        "Who has more {things}, is it {a} or {b}?",
        "Which of the two has more, is it {a} or {b}?",
    ),
    "price": (
        "One of the {things} costs 2 dollars. What does {a} pay for all?",
        "Each costs 2 dollars. What do the {things} of {a} cost?",
    ),
    "add_last": (
        "Take your last answer and add {n}.",
        "Then {n} more come to that. How many now?",
        "What is your last answer plus {n}?",
    ),
    "take_last": (
        "Take your last answer and subtract {n}.",
        "Then {n} of those go away. How many are left?",
        "What is your last answer minus {n}?",
    ),
    "reverse": (
        "Write your last answer backwards.",
        "Swap the digits of the number you just found.",
    ),
    "recall_last": (
        "What was your last answer?",
        "Please repeat the number you just found.",
    ),
    "recall": (
        "How many {things} did you find for {a}?",
        "Remind me of the number for {a}.",
    ),
}


@dataclass(frozen=True)
class Turn:
    """One question with what is needed to ask, think about, answer and check it."""

    skill: str
    answer: str
    value: int | None  # the number that the answer states; None when it states a name
    steps: tuple[str, ...] = ()  # lines of thinking; none for a plain recall
    a: str = ""
    b: str = ""
    n: int = 0
    m: int = 0
    holder: str = ""  # who holds `value` from now on


@dataclass
class World:
    """What the dialogue has established so far."""

    rng: random.Random
    names: tuple[str, ...]
    things: str
    held: dict[str, int] = field(default_factory=dict)  # by name, the value the latest answer gave
    values: list[int | None] = field(default_factory=list)  # by turn, the number that its answer states

    def someone(self) -> str:
        return self.rng.choice(sorted(self.held))

    def newcomer(self) -> str | None:
        fresh = [name for name in self.names if name not in self.held]
        return self.rng.choice(fresh) if fresh else None

    def two(self) -> tuple[str, str] | None:
        if len(self.held) < 2:
            return None
        a, b = self.rng.sample(sorted(self.held), 2)
        return a, b


def generate(count: int, seed: int, split: Split) -> list[dict]:
    """`count` records `{"messages": [...], "turns": [...]}`; the same for the same arguments in every process.

    Assistant messages that think carry `reasoning_content`; the expected answers are the `content` strings.
    `turns` holds for each question its skill, names and amounts, which is what `verify` needs. No conversation
    of one split has the same questions as one of the other, whatever the seeds: a hash of the questions decides.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split is {split!r}; choose 'train' or 'heldout'")
    rng = random.Random(f"{split}/{seed}")
    records: list[dict] = []
    while len(records) < count:
        record = _dialogue(rng)
        if split_of(record) == split:
            records.append(record)
    return records


def split_of(record: dict) -> Split:
    """The split that a record belongs to: one in ten is held out, by a hash of its questions."""
    questions = "\n".join(message["content"] for message in record["messages"] if message["role"] == "user")
    return "heldout" if hashlib.sha256(questions.encode()).digest()[0] % 10 == 0 else "train"


def _dialogue(rng: random.Random) -> dict:
    world = World(rng, names=NAMES, things=rng.choice(THINGS))
    messages: list[dict] = []
    turns: list[dict] = []
    if rng.random() < 0.25:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    for _ in range(rng.randint(3, 8)):
        turn = _next_turn(world)
        if turn.holder:
            world.held[turn.holder] = turn.value
        world.values.append(turn.value)
        wording = rng.choice(WORDINGS[turn.skill])
        question = wording.format(a=turn.a, b=turn.b, n=turn.n, m=turn.m, things=world.things)
        reply = {"role": "assistant", "content": turn.answer}
        if turn.steps:
            reply["reasoning_content"] = "\n".join(turn.steps)
        messages += [{"role": "user", "content": question}, reply]
        turns.append({"skill": turn.skill, "a": turn.a, "b": turn.b, "n": turn.n, "m": turn.m, "things": world.things})
    return {"messages": messages, "turns": turns}


def _next_turn(world: World) -> Turn:
    if not world.values:
        return _start(world)
    while True:  # most skills fit most worlds; gain or lose always fits
        skills, weights = zip(*_SKILLS.items(), strict=True)
        turn = world.rng.choices(skills, weights)[0](world)
        if turn is not None:
            return turn


# --- thinking: arithmetic written out digit by digit -------------------------------------------------------


def _add(left: int, right: int) -> str:
    """`42 + 39` written out: ones, then tens with the carry. The result itself is left to the caller."""
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


def _amount(world: World, room: int) -> int | None:
    """An amount that keeps a value within two digits when there is `room` left."""
    return world.rng.randint(LEAST, min(room, 60)) if room >= LEAST else None


# --- skills: each gives a turn, or None where the world does not allow it ------------------------------------


def _for(name: str, value: int, things: str) -> str:
    return f"This gives {name} {value} {things}."


def _start(world: World) -> Turn:
    a = world.newcomer()
    m, n = world.rng.randint(10, 50), world.rng.randint(10, 40)
    steps = (_add(m, n), f"Now {a} {m + n}.")
    return Turn("start", _for(a, m + n, world.things), m + n, steps, a=a, n=n, m=m, holder=a)


def _more(world: World) -> Turn | None:
    a, b = world.someone(), world.newcomer()
    old = world.held[a]
    n = _amount(world, MOST - old)
    if n is None or b is None:
        return None
    steps = (f"Recall {a} {old}.", _add(old, n), f"Now {b} {old + n}.")
    return Turn("more", _for(b, old + n, world.things), old + n, steps, a=a, b=b, n=n, holder=b)


def _fewer(world: World) -> Turn | None:
    a, b = world.someone(), world.newcomer()
    old = world.held[a]
    n = _amount(world, old - LEAST)
    if n is None or b is None:
        return None
    steps = (f"Recall {a} {old}.", _subtract(old, n), f"Now {b} {old - n}.")
    return Turn("fewer", _for(b, old - n, world.things), old - n, steps, a=a, b=b, n=n, holder=b)


def _twice(world: World) -> Turn | None:
    a, b = world.someone(), world.newcomer()
    old = world.held[a]
    if 2 * old > MOST or b is None:
        return None
    steps = (f"Recall {a} {old}.", _add(old, old), f"Now {b} {2 * old}.")
    return Turn("twice", _for(b, 2 * old, world.things), 2 * old, steps, a=a, b=b, holder=b)


def _together(world: World) -> Turn | None:
    pair = world.two()
    if pair is None or sum(world.held[name] for name in pair) > MOST:
        return None
    a, b = pair
    x, y = world.held[a], world.held[b]
    steps = (f"Recall {a} {x}.", f"Recall {b} {y}.", _add(x, y), f"Result {x + y}.")
    return Turn("together", f"Together they have {x + y}.", x + y, steps, a=a, b=b)


def _difference(world: World) -> Turn | None:
    pair = world.two()
    if pair is None:
        return None
    a, b = sorted(pair, key=lambda name: -world.held[name])
    x, y = world.held[a], world.held[b]
    if x - y < LEAST:
        return None
    steps = (f"Recall {a} {x}.", f"Recall {b} {y}.", _subtract(x, y), f"Result {x - y}.")
    return Turn("difference", f"The difference is {x - y}.", x - y, steps, a=a, b=b)


def _compare(world: World) -> Turn | None:
    pair = world.two()
    if pair is None or world.held[pair[0]] // 10 == world.held[pair[1]] // 10:
        return None
    a, b = pair
    x, y = world.held[a], world.held[b]
    sign, most = (">", a) if x > y else ("<", b)
    steps = (f"Recall {a} {x}.", f"Recall {b} {y}.", f"Compare {x // 10} {sign} {y // 10}.", f"Most {most}.")
    return Turn("compare", f"The answer is {most}.", None, steps, a=a, b=b)


def _price(world: World) -> Turn | None:
    a = world.someone()
    old = world.held[a]
    if 2 * old > MOST:
        return None
    steps = (f"Recall {a} {old}.", _add(old, old), f"Result {2 * old}.")
    return Turn("price", f"The price is {2 * old} dollars.", 2 * old, steps, a=a)


def _add_last(world: World) -> Turn | None:
    old = world.values[-1]
    n = None if old is None else _amount(world, MOST - old)
    if n is None:
        return None
    steps = (f"Recall last {old}.", _add(old, n), f"Result {old + n}.")
    return Turn("add_last", f"That makes {old + n}.", old + n, steps, n=n)


def _take_last(world: World) -> Turn | None:
    old = world.values[-1]
    n = None if old is None else _amount(world, old - LEAST)
    if n is None:
        return None
    steps = (f"Recall last {old}.", _subtract(old, n), f"Result {old - n}.")
    return Turn("take_last", f"That makes {old - n}.", old - n, steps, n=n)


def _reverse(world: World) -> Turn | None:
    old = world.values[-1]
    if old is None or old % 10 == 0:
        return None
    value = 10 * (old % 10) + old // 10
    return Turn("reverse", f"That makes {value}.", value, (f"Recall last {old}.", f"Result {value}."))


def _recall_last(world: World) -> Turn | None:
    value = world.values[-1]
    return None if value is None else Turn("recall_last", f"My last answer was {value}.", value)


def _recall(world: World) -> Turn:
    a = world.someone()
    return Turn("recall", f"The number for {a} {world.held[a]}.", world.held[a], a=a)


_SKILLS: dict[Callable[[World], Turn | None], float] = {
    _more: 3,
    _fewer: 3,
    _twice: 1.5,
    _together: 2,
    _difference: 2,
    _compare: 1,
    _price: 1,
    _add_last: 1.5,
    _take_last: 1.5,
    _reverse: 1,
    _recall_last: 0.7,
    _recall: 1,
}


# --- the verifier: shares no code with the skills above ------------------------------------------------------


def verify(record: dict) -> None:
    """Recompute every answer of a record; raises ValueError naming the turn where one is wrong.

    Answer k is worked out from the structured turn k and the *text* of the answers before it, so what passes
    can be answered from the visible history. Every equation in the thinking is checked too.
    """
    replies = [message for message in record["messages"] if message["role"] == "assistant"]
    questions = [message for message in record["messages"] if message["role"] == "user"]
    if not len(replies) == len(questions) == len(record["turns"]):
        raise ValueError(f"{len(questions)} questions, {len(replies)} replies, {len(record['turns'])} turns")
    answers: list[str] = []
    for index, (turn, question, reply) in enumerate(zip(record["turns"], questions, replies, strict=True)):
        expected = solve(turn, answers)
        if reply["content"] != expected:
            raise ValueError(f"turn {index} ({turn['skill']}): answer {reply['content']!r}, expected {expected!r}")
        for part in (turn["a"], turn["b"], turn["n"], turn["m"]):
            if part and str(part) not in question["content"]:
                raise ValueError(f"turn {index}: {part!r} is not in the question {question['content']!r}")
        for left, right in re.findall(r"(\d+(?: [+-] \d+)+) = (\d+)", reply.get("reasoning_content", "")):
            if sum(int(term) for term in re.findall(r"[+-]?\d+", left.replace(" ", ""))) != int(right):
                raise ValueError(f"turn {index}: the thinking says {left}={right}")
        answers.append(reply["content"])


def solve(turn: dict, answers: list[str]) -> str:
    """The answer to a structured turn, given the text of all earlier answers.

    Raises ValueError where the answer cannot be had from them.
    """
    a, b, n, things, skill = turn["a"], turn["b"], turn["n"], turn["things"], turn["skill"]

    def of(name: str) -> int:
        for answer in reversed(answers):
            if found := re.match(rf"This gives {name} (\d+) ", answer):
                return int(found[1])
        raise ValueError(f"no earlier answer tells what {name} has: {answers}")

    def last() -> int:
        if not answers or not (found := re.search(r"\d+", answers[-1])):
            raise ValueError(f"the last of the answers {answers} states no number")
        return int(found[0])

    match skill:
        case "start":
            return f"This gives {a} {turn['m'] + n} {things}."
        case "more" | "fewer":
            return f"This gives {b} {of(a) + (n if skill == 'more' else -n)} {things}."
        case "twice":
            return f"This gives {b} {of(a) * 2} {things}."
        case "together":
            return f"Together they have {of(a) + of(b)}."
        case "difference":
            return f"The difference is {of(a) - of(b)}."
        case "compare":
            return f"The answer is {max(a, b, key=of)}."
        case "price":
            return f"The price is {of(a) * 2} dollars."
        case "add_last" | "take_last":
            return f"That makes {last() + (n if skill == 'add_last' else -n)}."
        case "reverse":
            return f"That makes {str(last())[::-1]}."
        case "recall_last":
            return f"My last answer was {last()}."
        case "recall":
            return f"The number for {a} {of(a)}."
    raise ValueError(f"unknown skill {skill!r}")
