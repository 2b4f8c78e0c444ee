"""Memory of the loss at a large vocabulary."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from flexmask import Pack, Pass, Role, build_block_mask, lay_out, pack, token_losses
from recipes.benchmarking.config import BenchmarkConfig, ShapeConfig
from recipes.benchmarking.grid import build_model
from recipes.benchmarking.measure import peak_memory

LOSS_VOCABULARY = 151_936
LOSS_SHAPE = dict(hidden_size=128, intermediate_size=384, layers=1, heads=2, kv_heads=1, head_dim=64)
LOSS_ROWS, LOSS_TRAINED = (2048, 8192), (512, 2048)  # tokens


def measure(config: BenchmarkConfig) -> list[dict]:
    """Peak memory of loss and backward at a large vocabulary, by tokens of the row and tokens trained; and of the usual
    loss, which has logits everywhere, for the shorter row.

    The model is one small layer, and the gradients of its embedding and output weights, which are one tensor and cost
    the same whatever the loss, are left out: nearly all memory is the loss's own.
    """
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    model = build_model(ShapeConfig(vocab_size=LOSS_VOCABULARY, **LOSS_SHAPE), dtype, device, config.seed)
    model.get_output_embeddings().requires_grad_(False)
    results = []
    for tokens in LOSS_ROWS:
        for trained in LOSS_TRAINED:
            one = chain_pack(tokens, trained, config.seed).to(device)
            losses = {"ours": lambda p=one: token_losses(model, p, config.block_size).total}
            if (tokens, trained) == (LOSS_ROWS[0], LOSS_TRAINED[0]):
                losses["logits_everywhere"] = lambda p=one: usual_loss(model, p)
            for name, forward in losses.items():
                model.zero_grad(set_to_none=True)
                _, peak = peak_memory(lambda f=forward: f().backward(), device)
                results.append({"loss": name, "row_tokens": tokens, "trained_tokens": trained, "peak_memory": peak})
    return results


def chain_pack(tokens: int, trained: int, seed: int) -> Pack:
    """One pass that fills a pack, whose last tokens are trained."""
    ids = np.random.default_rng(seed).integers(0, LOSS_VOCABULARY, tokens)
    roles = np.repeat([Role.PROMPT, Role.ANSWER], [tokens - trained, trained]).astype(np.int8)
    one = Pass("chain", 0, tokens - trained, ids, roles, (roles == Role.ANSWER).astype(np.float32))
    return pack(lay_out([one], "one_pass").rows, tokens)[0]


def usual_loss(model: PreTrainedModel, one: Pack) -> Tensor:
    """Logits at every token, then the shifted cross-entropy over those with a label."""
    logits = model(input_ids=one.input_ids, attention_mask=build_block_mask(one.visible_until), use_cache=False).logits
    labels = one.input_ids.masked_fill(one.loss_weights == 0, -100)
    return F.cross_entropy(logits[0, :-1].float(), labels[0, 1:], ignore_index=-100, reduction="sum")
