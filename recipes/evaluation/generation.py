"""Greedy replies of a model to prompts of different lengths, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from flexmask.model.support import unwrapped


@contextmanager
def ready_to_generate(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model itself, without wrapper, with its usual attention, a growing cache, no dropout, and no generation
    settings of its own (a penalty for repetition would count against a model that copies digits)."""
    plain = unwrapped(model)
    attention, training, settings = plain.config._attn_implementation, model.training, plain.generation_config
    # sdpa computes no soft-capped scores, and leaves the cap out without a word (transformers 5.23).
    capped = getattr(plain.config.get_text_config(), "attn_logit_softcapping", None) is not None
    try:
        plain.set_attn_implementation("sdpa" if plain._supports_sdpa and not capped else "eager")
        plain.generation_config = GenerationConfig()
        model.eval()
        # Every reply has lengths of its own, for each of which trainer.torch_compile would compile anew.
        with torch.compiler.set_stance("force_eager"):
            yield plain
    finally:
        plain.set_attn_implementation(attention)
        plain.generation_config = settings
        model.train(training)


@torch.inference_mode()
def generate(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, ends: set[int]
) -> list[tuple[list[int], bool]]:
    """For each prompt the tokens generated, greedily, in front of the first one of `ends`, and whether that came."""
    pad, width = min(ends), max(map(len, prompts))  # an end is a token that the model has; a tokenizer's pad may not be
    # Padded by hand: this must not depend on the tokenizer's own padding side.
    input_ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=model.device)
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(ends), pad_token_id=pad, use_cache=True
    )
    output = model.generate(input_ids=input_ids, attention_mask=mask, generation_config=settings)
    replies = []
    for row in output[:, width:].tolist():
        end = next((i for i, token in enumerate(row) if token in ends), None)
        replies.append((row[:end], end is not None))
    return replies


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """What ends a turn: the tokenizer's end of sequence and what the model's generation config says.

    Raises ValueError where neither says anything.
    """
    own = model.generation_config.eos_token_id
    own = [] if own is None else [own] if isinstance(own, int) else own
    ends = {*own} | ({tokenizer.eos_token_id} - {None})
    if not ends:
        raise ValueError(
            "no token ends a turn: the tokenizer has no eos_token and the model's generation_config no eos_token_id; "
            "set one of them to the token that ends a turn"
        )
    return ends


def text_of(tokenizer: PreTrainedTokenizerBase, reply: list[int]) -> str:
    """The text of a reply's tokens, special ones included, without tidying of the spaces in front of signs, which some
    tokenizers do unless told not to."""
    return tokenizer.decode(reply, skip_special_tokens=False, clean_up_tokenization_spaces=False)
