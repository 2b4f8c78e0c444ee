"""Block-sparse attention with gradients on CPU, for any BlockMask of one pack.

torch 2.13's FlexAttention has no backward on CPU, and scaled_dot_product_attention computes all S x S pairs. Here each
query block attends to the keys that it sees, as one dense problem.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import BlockMask

from flexmask.attention.masks import MaskMod

_LOG2_E = math.log2(math.e)
# Scores held at once, unless one key head of one tile has more: 1 MB of float32, which stays in a core's cache.
_SCORES_AT_ONCE = 1 << 18


@dataclass(frozen=True, eq=False)
class _Tile:
    """A block of queries and the keys that any of them sees.

    `runs` are those keys as half-open index ranges, `keys` the same as one slice or an index tensor. The first
    `always` keys are seen by every query; `bias` [queries, 1, keys - always] is 0 or -inf for the others.
    """

    queries: slice
    keys: slice | Tensor
    runs: tuple[tuple[int, int], ...]
    always: int
    bias: Tensor
    shape: tuple[int, int]

    def rows(self, x: Tensor, heads: slice) -> Tensor:
        """The tile's queries from [heads, S, groups, D] or [heads, S, groups] as [heads, queries * groups, D or 1]."""
        return x[heads, self.queries].reshape(heads.stop - heads.start, -1, *(x.shape[3:] or (1,)))

    def take(self, x: Tensor) -> Tensor:
        """The tile's keys from [heads, S, D]."""
        return x[:, self.keys] if isinstance(self.keys, slice) else x.index_select(1, self.keys)

    def hide(self, scores: Tensor) -> None:
        """Set scores [heads, queries * groups, keys] of hidden pairs to -inf, in place."""
        scores.view(len(scores), self.shape[0], -1, self.shape[1])[..., self.always :].add_(self.bias)

    def add(self, total: Tensor, part: Tensor) -> None:
        """Add part [heads, D, keys] to total [heads, D, S], in place."""
        done = 0
        for start, end in self.runs:
            total[..., start:end].add_(part[..., done : done + end - start])
            done += end - start


# All layers, forward and backward, share the tiles of a BlockMask; they are freed with it.
_tiles_of: WeakKeyDictionary[BlockMask, tuple[_Tile, ...]] = WeakKeyDictionary()


def _tiles(block_mask: BlockMask, queries: int, keys: int) -> tuple[_Tile, ...]:
    if block_mask not in _tiles_of:
        _tiles_of[block_mask] = tuple(_make_tiles(block_mask, queries, keys))
    return _tiles_of[block_mask]


def _make_tiles(block_mask: BlockMask, queries: int, keys: int) -> Iterator[_Tile]:
    """One tile a query block up to the last query: full blocks as they are, the mask_mod evaluated on the partial ones
    only. What the mask has behind so many queries and keys is padding.

    Keys of partial blocks that no query sees are left out and keys that all see join the full ones, so the work
    follows the tokens of the tree more than its blocks. Raises ValueError for a query that sees no key.
    """
    query_block, key_block = block_mask.BLOCK_SIZE
    partial_blocks = _block_lists(block_mask.kv_num_blocks, block_mask.kv_indices)
    full_blocks = _block_lists(block_mask.full_kv_num_blocks, block_mask.full_kv_indices)
    for i, partial in enumerate(partial_blocks[: -(-queries // query_block)]):
        start, end = i * query_block, min((i + 1) * query_block, queries)
        full = _tokens(full_blocks[i], key_block, keys) if full_blocks else np.zeros(0, np.int32)
        partial = _tokens(partial, key_block, keys)
        visible = _evaluate(block_mask.mask_mod, np.arange(start, end, dtype=np.int32), partial)
        everywhere = visible.all(axis=0)
        somewhere = np.flatnonzero(visible.any(axis=0) & ~everywhere)
        always = np.sort(np.concatenate([full, partial[everywhere]]))
        visible = visible.take(somewhere, axis=1)
        if not always.size and not visible.any(axis=1).all():
            blind = start + int(np.argmin(visible.any(axis=1)))
            raise ValueError(f"query {blind} sees no key: the mask must let every token see at least itself")
        index = np.concatenate([always, partial[somewhere]])
        runs = _runs(index)
        yield _Tile(
            queries=slice(start, end),
            keys=slice(*runs[0]) if len(runs) == 1 else torch.from_numpy(index),
            runs=runs,
            always=always.size,
            bias=torch.from_numpy(np.where(visible, np.float32(0), np.float32(-np.inf))).unsqueeze(1),
            shape=(end - start, index.size),
        )


def _block_lists(counts: Tensor | None, indices: Tensor | None) -> list[np.ndarray]:
    """The listed key blocks of each query block; no lists where the BlockMask has none."""
    if counts is None or indices is None:
        return []
    return [line[:n] for n, line in zip(counts[0, 0].numpy(), indices[0, 0].numpy(), strict=True)]


def _tokens(blocks: np.ndarray, block_size: int, length: int) -> np.ndarray:
    """The token indices in some blocks of a sequence, int32."""
    tokens = (blocks[:, None] * block_size + np.arange(block_size, dtype=np.int32)).ravel()
    return tokens[tokens < length]


def _evaluate(mask_mod: MaskMod, query: np.ndarray, key: np.ndarray) -> np.ndarray:
    """mask_mod on every pair of two lists of token indices: bool [queries, keys]. int32 as `visible_until` is."""
    zero = torch.zeros((), dtype=torch.int32)
    visible = mask_mod(zero, zero, torch.from_numpy(query)[:, None], torch.from_numpy(key)[None, :])
    return visible.expand(query.size, key.size).numpy()


def _runs(index: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Indices, in their order, as half-open ranges of consecutive values."""
    cuts = np.flatnonzero(index[1:] != index[:-1] + 1) + 1
    firsts, lasts = index[np.r_[0, cuts]], index[np.r_[cuts - 1, index.size - 1]]
    return tuple(zip(firsts.tolist(), (lasts + 1).tolist(), strict=True))


class _Operands:
    """What forward and backward compute with: query [heads, S, groups, D] times `factor`, key [heads, S, D], value
    [heads, S, E] and sinks [heads, S, groups], where heads are key heads. A tile of one key head is then one matrix,
    without repeating keys.

    Scores are in base 2: torch 2.13's exp2 is as fast on hidden scores as on others, while its exp goes through MKL
    and takes up to a hundred times longer where the result underflows (Intel Xeon with AVX-512).
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        scaling: float,
        softcap: float | None,
    ) -> None:
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        self.heads, self.groups = key.shape[1], query.shape[1] // key.shape[1]
        self.softcap = softcap
        self.factor = scaling * _LOG2_E if softcap is None else scaling / softcap
        self.query = self.split_heads(query.to(self.dtype) * self.factor)
        self.key, self.value = (x[0].to(self.dtype).contiguous() for x in (key, value))
        self.sinks = None
        if sinks is not None:
            by_head = sinks.to(self.dtype).view(self.heads, 1, self.groups) * _LOG2_E
            self.sinks = by_head.expand(-1, query.shape[2], -1)

    def split_heads(self, x: Tensor) -> Tensor:
        """[1, H, S, D] -> [heads, S, groups, D], contiguous."""
        return x[0].to(self.dtype).unflatten(0, (self.heads, self.groups)).transpose(1, 2).contiguous()

    def steps(self, tiles: Sequence[_Tile], buffers: int) -> Iterator[tuple[_Tile, slice, list[Tensor]]]:
        """Each tile with as many key heads as `_SCORES_AT_ONCE` allows, and buffers for their scores.

        The buffers are views of the same memory in every step: fresh ones would cost more in page faults than the
        products that fill them.
        """

        def size(tile: _Tile) -> int:
            return tile.shape[0] * self.groups * tile.shape[1]

        def at_once(tile: _Tile) -> int:
            return min(self.heads, max(1, _SCORES_AT_ONCE // size(tile)))

        memory = self.query.new_empty(buffers, max(at_once(tile) * size(tile) for tile in tiles))
        for tile in tiles:
            for first in range(0, self.heads, at_once(tile)):
                heads = slice(first, min(first + at_once(tile), self.heads))
                count = heads.stop - heads.start
                used = memory[:, : count * size(tile)]
                yield tile, heads, list(used.view(buffers, count, -1, tile.shape[1]).unbind())

    def scores(self, tile: _Tile, heads: slice, out: Tensor) -> None:
        """Soft-capped scores [heads, queries * groups, keys] in base 2, hidden pairs included."""
        torch.bmm(tile.rows(self.query, heads), tile.take(self.key[heads]).transpose(1, 2), out=out)
        if self.softcap is not None:
            out.tanh_().mul_(self.softcap * _LOG2_E)

    def softcap_slope(self, scores: Tensor) -> Tensor | None:
        """Derivative of the soft-capped scores by the raw ones; None without a softcap."""
        return None if self.softcap is None else 1 - (scores / (self.softcap * _LOG2_E)).square()


def _merge_heads(x: Tensor) -> Tensor:
    """[heads, S, groups, D] -> [1, S, H, D], contiguous."""
    return x.transpose(0, 1).flatten(1, 2).contiguous()[None]


class _BlockSparseAttention(torch.autograd.Function):
    """Exact softmax over each tile's keys. Backward follows FlashAttention: scores are computed again from the saved
    log-sum-exp, and what the softmax takes off each gradient is the row sum of output * grad_output.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        tiles: Sequence[_Tile],
        scaling: float,
        softcap: float | None,
    ) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            work = _Operands(query, key, value, sinks, scaling, softcap)
            output = work.query.new_empty(*work.query.shape[:3], value.shape[-1])
            lse = work.query.new_empty(work.query.shape[:3])
            for tile, heads, (scores,) in work.steps(tiles, buffers=1):
                work.scores(tile, heads, out=scores)
                tile.hide(scores)
                top = scores.amax(dim=-1, keepdim=True)
                if work.sinks is not None:
                    top = torch.maximum(top, tile.rows(work.sinks, heads))
                total = scores.sub_(top).exp2_().sum(dim=-1, keepdim=True)
                if work.sinks is not None:
                    total += torch.exp2(tile.rows(work.sinks, heads) - top)
                weighted = torch.bmm(scores, tile.take(work.value[heads]))
                torch.div(weighted, total, out=tile.rows(output, heads))
                torch.add(top, total.log2_(), out=tile.rows(lse, heads))
        output = _merge_heads(output).to(query.dtype)
        ctx.save_for_backward(query, key, value, sinks, output, lse)
        ctx.tiles, ctx.scaling, ctx.softcap = tiles, scaling, softcap
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks, output, lse = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            work = _Operands(query, key, value, sinks, ctx.scaling, ctx.softcap)
            grad_output = work.split_heads(grad_output.transpose(1, 2))
            delta = (work.split_heads(output.transpose(1, 2)) * grad_output).sum(dim=-1)
            grad_query = torch.empty_like(work.query)
            # [heads, D, S]: the products that add to them are faster with their short side first.
            grad_key, grad_value = (x.new_zeros(x.shape[0], x.shape[2], x.shape[1]) for x in (work.key, work.value))
            for tile, heads, (scores, grad_scores) in work.steps(ctx.tiles, buffers=2):
                work.scores(tile, heads, out=scores)
                slope = work.softcap_slope(scores)
                tile.hide(scores)
                probabilities = scores.sub_(tile.rows(lse, heads)).exp2_()
                tile_grad = tile.rows(grad_output, heads)
                tile.add(grad_value[heads], torch.bmm(tile_grad.transpose(1, 2), probabilities))
                torch.bmm(tile_grad, tile.take(work.value[heads]).transpose(1, 2), out=grad_scores)
                grad_scores.sub_(tile.rows(delta, heads)).mul_(probabilities)
                if slope is not None:
                    grad_scores.mul_(slope)
                torch.bmm(grad_scores, tile.take(work.key[heads]), out=tile.rows(grad_query, heads))
                tile.add(grad_key[heads], torch.bmm(tile.rows(work.query, heads).transpose(1, 2), grad_scores))
            grad_sinks = None
            if work.sinks is not None:
                grad_sinks = -(torch.exp2(work.sinks - lse) * delta).sum(dim=1).flatten().to(sinks.dtype)
            grad_query = _merge_heads(grad_query.mul_(ctx.scaling)).transpose(1, 2).to(query.dtype)
            grad_key = grad_key.mul_(ctx.scaling / work.factor).transpose(1, 2)[None].to(key.dtype)
            grad_value = grad_value.transpose(1, 2)[None].to(value.dtype)
        return grad_query, grad_key, grad_value, grad_sinks, None, None, None


@torch.compiler.disable
def block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: BlockMask,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Exact attention on CPU over the pairs that a BlockMask shows: query [1, H, Q, D], key [1, K, S, D], value
    [1, K, S, E], H a multiple of K, to [1, Q, H, E], with gradients for all three and for `sinks` [H]. The mask may be
    made for more queries and keys.

    Memory is linear in S: each query block's scores live only while it is computed, and backward computes them
    again. float64 stays float64, all else is accumulated in float32.
    """
    tiles = _tiles(block_mask, query.shape[2], key.shape[2])
    return _BlockSparseAttention.apply(query, key, value, sinks, tiles, scaling, softcap)
