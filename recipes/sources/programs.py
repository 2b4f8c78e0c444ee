"""Sessions in which a small program is written and changed, in a language of our own that a checker executes.

A session has 3 to 5 turns. The first asks for a program; each later one changes the program of an earlier *answer*: a
line gets a number, that of the request or of another line (which it may have already), a line is added or left out, or
the first program is taken up again. Thinking plans in words, the answer is the program:

    user       Let a=3 times x, b=4 plus a.
    thinking   New a=3 times x.
               New b=4 plus a.
    assistant  a=3*x
               b=4+a
    user       Put the number of b in a.
    thinking   New a=4 times x.
               Keep b=4 plus a.
    assistant  a=4*x
               b=4+a

The words of a plan stand ready in the thinking before it, which inference hides; a model has to read the lines of the
answers instead. An answer is right if its program computes the same as the data's (`same_results`): texts are not
compared, and a program that does the same in another way is right.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from recipes.sources.splits import Split, seeded

WORDS = {"+": "plus", "-": "minus", "*": "times"}
NAMES = "abc"
NUMBERS = "23456789"
INPUTS = (-7, -2, -1, 0, 1, 3, 5, 11)  # programs that agree on all of them are taken for the same

# What `run` bears, whatever a model writes.
MOST_LINES, MOST_DIGITS = 20, 30
_LINE = re.compile(r"(?P<name>[a-z]) *= *(?P<left>[a-z]|[0-9]{1,4}) *(?P<operator>[-+*]) *(?P<right>[a-z]|[0-9]{1,4})")


class ProgramError(ValueError):
    """A text is no program, or one that computes too much."""


def run(program: str, x: int) -> dict[str, int]:
    """What every variable of a program is at its end, by name; x is what it is given. A program is lines like
    `b=4+a`: a variable, and two variables or numbers joined by +, - or *, with white space anywhere between them.
    Nothing else is understood, so nothing else can happen.

    Raises ProgramError naming the line.
    """
    lines = [line.strip() for line in program.splitlines() if line.strip()]
    if not 1 <= len(lines) <= MOST_LINES:
        raise ProgramError(f"{len(lines)} lines; a program has 1 to {MOST_LINES}")
    values = {"x": x}
    for number, line in enumerate(lines, start=1):
        read = _LINE.fullmatch(line)
        if read is None:
            raise ProgramError(f"line {number}: {line!r} is no step")
        try:
            left, right = (int(one) if one.isdecimal() else values[one] for one in (read["left"], read["right"]))
        except KeyError as error:
            raise ProgramError(f"line {number}: {line!r} uses {error}, which has no value yet") from error
        value = {"+": left + right, "-": left - right, "*": left * right}[read["operator"]]
        if abs(value) >= 10**MOST_DIGITS:
            raise ProgramError(f"line {number}: the result has more than {MOST_DIGITS} digits")
        values[read["name"]] = value
    return values


def same_results(answer: str, expected: str) -> bool:
    """Whether two programs compute the same for every one of INPUTS. A matcher (`evaluation.matcher`). Raises
    ProgramError where `expected` is none."""
    wanted = [run(expected, x) for x in INPUTS]
    try:
        return [run(answer, x) for x in INPUTS] == wanted
    except ProgramError:
        return False


@dataclass(frozen=True)
class Step:
    """A line of a program."""

    name: str
    number: str
    operator: str
    variable: str

    @property
    def line(self) -> str:
        return f"{self.name}={self.number}{self.operator}{self.variable}"

    @property
    def words(self) -> str:
        return f"{self.name}={self.number} {WORDS[self.operator]} {self.variable}"


Program = tuple[Step, ...]


def generate(count: int, seed: int, split: Split) -> list[dict]:
    """`count` records `{"messages": [...]}`; the same for the same arguments in every process.

    No first program of one split is one of the other, whatever the seeds. Raises ValueError for a split that does not
    exist.
    """
    return list(itertools.islice(sessions(seed, split), count))


def sessions(seed: int, split: Split) -> Iterator[dict]:
    """The records that `generate` begins with, and all others behind them, without end."""
    rng = seeded(split, seed, "programs/")
    while True:
        first = (_step(0, rng), _step(1, rng))
        one, other = (int(step.number) + 8 * list(WORDS).index(step.operator) for step in first)
        if ((one + 5 * other) % 7 == 0) == (split == "heldout"):
            yield {"messages": _session(first, rng)}


def _step(at: int, rng: random.Random) -> Step:
    """Line `at` (from 0) of a program: of x, and behind it of the variable before."""
    return Step(NAMES[at], rng.choice(NUMBERS), rng.choice(list(WORDS)), f"x{NAMES}"[at])


def _session(first: Program, rng: random.Random) -> list[dict]:
    one, other = first
    programs = [first]
    messages = _turn(f"Let {one.words}, {other.words}.", first, first)
    for _ in range(rng.randint(2, 4)):
        request, new, program = _change(programs, rng)
        messages += _turn(request, (new,) if new else (), program)
        programs.append(program)
    return messages


def _change(programs: list[Program], rng: random.Random) -> tuple[str, Step | None, Program]:
    """(request, its new line, the program that it asks for)"""
    last = programs[-1]
    kinds = ["change", "number"]
    kinds += ["append", "append"] if len(last) < len(NAMES) else []
    kinds += ["delete"] if len(last) > 2 else []
    kinds += ["first"] if len(programs) > 1 else []
    kind = rng.choice(kinds)
    if kind == "delete":
        return f"Leave {last[-1].name} out.", None, last[:-1]
    before = programs[0] if kind == "first" else last
    if kind in ("append", "first"):
        new = _step(len(before), rng)
        begin = "Take your first program and then" if kind == "first" else "Then"
        return f"{begin} let {new.words}.", new, (*before, new)
    at = rng.randrange(len(before))
    of = rng.choice([step for step in before if step != before[at]])
    new = replace(before[at], number=of.number if kind == "number" else rng.choice(NUMBERS))
    request = f"Put the number of {of.name} in {new.name}." if kind == "number" else f"Now {new.name}={new.number}."
    return request, new, (*before[:at], new, *before[at + 1 :])


def _turn(request: str, new: Program, program: Program) -> list[dict]:
    plan = [f"{'New' if step in new else 'Keep'} {step.words}." for step in program]
    return [
        {"role": "user", "content": request},
        {
            "role": "assistant",
            "content": "\n".join(step.line for step in program),
            "reasoning_content": "\n".join(plan),
        },
    ]
