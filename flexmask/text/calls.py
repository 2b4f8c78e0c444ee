"""Calls of a model -> passes, as `rendering` makes them of the turns of a conversation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flexmask.conversations.model_calls import Call, Calls
from flexmask.conversations.thinking import KNOWN
from flexmask.text.control_tokens import special_ids
from flexmask.text.rendering import Pass, RenderedConversation, Role, render_conversation, select_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_calls(
    calls: Calls, tokenizer: PreTrainedTokenizerBase, *, turns: str = "all", **settings: Any
) -> RenderedConversation:
    """The pass of each call that is trained; `turns` selects calls, `settings` are those of `render_conversation`.

    Token ids are the pass as they are: of each run of those that the model gave, the ones up to the token that closes
    its thought, where the tokenizer has one, are thinking. Raises ValueError naming the call.
    """
    passes, retokenized = [], 0
    selected = select_turns(turns, len(calls.calls))
    if not (settings.get("thinking_weight", 1) or settings.get("answer_weight", 1)):
        selected = set()  # as of a conversation
    for number, call in enumerate(calls.calls):
        if not call.weight or number not in selected:
            continue
        one = None
        if call.conversation is not None:
            rendered = render_conversation(call.conversation, tokenizer, **settings)
            retokenized += rendered.retokenized_texts
            one = rendered.passes[0] if rendered.passes else None
        if call.completion_ids is not None:
            prompt = one.input_ids[: one.prompt_length] if one is not None else np.array(call.prompt_ids, np.int64)
            one = _of_ids(call, prompt, call.completion_ids, tokenizer, settings)
        if one is not None:
            passes.append(replace(one, name=calls.name, turn=number, loss_weights=one.loss_weights * call.weight))
    return RenderedConversation(passes, retokenized)


def _of_ids(
    call: Call,
    prompt: np.ndarray,
    completion: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    settings: dict[str, Any],
) -> Pass:
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
    weights = np.where(roles == Role.THINKING, settings.get("thinking_weight", 1.0), settings.get("answer_weight", 1.0))
    weights = np.where(roles == Role.PROMPT, 0, weights)
    ends = bool(given[-1]) and completion[-1] in special_ids(tokenizer)
    return Pass(call.name, 0, len(prompt), ids, roles, weights.astype(np.float32), ends)


@functools.lru_cache(maxsize=8)
def _closing(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that close a thought, by their text."""
    vocabulary = tokenizer.get_vocab()
    return frozenset(vocabulary[tags.close] for tags in KNOWN if tags.close in vocabulary)
