"""Stocktaking episodes: tool calls, results that are cleared, and notes that the model writes for itself.

A clerk counts things in a store with a tool, writes down at times all that is known, and is asked what two of the
things make together. The numbers stand in digits in the results, in words in all that the clerk says:

    system     Store 41503.
    user       Count the apples and the coins.
    assistant  (Next apples.) -> count {"thing": "apples"}
    tool       apples 4
    assistant  (apples 4. Next coins.) apples four. -> count {"thing": "coins"}
    tool       coins 7
    assistant  (coins 7.) coins seven.
    user       Note all counts.
    assistant  (apples coins.) apples four, coins seven.
    user       Add the coins and the apples.
    assistant  (Recall coins 7, apples 4. 7 + 4 = 11.) That makes 11.

and so on with two more things, noted beside the first ones, and a last question, which decides whether the episode
succeeded. The harness (`harness`) clears results but the last, and behind the notes it shows nothing of what
was before them. So a question can be answered from right notes alone, by reading their words. A model that was trained
on the whole history copies the digits of a result instead, which is not there any more.

The number of a store says what it holds (`Store`), so that any call has a result, whatever the episode needed.
`generate` makes records; `Store` knows of them no more than what a model sees.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from typing import Any

from flexmask import Conversation
from flexmask.conversations.contexts import Messages, compact, keep_last_tool_results
from recipes.sources.tutoring import ONES, Split

THINGS = ("apples", "coins", "books", "shells", "stamps", "cards", "pens", "beads")
MOST = len(ONES)  # of a thing
STORES = 90_000
ORDERS = ("Count the {things}.", "Go and count the {things}.")
NOTE_ALL = "Note all counts."
QUESTIONS = (
    "What do the {one} and the {other} make together?",
    "Add the {one} and the {other}.",
    "How many {one} and {other} are there together?",
)
INTRODUCTION, CLEARED = "Notes so far:", "cleared"
HARNESS = (INTRODUCTION, CLEARED, "error:")  # the words of the harness and the environment
TOOL = {
    "type": "function",
    "function": {
        "name": "count",
        "parameters": {"type": "object", "properties": {"thing": {"type": "string"}}},
    },
}


def generate(count: int, seed: int, split: Split) -> list[dict]:
    """`count` records `{"messages": [...], "tools": [...]}`; the same for the same arguments in every process.

    No store of one split is one of the other, whatever the seeds. Raises ValueError for a split that does not exist.
    """
    return list(itertools.islice(endless(seed, split), count))


def endless(seed: int, split: Split) -> Iterator[dict]:
    """The records that `generate` begins with, and all others behind them, without end."""
    if split not in ("train", "heldout"):
        raise ValueError(f"split={split!r}: write 'train' or 'heldout'")
    rng = random.Random(f"{split}/{seed}")
    while True:
        number = 10_000 + rng.randrange(STORES)
        if (number % 7 == 0) == (split == "heldout"):
            yield {"messages": _episode(number, rng), "tools": [TOOL]}


def harness(messages: Messages) -> Messages:
    """The context rule of the episodes: notes in place of what they sum up, and of all results but the last a
    placeholder."""
    noted = compact(messages, instruction=NOTE_ALL, introduction=INTRODUCTION)
    return keep_last_tool_results(noted, keep=1, placeholder=CLEARED)


def counts_of(number: int) -> dict[str, int]:
    """What the store of that number holds."""
    rng = random.Random(number)
    return {thing: rng.randint(1, MOST) for thing in THINGS}


def _episode(number: int, rng: random.Random) -> list[dict]:
    counts, things = counts_of(number), rng.sample(THINGS, 4)
    messages, known = [{"role": "system", "content": f"Store {number}."}], []
    for some in (things[:2], things[2:]):
        messages += _counted(some, counts, rng)
        known += some
        notes = ", ".join(_said(thing, counts) for thing in known)
        messages += [_user(NOTE_ALL), _assistant(" ".join(known) + ".", f"{notes}.")]
        messages += _asked(rng.sample(known, 2), counts, rng)
    return messages


def _counted(things: list[str], counts: dict[str, int], rng: random.Random) -> Iterator[dict]:
    """An order, and the calls that it takes."""
    yield _user(rng.choice(ORDERS).format(things=" and the ".join(things)))
    thought, said = "", ""
    for thing in things:
        call = {"type": "function", "function": {"name": "count", "arguments": {"thing": thing}}}
        yield _assistant(f"{thought}Next {thing}.", said) | {"tool_calls": [call]}
        yield {"role": "tool", "content": _result(thing, counts)}
        thought, said = f"{_result(thing, counts)}. ", f"{_said(thing, counts)}."
    yield _assistant(thought.strip(), said)


def _asked(pair: list[str], counts: dict[str, int], rng: random.Random) -> list[dict]:
    one, other = pair
    left, right = counts[one], counts[other]
    thought = f"Recall {_result(one, counts)}, {_result(other, counts)}. {left} + {right} = {left + right}."
    question = rng.choice(QUESTIONS).format(one=one, other=other)
    return [_user(question), _assistant(thought, f"That makes {left + right}.")]


def _result(thing: str, counts: dict[str, int]) -> str:
    return f"{thing} {counts[thing]}"


def _said(thing: str, counts: dict[str, int]) -> str:
    return f"{thing} {ONES[counts[thing] - 1]}"


def _user(content: str) -> dict:
    return {"role": "user", "content": content}


def _assistant(thought: str, content: str) -> dict:
    return {"role": "assistant", "reasoning_content": thought, "content": content}


class Store:
    """The store of an episode: what its tool answers, and whether the last question was answered right."""

    def __init__(self, conversation: Conversation) -> None:
        """Raises ValueError for a conversation that is in no store."""
        named = re.fullmatch(r"Store (\d+)\.", conversation.messages[0]["content"])
        if named is None:
            raise ValueError(
                f"{conversation.name}: message 0 is not 'Store <number>.', so what the tool counts is unknown"
            )
        self.counts = counts_of(int(named[1]))
        questions = [message["content"] for message in conversation.messages if message["role"] == "user"]
        self.asked = [thing for thing in re.findall(r"[a-z]+", questions[-1]) if thing in self.counts]

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        """The result of a call. Raises ValueError for one that cannot be carried out."""
        if name != "count":
            raise ValueError(f"no tool {name}")
        things = [thing for thing in self.counts if arguments == {"thing": thing}]
        if not things:
            raise ValueError(f"no thing {json.dumps(arguments)}")
        return _result(things[0], self.counts)

    def succeeded(self, answer: str) -> bool:
        """Whether the last answer of an episode is right: the number that it says."""
        return re.findall(r"\d+", answer) == [str(sum(self.counts[thing] for thing in self.asked))]
