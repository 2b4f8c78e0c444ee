"""A document that is written and edited over turns under constraints which can be checked.

A session has 4 to 6 turns. The first asks for a line; each later one for an edit of the document in an earlier
*answer*: a line more with a given last word, or that begins with the name of another line; a line cut to fewer words; a
name replaced everywhere; lines in another order. Thinking counts words and takes names up, the answer is the document:

    user       Write a line of 4 words with Mia.
    thinking   1 Mia 2 likes 3 red 4 boats.
    assistant  Mia likes red boats
    user       Add a line of 3 words that ends with snow.
    thinking   Line 1 is 1 Mia 2 likes 3 red 4 boats.
               1 Tom 2 sees 3 snow.
    assistant  Mia likes red boats
               Tom sees snow

The numbers stand ready in the thinking before a turn, which inference hides; a model has to count the words of the
answers instead. An answer is right if it keeps what was asked for (`keeps`): which words it chooses is up to it, and
what it edits is its own document, not the data's.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recipes.sources.tutoring import Split

NAMES = ("Mia", "Tom", "Ana", "Ben", "Zoe", "Sam", "Eva", "Leo")
VERBS = ("likes", "sees", "draws", "finds", "wants", "has")
KINDS = ("red", "big", "old", "new", "small", "green")
THINGS = ("boats", "birds", "trees", "hats", "coins", "snow")
MOST_LINES, LEAST_WORDS, MOST_WORDS = 3, 3, 6

Line = tuple[str, ...]
Document = tuple[Line, ...]

# What is asked for. The generator fills them in, and the checker reads them; neither knows of the other.
REQUESTS = {
    "write": "Write a line of {n} words with {name}.",
    "end": "Add a line of {n} words that ends with {word}.",
    "begin": "Add a line of {n} words that begins with the name of line {i}.",
    "cut": "Cut line {i} to {n} words.",
    "rename": "Write {name} in place of the name of line {i}.",
    "move": "Put line {i} first.",
}
_FIELDS = {"n": r"(?P<n>\d)", "i": r"(?P<i>\d)", "name": r"(?P<name>\w+)", "word": r"(?P<word>\w+)"}
_READ = {
    kind: re.compile(re.escape(text).replace(r"\{", "{").replace(r"\}", "}").format(**_FIELDS))
    for kind, text in REQUESTS.items()
}


def document_of(text: str) -> Document:
    """The lines of an answer, and their words."""
    return tuple(tuple(line.split()) for line in text.strip().splitlines())


def keeps(answer: str, expected: str, history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an answer keeps what the last message of `history` asks for, and all else of the document in the answer
    before it as it was. A matcher (`evaluation.matcher`); `expected` is not looked at.

    Raises ValueError where the last message is no request of REQUESTS, or the document lacks the line that it names.
    """
    request = history[-1]["content"]
    earlier = [message["content"] for message in history if message["role"] == "assistant"]
    before, after = document_of(earlier[-1]) if earlier else (), document_of(answer)
    kind, asked = next(
        ((kind, read.groupdict()) for kind, pattern in _READ.items() if (read := pattern.fullmatch(request))),
        (None, {}),
    )
    if kind is None:
        raise ValueError(f"no request of a document: {request!r}")
    n, i = int(asked.get("n") or 0), int(asked.get("i") or 1) - 1
    if kind == "write":
        return len(after) == 1 and len(after[0]) == n and asked["name"] in after[0]
    if i >= len(before):
        return False  # an earlier answer has lost the line, and nothing can be done to it
    named = _name(before[i]) if before else None
    match kind:
        case "end":
            return after[:-1] == before and len(after[-1]) == n and after[-1][-1] == asked["word"]
        case "begin":
            return named is not None and after[:-1] == before and len(after[-1]) == n and after[-1][0] == named
        case "cut":
            rest = len(after) == len(before) and all(
                a == b for k, (a, b) in enumerate(zip(after, before, strict=True)) if k != i
            )
            return rest and len(after[i]) == n and _in_order(after[i], before[i])
        case "rename":
            renamed = tuple(asked["name"] if word == named else word for word in before[i])
            return named is not None and after == (*before[:i], renamed, *before[i + 1 :])
        case _:
            return after == (before[i], *before[:i], *before[i + 1 :])


def _name(line: Line) -> str | None:
    """The first name in a line."""
    return next((word for word in line if word in NAMES), None)


def _in_order(words: Line, of: Line) -> bool:
    rest = iter(of)
    return all(word in rest for word in words)


def generate(count: int, seed: int, split: Split) -> list[dict]:
    """`count` records `{"messages": [...]}`; the same for the same arguments in every process.

    No first line of one split is one of the other, whatever the seeds. Raises ValueError for a split that does not
    exist.
    """
    return list(itertools.islice(sessions(seed, split), count))


def sessions(seed: int, split: Split) -> Iterator[dict]:
    """The records that `generate` begins with, and all others behind them, without end."""
    if split not in ("train", "heldout"):
        raise ValueError(f"split={split!r}: write 'train' or 'heldout'")
    rng = random.Random(f"documents/{split}/{seed}")
    while True:
        first = _line(rng.randint(LEAST_WORDS, MOST_WORDS), rng)
        places = [words.index(word) for word in first for words in (NAMES, VERBS, KINDS, THINGS) if word in words]
        if (sum(place * 3**k for k, place in enumerate(places)) % 7 == 0) == (split == "heldout"):
            yield {"messages": _session(first, rng)}


def _line(size: int, rng: random.Random, name: str | None = None) -> Line:
    """Name, verb, as many kinds as there is room for, thing."""
    kinds = rng.sample(KINDS, size - 3)
    return (name or rng.choice(NAMES), rng.choice(VERBS), *kinds, rng.choice(THINGS))


def _session(first: Line, rng: random.Random) -> list[dict]:
    document: Document = (first,)
    messages = _turn(REQUESTS["write"].format(n=len(first), name=first[0]), [_counted(first)], document)
    for _ in range(rng.randint(3, 5)):
        request, thinking, document = _edit(document, rng)
        messages += _turn(request, thinking, document)
    return messages


def _edit(document: Document, rng: random.Random) -> tuple[str, list[str], Document]:
    """(request, thinking, the document that it leads to)"""
    kinds = ["rename", "rename"]
    kinds += ["end", "begin", "end", "begin"] if len(document) < MOST_LINES else []
    kinds += ["move"] if len(document) > 1 else []
    long = [i for i, line in enumerate(document) if len(line) > LEAST_WORDS]
    kinds += ["cut", "cut"] if long else []
    kind = rng.choice(kinds)
    i = rng.choice(long) if kind == "cut" else rng.randrange(1 if kind == "move" else 0, len(document))
    line, size = document[i], rng.randint(LEAST_WORDS, MOST_WORDS)
    recalled = f"Line {i + 1} is {_counted(line)}"
    if kind == "cut":
        size = rng.randrange(LEAST_WORDS, len(line))
        new = (*line[: size - 1], line[-1])
    elif kind == "rename":
        new = (rng.choice([name for name in NAMES if name != line[0]]), *line[1:])
    elif kind == "end":
        new = _line(size, rng)
    else:
        new = _line(size, rng, name=line[0])
    changed = {
        "end": (*document, new),
        "begin": (*document, new),
        "cut": (*document[:i], new, *document[i + 1 :]),
        "rename": (*document[:i], new, *document[i + 1 :]),
        "move": (line, *document[:i], *document[i + 1 :]),
    }[kind]
    thinking = [recalled] if kind == "move" else [_counted(new)] if kind == "end" else [recalled, _counted(new)]
    return REQUESTS[kind].format(n=len(new), i=i + 1, name=new[0], word=new[-1]), thinking, changed


def _counted(line: Line) -> str:
    return " ".join(f"{number} {word}" for number, word in enumerate(line, start=1)) + "."


def _turn(request: str, thinking: list[str], document: Document) -> list[dict]:
    text = "\n".join(" ".join(line) for line in document)
    return [
        {"role": "user", "content": request},
        {"role": "assistant", "content": text, "reasoning_content": "\n".join(thinking)},
    ]
