"""What reading has to say of a data set: keys that nothing read, and what was done to records, each with a count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from flexmask.conversations.values import brief


class Noted(Protocol):
    """What was read of a record, with what reading has to say of it."""

    @property
    def unread(self) -> tuple[str, ...]:
        """Keys that nothing read."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What reading did."""


def unread_and_notes(conversations: Iterable[Noted]) -> list[str]:
    """What reading `conversations` has left out or done, a sentence a kind, with the number of conversations."""
    unread: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    total = 0
    for conversation in conversations:
        total += 1
        unread.update(conversation.unread)
        notes.update(conversation.notes)
    return said_of_reading(total, unread, notes)


def said_of_reading(total: int, unread: Counter[str], notes: Counter[str]) -> list[str]:
    """The sentences of `unread_and_notes`, of counts over `total` conversations."""
    said = [f"{note} ({count:,} of {total:,} conversations)" for note, count in notes.items()]
    if unread:
        keys = ", ".join(f"{brief(key)} ({count:,})" for key, count in unread.most_common())
        said.append(
            f"keys of records that are not read, with the number of conversations: {keys}; rename those that should "
            "be, and remove the others"
        )
    return said
