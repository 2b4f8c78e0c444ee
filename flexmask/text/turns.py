r"""Conversation -> text: for each trained assistant turn the prompt of inference, and what the model must generate.

The prompt is the render of the messages before the turn, always of all of them. What is generated is what the template
writes of the turn behind the message before it, less what the prompt holds of that already:

    prompt   ... What is 2 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\n
    turn     ... What is 2 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\n2 and 2\n</think>\n\n4<|im_end|>\n
                                ^ behind the message before           generated: 2 and 2\n</think>\n\n4<|im_end|>

Texts in front of that message do not matter, so a template may show them otherwise once the turn stands.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from flexmask.conversations.conversation import Conversation
from flexmask.conversations.thinking import AUTO
from flexmask.text.ends import end_of_turn
from flexmask.text.forms import (
    ANSWER,
    PLAIN,
    THINKING,
    TOOL,
    Form,
    Forms,
    end_alike,
    filled,
    is_probe,
    probed,
    unshared,
    without_overlap,
)
from flexmask.text.shown import check_arguments_shown, check_turn_shown, rewritten
from flexmask.text.template import ChatTemplate, RejectedError
from flexmask.text.thoughts import Thoughts
from flexmask.text.tokenization import first_difference


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
    conversation: Conversation,
    template: ChatTemplate,
    turns: Collection[int],
    thinking_format: str | None = AUTO,
    known: dict[Any, Form] | None = None,
) -> list[TurnText]:
    """The texts of the assistant turns `turns`, in order. A turn that is not among them is context only. known: forms
    under the same template with the same tools and arguments, which save work; more are added.

    Raises ValueError as `render_conversation` says.
    """
    if thinking_format not in (None, AUTO) and thinking_format.count("{thinking}") != 1:
        raise ValueError(
            f'thinking_format={thinking_format!r}: must hold {{thinking}} once, or be "auto" or None (null)'
        )
    assistant = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    known = {} if known is None else known
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
    texts = _texts(message)
    # First as the exchange alone shows it, which is fast. Where prompt or turn, rendered with all of the history, do
    # not end so (a template that numbers its calls), as all of the history does.
    for whole in (False, True):
        forms = Forms(template, history, where, whole, known)
        try:
            written = forms.render([*history, template.read(message)])
            for one in probed(message):
                form = forms.of(one)
                check_turn_shown(forms, form, one, texts, where)
                pieces = filled(form, texts, written)
                if pieces is not None and prompt.endswith(form.opening):
                    check_arguments_shown(forms, one, message, "".join(pieces[form.body :] or pieces), where)
                    thoughts = Thoughts(forms, form, thinking_format, where)
                    return _Turn(forms, one, form, pieces, texts[THINKING], thoughts, where).generated()
        except RejectedError:
            if whole:
                raise
    if prompt.endswith(form.opening):
        raise rewritten(texts, written[len(os.path.commonprefix([written, prompt])) :], where)
    raise _not_a_prefix(where, form.opening, prompt)


def _texts(message: dict[str, Any]) -> dict[str, str]:
    """A turn's own texts, by the probes that stand for them."""
    calls = message.get("tool_calls", [])
    names = {TOOL.format(i): call["function"]["name"] for i, call in enumerate(calls)}
    return names | {THINKING: message.get("reasoning_content", ""), ANSWER: message["content"]}


@dataclass(frozen=True)
class _Turn:
    """A turn, the form in which the template writes it, and the pieces of that with the turn's texts in them."""

    forms: Forms
    message: dict[str, Any]  # with probes for its texts
    form: Form
    pieces: list[str]
    thinking: str
    thoughts: Thoughts
    where: str

    def generated(self) -> tuple[str, int]:
        """The generated text, and the character of it at which the answer starts."""
        form, shown = self.form, self.form.shows_thinking
        prompt_only, turn_only = self._unshared()
        answer = self.pieces[form.body :]
        tail = answer.pop() if answer and not is_probe(form.pieces[-1]) else ""
        gap = form.behind_thinking if shown else turn_only  # what stands in front of the answer
        end = self.thoughts.end_in(gap)
        if not answer:  # the template shows nothing of an empty answer
            gap, tail = gap[:end], gap[end:]
        if self.thinking and self.thoughts.closes(prompt_only if shown else form.opening):
            raise self.thoughts.contradiction(self.thinking)
        if shown:
            thought = ("" if end_alike(prompt_only, turn_only) else turn_only) + self.pieces[
                form.pieces.index(THINKING)
            ]
            before, start = thought + gap, len(thought) + end
        elif self.thinking:
            before, start = self.thoughts.untold(self.thinking, gap, end, self._header(gap))
        elif not end and self.thoughts.awaited:
            before, start = self.thoughts.empty(self.message, gap)
        else:
            before, start = gap, end
        followed = form.followed
        if not followed and "tool_calls" not in self.message:  # of an empty answer, history may show nothing
            followed = self.forms.of(PLAIN).followed
        text = before + "".join(answer)
        end_of_text = end_of_turn(tail, followed, self.forms.template, self.where)
        *_, token = self.forms.template.special.findall(end_of_text)
        if token in text or end_of_text.count(token) > 1:
            warnings.warn(
                f"the chat template writes {token!r}, which ends turns, inside of turns as well: whoever stops at it "
                "cuts them short",
                stacklevel=2,
            )
        return text + end_of_text, start

    # ---- What the prompt holds of it already ----

    def _unshared(self) -> tuple[str, str]:
        """What only the prompt goes on with behind the message before, and what only the turn does, up to its first
        text. Raises ValueError where the two have nothing to do with each other."""
        form, plain = self.form, self.forms.of(PLAIN)
        if form.shows_thinking or not form.lead.startswith(plain.lead):
            plain = form
        prompt_only, turn_only = unshared(form.opening, plain.lead)
        calls = form.lead.removeprefix(plain.lead)  # what opens the calls
        if form.opening.endswith(plain.lead) or (not form.shows_thinking and end_alike(prompt_only, turn_only)):
            return prompt_only, calls
        turn_only = without_overlap(prompt_only, turn_only)
        special = self.forms.template.special
        # A scaffold that the prompt has closed, and the token that opens an answer (Command R7B).
        scaffold = special.match(turn_only) and not special.sub("", prompt_only).strip()
        explained = form.shows_thinking or self.thoughts.end_in(turn_only) or self.thoughts.awaited or scaffold
        if prompt_only.strip() and turn_only.strip() and not explained:
            raise _not_a_prefix(self.where, form.opening, form.lead)
        # Elsewhere the generation prompt opens turns, so this one goes on in an open one (Gemma, behind a result).
        if (header := self._header(turn_only)) and self.forms.generation_prompt():
            turn_only = turn_only.removeprefix(header)
        return prompt_only, turn_only + calls

    def _header(self, turn_only: str) -> str:
        """What opens the turn, if that is generated."""
        special = self.forms.template.special
        header = self.forms.header() if special.search(turn_only) else ""
        return header if turn_only.startswith(header) and special.search(header) else ""


def _not_a_prefix(where: str, opening: str, written: str) -> ValueError:
    return ValueError(
        f"{where}: the chat template's generation prompt is not a prefix of the rendered turn, so what the model must "
        'generate is not defined; make the turn context with "weight": 0, or give a template that writes turns as its '
        f"prompts begin them.\n{first_difference(opening, written)}"
    )
