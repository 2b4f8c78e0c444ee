"""A document that is written and edited over turns under constraints which can be checked.

A session has 3 to 5 turns. The first asks for a line; each later one for an edit of the document in an earlier
*answer*: a line more, of a length that is given or that another line has; a line cut to fewer words; a name replaced;
a line put in front of the others. Lines have letters. Thinking counts words, the answer is the document:

    user       Write a line of 4 words with Mia that ends with boats.
    thinking   New A 1 Mia 2 likes 3 fast 4 boats.
    assistant  A Mia likes fast boats
    user       Add a line as long as line A with Tom that ends with snow.
    thinking   Keep A 1 Mia 2 likes 3 fast 4 boats.
               New B 1 Tom 2 sees 3 fresh 4 snow.
    assistant  A Mia likes fast boats
               B Tom sees fresh snow

The counts stand ready in the thinking before a turn, which inference hides; a model has to count the words of the
answers instead. An answer is right if it keeps what was asked for (`keeps`): which words it chooses is up to it, and
what it edits is its own document, not the data's.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recipes.sources.splits import Split, seeded

# What each name does, and what each thing may be called.
VERBS = {
    "Mia": "likes", "Tom": "sees", "Ana": "draws", "Ben": "finds", "Zoe": "wants", "Sam": "has", "Eva": "paints",
    "Leo": "loses",
}  # fmt: skip
KINDS = {
    "boats": ("fast", "red"), "birds": ("wild", "green"), "trees": ("old", "tall"), "hats": ("new", "blue"),
    "coins": ("small", "round"), "snow": ("fresh", "deep"), "cards": ("thin", "white"), "shells": ("big", "pink"),
}  # fmt: skip
LETTERS = "AB"
LEAST_WORDS, MOST_WORDS = 3, 5

Line = tuple[str, ...]
Document = tuple[Line, ...]

# What is asked for. The generator fills them in, and the checker reads them; neither knows of the other.
REQUESTS = {
    "write": "Write a line of {n} words with {name} that ends with {word}.",
    "add": "Add a line of {n} words with {name} that ends with {word}.",
    "match": "Add a line as long as line {line} with {name} that ends with {word}.",
    "cut": "Cut line {line} to {n} words.",
    "rename": "Write {name} in place of the name in line {line}.",
    "move": "Put line {line} first.",
}
_FIELDS = {"n": r"(?P<n>\d)", "line": rf"(?P<line>[{LETTERS}])", "name": r"(?P<name>\w+)", "word": r"(?P<word>\w+)"}
_READ = {
    kind: re.compile(re.escape(text).replace(r"\{", "{").replace(r"\}", "}").format(**_FIELDS))
    for kind, text in REQUESTS.items()
}


def document_of(text: str) -> Document | None:
    """The words of each line of an answer; None where the lines do not have their letters, in order."""
    lines = [line.split() for line in text.strip().splitlines()]
    if not all(lines) or [line[0] for line in lines] != list(LETTERS[: len(lines)]):
        return None
    return tuple(tuple(line[1:]) for line in lines)


def keeps(answer: str, expected: str, history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an answer keeps what the last message of `history` asks for, and all else of the document in the answer
    before it as it was. A matcher (`evaluation.matcher`); `expected` is not looked at.

    Raises ValueError where the last message is no request of REQUESTS. Where the document lacks the line or the name
    that it is about, because an earlier answer has lost it, no answer keeps the request.
    """
    request = history[-1]["content"]
    earlier = [message["content"] for message in history if message["role"] == "assistant"]
    before, after = document_of(earlier[-1]) if earlier else (), document_of(answer)
    if not before and earlier or not after or not all(after):
        return False
    kind, asked = next(
        ((kind, read.groupdict()) for kind, pattern in _READ.items() if (read := pattern.fullmatch(request))),
        (None, {}),
    )
    if kind is None:
        raise ValueError(f"no request of a document: {request!r}")
    n, i = int(asked.get("n") or 0), LETTERS.index(asked.get("line", "A"))
    if kind != "write" and i >= len(before):
        return False  # an earlier answer has lost the line, and nothing can be done to it
    match kind:
        case "write" | "add" | "match":
            size = len(before[i]) if kind == "match" else n
            return after[:-1] == before and len(after[-1]) == size and _says(after[-1], asked["name"], asked["word"])
        case "cut":
            rest = after[:i] == before[:i] and after[i + 1 :] == before[i + 1 :] and len(after) == len(before)
            return rest and len(after[i]) == n and _in_order(after[i], before[i])
        case "rename":
            named = _name(before[i])
            renamed = tuple(asked["name"] if word == named else word for word in before[i])
            return named is not None and after == (*before[:i], renamed, *before[i + 1 :])
        case _:
            return after == (before[i], *before[:i], *before[i + 1 :])


def _says(line: Line, name: str, last: str) -> bool:
    return name in line and line[-1] == last


def _name(line: Line) -> str | None:
    """The first name in a line."""
    return next((word for word in line if word in VERBS), None)


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
    rng = seeded(split, seed, "documents/")
    while True:
        first = _line((), rng)
        name, thing = list(VERBS).index(first[0]), list(KINDS).index(first[-1])
        if ((name + 3 * thing + len(first)) % 7 == 0) == (split == "heldout"):
            yield {"messages": _session(first, rng)}


def _line(beside: Document, rng: random.Random, size: int | None = None) -> Line:
    """Name, verb, as many kinds as there is room for, thing; its name and thing stand in no line beside it."""
    name = rng.choice([name for name in VERBS if all(name != line[0] for line in beside)])
    thing = rng.choice([thing for thing in KINDS if all(thing != line[-1] for line in beside)])
    kinds = KINDS[thing][: (size or rng.randint(LEAST_WORDS, MOST_WORDS)) - 3]
    return (name, VERBS[name], *kinds, thing)


def _session(first: Line, rng: random.Random) -> list[dict]:
    document: Document = (first,)
    messages = _turn(_request("write", 0, first), first, document)
    for _ in range(rng.randint(2, 4)):
        request, new, document = _edit(document, rng)
        messages += _turn(request, new, document)
    return messages


def _edit(document: Document, rng: random.Random) -> tuple[str, Line | None, Document]:
    """(request, its new line, the document that it leads to)"""
    kinds = ["rename"]
    kinds += ["add", "match", "match"] if len(document) < len(LETTERS) else []
    kinds += ["move"] if len(document) > 1 else []
    long = [i for i, line in enumerate(document) if len(line) > LEAST_WORDS]
    kinds += ["cut"] if long else []
    kind = rng.choice(kinds)
    i = rng.choice(long) if kind == "cut" else rng.randrange(1 if kind == "move" else 0, len(document))
    line = document[i]
    match kind:
        case "add":
            new = _line(document, rng)
        case "match":
            new = _line(document, rng, len(line))
        case "cut":
            new = (*line[: rng.randrange(LEAST_WORDS, len(line)) - 1], line[-1])
        case "rename":
            new = (rng.choice([name for name in VERBS if all(name != other[0] for other in document)]), *line[1:])
        case _:
            new = line
    if kind in ("add", "match"):
        changed = (*document, new)
    else:
        changed = (
            (line, *document[:i], *document[i + 1 :]) if kind == "move" else (*document[:i], new, *document[i + 1 :])
        )
    return _request(kind, i, new), new if kind != "move" else None, changed


def _request(kind: str, i: int, new: Line) -> str:
    return REQUESTS[kind].format(n=len(new), line=LETTERS[i], name=new[0], word=new[-1])


def _turn(request: str, new: Line | None, document: Document) -> list[dict]:
    plan, lines = [], []
    for letter, line in zip(LETTERS, document, strict=False):
        counted = " ".join(f"{number} {word}" for number, word in enumerate(line, start=1))
        plan.append(f"{'New' if line == new else 'Keep'} {letter} {counted}.")
        lines.append(" ".join((letter, *line)))
    return [
        {"role": "user", "content": request},
        {"role": "assistant", "content": "\n".join(lines), "reasoning_content": "\n".join(plan)},
    ]
