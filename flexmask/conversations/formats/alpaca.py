r"""Alpaca's instructions: `instruction`, an `input` that belongs to it, `output`, and earlier turns as `history`.

    {"instruction": "Add.", "input": "2 and 2", "output": "<think>\ntwo and two\n</think>\n\n4",
     "history": [["Hello", "Good morning."]]}

The input stands behind the instruction, on a line of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flexmask.conversations.values import shown

NAME = "alpaca"


def fits(record: Mapping[str, Any]) -> bool:
    """Whether a record has an instruction and what was put out."""
    return "instruction" in record and "output" in record


def keys(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of the record that `turns` reads."""
    return ("instruction", "input", "output", "history")


def turns(record: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The turns of the history, the instruction with its input, and the output."""
    texts = [record["instruction"], record.get("input", ""), record["output"]]
    if not all(isinstance(text, str) for text in texts):
        wrong = next(text for text in texts if not isinstance(text, str))
        raise ValueError(f"{name}: {shown(wrong)} among 'instruction', 'input' and 'output'; give texts")
    instruction, belonging, output = texts
    asked = "\n".join(text for text in (instruction, belonging) if text)
    return [
        message
        for question, answer in [*_history(record.get("history", []), name), (asked, output)]
        for message in ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    ]


def _history(history: Any, name: str) -> list[Sequence[Any]]:
    if not isinstance(history, Sequence) or not all(
        isinstance(one, (list, tuple)) and len(one) == 2 for one in history
    ):
        raise ValueError(f"{name}: 'history' is {shown(history)}, not a list of [question, answer]")
    return list(history)
