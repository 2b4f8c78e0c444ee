"""Calls of a model -> passes, as `rendering` makes them of the turns of a conversation; and the calls of a conversation
under a context rule, with what such a rule may ask of the chat template."""

from __future__ import annotations

import datetime
import functools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flexmask.conversations.contexts import Messages, Rule, calls_of
from flexmask.conversations.conversation import Conversation
from flexmask.conversations.model_calls import Call, Calls
from flexmask.conversations.thinking import KNOWN
from flexmask.text.control_tokens import guard_control_tokens, special_ids
from flexmask.text.rendering import (
    Pass,
    RenderedConversation,
    Renderer,
    Role,
    in_words_of_the_record,
    select_turns,
)
from flexmask.text.template import ChatTemplate
from flexmask.text.tokenization import TextTokenizer, TokenizedText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@in_words_of_the_record()
def render_calls(
    calls: Calls, tokenizer: PreTrainedTokenizerBase, *, turns: str = "all", **settings: Any
) -> RenderedConversation:
    """The pass of each call that is trained; `turns` selects calls, `settings` are those of `Renderer`.

    Token ids go into the pass unchanged. In each stretch of them that the model generated, thinking is what stands in
    front of the token that closes a thought, and that token itself; without one there is no thinking. Raises ValueError
    naming the call.
    """
    renderer, passes = Renderer(tokenizer, **settings), []
    selected = _selected(calls, turns)
    if not (renderer.thinking_weight or renderer.answer_weight):
        selected = set()  # nothing weighs anything: a conversation has no passes then either
    for number, call in enumerate(calls.calls):
        if not call.weight or number not in selected:
            continue
        one = None
        if call.conversation is not None:
            one = next(iter(renderer.passes(call.conversation)), None)
        if call.completion_ids is not None:
            prompt = one.input_ids[: one.prompt_length] if one is not None else np.array(call.prompt_ids, np.int64)
            one = _of_ids(call, prompt, renderer)
        if one is not None:
            reward = calls.rewards[call.candidate] if calls.rewards else math.nan
            weights = one.loss_weights * call.weight
            passes.append(
                replace(
                    one,
                    name=calls.name,
                    turn=number,
                    loss_weights=weights,
                    where=call.name,
                    candidate=call.candidate,
                    reward=reward,
                )
            )
    renderer.check_shown()
    return RenderedConversation(passes, renderer.retokenized_texts)


def _selected(calls: Calls, turns: str) -> set[int]:
    """The calls that `turns` selects, of each candidate by itself."""
    of_each: dict[int, list[int]] = {}
    for number, call in enumerate(calls.calls):
        of_each.setdefault(call.candidate, []).append(number)
    return {numbers[i] for numbers in of_each.values() for i in select_turns(turns, len(numbers))}


def _of_ids(call: Call, prompt: np.ndarray, renderer: Renderer) -> Pass:
    """The pass of a call whose answer is token ids, behind `prompt`, int64 [T]."""
    completion, tokenizer = call.completion_ids, renderer.tokenizer
    assert completion is not None  # see the caller
    ids = np.concatenate([prompt, np.array(completion, dtype=np.int64)])
    if ids.max() >= len(tokenizer):
        raise ValueError(
            f"{call.name}: token {ids.max():,} is none of the tokenizer, which has {len(tokenizer):,}; give the "
            "tokenizer of the model that was called"
        )
    given = np.ones(len(completion), bool) if call.completion_mask is None else np.array(call.completion_mask)
    closes = np.isin(completion, list(_closing(tokenizer)))
    generated = np.full(len(completion), Role.PROMPT, dtype=np.int8)
    for start, stop in np.flatnonzero(np.diff(np.pad(given.astype(np.int8), 1))).reshape(-1, 2):
        closed = np.flatnonzero(closes[start:stop])
        generated[start:stop] = Role.ANSWER
        generated[start : start + (closed[0] + 1 if closed.size else 0)] = Role.THINKING
    roles = np.concatenate([np.full(len(prompt), Role.PROMPT, dtype=np.int8), generated])
    weights = np.where(roles == Role.THINKING, renderer.thinking_weight, renderer.answer_weight)
    weights = np.where(roles == Role.PROMPT, 0, weights)
    ends = bool(given[-1]) and completion[-1] in special_ids(tokenizer)
    return Pass(call.name, 0, len(prompt), ids, roles, weights.astype(np.float32), ends)


@functools.lru_cache(maxsize=8)
def _closing(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that close a thought, by their text."""
    vocabulary = tokenizer.get_vocab()
    return frozenset(vocabulary[tags.close] for tags in KNOWN if tags.close in vocabulary)


def calls_under(rule: Rule, conversation: Conversation, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Calls:
    """The calls of a conversation under a rule (`calls_of`), which may ask about prompts as `render_conversation` makes
    them. settings: those of `render_conversation`."""
    of_prompts = {key: settings[key] for key in ("template_kwargs", "date", "control_tokens") if key in settings}
    return calls_of(conversation, rule, **Prompts(conversation, tokenizer, **of_prompts).abilities)


@dataclass
class Prompts:
    """What a context rule may ask about the prompts of one conversation. template_kwargs, date, control_tokens: as of
    `Renderer`; control_tokens is None for messages in which they are guarded already."""

    conversation: Conversation
    tokenizer: PreTrainedTokenizerBase
    template_kwargs: dict[str, Any] | None = None
    date: datetime.date | None = None
    control_tokens: str | None = "refuse"

    def __post_init__(self) -> None:
        self._known: TokenizedText | None = None

    @property
    def abilities(self) -> dict[str, Any]:
        """What a rule may ask for, by the names of its parameters."""
        return {"count": self.count, "require_thinking": self.require_thinking}

    def count(self, messages: Messages) -> int:
        """How many tokens the prompt of messages has."""
        template = self._template(messages)
        text = template.render(template.messages[:-1], self.conversation.name, add_generation_prompt=True)
        self._known = self._texts.tokenize(text, self._known)
        return len(self._known)

    def require_thinking(self, messages: Messages) -> None:
        """Raise ValueError unless the prompt of messages shows all thinking in them."""
        probes = {i: f"thinking of message {i}." for i, one in enumerate(messages) if "reasoning_content" in one}
        if not probes:
            return
        template = self._template(
            [one | {"reasoning_content": probes[i]} if i in probes else one for i, one in enumerate(messages)]
        )

        def missing(argument: dict[str, Any]) -> list[int]:
            text = template.render(
                template.messages[:-1], self.conversation.name, add_generation_prompt=True, **argument
            )
            return [i for i, probe in probes.items() if probe not in text]

        if found := missing({}):
            thinking = messages[found[0]]["reasoning_content"]
            advice = template.advice(lambda argument: not missing(argument))
            raise ValueError(
                f"the chat template does not show the thinking of message {found[0]} ({thinking[:40]!r}) to this turn; "
                f"{advice or 'none of its arguments shows it: give a template that does, or '}take another rule"
            )

    @functools.cached_property
    def _texts(self) -> TextTokenizer:
        return TextTokenizer(self.tokenizer)

    def _template(self, messages: Messages) -> ChatTemplate:
        """The template over the messages and one answer, which a conversation needs and its prompt leaves out."""
        asked = replace(self.conversation, messages=(*messages, {"role": "assistant", "content": "-"}))
        if self.control_tokens is not None:
            asked = guard_control_tokens(asked, self.tokenizer, self.control_tokens)
        return ChatTemplate(self.tokenizer, asked, self.template_kwargs, self.date)
