"""The mask rule, written once, and its four forms: mask_mod, score_mod, dense tensor, BlockMask.

A row is a prefix tree in depth-first order, so the subtree of token k is the run [k, visible_until[k]) and
"k is an ancestor of q, or q itself" is `k <= q < visible_until[k]`. Two turns, each part written as one token
(lines are queries, columns are keys); the first answer stands twice, trained as a1 and for the second turn as a1':

           q1 a1' q2 t2 a2 t1 a1        q question, t thinking, a trained answer, a' plain copy
    q1      1
    a1'     1  1
    q2      1  1   1
    t2      1  1   1  1
    a2      1  1   1  1  1
    t1      1  0   0  0  0  1
    a1      1  0   0  0  0  1  1        visible_until = 7, 5, 5, 5, 5, 7, 7

Packed rows and padding follow from the same rule: a row's subtrees end with the row, and a pad token, which only a
BlockMask has, is given `visible_until = own index + 1`, so it sees itself and no softmax is empty.

A layer of the model may see less than the rule allows: only a sliding window, or only its own chunk. Both are counted
in positions and not in indices. Each such restriction is written as two functions: a mask_mod, which answers for one
pair of tokens, and bounds that answer for a whole pair of blocks (`_window_blocks`, `_chunk_blocks`).
"""

import math
from collections.abc import Callable
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

from flexmask.attention.context import Context

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class PackMaskMod(Protocol):
    """A mask_mod of one pack, with what it was made from (see `visible_until_mask_mod`)."""

    visible_until: Tensor
    position_ids: Tensor | None
    window: int | None
    chunk: int | None
    tokens: int
    # Whose tokens the queries are, where several processes compute the pack together; else they are all of them.
    context: Context | None
    # The model's own code has asked for this mask, so it is right for the layers that get it. Kept here because layers
    # run again in backward, outside of `flexmask.attention.interface.masks_given`.
    asked_for: bool

    def __call__(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Whether query q sees key k; batch b, head h."""


def visible_until_mask_mod(
    visible_until: Tensor,
    position_ids: Tensor | None = None,
    window: int | None = None,
    chunk: int | None = None,
    context: Context | None = None,
) -> PackMaskMod:
    """mask_mod(b, h, q, k): k is q or an ancestor of q and, with a window, fewer than `window` positions back or, with
    chunks, in the same stretch of `chunk` positions.

    `visible_until` [1, S] integers: end (exclusive) of the subtree of each token. `window` and `chunk` count positions,
    not indices: `position_ids` [1, S] are depths in the tree, and the comparisons are those of transformers 5.23's
    `sliding_window_overlay` and `chunked_overlay`. A layer has at most one of the two; without either the positions are
    only carried along. With a `context`, q counts its queries and k all tokens.

    The result carries its arguments as attributes of the same names, so that attention can refuse a mask that is not
    the layer's and follow a BlockMask to another device, and `tokens`, the number of tokens without padding. Raises
    ValueError on wrong arguments.
    """
    _check_arguments(visible_until, position_ids, window, chunk)
    mask_mod = ancestor = _ancestor_mask_mod(visible_until)
    near = None
    if position_ids is not None and window is not None:
        near = _window_mask_mod(position_ids, window)
    elif position_ids is not None and chunk is not None:
        near = _chunk_mask_mod(position_ids, chunk)
    if near is not None:

        def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return ancestor(b, h, q, k) & near(b, h, q, k)

    if context is not None:
        mask_mod = _of_queries(mask_mod, context.queries)
    made = cast(PackMaskMod, mask_mod)
    made.visible_until, made.position_ids = visible_until, position_ids
    made.window, made.chunk, made.context = window, chunk, context
    made.tokens, made.asked_for = visible_until.shape[1], False
    return made


def visible_until_score_mod(
    visible_until: Tensor,
    position_ids: Tensor | None = None,
    window: int | None = None,
    chunk: int | None = None,
) -> ScoreMod:
    """score_mod(score, b, h, q, k): the score where `visible_until_mask_mod` is True, -inf elsewhere."""
    mask_mod = visible_until_mask_mod(visible_until, position_ids, window, chunk)

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return torch.where(mask_mod(b, h, q, k), score, -float("inf"))

    return score_mod


def dense_mask(
    visible_until: Tensor,
    position_ids: Tensor | None = None,
    window: int | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The rule as a bool tensor [1, 1, S, S], True where query (third) sees key (fourth): reference and pictures."""
    mask_mod = visible_until_mask_mod(visible_until, position_ids, window, chunk)
    index = torch.arange(visible_until.shape[1], device=visible_until.device)
    zero = index.new_zeros(())
    return mask_mod(zero, zero, index[:, None], index[None, :])[None, None]


def build_block_mask(
    visible_until: Tensor,
    block_size: int | tuple[int, int] = 128,
    position_ids: Tensor | None = None,
    window: int | None = None,
    chunk: int | None = None,
    length: int | None = None,
    context: Context | None = None,
) -> BlockMask:
    """The rule as a BlockMask for one pack, in O(S + (S / block_size)^2) time and memory.

    `visible_until` [1, T] as in `visible_until_mask_mod`. `block_size` is the number of tokens on a side of a block, or
    (queries, keys) of blocks that are not square. The mask is made for S tokens: `length`, or else T, rounded up to a
    multiple of both sides. Attention fills up to S with pad tokens, each of which sees itself. The index
    lists, up to their counts, are those of torch's `create_block_mask` (compared with 2.13), which evaluates all S x S
    pairs. With a window or chunks, a block pair is judged by the least and greatest positions in it: a pair with a
    visible token is never left out and one with a hidden token is never called full, but a pair may be listed as
    partial needlessly. With a `context`, the mask has the lines of its blocks of queries and the columns of all keys.

    Raises ValueError for wrong shapes, a `length` below T, a context of another `block_size`, or a `visible_until` that
    does not lie beyond the token's own index and within the pack.
    """
    _check_arguments(visible_until, position_ids, window, chunk)
    queries, keys = sides_of(block_size)
    if context is not None and context.block_size != queries:
        raise ValueError(f"block_size={block_size}, and the pack was divided in blocks of {context.block_size}")
    tokens = visible_until.shape[1]
    if length is not None and length < tokens:
        raise ValueError(f"the pack has {tokens:,} tokens, the mask is to be made for length={length:,}")
    until = visible_until[0].cpu().numpy()
    _check_visible_until(until)
    step = math.lcm(queries, keys)
    length = -(-(length or tokens) // step) * step
    if length > tokens:
        padding = np.arange(tokens + 1, length + 1, dtype=until.dtype)
        until = np.concatenate([until, padding])
        visible_until = torch.cat([visible_until, torch.from_numpy(padding).to(visible_until.device)[None]], dim=1)
        position_ids = None if position_ids is None else F.pad(position_ids, (0, length - tokens))
    mask_mod = visible_until_mask_mod(visible_until, position_ids, window, chunk, context)
    mask_mod.tokens = tokens

    first_query, first_key = np.arange(0, length, queries), np.arange(0, length, keys)
    last_query, last_key = first_query + queries - 1, first_key + keys - 1
    least, greatest = _block_bounds(until, keys)
    # [query block, key block]. Subtrees are contiguous: a key block is touched if its farthest subtree reaches the
    # first query, and full if all its keys precede the queries and its nearest subtree covers the last query.
    touched = (first_key[None, :] <= last_query[:, None]) & (greatest[None, :] > first_query[:, None])
    full = (last_key[None, :] <= first_query[:, None]) & (least[None, :] > last_query[:, None])
    if position_ids is not None and (window is not None or chunk is not None):
        positions = position_ids[0].cpu().numpy()
        bounds = _block_bounds(positions, queries), _block_bounds(positions, keys)
        if window is not None:
            some_near, all_near = _window_blocks(*bounds, window)
        elif chunk is not None:
            some_near, all_near = _chunk_blocks(*bounds, chunk)
        touched &= some_near
        full &= all_near
    if context is not None:
        lines = list(context.blocks)
        touched, full = touched[lines], full[lines]
    return _block_mask(touched & ~full, full, (queries, keys), mask_mod, visible_until.device)


def block_kinds(block_mask: BlockMask) -> np.ndarray:
    """Of each block whether the kernel skips it (0), masks it token by token (1) or computes it whole (2): int64
    [query blocks, key blocks], of the first batch entry and head."""
    kinds = np.zeros(block_mask.kv_indices.shape[-2:], dtype=np.int64)
    partial, full = block_mask.kv_num_blocks, block_mask.full_kv_num_blocks
    for kind, counts, indices in ((1, partial, block_mask.kv_indices), (2, full, block_mask.full_kv_indices)):
        if counts is None or indices is None:
            continue
        for line, count in enumerate(counts[0, 0].tolist()):
            kinds[line, indices[0, 0, line, :count].tolist()] = kind
    return kinds


def sides_of(block_size: int | tuple[int, int]) -> tuple[int, int]:
    """Queries and keys of a block. Raises ValueError for a size below 1."""
    sides = (block_size, block_size) if isinstance(block_size, int) else block_size
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"block_size={block_size} must be at least 1, or (queries, keys), both at least 1")
    return sides


def place_mask_mod(block_mask: BlockMask, device: torch.device | str) -> BlockMask:
    """Let the mask_mod of a BlockMask read tensors on `device`; changes and returns `block_mask`.

    torch 2.13's `BlockMask.to` makes a new BlockMask with moved index lists and the old mask_mod, whose tensors stay
    where they were. A mask_mod that was not made by `visible_until_mask_mod` is left alone.
    """
    visible_until = getattr(block_mask.mask_mod, "visible_until", None)
    if visible_until is not None and visible_until.device != torch.device(device):
        old = cast(PackMaskMod, block_mask.mask_mod)
        position_ids = None if old.position_ids is None else old.position_ids.to(device)
        context = None if old.context is None else old.context.to(device)
        block_mask.mask_mod = moved = visible_until_mask_mod(
            visible_until.to(device), position_ids, old.window, old.chunk, context
        )
        moved.tokens, moved.asked_for = old.tokens, old.asked_for
    return block_mask


def _ancestor_mask_mod(visible_until: Tensor) -> MaskMod:
    """k is q or an ancestor of q."""
    visible_until = visible_until.to(torch.int32)  # int64 costs the GPU kernels registers

    def ancestor(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        not_later = k <= q
        in_subtree = q < visible_until[b, k]
        return not_later & in_subtree

    return ancestor


def _of_queries(mask_mod: MaskMod, queries: Tensor) -> MaskMod:
    """The same for some queries: the first is token `queries[0]`, and so on."""
    queries = queries.to(torch.int32)

    def of_queries(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return mask_mod(b, h, queries[q], k)

    return of_queries


def _window_mask_mod(position_ids: Tensor, window: int) -> MaskMod:
    """q is fewer than `window` positions after k. Meant for k an ancestor of q: other distances mean nothing.

    The sum is made once a token and not once a pair, in int32: of the forms tried this compiles to the fewest
    instructions (docs/performance.md), and as no constant of the kernel is left, another window compiles nothing new.
    """
    positions = position_ids.to(torch.int32)
    reach = (position_ids.long() + window).clamp(max=torch.iinfo(torch.int32).max).to(torch.int32)

    def near(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return positions[b, q] < reach[b, k]

    return near


def _chunk_mask_mod(position_ids: Tensor, chunk: int) -> MaskMod:
    """q and k have positions in the same chunk; divided once a token, as for windows."""
    chunks = (position_ids // chunk).to(torch.int32)

    def near(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return chunks[b, q] == chunks[b, k]

    return near


# Least and greatest of the positions in each block.
_Bounds = tuple[np.ndarray, np.ndarray]


def _window_blocks(queries: _Bounds, keys: _Bounds, window: int) -> tuple[np.ndarray, np.ndarray]:
    """For each [query block, key block]: some pair may be near, all pairs are near."""
    some_near = queries[0][:, None] - keys[1][None, :] < window
    all_near = queries[1][:, None] - keys[0][None, :] < window
    return some_near, all_near


def _chunk_blocks(queries: _Bounds, keys: _Bounds, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """The same for chunks: their ranges overlap, or there is one chunk in both blocks."""
    (q_least, q_greatest), (k_least, k_greatest) = ((low // chunk, high // chunk) for low, high in (queries, keys))
    some_near = (q_least[:, None] <= k_greatest[None, :]) & (k_least[None, :] <= q_greatest[:, None])
    all_near = (q_least == q_greatest)[:, None] & (k_least == k_greatest)[None, :] & some_near
    return some_near, all_near


def _block_bounds(values: np.ndarray, block_size: int) -> _Bounds:
    """Least and greatest value in each block, int64."""
    blocks = values.reshape(-1, block_size)
    return blocks.min(axis=1).astype(np.int64), blocks.max(axis=1).astype(np.int64)


def _block_mask(
    partial: np.ndarray, full: np.ndarray, sides: tuple[int, int], mask_mod: MaskMod, device: torch.device
) -> BlockMask:
    """A BlockMask from which [query block, key block] pairs are partial and which are full.

    Not `BlockMask.from_kv_blocks`: it derives the query-side lists through dense int32 matrices and two sorts, which
    takes 380 ms for 1,024 blocks (torch 2.13, one thread) where the four lists made here take 15 ms.
    """
    lengths = (len(partial) * sides[0], partial.shape[1] * sides[1])
    lists: dict[str, Any] = {}
    for side, transpose in (("kv", False), ("q", True)):
        for kind, blocks in (("", partial), ("full_", full)):
            counts, indices = _index_lists(blocks.T if transpose else blocks)
            lists[f"{kind}{side}_num_blocks"] = torch.from_numpy(counts)[None, None].to(device)
            lists[f"{kind}{side}_indices"] = torch.from_numpy(indices)[None, None].to(device)
    return BlockMask(seq_lengths=lengths, **lists, BLOCK_SIZE=sides, mask_mod=mask_mod)


def _index_lists(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each line of a bool matrix: how many columns are True, and which, ascending, then zeros. Both int32."""
    columns = np.arange(blocks.shape[1], dtype=np.int32)
    counts = blocks.sum(axis=1, dtype=np.int32)
    indices = np.zeros(blocks.shape, dtype=np.int32)
    indices[columns[None, :] < counts[:, None]] = np.broadcast_to(columns, blocks.shape)[blocks]
    return counts, indices


def _check_arguments(visible_until: Tensor, position_ids: Tensor | None, window: int | None, chunk: int | None) -> None:
    if visible_until.dim() != 2 or visible_until.shape[0] != 1 or visible_until.is_floating_point():
        raise ValueError(
            f"visible_until must be integers of shape [1, S], got {visible_until.dtype} of shape "
            f"{list(visible_until.shape)}; lay several rows end to end in one pack"
        )
    sizes = {name: size for name, size in (("window", window), ("chunk", chunk)) if size is not None}
    if len(sizes) > 1:
        raise ValueError(f"window={window} and chunk={chunk}: a layer has one of the two")
    if position_ids is None and sizes:
        raise ValueError(f"{next(iter(sizes))} is given without position_ids: it is measured in positions")
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}, it must be at least 1: a token always sees itself")
    if position_ids is not None and position_ids.shape != visible_until.shape:
        raise ValueError(
            f"position_ids has shape {list(position_ids.shape)}, visible_until {list(visible_until.shape)}"
        )


def _check_visible_until(until: np.ndarray) -> None:
    index = np.arange(len(until))
    wrong = np.flatnonzero((until <= index) | (until > len(until)))
    if wrong.size:
        at = wrong[0]
        raise ValueError(
            f"visible_until[0, {at}] is {until[at]}: the end of the subtree of token {at} must lie in "
            f"[{at + 1}, {len(until)}]"
        )
