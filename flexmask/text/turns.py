r"""Conversation -> text: for each trained assistant turn the prompt of inference, and what the model must generate.

The prompt is the render of the messages before the turn, always of all of them. What is generated is what the template
writes of the turn behind the message before it, less what the prompt holds of that already:

    prompt   ... What is 2 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\n
    turn     ... What is 2 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\n2 and 2\n</think>\n\n4<|im_end|>\n
                                ^ behind the message before           generated: 2 and 2\n</think>\n\n4<|im_end|>

Texts in front of that message do not matter, so a template may show them otherwise once the turn stands.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from flexmask.conversations.conversation import Conversation
from flexmask.text.ends import end_of_turn
from flexmask.text.forms import (
    ANSWER,
    CALLING,
    PLAIN,
    THINKING,
    THOUGHTFUL,
    TOOL,
    Form,
    Forms,
    filled,
    is_probe,
    probed,
)
from flexmask.text.shown import check_arguments_shown, check_turn_shown
from flexmask.text.template import ChatTemplate, RejectedError
from flexmask.text.tokenization import parting

AUTO = "auto"
THINK_BLOCK = "<think>\n{thinking}\n</think>\n\n"
_TAG = r"<[^<>\s]*>|\[[^\[\]]*\]"
_WORDS = re.compile(rf"{_TAG}|\w+|\s|.")
# What every template is rendered with: no arguments that a person would set.
_RENDERED_WITH = {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}


@dataclass(frozen=True)
class TurnText:
    """`prompt`: the text of inference. `generated`: from behind it to the end-of-turn token, which it includes; the
    answer starts at character `answer_start` of it. `index` is the message, `turn` counts assistant messages."""

    turn: int
    index: int
    prompt: str
    generated: str
    answer_start: int


def turn_texts(
    conversation: Conversation, template: ChatTemplate, turns: Collection[int], thinking_format: str | None = AUTO
) -> list[TurnText]:
    """The texts of the assistant turns `turns`, in order. A turn that is not among them is context only.

    Raises ValueError as `render_conversation` says.
    """
    if thinking_format not in (None, AUTO) and thinking_format.count("{thinking}") != 1:
        raise ValueError(
            f'thinking_format={thinking_format!r}: must hold {{thinking}} once, or be "auto" or None (null)'
        )
    assistant = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    known: dict[Any, Form] = {}
    texts = []
    for turn, index in enumerate(assistant):
        if turn in turns:
            where = f"{conversation.name}: assistant turn {turn} (message {index})"
            history, message = template.messages[:index], conversation.messages[index]
            prompt = template.render(history, where, add_generation_prompt=True)
            generated = _generated(template, history, message, prompt, where, thinking_format, known)
            texts.append(TurnText(turn, index, prompt, *generated))
    return texts


def _generated(
    template: ChatTemplate,
    history: list[dict[str, Any]],
    message: dict[str, Any],
    prompt: str,
    where: str,
    thinking_format: str | None,
    known: dict[Any, Form],
) -> tuple[str, int]:
    """The generated text behind a prompt, and the character of it at which the answer starts."""
    texts = _texts(message, where)
    for whole in (False, True):
        forms = Forms(template, history, where, whole, known)
        try:
            written = forms.render([*forms.history, template.read(message)])
            for one in probed(message):
                form = forms.of(one)
                check_turn_shown(form, one, texts, where)
                pieces = filled(form, texts, written)
                if pieces is not None and prompt.endswith(form.opening):
                    check_arguments_shown(message, "".join(pieces[form.body :]), where)
                    return _Turn(forms, one, form, pieces, texts[THINKING], thinking_format, where).generated()
        except RejectedError:
            if whole:
                raise
    if prompt.endswith(form.opening):
        raise ValueError(
            f"{where}: the chat template rewrites the turn: its content {texts[ANSWER][:60]!r} does not stand as it is "
            f"in the generated text {written[-160:]!r}"
        )
    raise _parted(where, form.opening, prompt)


def _texts(message: dict[str, Any], where: str) -> dict[str, str]:
    """A turn's own texts, by the probes that stand for them."""
    calls = message.get("tool_calls", [])
    names = {TOOL.format(i): (call.get("function") or call).get("name") for i, call in enumerate(calls)}
    if any(not isinstance(name, str) for name in names.values()):
        raise ValueError(f"{where}: a tool call has no name; give each call function.name")
    return names | {THINKING: message.get("reasoning_content", ""), ANSWER: message["content"]}


@dataclass(frozen=True)
class _Turn:
    """A turn, the form in which the template writes it, and the pieces of that with the turn's texts in them."""

    forms: Forms
    message: dict[str, Any]  # with probes for its texts
    form: Form
    pieces: list[str]
    thinking: str
    thinking_format: str | None
    where: str

    def generated(self) -> tuple[str, int]:
        """The generated text, and the character of it at which the answer starts."""
        form, shown = self.form, self.form.shows_thinking
        over, ahead = self._apart()
        answer = self.pieces[form.body :]
        tail = answer.pop() if answer and not is_probe(form.pieces[-1]) else ""
        gap = form.behind_thinking if shown else ahead  # what stands in front of the answer
        end = self._end_of_thought(gap)
        if not answer:  # the template shows nothing of an empty answer
            gap, tail = gap[:end], gap[end:]
        if self.thinking and self._closes(over if shown else form.opening):
            raise self._contradiction()
        if shown:
            thought = ("" if _holds(over, ahead) else ahead) + self.pieces[form.pieces.index(THINKING)]
            before, start = thought + gap, len(thought) + end
        elif self.thinking:
            before, start = self._untold(gap, end)
        elif not end and self._opened(over):
            before, start = self._empty_thought(gap)
        else:
            before, start = gap, end
        followed = form.followed
        if not followed and "tool_calls" not in self.message:  # of an empty answer, history may show nothing
            followed = self.forms.of(PLAIN).followed
        return before + "".join(answer) + end_of_turn(tail, followed, self.forms.template, self.where), start

    # ---- What the prompt holds of it already ----

    def _apart(self) -> tuple[str, str]:
        """What only the prompt goes on with behind the message before, and what only the turn does, up to its first
        text. Raises ValueError where the two have nothing to do with each other."""
        form, plain = self.form, self.forms.of(PLAIN)
        if form.shows_thinking or not form.lead.startswith(plain.lead):
            plain = form
        over, ahead = _apart(form.opening, plain.lead)
        calls = form.lead.removeprefix(plain.lead)  # what opens the calls
        if form.opening.endswith(plain.lead) or (not form.shows_thinking and _holds(over, ahead)):
            return over, calls
        special = self.forms.template.special
        # A scaffold that the prompt has closed, and the token that opens an answer (Command R7B).
        scaffold = special.match(ahead) and not special.sub("", over).strip()
        explained = form.shows_thinking or self._end_of_thought(ahead) or self._opened(over) or scaffold
        if over.strip() and ahead.strip() and not explained:
            raise _parted(self.where, form.opening, form.lead)
        # Elsewhere the generation prompt opens turns, so this one goes on in an open one (Gemma, behind a result).
        if (header := self._header(ahead)) and self.forms.generation_prompt():
            ahead = ahead.removeprefix(header)
        return over, ahead + calls

    def _header(self, ahead: str) -> str:
        """What opens the turn, if that is generated."""
        special = self.forms.template.special
        header = self.forms.header() if special.search(ahead) else ""
        return header if ahead.startswith(header) and special.search(header) else ""

    # ---- Thinking ----

    @property
    def _thoughtful(self) -> Form | None:
        """The form of a turn that thinks and answers, if the template shows thinking in it."""
        try:
            form = self.forms.of(THOUGHTFUL)
        except RejectedError:
            return None
        return form if form.shows_thinking else None

    @property
    def _declared(self) -> str | None:
        """The form of thinking where the template shows none. It is not guessed for a template that shows it elsewhere:
        beside calls the template says it itself (Gemma 4), and if not there, nobody does."""
        if self.thinking_format != AUTO:
            return self.thinking_format
        if not self.forms.template.reads_thinking:
            return THINK_BLOCK
        try:
            form = self.forms.of(CALLING)
        except RejectedError:
            return None
        # The tag that closes the thinking is the first one behind it; others open the call.
        special = self.forms.template.special.pattern
        token = re.search(f"{special}|{_TAG}", form.behind_thinking)
        if token is None:
            return None
        return _apart(form.opening, form.lead)[1] + "{thinking}" + form.behind_thinking[: token.end()]

    @property
    def _tags(self) -> tuple[str, str]:
        """What opens and what closes a thought."""
        if form := self._thoughtful:
            return _apart(self.forms.of(PLAIN).lead, form.lead)[1], form.behind_thinking
        opens, _, closes = (self._declared or THINK_BLOCK).partition("{thinking}")
        return opens, closes

    def _opened(self, over: str) -> bool:
        """Whether a thought would follow the prompt at once."""
        if form := self._thoughtful:
            held, ahead = _apart(form.opening, form.lead)
            return bool(over.strip()) and not self._closes(held) and (not ahead.strip() or _holds(held, ahead))
        opens = self._tags[0].strip()
        return opens != "" and self.form.opening.rstrip().endswith(opens)

    def _closes(self, text: str) -> bool:
        """Whether a thought is closed in a text, and none opened behind that."""
        opens, closes = (tag.strip() for tag in self._tags)
        return closes != "" and closes in text and text.rfind(closes) > text.rfind(opens or "\0")

    def _end_of_thought(self, gap: str) -> int:
        """The end of the thinking in what stands in front of the answer, or of the first call; 0: there is none."""
        closes = self._tags[1]
        at = gap.find(closes.strip()) + len(closes.strip()) if closes.strip() and closes.strip() in gap else 0
        if not at and not self.form.shows_thinking:
            return 0
        if self.form.pieces[self.form.body : self.form.body + 1] == (ANSWER,):
            return len(gap)
        if not at:  # calls are written in another channel than answers (gpt-oss), or thinking beside calls only
            token = self.forms.template.special.search(gap)
            at = len(os.path.commonprefix([gap, closes])) or (token.end() if token else 0)
        return at + len(gap[at:]) - len(gap[at:].lstrip())

    def _empty_thought(self, gap: str) -> tuple[str, int]:
        """What stands in front of the answer of a turn without thinking, behind a prompt that has opened a thought."""
        if self._thoughtful:
            twin = self.forms.of(self.message | {"reasoning_content": THINKING})
            if twin.shows_thinking:
                return twin.behind_thinking, self._end_of_thought(twin.behind_thinking)
        if self._declared is None:
            raise ValueError(
                f"{self.where}: the prompt opens a thinking block (it ends {self.form.opening[-40:]!r}) that nothing "
                f"closes; declare how thinking is generated, for instance thinking_format={THINK_BLOCK!r}"
            )
        return self._tags[1] + gap, len(self._tags[1])

    def _untold(self, gap: str, end: int) -> tuple[str, int]:
        """What stands in front of the answer with thinking that the template does not show, and the answer's start."""
        thinking, declared = self.thinking.strip(), self._declared
        opens, closes = self._tags
        if self._opened(gap) and end:  # history shows the closing of the thought, and only that (DeepSeek V3.1)
            return thinking + gap, len(thinking) + end
        empty = re.search(f"{re.escape(opens.strip())}(\\s*){re.escape(closes.strip())}", gap) if end else None
        if empty:
            half = empty.start(1) + len(empty[1]) // 2
            self._warn("shows an empty block in place of a turn's thinking; it is trained inside of that")
            return gap[:half] + thinking + gap[half:], len(thinking) + end
        if declared is None or end:
            reads = "reads thinking but does not render it here"
            raise ValueError(
                f"{self.where}: has thinking, and the chat template "
                f"{reads if self.forms.template.reads_thinking else 'does not render it'}; "
                f"{self._argument(lambda form: form.shows_thinking, THOUGHTFUL) or ''}declare how it is generated, for "
                f"instance thinking_format={THINK_BLOCK!r}"
            )
        self._warn(f"renders no thinking; it is trained as {declared!r} in front of the answer")
        if self._opened(gap):
            return thinking + closes + gap, len(thinking + closes)
        block = declared.replace("{thinking}", thinking)
        if header := self._header(gap):  # generated in front of all else
            return header + block + gap.removeprefix(header), len(header + block)
        return block + gap, len(block)

    def _warn(self, what: str) -> None:
        warnings.warn(f"the chat template {what}", stacklevel=2)

    def _contradiction(self) -> ValueError:
        closes = self._tags[1].strip()
        advice = self._argument(lambda form: closes not in form.opening, PLAIN)
        return ValueError(
            f"{self.where}: has thinking {self.thinking[:40]!r}, and the prompt has closed the thought before the "
            f"model writes its first token (it ends {self.form.opening[-40:]!r}); "
            f"{advice or 'take out of the messages what switches thinking off, or '}remove the thinking"
        )

    def _argument(self, right: Any, message: dict[str, Any]) -> str | None:
        """The template's argument under which the form of a message is right, as advice."""
        variables = self.forms.template.variables
        # What sounds like it first.
        for name in sorted(
            variables.keys() - _RENDERED_WITH, key=lambda one: (not re.search("think|reason", one), one)
        ):
            for value in (True, False, *variables[name]):
                try:
                    form = self.forms.of(message, **{name: value})
                except RejectedError:
                    continue
                if right(form):
                    return f"set template_kwargs={json.dumps({name: value})}, or "
        return None


def _apart(opening: str, lead: str) -> tuple[str, str]:
    """What each of the two goes on with behind what they share; words and tags are not cut."""
    left, right = _WORDS.findall(opening), _WORDS.findall(lead)
    shared = len(os.path.commonprefix([left, right]))
    return "".join(left[shared:]), "".join(right[shared:])


def _holds(over: str, ahead: str) -> bool:
    """Whether what only the prompt goes on with ends as the turn's own does, but for white space: the longer of the two
    has something in front, words of the prompt or a header of the turn."""
    over, ahead = over.strip(), ahead.strip()
    return over != "" and (over.endswith(ahead) or ahead.endswith(over))


def _parted(where: str, opening: str, written: str) -> ValueError:
    return ValueError(
        f"{where}: the chat template's generation prompt is not a prefix of the rendered turn, so what the model must "
        f"generate is not defined.\n{parting(opening, written)}"
    )
