"""The paper's own layout, written out independently: same losses as ours, once labels follow the thinking.

Arxiv 2504.18246 lays a turn out as human, thinking, response-in (context copy), response-out (trained copy), masks by
role and turn, and gives response-in the positions behind the human tokens and response-out those behind the thinking.
With labels shifted flatly by one, the first token of response-out is predicted from the last of response-in.
"""

import numpy as np
import pytest
import torch
from factories import TINY_MODELS
from reference import path_of
from torch.nn import functional as F

from flexmask import Pass, Role, lay_out, pack, prepare_model, token_losses

VOCAB = 60
HUMAN, THINKING, RESPONSE_IN, RESPONSE_OUT = range(4)


def turns_of(seed: int):
    rng = np.random.default_rng(seed)
    return [[rng.integers(0, VOCAB, rng.integers(2, 9)) for _ in range(3)] for _ in range(4)]  # human, thinking, answer


def our_losses(model, turns):
    passes, history = [], np.empty(0, dtype=np.int64)
    for turn, (human, thinking, answer) in enumerate(turns):
        prompt = np.concatenate([history, human])
        ids = np.concatenate([prompt, thinking, answer])
        roles = [Role.PROMPT] * len(prompt) + [Role.THINKING] * len(thinking) + [Role.ANSWER] * len(answer)
        weights = (np.arange(len(ids)) >= len(prompt)).astype(np.float32)
        passes.append(Pass("paper", turn, len(prompt), ids, np.array(roles, dtype=np.int8), weights))
        history = np.concatenate([prompt, answer])
    (row,) = lay_out(passes, "one_pass").rows
    (one,) = pack([row], 1024)
    result = token_losses(prepare_model(model), one, 16)
    losses = torch.zeros(len(row), dtype=torch.float64).index_put((result.indices,), result.losses)
    return torch.cat([losses[path_of(p, row)[p.prompt_length :]] for p in passes])


def paper_row(turns):
    ids, role, turn, position = [], [], [], []
    answered = 0  # position behind the last response-in
    for i, (human, thinking, answer) in enumerate(turns):
        after_human = answered + len(human)
        segments = [
            (HUMAN, human, answered),
            (THINKING, thinking, after_human),
            (RESPONSE_IN, answer, after_human),
            (RESPONSE_OUT, answer, after_human + len(thinking)),
        ]
        for kind, tokens, first in segments:
            ids += tokens.tolist()
            role += [kind] * len(tokens)
            turn += [i] * len(tokens)
            position += range(first, first + len(tokens))
        answered = after_human + len(answer)
    return (torch.tensor(values) for values in (ids, role, turn, position))


def paper_mask(role, turn):
    """Rule by rule, as the paper's table of roles states it."""
    size = len(role)
    allowed = torch.zeros(size, size, dtype=torch.bool)
    for q in range(size):
        for k in range(q + 1):
            same = turn[q] == turn[k]
            context = role[k] in (HUMAN, RESPONSE_IN)
            if role[q] in (HUMAN, RESPONSE_IN):
                allowed[q, k] = context
            elif role[q] == THINKING:
                allowed[q, k] = (context and not same) or (same and role[k] in (HUMAN, THINKING))
            else:
                allowed[q, k] = (context and not same) or (same and role[k] != RESPONSE_IN)
    return allowed


def paper_losses(model, turns, flat_shift: bool):
    """Losses of thinking and response-out tokens in row order, and which of them start an answer."""
    ids, role, turn, position = paper_row(turns)
    model.set_attn_implementation("sdpa")
    allowed = paper_mask(role.tolist(), turn.tolist())
    bias = torch.zeros(allowed.shape, dtype=model.dtype).masked_fill(~allowed, torch.finfo(model.dtype).min)
    logits = model(
        input_ids=ids[None], position_ids=position[None], attention_mask=bias[None, None], use_cache=False
    ).logits[0]
    trained = [i for i in range(len(ids)) if role[i] in (THINKING, RESPONSE_OUT)]
    starts = [role[i] == RESPONSE_OUT and role[i - 1] != RESPONSE_OUT for i in trained]
    previous = []
    for i, starts_answer in zip(trained, starts, strict=True):
        if starts_answer and not flat_shift:
            previous.append(max(k for k in range(i) if role[k] == THINKING and turn[k] == turn[i]))
        else:
            previous.append(i - 1)
    return F.cross_entropy(logits[previous], ids[trained], reduction="none"), torch.tensor(starts)


@pytest.mark.parametrize("seed", range(3))
def test_same_losses_with_the_right_previous_and_wrong_first_answer_tokens_with_the_flat_shift(seed):
    model = TINY_MODELS["qwen3"](VOCAB, torch.float64, seed)
    turns = turns_of(seed)
    right, starts = paper_losses(model, turns, flat_shift=False)
    flat, _ = paper_losses(model, turns, flat_shift=True)
    ours = our_losses(model, turns)
    # Breaks if either mask, position or `previous` is off by one anywhere.
    torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-10)
    assert starts.sum() == len(turns)
    assert ((flat - ours).abs()[starts] > 1e-3).all()  # each turn's first answer token is mis-trained,
    torch.testing.assert_close(flat[~starts], ours[~starts], rtol=1e-10, atol=1e-10)  # and nothing else
