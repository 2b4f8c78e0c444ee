"""Attention alone, beside a dense mask and beside the visible area alone."""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flexmask import build_block_mask, dense_mask, lay_out, pack
from flexmask.attention.interface import flexmask_attention
from recipes.benchmarking.config import BenchmarkConfig
from recipes.benchmarking.measure import InexactError, interleaved_seconds
from recipes.benchmarking.parts.packing import block_pairs
from recipes.benchmarking.paths import node_paths
from recipes.benchmarking.workloads import draw_dialogues, passes_of

ATTENTION_TURNS, ATTENTION_LENGTHS = 8, (100, 400, 150)  # tokens of question, thinking and answer
ATTENTION_HEADS, ATTENTION_KV_HEADS, ATTENTION_HEAD_DIM = 8, 4, 64


def measure(config: BenchmarkConfig) -> dict:
    """Forward and backward of attention alone over 6,250 tokens, beside a dense mask and beside the visible area alone.

    ours: the block mask as one layer of a model finds it, its tiles made. dense: scaled_dot_product_attention over all
    pairs. per_node: the same operation for each tree node over its own path, which is the visible area and half of
    each node's square. same_area: causal, over a chain with as many visible pairs, with nothing to gather.
    """
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    (dialogue,) = draw_dialogues(lambda rng: [ATTENTION_LENGTHS] * ATTENTION_TURNS, config.seed, 10**9, tokens=0)
    (row,) = lay_out(passes_of(dialogue), "one_pass").rows
    (one,) = pack([row], len(row))
    visible_until = one.visible_until.to(device)
    block_mask, mask = build_block_mask(visible_until, config.block_size), dense_mask(visible_until)
    pairs = row.visible_pairs
    chain = int((2 * pairs) ** 0.5)
    nodes = [
        (torch.from_numpy(path).to(device), size, path_mask(len(path), size).to(device))
        for path, size in node_paths(row)
    ]
    generator = torch.Generator(device).manual_seed(config.seed)
    inputs = [
        torch.randn(1, heads, len(one), ATTENTION_HEAD_DIM, generator=generator, device=device, dtype=dtype)
        for heads in (ATTENTION_HEADS, ATTENTION_KV_HEADS, ATTENTION_KV_HEADS, ATTENTION_HEADS)
    ]

    def sdpa(query: Tensor, key: Tensor, value: Tensor, **rule) -> Tensor:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        return F.scaled_dot_product_attention(query, key, value, **rule)

    def per_node(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        outputs = []
        for path, size, visible in nodes:
            own = query.index_select(2, path[-size:])
            outputs.append(sdpa(own, key.index_select(2, path), value.index_select(2, path), attn_mask=visible))
        return torch.cat(outputs, dim=2)

    layer = nn.Module()
    forwards: dict[str, tuple[int, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
        "ours": (len(one), lambda *qkv: flexmask_attention(layer, *qkv, block_mask)[0].transpose(1, 2)),
        "dense": (len(one), lambda *qkv: sdpa(*qkv, attn_mask=mask)),
        "per_node": (len(row), per_node),
        "same_area": (chain, lambda *qkv: sdpa(*qkv, is_causal=True)),
    }

    def run_one(name: str) -> list[Tensor]:
        length, forward = forwards[name]
        query, key, value = (x[:, :, :length].detach().requires_grad_() for x in inputs[:3])
        output = forward(query, key, value)
        output.backward(inputs[3][:, :, :length])
        return [x[:, :, : len(row)].detach() for x in (output, query.grad, key.grad, value.grad)]

    expected = run_one("dense")
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-3
    for name in ("ours", "per_node"):
        differences = [float((ours - theirs).abs().max()) for ours, theirs in zip(run_one(name), expected, strict=True)]
        if not max(differences) <= tolerance * max(float(x.abs().max()) for x in expected):
            raise InexactError(f"attention {name}: output or gradients differ from the dense ones by {differences}")
    times = interleaved_seconds({name: lambda n=name: run_one(n) for name in forwards}, config.grid.repeats, device)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {
        "tokens": len(row),
        "visible_pairs": pairs,
        "computed_pairs": block_pairs(one, config.block_size),
        "seconds": seconds,
        "all_seconds": times,
        "over_dense": seconds["dense"] / seconds["ours"],
        "over_per_node": seconds["ours"] / seconds["per_node"],
        "over_same_area": seconds["ours"] / seconds["same_area"],
    }


def path_mask(path: int, own: int) -> Tensor:
    """bool [own, path]: the last `own` tokens of a path see it up to themselves."""
    return torch.ones(own, path, dtype=torch.bool).tril(path - own)
