r"""How a chat template writes a turn: found by rendering it with probes in place of its texts.

In: the messages before a turn and the turn. Out: a `Form`, the texts around the turn's own, from behind the message
before it on.

What stands behind the message before the turn, and how it is called here and in turns.py:

    opening       <|im_end|>\n<|im_start|>assistant\n<think>\n       of the prompt, all of it
    turn          <|im_end|>\n<|im_start|>assistant\nANSWER<|im_end|>\n
    lead          <|im_end|>\n<|im_start|>assistant\n                of the turn, up to its first text
    prompt only   <think>\n              what the opening goes on with behind what it shares with the lead
    turn only     (nothing here)         what the lead goes on with there
    gap           what is generated in front of the answer besides thinking: tags, white space, what opens a call
    tail          <|im_end|>\n           what the turn ends with, behind its last text
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flexmask.text.template import ChatTemplate, RejectedError

# Texts and names to find out where a template puts what. A turn that holds one itself is refused as rewritten.
BEFORE, THINKING, ANSWER, NEXT = (f"flexmask {what}" for what in ("before", "thinking", "answer", "next"))
TOOL = "flexmask_tool_{}_"
TAG = r"<[^<>\s]*>|\[[^\[\]]*\]"
_WORDS = re.compile(rf"{TAG}|\w+|\s|.")
_PROBES = re.compile(rf"({THINKING}|{ANSWER}|flexmask_tool_\d+_)")
PLAIN = {"role": "assistant", "content": ANSWER}
THOUGHTFUL = PLAIN | {"reasoning_content": THINKING}
CALLING = THOUGHTFUL | {
    "content": "",
    "tool_calls": [{"id": "000000000", "type": "function", "function": {"name": TOOL.format(0), "arguments": {}}}],
}


@dataclass(frozen=True)
class Form:
    """Texts that begin behind the message before a turn.

    opening: of the prompt, all of it. pieces: of the turn, texts and probes as they follow each other. followed: what
    stands between its last probe and another message behind it; empty where the template takes none.
    """

    opening: str
    pieces: tuple[str, ...]
    followed: str

    @property
    def lead(self) -> str:
        """What stands in front of the first text of the turn."""
        return self.pieces[0] if self.pieces and not is_probe(self.pieces[0]) else ""

    @property
    def shows_thinking(self) -> bool:
        """Whether the thinking of the turn is in it."""
        return THINKING in self.pieces

    @property
    def body(self) -> int:
        """The index of the first piece that is the answer or the name in a call."""
        return next((i for i, one in enumerate(self.pieces) if is_probe(one) and one != THINKING), len(self.pieces))

    @property
    def behind_thinking(self) -> str:
        """What stands between the thinking and the answer, or the first call."""
        return "".join(self.pieces[self.pieces.index(THINKING) + 1 : self.body]) if self.shows_thinking else ""


class Forms:
    """The forms of turns behind `history`, messages as the template reads them.

    whole: learn from all of the history, with its last message as it is; else from the exchange that the turn belongs
        to, with a probe for that message, which is faster and mostly enough.
    """

    def __init__(
        self, template: ChatTemplate, history: list[dict[str, Any]], where: str, whole: bool, known: dict[Any, Form]
    ) -> None:
        self.template, self.where, self.whole = template, where, whole
        self._known = {} if whole else known  # with all of its history, a form is good for this turn only
        self.history = history if whole else _exchange(history)
        last = self.history[-1]
        content = last["content"][-1]["text"] if isinstance(last["content"], list) else last["content"]
        probed = template.read({"role": last["role"], "content": content + BEFORE if whole else BEFORE})
        self.context = [*self.history[:-1], last | {"content": probed["content"]}]

    def render(
        self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool = False, /, **settings: Any
    ) -> str:
        """A render of messages; raises RejectedError."""
        return self.template.render(messages, self.where, add_generation_prompt=add_generation_prompt, **settings)

    @functools.cached_property
    def opening(self) -> str:
        """The prompt behind the message before the turn."""
        return self._opening()

    def _opening(self, **settings: Any) -> str:
        return behind(self.render(self.context, True, **settings), BEFORE)

    def of(self, message: Mapping[str, Any], /, **settings: Any) -> Form:
        """The form of a turn whose texts are probes. Raises RejectedError where the template does not take it."""
        # Calls come with arguments, so their form is good for one turn only.
        if settings or (message.get("tool_calls") and message is not CALLING):
            return self._learned(message, **settings)
        roles = tuple(one["role"] for one in self.history)
        calls = "tool_calls" in message
        key = (self.opening, roles, *map(message.get, ("reasoning_content", "content", "name")), calls)
        if key not in self._known:
            self._known[key] = self._learned(message)
        return self._known[key]

    def _learned(self, message: Mapping[str, Any], /, **settings: Any) -> Form:
        turn = [*self.context, self.template.read(message)]
        pieces = _PROBES.split(behind(self.render(turn, **settings), BEFORE))
        opening = self._opening(**settings) if settings else self.opening
        return Form(opening, tuple(filter(None, pieces)), self._followed(turn, pieces, message))

    def _followed(self, turn: list[dict[str, Any]], pieces: Sequence[str], message: Mapping[str, Any]) -> str:
        following = {"role": "user", "content": NEXT}
        if calls := message.get("tool_calls"):
            following = {
                "role": "tool",
                "name": calls[0]["function"]["name"],
                "tool_call_id": calls[0].get("id"),
                "content": NEXT,
            }
        try:
            text = self.render([*turn, self.template.read(following)], True)
        except RejectedError:
            return ""
        last = next((piece for piece in reversed(pieces) if is_probe(piece)), None)
        if last is None:
            return ""
        rest = last.join(text.split(last)[pieces.count(last) :])  # a result may name the call that it answers once more
        return rest.partition(NEXT)[0] if NEXT in rest else ""

    def header(self) -> str:
        """What opens the turn where the prompt does not, so that a user could go on behind it as well."""
        try:
            other = self.render([*self.context, self.template.read({"role": "user", "content": NEXT})])
        except RejectedError:
            return ""
        form = self.of(PLAIN)
        goes_on = behind(other, BEFORE).startswith(form.opening) and form.lead.startswith(form.opening)
        return form.lead.removeprefix(form.opening) if goes_on else ""

    def generation_prompt(self) -> str:
        """What a generation prompt adds behind a question."""
        question = [self.template.read({"role": "user", "content": BEFORE})]
        return self.render(question, True).removeprefix(self.render(question))


def probed(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A message with probes for its texts; where the answer is empty, first with one for that as well. At last with its
    calls as they are, if their names are words that a template may know and write in a way of its own."""
    calls = message.get("tool_calls", [])
    named = [call | {"function": call["function"] | {"name": TOOL.format(i)}} for i, call in enumerate(calls)]
    one = {key: message[key] for key in ("role", "content", "name") if key in message}
    one |= {"reasoning_content": THINKING} if "reasoning_content" in message else {}
    one |= {"tool_calls": named} if calls else {}
    if message["content"].strip() or not calls:
        yield one | {"content": ANSWER}
    if not message["content"].strip():
        yield one
    if calls and all(re.fullmatch(r"[\w.:-]+", call["function"]["name"]) for call in calls):
        yield one | {"content": ANSWER if message["content"].strip() else message["content"], "tool_calls": calls}


def filled(form: Form, texts: Mapping[str, str], whole: str) -> list[str] | None:
    """The pieces with `texts` in place of their probes, if that is how `whole` ends: as they are or, as templates do,
    without white space or newlines at an end. None if it ends otherwise."""
    found: list[str] = []
    end = len(whole)
    for i in reversed(range(len(form.pieces))):
        piece = form.pieces[i]
        before = form.pieces[i - 1] if i and not is_probe(form.pieces[i - 1]) else ""
        choices = _trimmed(texts[piece]) if is_probe(piece) else [piece]
        text = next((one for one in choices if whole.endswith(before + one, 0, end)), None)
        if text is None:
            return None
        found.append(text)
        end -= len(text)
    return found[::-1]


def is_probe(piece: str) -> bool:
    """Whether a piece of a form stands for a text of the turn."""
    return bool(_PROBES.fullmatch(piece))


def behind(text: str, probe: str) -> str:
    """What follows the last place of a probe; all of the text where there is none."""
    return text[text.rfind(probe) + len(probe) :] if probe in text else text


def unshared(opening: str, lead: str) -> tuple[str, str]:
    """What each of the two goes on with behind what they share; words and tags are not cut."""
    left, right = _WORDS.findall(opening), _WORDS.findall(lead)
    shared = len(os.path.commonprefix([left, right]))
    return "".join(left[shared:]), "".join(right[shared:])


def end_alike(prompt_only: str, turn_only: str) -> bool:
    """Whether what only the prompt goes on with ends as what only the turn does, but for white space: the longer of the
    two has something in front, words of the prompt or a header of the turn."""
    prompt_only, turn_only = prompt_only.strip(), turn_only.strip()
    return prompt_only != "" and (prompt_only.endswith(turn_only) or turn_only.endswith(prompt_only))


def without_overlap(prompt_only: str, turn_only: str) -> str:
    """What only the turn goes on with, without a beginning of it with which the prompt ends: a header that both open,
    behind a message that only one of them closes. White space does not count."""
    left, right = ([one for one in _WORDS.findall(text) if not one.isspace()] for text in (prompt_only, turn_only))
    for count in range(min(len(left), len(right)), 0, -1):
        if left[-count:] == right[:count] and any(re.fullmatch(TAG, one) for one in right[:count]):
            rest = turn_only
            for one in right[:count]:
                rest = rest.partition(one)[2]
            return rest.removeprefix(prompt_only[len(prompt_only.rstrip()) :])
    return turn_only


def _exchange(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What stands in front of the first user message, the last one, and the last assistant message behind it with what
    answers it; all of the history where nobody asks."""
    users = [i for i, message in enumerate(history) if message["role"] == "user"]
    if not users:
        return history
    said = [i for i in range(users[-1] + 1, len(history)) if history[i]["role"] == "assistant"]
    return [*history[: users[0]], history[users[-1]], *history[said[-1] if said else users[-1] + 1 :]]


def _trimmed(text: str) -> list[str]:
    left = (text, text.lstrip("\n"), text.lstrip())
    return list(dict.fromkeys(one for start in left for one in (start, start.rstrip("\n"), start.rstrip())))
