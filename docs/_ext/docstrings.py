"""Docstrings of this project, which are plain prose with `code`, as the reStructuredText that autodoc reads.

    model: a causal language model, wrapped or not.       a list with an entry an argument; what stands deeper
    args: an `OnePassConfig`; or                          belongs to the entry above
        `TrainingArguments`.

    q1 a1' q2          what is indented behind an empty line is shown as it is: a picture, a formula, an example

A name in single backticks becomes a link where the API reference has it; any other code stays code.
"""

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

ENTRY = re.compile(r"(?P<names>[a-z_]\w*(?:, [a-z_]\w*)*): +(?P<text>.*)")
NAME = re.compile(r"[A-Za-z_][\w.]*")
SPECIAL = re.compile(r"(?<!\w)(\*\w+\*)(?!\w)|[*|\\]|_(?!\w)")  # but for an *emphasis*


def as_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring, without its own indentation, in reStructuredText."""
    written: list[str] = []
    for paragraph in _paragraphs(lines):
        if all(line.startswith("    ") for line in paragraph):
            written += ["::", "", *paragraph, ""]
        elif ENTRY.fullmatch(paragraph[0]):
            written += [*_entries(paragraph), ""]
        else:
            written += [*_inline("\n".join(paragraph)).split("\n"), ""]
    return written


def _paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """Lines between empty ones; a list in dashes is one of its own."""
    for blank, some in groupby(lines, key=lambda line: not line.strip()):
        if not blank:
            together = list(some)
            dash = next((n for n, line in enumerate(together) if line.startswith("- ")), 0)
            yield from filter(None, (together[:dash], together[dash:]))


def _entries(paragraph: list[str]) -> list[str]:
    """A list with an item an entry."""
    items: list[str] = []
    for line in paragraph:
        if entry := ENTRY.fullmatch(line):
            items.append(f"- `{entry['names']}`: {entry['text']}")
        else:
            items[-1] += f"\n  {line.strip()}"
    return "\n".join(map(_inline, items)).split("\n")


def _inline(text: str) -> str:
    """Code as it is, names as references, and no other character with a meaning of its own."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(_code(part) if part.startswith("`") else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    return SPECIAL.sub(lambda found: found[1] or f"\\{found[0]}", text)


def _code(span: str) -> str:
    inner = " ".join(span[1:-1].split())
    return f"`{inner}`" if NAME.fullmatch(inner) else f"``{inner}``"


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""

    def rewrite(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
        lines[:] = as_rst(lines)

    app.connect("autodoc-process-docstring", rewrite)
    return {"parallel_read_safe": True}
