"""Sessions in which a small program is written and changed, in a language of our own that a checker executes.

A session has 4 to 6 turns. The first asks for a program; each later one changes the program of an earlier *answer*: a
step more, another step, one left out, two swapped, or the first program taken up again. Thinking plans in words,
the answer is the program:

    user       Write a program: multiply by 3, then add 4.
    thinking   Now 1 times 3, 2 plus 4.
    assistant  y = x
               y = y * 3
               y = y + 4
               return y
    user       Make step 1 subtract x.
    thinking   New minus x.
               Was 1 times 3, 2 plus 4.
               Now 1 minus x, 2 plus 4.
    assistant  y = x
               y = y - x
               y = y + 4
               return y

The words of a plan stand ready in the thinking before it, which inference hides; a model has to read the lines of the
answers instead. An answer is right if its program gives the same results as the data's (`same_results`): texts are not
compared, and a program that does the same in another way is right.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from recipes.sources.tutoring import Split

WORDS = {"+": "plus", "-": "minus", "*": "times"}
ORDERS = {"+": "add", "-": "subtract", "*": "multiply by"}
AMOUNTS = (*"23456789", "x")
MOST_STEPS = 4
INPUTS = (-7, -2, -1, 0, 1, 3, 5, 11)  # programs that agree on all of them are taken for the same

# What `run` bears, whatever a model writes.
MOST_LINES, MOST_DIGITS = 20, 30
_LINE = re.compile(r"y = y (?P<operator>[-+*]) (?P<amount>x|[0-9]{1,4})")


class ProgramError(ValueError):
    """A text is no program, or one that computes too much."""


def run(program: str, x: int) -> int:
    """What a program returns for x. A program is `y = x`, then lines `y = y + AMOUNT` with +, - or * and a number or x,
    then `return y`. Nothing else is understood, so nothing else can happen.

    Raises ProgramError naming the line.
    """
    lines = program.strip().splitlines()
    if len(lines) > MOST_LINES:
        raise ProgramError(f"{len(lines)} lines; at most {MOST_LINES}")
    if len(lines) < 2 or lines[0] != "y = x" or lines[-1] != "return y":
        raise ProgramError(f"a program begins with 'y = x' and ends with 'return y': {program!r}")
    y = x
    for number, line in enumerate(lines[1:-1], start=2):
        read = _LINE.fullmatch(line)
        if read is None:
            raise ProgramError(f"line {number}: {line!r} is no step")
        amount = x if read["amount"] == "x" else int(read["amount"])
        y = {"+": y + amount, "-": y - amount, "*": y * amount}[read["operator"]]
        if abs(y) >= 10**MOST_DIGITS:
            raise ProgramError(f"line {number}: the result has more than {MOST_DIGITS} digits")
    return y


def same_results(answer: str, expected: str) -> bool:
    """Whether two programs return the same for every one of INPUTS. A matcher (`evaluation.matcher`)."""
    try:
        return all(run(answer, x) == run(expected, x) for x in INPUTS)
    except ProgramError:
        return False


@dataclass(frozen=True)
class Step:
    """A line of a program."""

    operator: str
    amount: str

    @property
    def line(self) -> str:
        return f"y = y {self.operator} {self.amount}"

    @property
    def plan(self) -> str:
        return f"{WORDS[self.operator]} {self.amount}"

    @property
    def order(self) -> str:
        return f"{ORDERS[self.operator]} {self.amount}"


Program = tuple[Step, ...]


def generate(count: int, seed: int, split: Split) -> list[dict]:
    """`count` records `{"messages": [...]}`; the same for the same arguments in every process.

    No first program of one split is one of the other, whatever the seeds. Raises ValueError for a split that does not
    exist.
    """
    return list(itertools.islice(sessions(seed, split), count))


def sessions(seed: int, split: Split) -> Iterator[dict]:
    """The records that `generate` begins with, and all others behind them, without end."""
    if split not in ("train", "heldout"):
        raise ValueError(f"split={split!r}: write 'train' or 'heldout'")
    rng = random.Random(f"programs/{split}/{seed}")
    while True:
        first = (_step(rng), _step(rng))
        one, other = (AMOUNTS.index(step.amount) + 9 * list(WORDS).index(step.operator) for step in first)
        if ((one + 5 * other) % 7 == 0) == (split == "heldout"):
            yield {"messages": _session(first, rng)}


def _step(rng: random.Random) -> Step:
    return Step(rng.choice(list(WORDS)), rng.choice(AMOUNTS))


def _session(first: Program, rng: random.Random) -> list[dict]:
    one, other = first
    programs = [first]
    messages = _turn(f"Write a program: {one.order}, then {other.order}.", [f"Now {_plan(first)}."], first)
    for _ in range(rng.randint(3, 5)):
        request, program, new, look_back = _change(programs, rng)
        thinking = [f"New {new.plan}."] if new else []
        thinking.append(f"First {_plan(programs[0])}." if look_back else f"Was {_plan(programs[-1])}.")
        messages += _turn(request, [*thinking, f"Now {_plan(program)}."], program)
        programs.append(program)
    return messages


def _change(programs: list[Program], rng: random.Random) -> tuple[str, Program, Step | None, bool]:
    """(request, the program that it asks for, its new step, whether it is made from the first program, not the last)."""
    last, step = programs[-1], _step(rng)
    at = rng.randrange(len(last))
    kinds = ["change", "change"]
    kinds += ["append", "insert"] if len(last) < MOST_STEPS else []
    kinds += ["delete", "swap"] if len(last) > 1 else []
    kinds += ["back"] if len(programs) > 1 else []
    match rng.choice(kinds):
        case "change":
            return f"Make step {at + 1} {step.order}.", (*last[:at], step, *last[at + 1 :]), step, False
        case "append":
            return f"At the end {step.order}.", (*last, step), step, False
        case "insert":
            return f"Before all steps {step.order}.", (step, *last), step, False
        case "delete":
            return f"Leave step {at + 1} out.", (*last[:at], *last[at + 1 :]), None, False
        case "swap":
            at = min(at, len(last) - 2)
            swapped = (*last[:at], last[at + 1], last[at], *last[at + 2 :])
            return f"Swap steps {at + 1} and {at + 2}.", swapped, None, False
        case _:
            return f"Take your first program, and at the end {step.order}.", (*programs[0], step), step, True


def _plan(program: Program) -> str:
    return ", ".join(f"{number} {step.plan}" for number, step in enumerate(program, start=1))


def _turn(request: str, thinking: list[str], program: Program) -> list[dict]:
    code = "\n".join(("y = x", *(step.line for step in program), "return y"))
    return [
        {"role": "user", "content": request},
        {"role": "assistant", "content": code, "reasoning_content": "\n".join(thinking)},
    ]
