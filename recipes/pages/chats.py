"""Lines of chats.jsonl -> the chats that a report shows: some with a wrong answer and some without."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import escape

from recipes.run.folder import CHATS

MOST_SHOWN = 20
_ROOM = 900_000  # bytes of all chats in a page
_LONGEST = 20_000  # characters of a text
_TEXTS = ("asked", "thinking", "answer", "expected", "unasked")


@dataclass(frozen=True)
class Chats:
    """shown: for the template. chosen: which those are, as a sentence."""

    shown: list[dict[str, Any]]
    chosen: str

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]]) -> "Chats":
        lines = [dict.fromkeys(_TEXTS) | line for line in lines]  # older runs have not written all of them down
        every = [
            _chat(name, history, list(turns))
            for (name, history), turns in itertools.groupby(lines, lambda one: (one["conversation"], one["history"]))
        ]
        wrong = [i for i, one in enumerate(every) if one["wrong"]]
        others = [i for i, one in enumerate(every) if not one["wrong"]]
        # Half of them wrong, and whatever room one kind leaves for the other.
        of_wrong = wrong[: max(MOST_SHOWN // 2, MOST_SHOWN - len(others))]
        wanted = sorted([*of_wrong, *others[: MOST_SHOWN - len(of_wrong)]])
        shown, room = [], _ROOM
        for i in wanted:
            room -= _size(every[i])
            if room < 0:
                break
            shown.append(i)
        return cls([every[i] for i in shown], _chosen(shown, wrong, len(every)))


def _chosen(shown: Sequence[int], wrong: Sequence[int], total: int) -> str:
    if len(shown) == total:
        return f"All {total:,} chats, {len(wrong):,} of them with an answer that is wrong or was not asked for."
    bad = len(set(shown) & set(wrong))
    return (
        f"{len(shown):,} of {total:,} chats: {bad:,} of the {len(wrong):,} with an answer that is wrong or was not "
        f"asked for, and {len(shown) - bad:,} of the {total - len(wrong):,} others; the first of each. All "
        f"are in {CHATS}."
    )


def _chat(name: str, history: str, turns: list[Mapping[str, Any]]) -> dict[str, Any]:
    compared = [turn["correct"] for turn in turns if turn["correct"] is not None]
    unasked = sum(turn["unasked"] is not None for turn in turns)
    wrong = len(compared) - sum(compared)
    marks = [f"{wrong} of {len(compared)} answers wrong" if wrong else f"all {len(compared)} answers right"]
    if not compared:
        marks = ["no answer compared"]
    if unasked:
        marks.append(f"{unasked} not asked")
    return {
        "name": name,
        "history": history,
        "wrong": bool(wrong or unasked),
        "mark": ", ".join(marks),
        "turns": [turn | {key: _cut(turn[key]) for key in _TEXTS} for turn in turns],
    }


def _cut(text: str | None) -> str | None:
    if text is None or len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]} … ({len(text) - _LONGEST:,} more characters in {CHATS})"


def _size(chat: Mapping[str, Any]) -> int:
    said = [chat["name"], *(turn[key] or "" for turn in chat["turns"] for key in _TEXTS)]
    markup = 1_000 * (1 + len(chat["turns"]))
    return markup + sum(len(escape(text).encode("utf-8", "backslashreplace")) for text in said)
