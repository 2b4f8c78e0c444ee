"""Thinking made worse, for studies of how good it has to be (`data.flaws`, docs/studies/reasoning_quality.md).

Answers stay as they are, so that each flaw is one of the thinking alone:

    right        Recall last 40.  Add 40 + 32: 0 + 2 = 2, 4 + 3 = 7.  Result 72.
    wrong_step   Recall last 40.  Add 40 + 32: 0 + 2 = 5, 4 + 3 = 7.  Result 72.
    irrelevant   the thinking of a turn of another conversation
    shuffled     Result 72.  Recall last 40.  Add 40 + 32: 0 + 2 = 2, 4 + 3 = 7.
    truncated    Recall last 40.  Add 40 + 32: 0 +
    missing      none
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from recipes.configuration.schema import Flaw

_NUMBER = re.compile(r"\d+")


def flawed(records: Iterable[dict[str, Any]], shares: Mapping[str, float], seed: int) -> Iterator[dict[str, Any]]:
    """The records, with `shares` of the turns that think made worse: {"wrong_step": 0.25}; the same for the same seed.

    records: `{"messages": [...]}` whose thinking is `reasoning_content`. A thinking that a flaw cannot change (one line
    cannot be shuffled, one without a number has no wrong one) stays as it is. The first conversation has no other one
    in front of it whose thinking could stand there.
    """
    rng = random.Random(f"flaws/{seed}")
    others: list[str] = []  # thinking of the conversation before
    for record in records:
        messages, own = [], []
        for message in record["messages"]:
            thinking = message.get("reasoning_content")
            if thinking:
                own.append(thinking)
                flaw = _drawn(shares, rng)
                changed = _FLAWS[flaw](thinking, others, rng) if flaw else thinking
                message = {key: value for key, value in message.items() if key != "reasoning_content"}
                message |= {"reasoning_content": changed} if changed else {}
            messages.append(message)
        others = own or others
        yield record | {"messages": messages}


def _drawn(shares: Mapping[str, float], rng: random.Random) -> str | None:
    at = rng.random()
    for name, share in shares.items():
        if at < share:
            return name
        at -= share
    return None


def _wrong_step(thinking: str, others: list[str], rng: random.Random) -> str:
    """One number is another one of as many digits."""
    found = list(_NUMBER.finditer(thinking))
    if not found:
        return thinking
    at = rng.choice(found)
    digits = len(at.group())
    least = 10 ** (digits - 1) if digits > 1 else 0
    # One of all the others: those from the right one on move up by one.
    wrong = least + rng.randrange(10**digits - least - 1)
    wrong += wrong >= int(at.group())
    return f"{thinking[: at.start()]}{wrong}{thinking[at.end() :]}"


def _irrelevant(thinking: str, others: list[str], rng: random.Random) -> str:
    return rng.choice([one for one in others if one != thinking] or [thinking])


def _shuffled(thinking: str, others: list[str], rng: random.Random) -> str:
    """Its lines in another order."""
    lines = thinking.splitlines()
    if len(set(lines)) < 2:
        return thinking
    while (order := rng.sample(lines, len(lines))) == lines:
        pass
    return "\n".join(order)


def _truncated(thinking: str, others: list[str], rng: random.Random) -> str:
    """Cut behind one of its words but the last."""
    ends = [at.end() for at in re.finditer(r"\S+", thinking)]
    return thinking[: rng.choice(ends[:-1])] if len(ends) > 1 else thinking


def _missing(thinking: str, others: list[str], rng: random.Random) -> str:
    return ""


_FLAWS: dict[str, Callable[[str, list[str], random.Random], str]] = {
    Flaw.wrong_step: _wrong_step,
    Flaw.irrelevant: _irrelevant,
    Flaw.shuffled: _shuffled,
    Flaw.truncated: _truncated,
    Flaw.missing: _missing,
}
