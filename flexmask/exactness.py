"""A check of the model at hand: does one pass over a small row give the losses of its passes?

Layers that cannot be masked are refused by what is known of them (`flexmask.models`). This catches the ones that
nobody has thought of: attention that ignores or rewrites the mask, positions taken from indices, state between tokens.
"""

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from flexmask.loss import token_losses
from flexmask.models import UnsupportedModelError, takes_block_masks
from flexmask.packing import pack
from flexmask.rendering import Pass, Role
from flexmask.tree import one_pass, per_turn

# Largest difference of a token's loss that rounding explains, by the dtype of the weights. A branch that leaks moves
# some token by a tenth and more.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-2, torch.bfloat16: 0.5, torch.float16: 0.1}


@torch.no_grad()
def check_exact(model: PreTrainedModel, block_size: int = 128) -> None:
    """Compare token losses of a packed two-turn row with those of its passes, run alone under plain causal attention.

    `model` is a prepared model (`prepare_model`). Costs three forward passes over fewer than 100 tokens.
    Raises UnsupportedModelError with the largest difference.
    """
    device, dtype = model.device, model.dtype
    passes = _two_conversations(model.get_input_embeddings().num_embeddings)
    if takes_block_masks(model):
        groups = [[row for conversation in passes for row in one_pass(conversation)]]
    else:  # layers that carry state: as they will be run, one pass a row and one row a pack
        groups = [[row] for conversation in passes for row in per_turn(conversation)]
    packs = [pack(rows, -(-sum(map(len, rows)) // block_size) * block_size)[0] for rows in groups]
    training = model.training
    model.eval()
    try:
        ours = torch.cat([token_losses(model, one.to(device), block_size).losses for one in packs])
        alone = torch.cat([_alone(model, p) for conversation in passes for p in conversation])
    finally:
        model.train(training)
    difference = (ours - alone).abs().max().item()
    if not difference <= _TOLERANCE[dtype]:
        raise UnsupportedModelError(
            f"{type(model).__name__}: one pass is not exact for this model: a token's loss differs by {difference:.2g} "
            "from that of its own pass, so something besides masked attention and positions connects its tokens; "
            "train it elsewhere one unpacked pass at a time"
        )


def _alone(model: PreTrainedModel, p: Pass) -> torch.Tensor:
    """Losses of the trained tokens of one pass, with the masks and positions that transformers makes itself."""
    ids = torch.from_numpy(p.input_ids).to(model.device)
    logits = model(input_ids=ids[None], use_cache=False).logits[0]
    return F.cross_entropy(logits[p.prompt_length - 1 : -1].float(), ids[p.prompt_length :], reduction="none")


def _two_conversations(vocabulary: int) -> list[list[Pass]]:
    """Two conversations of two turns, tokens from a seed: branches, a copy, and a border between packed rows."""
    rng = np.random.default_rng(0)
    conversations = []
    for name in ("check 0", "check 1"):
        history, passes = np.empty(0, dtype=np.int64), []
        for turn in range(2):
            question, thinking, answer = (rng.integers(0, vocabulary, count) for count in (5, 7, 4))
            prompt = np.concatenate([history, question])
            ids = np.concatenate([prompt, thinking, answer])
            roles = np.repeat([Role.PROMPT, Role.THINKING, Role.ANSWER], [len(prompt), 7, 4]).astype(np.int8)
            weights = (roles != Role.PROMPT).astype(np.float32)
            passes.append(Pass(name, turn, len(prompt), ids, roles, weights))
            history = np.concatenate([prompt, answer])
        conversations.append(passes)
    return conversations
