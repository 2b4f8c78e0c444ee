"""Thinking inside the text of an answer: the delimiters that models and data sets have, split off as models write them.

Nothing is guessed in silence. A text is split where its delimiters stand once, in order, at its beginning; delimiters
that stand otherwise are an error with the cause, those that are quoted are the topic of the text and stay in it, and
a text that looks as if it had unknown ones gives a note.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from flexmask.conversations.values import shown

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
AUTO = "auto"
_NOT_CLOSED = (
    "is not closed; the text was probably cut off. Close it where the answer begins, or remove the conversation"
)
_TOPIC = (
    " (If the tags are what the text is about, give the thinking in 'reasoning_content', or read no thinking from text "
    "with thinking_tags=null; control_tokens says what becomes of the tags)"
)


@dataclass(frozen=True)
class Tags:
    """How thinking is delimited: `open` thinking `close` answer, the answer within `answer` where those are given.

    word: they may as well be the words of a text, so they count only at its beginning.
    """

    open: str
    close: str
    answer: tuple[str, str] | None = None
    word: bool = False


KNOWN = (
    Tags(THINK_OPEN, THINK_CLOSE),
    Tags("<seed:think>", "</seed:think>"),  # Seed-OSS
    Tags("[THINK]", "[/THINK]"),  # Magistral
    # OpenThoughts
    Tags("<|begin_of_thought|>", "<|end_of_thought|>", ("<|begin_of_solution|>", "<|end_of_solution|>")),
    Tags("<|START_THINKING|>", "<|END_THINKING|>", ("<|START_RESPONSE|>", "<|END_RESPONSE|>")),  # Command A
    Tags("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi
    Tags("<|channel>thought", "<channel|>"),  # Gemma 4
    Tags("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Tags("Here is my thought process:", "Here is my response:", word=True),  # Granite 3.2
    *(Tags(f"<{word}>", f"</{word}>", word=True) for word in "thinking reasoning thought thoughts analysis".split()),
)
# Where a text begins with one of these words in brackets of any kind, it has delimiters that are not known.
_UNKNOWN = re.compile(
    r"\s*(?P<tag>(?:<\|?|\[|\{|\u3010|\u25c1|\u300c)[^<>\[\]\n]{0,30}?"
    r"(?:think|thought|reason|reflect|scratch|monolog|deliberat|rationale|chain.?of|\bcot\b|analy|\u601d\u8003)"
    r"[^<>\[\]\n]{0,30}?(?:\|?>|\]|\}|\u3011|\u25b7|\u300d)|(?:#+|\*\*)\s*(?:thinking|reasoning|thoughts?)\b[^\n]{0,20})",
    re.IGNORECASE,
)
_UNKNOWN_NOTE = (
    "answers that begin with {!r} look as if they held thinking, and are trained as they stand; "
    "thinking_tags=[opening, closing] splits it off"
)
_INSIDE_NOTE = "answers hold {} but do not begin with what opens it, and are trained as they stand"
_LONE_NOTE = "answers hold {} without {}: what stands before it is read as thinking that the prompt has opened"
_QUOTES = "'\"`\u2018\u2019\u201c\u201d\u00ab\u00bb"


@dataclass(frozen=True)
class Split:
    """`thinking` and `answer` of a text; `note` says what whoever owns the data should know of how it was split."""

    thinking: str
    answer: str
    note: str | None = None


def tags_of(setting: str | Sequence[str] | None) -> tuple[Tags, ...]:
    """The delimiters that `thinking_tags` stands for: "auto" for all that are known, (open, close), or None.

    Raises ValueError for anything else.
    """
    if setting is None or setting == AUTO:
        return KNOWN if setting else ()
    if isinstance(setting, Sequence) and not isinstance(setting, str) and len(setting) == 2:
        opening, closing = setting
        if isinstance(opening, str) and isinstance(closing, str) and opening.strip() and closing.strip():
            return (Tags(opening, closing),)
    raise ValueError(f'thinking_tags is {shown(setting)}; give "auto", [opening, closing], or None (null)')


def split_thinking(text: str, where: str, known: Sequence[Tags] = KNOWN, *, has_thinking: bool = False) -> Split:
    """Thinking and answer of a text, both without the newlines next to the delimiters; thinking is "" where there is
    none.

    A closing delimiter alone ends thinking whose opening stood in the prompt. has_thinking: thinking is given beside
    the text, so that delimiters inside it are its topic, unless it begins with them.

    Raises ValueError, beginning with `where`, unless delimiters stand once, in order, with only white space before.
    """
    for tags in known:
        begins = text.lstrip().startswith(tags.open)
        if (has_thinking or tags.word) and not begins:
            continue
        opened, closed = _places(text, tags.open), _places(text, tags.close)
        if not (begins and len(opened) == len(closed) == 1):
            opened, closed = (unquoted(text, tag) for tag in (tags.open, tags.close))
        if closed or (opened and not tags.word):
            return _split(text, tags, [at.start() for at in opened], [at.start() for at in closed], where)
    return Split("", text, None if has_thinking else _note(text, known))


def _note(text: str, known: Sequence[Tags]) -> str | None:
    """What is said of a text that was not split although it looks as if it held thinking."""
    if known and (unknown := _UNKNOWN.match(text)):
        return _UNKNOWN_NOTE.format(unknown["tag"].strip())
    inside = next((tags for tags in known if tags.word and tags.close in text), None)
    return _INSIDE_NOTE.format(inside.close) if inside else None


def _places(text: str, tag: str) -> list[re.Match[str]]:
    return list(re.finditer(re.escape(tag), text)) if tag in text else []


def unquoted(text: str, tag: str) -> list[re.Match[str]]:
    """Where a tag stands in a text, but for places in quotes, where it is what the text is about."""
    return [found for found in _places(text, tag) if not quoted(text, found)]


def quoted(text: str, found: re.Match[str]) -> bool:
    """Whether what was found in a text stands in quotes there."""
    before, behind = text[found.start() - 1 : found.start()], text[found.end() : found.end() + 1]
    return bool(before and behind) and before in _QUOTES and behind in _QUOTES


def _split(text: str, tags: Tags, opened: Sequence[int], closed: Sequence[int], where: str) -> Split:
    """The parts of a text whose delimiters stand at the characters `opened` and `closed`."""
    if not closed:
        raise ValueError(f"{where}: {tags.open} {_NOT_CLOSED}{_TOPIC}")
    if len(opened) == len(closed) > 1:
        raise ValueError(
            f"{where}: {len(opened)} pairs of {tags.open} tags; one message has one thinking, before its answer"
        )
    for tag, places, others in ((tags.open, opened, closed), (tags.close, closed, opened)):
        if len(places) > max(1, len(others)):
            times = "twice" if len(places) == 2 else f"{len(places)} times"
            raise ValueError(f"{where}: {tag} stands {times}; thinking begins and ends once. Keep one{_TOPIC}")
    start, end = opened[0] if opened else 0, closed[0]
    if end < start:
        raise ValueError(f"{where}: {tags.close} stands before {tags.open}; repair the message or remove it")
    if text[:start].strip():
        raise ValueError(
            f"{where}: text {shown(text[:start])} before {tags.open}; thinking comes first. Move the text behind "
            f"{tags.close}{_TOPIC}"
        )
    thinking = text[start + len(tags.open) if opened else 0 : end].strip("\n")
    if not opened and (other := _UNKNOWN.match(thinking)) and other["tag"].lstrip()[0] in "<[":
        raise ValueError(
            f"{where}: begins with {other['tag']!r}, and ends its thinking with {tags.close}; begin it with {tags.open}"
        )
    answer = text[end + len(tags.close) :].lstrip("\n")
    return Split(
        thinking, _unwrapped(answer, tags, where), None if opened else _LONE_NOTE.format(tags.close, tags.open)
    )


def _unwrapped(answer: str, tags: Tags, where: str) -> str:
    """The answer without the delimiters that it has itself in some formats."""
    if tags.answer is None or not answer.lstrip().startswith(tags.answer[0]):
        return answer
    inside, closing, behind = answer.lstrip().removeprefix(tags.answer[0]).partition(tags.answer[1])
    if not closing:
        raise ValueError(f"{where}: {tags.answer[0]} {_NOT_CLOSED}")
    if behind.strip():
        raise ValueError(f"{where}: text {shown(behind)} behind {tags.answer[1]}; repair the message or remove it")
    return inside.strip("\n")
