"""Graphs compiled over many packs."""

import numpy as np
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention

from flexmask import build_block_mask, lay_out, pack
from flexmask.attention.interface import flexmask_attention
from recipes.benchmarking.config import BenchmarkConfig
from recipes.benchmarking.measure import graphs_compiled
from recipes.benchmarking.workloads import draw_dialogues, passes_of, share_lengths

COMPILED_PACKS = 200
COMPILED_LENGTH_ON_CPU = 512


def measure(config: BenchmarkConfig) -> dict:
    """Graphs that torch.compile makes over many packs of varied dialogues, by torch's own counter.

    On CUDA flexmask's attention, forward and backward, at `pack_length`. FlexAttention has no backward on CPU (torch
    2.13): there its forward alone is traced, with the same masks, and not lowered to a kernel.
    """
    device, cuda = torch.device(config.device), config.device == "cuda"
    length = config.pack_length if cuda else COMPILED_LENGTH_ON_CPU
    turn_tokens = config.grid.turn_tokens if cuda else 32
    dtype = torch.bfloat16 if cuda else torch.float32
    rng = np.random.default_rng(config.seed)
    torch._dynamo.reset()
    counters.clear()
    traced = torch.compile(flex_attention, dynamic=False, backend="aot_eager")
    layer = nn.Module()
    for number in range(COMPILED_PACKS):
        sampler = share_lengths(rng.random(3) + 0.1, turn_tokens, int(rng.integers(1, 6)))
        dialogues = draw_dialogues(sampler, number, 1000, length)
        rows = [row for one in dialogues for row in lay_out(passes_of(one), "one_pass", length).rows]
        one = pack(rows, length)[0]
        block_mask = build_block_mask(one.visible_until.to(device), config.block_size, length=length)
        tokens = len(one) if cuda else length
        query, key, value = (
            torch.randn(1, heads, tokens, 64, device=device, dtype=dtype, requires_grad=cuda) for heads in (2, 1, 1)
        )
        if cuda:
            flexmask_attention(layer, query, key, value, block_mask)[0].sum().backward()
        else:
            traced(query, key, value, block_mask=block_mask, enable_gqa=True)
    return {"packs": COMPILED_PACKS, "pack_length": length, "graphs_compiled": graphs_compiled(), "backward": cuda}
