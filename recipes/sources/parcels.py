"""Parcel episodes: tool calls, results that are cleared, and notes that the model writes for itself.

A clerk looks up what is known of a parcel with a tool, writes down at times all that is known, and is asked for labels
of codes. Results give codes, and the clerk says in words what they mean:

    system     Parcel 4153.
    user       Find colour and town.
    assistant  (Next colour.) -> look {"field": "colour"}
    tool       code BLU
    assistant  (code BLU. Next town.) It is blue. -> look {"field": "town"}
    tool       code OSL
    assistant  (code OSL.) It is Oslo.
    user       Note all facts.
    assistant  (colour town.) colour blue, town Oslo.
    user       Write the label.
    assistant  (Recall blue Oslo.) Label BLU OSL.

and so on with two more fields, noted beside the first ones. The last label, of all four, decides whether the episode
succeeded. The harness (`harness`) clears results but the last, and behind notes it shows nothing of what was before
them. So a label can be written from right notes alone, by turning words into codes. A model that was trained on the
whole history copies the codes of results instead, which are not there any more.

The number of a parcel says all of it (`Parcel`), so that any call has a result, whatever the episode needed. `generate`
makes records; `Parcel` knows no more of them than what a model sees.
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
from recipes.sources.splits import Split, seeded

# What a field may hold. A code is the beginning of a word, so no two words begin alike.
FIELDS = {
    "colour": ("red", "blue", "green", "white"),
    "town": ("Oslo", "Lund", "Bergen", "Turku"),
    "month": ("March", "April", "May", "June"),
    "goods": ("apples", "coins", "books", "shells"),
}
ORDERS = ("Find {one} and {other}.", "Look {one} and {other} up.")
NOTE_ALL = "Note all facts."
QUESTIONS = ("Write the label.", "Now the label, please.")
INTRODUCTION, CLEARED = "Notes so far:", "cleared"
HARNESS = (INTRODUCTION, CLEARED, "error:")  # the words of the harness and the environment


def generate(count: int, seed: int, split: Split) -> list[dict]:
    """`count` records `{"messages": [...]}`; the same for the same arguments in every process.

    No parcel of one split is one of the other, whatever the seeds. Raises ValueError for a split that does not exist.
    """
    return list(itertools.islice(episodes(seed, split), count))


def episodes(seed: int, split: Split) -> Iterator[dict]:
    """The records that `generate` begins with, and all others behind them, without end."""
    rng = seeded(split, seed)
    while True:
        number = rng.randrange(1000, 10_000)
        if (number % 7 == 0) == (split == "heldout"):
            yield {"messages": _episode(number, rng)}


def harness(messages: Messages) -> Messages:
    """The context rule of the episodes: notes in place of what they sum up, and of all results but the last a
    placeholder."""
    noted = compact(messages, instruction=NOTE_ALL, introduction=INTRODUCTION)
    return keep_last_tool_results(noted, keep=1, placeholder=CLEARED)


def facts_of(number: int) -> dict[str, str]:
    """What the fields of the parcel of that number hold, in words."""
    rng = random.Random(number)
    return {field: rng.choice(words) for field, words in FIELDS.items()}


def code(word: str) -> str:
    return word[:3].upper()


def _episode(number: int, rng: random.Random) -> list[dict]:
    facts, fields = facts_of(number), list(FIELDS)
    messages, known = [{"role": "system", "content": f"Parcel {number}."}], []
    for some in (fields[:2], fields[2:]):
        messages += _found(some, facts, rng)
        known += some
        notes = ", ".join(f"{field} {facts[field]}" for field in known)
        messages += [_user(NOTE_ALL), _assistant(f"{' '.join(known)}.", f"{notes}.")]
        messages += _labelled(known, facts, rng)
    return messages


def _found(fields: list[str], facts: dict[str, str], rng: random.Random) -> Iterator[dict]:
    """An order, and the calls that it takes."""
    one, other = fields
    yield _user(rng.choice(ORDERS).format(one=one, other=other))
    thought, said = "", ""
    for field in fields:
        call = {"type": "function", "function": {"name": "look", "arguments": {"field": field}}}
        yield _assistant(f"{thought}Next {field}.", said) | {"tool_calls": [call]}
        yield {"role": "tool", "content": _result(facts[field])}
        thought, said = f"{_result(facts[field])}. ", f"It is {facts[field]}."
    yield _assistant(thought.strip(), said)


def _labelled(fields: list[str], facts: dict[str, str], rng: random.Random) -> list[dict]:
    words = [facts[field] for field in fields]
    label = " ".join(map(code, words))
    return [_user(rng.choice(QUESTIONS)), _assistant(f"Recall {' '.join(words)}.", f"Label {label}.")]


def _result(word: str) -> str:
    return f"code {code(word)}"


def _user(content: str) -> dict:
    return {"role": "user", "content": content}


def _assistant(thought: str, content: str) -> dict:
    return {"role": "assistant", "reasoning_content": thought, "content": content}


class Parcel:
    """The parcel of an episode: what its tool answers, and whether the last label is right."""

    def __init__(self, conversation: Conversation) -> None:
        """Raises ValueError for a conversation that is about no parcel."""
        named = re.fullmatch(r"Parcel (\d+)\.", conversation.messages[0]["content"])
        if named is None:
            raise ValueError(f"{conversation.name}: message 0 is not 'Parcel <number>.', so nothing can be looked up")
        self.facts = facts_of(int(named[1]))

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        """The result of a call. Raises ValueError for one that cannot be carried out."""
        if name != "look":
            raise ValueError(f"no tool {name}")
        fields = [field for field in self.facts if arguments == {"field": field}]
        if not fields:
            raise ValueError(f"no field {json.dumps(arguments)}")
        return _result(self.facts[fields[0]])

    def succeeded(self, answer: str) -> bool:
        """Whether the last answer of an episode is the whole label: the codes of all fields, in their order."""
        return re.findall(r"\b[A-Z]{3}\b", answer) == list(map(code, self.facts.values()))
