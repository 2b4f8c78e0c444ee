import itertools
import math
import tracemalloc

import pytest
import torch
from random_trees import LargestTensor, ancestor_mask, random_pack
from torch.nn.attention.flex_attention import create_block_mask, create_mask

from flexmask.attention.masks import (
    build_block_mask,
    dense_mask,
    place_mask_mod,
    visible_until_mask_mod,
    visible_until_score_mod,
)

LISTS = ("kv", "full_kv", "q", "full_q")


def listed_blocks(block_mask, side: str) -> list[list[int]]:
    """The blocks that each line of one side lists, up to its count."""
    counts, indices = getattr(block_mask, f"{side}_num_blocks"), getattr(block_mask, f"{side}_indices")
    assert counts.dtype == indices.dtype == torch.int32
    assert counts.shape[:2] == indices.shape[:2] == (1, 1)
    return [line[:count].tolist() for count, line in zip(counts[0, 0], indices[0, 0], strict=True)]


def size_of(seed: int) -> tuple[tuple[int, int], int]:
    """Queries and keys of a block, square or not, and a length."""
    side = (16, 32, 48, 64, 128)[seed % 5]
    queries, keys = ((1, 1), (2, 1), (1, 2), (3, 2))[seed // 25 % 4]
    return (queries * side, keys * side), math.lcm(queries, keys) * side * (1 + seed // 5 % 5)


def test_seven_token_row_written_by_hand():
    """q1 t1 a1 a1' q2 t2 a2. Fails if the rule or the subtree ends move by one."""
    visible_until = torch.tensor([[7, 3, 3, 7, 7, 7, 7]], dtype=torch.int32)
    expected = [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 0, 0, 1, 0, 0, 0],
        [1, 0, 0, 1, 1, 0, 0],
        [1, 0, 0, 1, 1, 1, 0],
        [1, 0, 0, 1, 1, 1, 1],
    ]
    assert dense_mask(visible_until)[0, 0].int().tolist() == expected
    position_ids = torch.tensor([[0, 1, 2, 1, 2, 3, 4]])
    # Window 3: a2 at position 4 no longer sees q1 at 0 and a1' at 1, though a1' is only 3 indices away.
    windowed = dense_mask(visible_until, position_ids, window=3)[0, 0].int().tolist()
    assert windowed[:5] == expected[:5]
    assert windowed[5:] == [[0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1]]


RESTRICTIONS = [{}, {"window": 1}, {"window": 7}, {"window": 40}, {"chunk": 1}, {"chunk": 7}, {"chunk": 40}]


def restricted(position_ids, restriction):
    """Arguments behind `visible_until`."""
    return restriction | ({"position_ids": position_ids} if restriction else {})


@pytest.mark.parametrize("restriction", RESTRICTIONS, ids=str)
def test_dense_mask_is_the_ancestor_relation(restriction):
    """Against parents walked one by one. Fails for index distances, `<=` in the window, or a wrong subtree end."""
    for seed in range(40):
        visible_until, position_ids, parents = random_pack(seed, 96)
        mask = dense_mask(visible_until, **restricted(position_ids, restriction))
        assert mask.shape == (1, 1, 96, 96) and mask.dtype == torch.bool
        assert torch.equal(mask[0, 0], ancestor_mask(parents, **restriction)), seed


@pytest.mark.parametrize("restriction", [{}, {"window": 9}, {"chunk": 9}], ids=str)
def test_mask_mod_and_score_mod_agree_through_torch(restriction):
    """Fails if the two are written apart and one changes, or if either does not survive torch's vmap."""
    for seed in range(10):
        visible_until, position_ids, parents = random_pack(seed, 64)
        more = restricted(position_ids, restriction)
        by_mask = create_mask(visible_until_mask_mod(visible_until, **more), 1, 2, 64, 64, device="cpu")
        by_score = create_mask(visible_until_score_mod(visible_until, **more), 1, 2, 64, 64, device="cpu")
        assert torch.equal(by_mask, by_score)
        assert torch.equal(by_mask[0, 1], ancestor_mask(parents, **restriction))
    index = torch.arange(64)
    scores = torch.randn(64, 64)
    modified = visible_until_score_mod(visible_until, **more)(scores, index[0], index[0], index[:, None], index[None])
    assert torch.equal(modified, scores.masked_fill(~by_mask[0, 0], -torch.inf))


def test_block_mask_lists_equal_torch():
    """Every list of 250 random packs. Fails for any bound off by one, on the key or the query side, and where a block
    that is not square is measured by its other side."""
    partial = full = skipped = 0
    for seed in range(250):
        block_size, length = size_of(seed)
        visible_until, _, _ = random_pack(seed, length)
        ours = build_block_mask(visible_until, block_size)
        torchs = create_block_mask(ours.mask_mod, None, None, length, length, device="cpu", BLOCK_SIZE=block_size)
        for side in LISTS:
            assert listed_blocks(ours, side) == listed_blocks(torchs, side), (seed, side)
        assert (ours.seq_lengths, ours.BLOCK_SIZE) == (torchs.seq_lengths, torchs.BLOCK_SIZE)
        assert ours.kv_indices.shape == torchs.kv_indices.shape
        partial += int(ours.kv_num_blocks.sum())
        full += int(ours.full_kv_num_blocks.sum())
        skipped += math.prod(length // side for side in block_size)
        skipped -= int(ours.kv_num_blocks.sum() + ours.full_kv_num_blocks.sum())
    assert min(partial, full, skipped) > 100  # the packs hold all three kinds


@pytest.mark.parametrize("restriction", RESTRICTIONS, ids=str)
def test_a_mask_longer_than_its_pack(restriction):
    """Any number of tokens, any greater length: the pack's pairs are unchanged and padding sees itself alone."""
    for seed in range(40):
        tokens, sides = 30 + seed, ((16, 16), (32, 16), (16, 24))[seed % 3]
        visible_until, position_ids, parents = random_pack(seed, tokens)
        ours = build_block_mask(visible_until, sides, **restricted(position_ids, restriction), length=tokens + 3 * seed)
        step = math.lcm(*sides)
        length = -(-(tokens + 3 * seed) // step) * step
        assert ours.seq_lengths == (length, length) and ours.mask_mod.tokens == tokens
        expected = torch.eye(length, dtype=torch.bool)
        expected[:tokens, :tokens] = ancestor_mask(parents, **restriction)
        assert torch.equal(create_mask(ours.mask_mod, 1, 1, length, length, device="cpu")[0, 0], expected)
        torchs = create_block_mask(ours.mask_mod, None, None, length, length, device="cpu", BLOCK_SIZE=sides)
        if not restriction:  # others may list a block needlessly
            assert all(listed_blocks(ours, side) == listed_blocks(torchs, side) for side in LISTS)


@pytest.mark.parametrize("argument", ["window", "chunk"])
def test_blocks_with_a_window_or_chunks_are_sound(argument):
    """Fails if a block with a visible pair is skipped, or one with a hidden pair is called full."""
    dropped = 0
    for seed in range(250):
        block_size, length = size_of(seed)
        visible_until, position_ids, _ = random_pack(seed, length)
        side = min(block_size)
        size = (1, 5, side // 2, side, 2 * side)[seed // 5 % 5]
        more = restricted(position_ids, {argument: size})
        block_mask = build_block_mask(visible_until, block_size, **more)
        blocks = dense_mask(visible_until, **more)[0, 0]
        blocks = blocks.unfold(0, block_size[0], block_size[0]).unfold(1, block_size[1], block_size[1])
        visible, hidden = blocks.any(dim=(2, 3)), ~blocks.all(dim=(2, 3))
        partial, full, by_query, full_by_query = (listed_blocks(block_mask, side) for side in LISTS)
        for i in range(length // block_size[0]):
            assert partial[i] == sorted(set(partial[i])) and full[i] == sorted(set(full[i]))
            assert not set(partial[i]) & set(full[i])
            assert set(visible[i].nonzero().flatten().tolist()) <= set(partial[i]) | set(full[i]), seed
            assert not set(full[i]) & set(hidden[i].nonzero().flatten().tolist()), seed
        for i in range(length // block_size[1]):
            assert by_query[i] == [j for j, line in enumerate(partial) if i in line]
            assert full_by_query[i] == [j for j, line in enumerate(full) if i in line]
        unlimited = build_block_mask(visible_until, block_size)
        dropped += sum(map(len, listed_blocks(unlimited, "kv"))) + sum(map(len, listed_blocks(unlimited, "full_kv")))
        dropped -= sum(map(len, partial)) + sum(map(len, full))
    assert dropped > 50  # the bounds do remove blocks


@pytest.mark.parametrize("argument", ["window", "chunk"])
def test_blocks_with_a_window_or_chunks_are_exact_on_a_chain(argument):
    """Without branches the bounds leave nothing over. Fails if they are looser than they need be."""
    visible_until, position_ids = torch.full((1, 256), 256), torch.arange(256)[None]
    for size, sides in itertools.product((1, 16, 31, 32, 33, 63, 64, 100, 256, 1000), ((32, 32), (64, 32), (32, 64))):
        ours = build_block_mask(visible_until, sides, **restricted(position_ids, {argument: size}))
        torchs = create_block_mask(ours.mask_mod, None, None, 256, 256, device="cpu", BLOCK_SIZE=sides)
        for side in LISTS:
            assert listed_blocks(ours, side) == listed_blocks(torchs, side), (size, sides, side)


def test_building_takes_no_square_memory():
    """131,072 tokens: all pairs would be 17 GB, block pairs are 1 MB a matrix. Fails if anything S x S is made."""
    length = 131_072
    visible_until = torch.full((1, length), length, dtype=torch.int32)
    tracemalloc.start()
    with LargestTensor() as largest:
        build_block_mask(visible_until, 128, torch.arange(length)[None], 4096)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    assert largest.elements <= (length // 128) ** 2


def test_mask_mod_names_what_it_is_and_follows_its_block_mask():
    visible_until, position_ids, _ = random_pack(3, 60)
    assert build_block_mask(visible_until, 16).mask_mod.window is None
    block_mask = build_block_mask(visible_until, 16, position_ids, 5)
    moved = block_mask.to("meta")
    # torch leaves the mask_mod behind: the reason for place_mask_mod, and for this test to notice when that changes.
    assert moved.kv_indices.device.type == "meta" and moved.mask_mod is block_mask.mask_mod
    place_mask_mod(moved, "meta")
    assert moved.mask_mod.window == 5 and moved.mask_mod.tokens == 60
    assert moved.mask_mod.visible_until.device.type == moved.mask_mod.position_ids.device.type == "meta"
    assert block_mask.mask_mod.visible_until.device.type == "cpu"
    foreign = create_block_mask(lambda b, h, q, k: q >= k, None, None, 64, 64, device="cpu", BLOCK_SIZE=16)
    mask_mod = foreign.mask_mod
    assert place_mask_mod(foreign, "meta").mask_mod is mask_mod


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 63}, r"64 tokens, the mask is to be made for length=63"),
        ({"block_size": 0}, r"block_size=0 must be at least 1"),
        ({"block_size": (16, 0)}, r"block_size=\(16, 0\) must be at least 1"),
        ({"visible_until": torch.ones(64, dtype=torch.int32)}, r"shape \[1, S\], got torch.int32 of shape \[64\]"),
        ({"visible_until": torch.ones(2, 64, dtype=torch.int32)}, r"of shape \[2, 64\]"),
        ({"visible_until": torch.ones(1, 64)}, r"must be integers"),
        ({"window": 4}, r"window is given without position_ids"),
        ({"chunk": 4}, r"chunk is given without position_ids"),
        ({"window": 4, "chunk": 4, "position_ids": torch.arange(64)[None]}, r"a layer has one of the two"),
        ({"chunk": 0, "position_ids": torch.arange(64)[None]}, r"chunk is 0"),
        ({"window": 0, "position_ids": torch.arange(64)[None]}, r"window is 0"),
        ({"window": 4, "position_ids": torch.arange(32)[None]}, r"shape \[1, 32\], visible_until \[1, 64\]"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    defaults = {"visible_until": torch.arange(1, 65)[None], "block_size": 16}
    with pytest.raises(ValueError, match=message):
        build_block_mask(**(defaults | arguments))


@pytest.mark.parametrize(("token", "until"), [(5, 5), (5, 65), (63, 0)])
def test_a_subtree_end_out_of_range_is_named(token, until):
    visible_until = torch.arange(1, 65)[None]
    visible_until[0, token] = until
    with pytest.raises(ValueError, match=rf"visible_until\[0, {token}\] is {until}.*\[{token + 1}, 64\]"):
        build_block_mask(visible_until, 16)
