"""Thinking in a turn: how a chat template writes it, and what a prompt does about it.

A prompt may leave thinking to the model, open a thought, or close one. A template may show the thinking of a turn, show
it elsewhere only, or never.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flexmask.conversations.thinking import AUTO
from flexmask.text.forms import ANSWER, CALLING, PLAIN, TAG, THINKING, THOUGHTFUL, Form, Forms, end_alike, unshared
from flexmask.text.template import RejectedError

THINK_BLOCK = "<think>\n{thinking}\n</think>\n\n"


@dataclass(frozen=True)
class Thoughts:
    """Thinking in a turn of `form`, among the forms of turns behind the same messages.

    declared: the form of thinking where the template shows none, with `{thinking}` in it; AUTO: as the template shows
        it elsewhere, or THINK_BLOCK for one that never does; None: there is none.
    """

    forms: Forms
    form: Form
    declared: str | None
    where: str

    @property
    def _thoughtful(self) -> Form | None:
        """The form of a turn that thinks and answers, if the template shows thinking in it."""
        try:
            form = self.forms.of(THOUGHTFUL)
        except RejectedError:
            return None
        return form if form.shows_thinking else None

    @property
    def _format(self) -> str | None:
        """The form of thinking where the template shows none. It is not guessed for a template that shows it elsewhere:
        beside calls the template says it itself (Gemma 4), and if not there, nobody does."""
        if self.declared != AUTO:
            return self.declared
        if not self.forms.template.reads_thinking:
            return THINK_BLOCK
        try:
            form = self.forms.of(CALLING)
        except RejectedError:
            return None
        # The tag that closes the thinking is the first one behind it; others open the call.
        special = self.forms.template.special.pattern
        token = re.search(f"{special}|{TAG}", form.behind_thinking)
        if token is None:
            return None
        return unshared(form.opening, form.lead)[1] + "{thinking}" + form.behind_thinking[: token.end()]

    @property
    def tags(self) -> tuple[str, str]:
        """What opens and what closes a thought."""
        if form := self._thoughtful:
            return unshared(self.forms.of(PLAIN).lead, form.lead)[1], form.behind_thinking
        opens, _, closes = (self._format or THINK_BLOCK).partition("{thinking}")
        return opens, closes

    @property
    def awaited(self) -> bool:
        """Whether the prompt ends where a thought would follow at once, and not an answer."""
        if form := self._thoughtful:
            prompt_only, turn_only = unshared(form.opening, form.lead)
            more = unshared(form.opening, self.forms.of(PLAIN).lead)[0].strip() != ""
            begun = not turn_only.strip() or end_alike(prompt_only, turn_only)
            return more and begun and not self.closes(prompt_only)
        opens = self.tags[0].strip()
        return opens != "" and self.form.opening.rstrip().endswith(opens)

    def closes(self, text: str) -> bool:
        """Whether a thought is closed in a text, and none opened behind that."""
        opens, closes = (tag.strip() for tag in self.tags)
        return closes != "" and closes in text and text.rfind(closes) > text.rfind(opens or "\0")

    def end_in(self, gap: str) -> int:
        """The end of the thinking in what stands in front of the answer, or of the first call; 0: there is none."""
        closes = self.tags[1]
        at = gap.find(closes.strip()) + len(closes.strip()) if closes.strip() and closes.strip() in gap else 0
        if not at and not self.form.shows_thinking:
            return 0
        if self.form.pieces[self.form.body : self.form.body + 1] == (ANSWER,):
            return len(gap)
        if not at:  # calls are written in another channel than answers (gpt-oss), or thinking beside calls only
            token = self.forms.template.special.search(gap)
            at = len(os.path.commonprefix([gap, closes])) or (token.end() if token else 0)
        return at + len(gap[at:]) - len(gap[at:].lstrip())

    def empty(self, message: dict[str, Any], gap: str) -> tuple[str, int]:
        """What stands in front of the answer of a turn without thinking, behind a prompt that has opened a thought."""
        if self._thoughtful:
            twin = self.forms.of(message | {"reasoning_content": THINKING})
            if twin.shows_thinking:
                return twin.behind_thinking, self.end_in(twin.behind_thinking)
        if self._format is None:
            raise ValueError(
                f"{self.where}: the prompt opens a thinking block (it ends {self.form.opening[-40:]!r}) that nothing "
                f"closes; declare how thinking is generated, for instance thinking_format={THINK_BLOCK!r}"
            )
        return self.tags[1] + gap, len(self.tags[1])

    def untold(self, thinking: str, gap: str, end: int, header: str) -> tuple[str, int]:
        """What stands in front of the answer with thinking that the template does not show, and the answer's start."""
        thinking, declared = thinking.strip(), self._format
        opens, closes = self.tags
        if self.awaited and end:  # history shows the closing of the thought, and only that (DeepSeek V3.1)
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
        if self.awaited:
            return thinking + closes + gap, len(thinking + closes)
        block = declared.replace("{thinking}", thinking)
        if header:  # generated in front of all else
            return header + block + gap.removeprefix(header), len(header + block)
        return block + gap, len(block)

    def _warn(self, what: str) -> None:
        warnings.warn(f"the chat template {what}", stacklevel=2)

    def contradiction(self, thinking: str) -> ValueError:
        """The error for thinking behind a prompt that has closed the thought, with the argument that opens it."""
        closes = self.tags[1].strip()
        advice = self._argument(lambda form: closes not in form.opening, PLAIN)
        return ValueError(
            f"{self.where}: has thinking {thinking[:40]!r}, and the prompt has closed the thought before the "
            f"model writes its first token (it ends {self.form.opening[-40:]!r}); "
            f"{advice or 'take out of the messages what switches thinking off, or '}remove the thinking"
        )

    def _argument(self, right: Callable[[Form], bool], message: dict[str, Any]) -> str | None:
        """The template's argument under which the form of a message is right, as advice."""
        return self.forms.template.advice(lambda argument: right(self.forms.of(message, **argument)))
