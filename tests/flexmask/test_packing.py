"""Packs: offsets, best fit, no padding."""

import numpy as np
import pytest
import torch
from factories import random_passes

from flexmask import one_pass, pack


def rows_of(seeds):
    return [row for seed in seeds for row in one_pass(random_passes(seed))]


@pytest.mark.parametrize("seed", range(10))
def test_every_row_stands_in_one_pack_unchanged(seed):
    rows = rows_of(range(20 * seed, 20 * seed + 20))
    packs = pack(rows, 512)
    by_name = {row.name: row for row in rows}
    seen = []
    for one in packs:
        start = 0
        for name in one.rows:
            row, here = by_name[name], slice(start, start + len(by_name[name]))
            seen.append(name)
            assert np.array_equal(one.input_ids[0, here], row.input_ids)
            assert np.array_equal(one.position_ids[0, here], row.position_ids)
            assert np.array_equal(one.loss_weights[0, here], row.loss_weights)
            assert np.array_equal(one.visible_until[0, here], row.visible_until + start)
            inside = row.previous >= 0
            assert np.array_equal(one.previous[0, here][inside], row.previous[inside] + start)
            assert (one.previous[0, here][~inside] == -1).all()
            start = here.stop
        assert len(one) == start <= one.pack_length == 512
        assert {x.shape for x in vars(one).values() if isinstance(x, torch.Tensor)} == {(1, start)}
    assert sorted(seen) == sorted(by_name)


# Breaks if the search takes any pack that fits, or the first, instead of the fullest.
def test_best_fit_by_hand():
    rows = {len(row): row for row in rows_of(range(200))}
    lengths = sorted(rows)[:6]
    packs = pack([rows[length] for length in lengths], sum(lengths[-2:]))
    assert set(packs[0].rows) == {rows[lengths[-1]].name, rows[lengths[-2]].name}


def test_many_rows_take_as_few_packs_as_their_tokens_need():
    rows = rows_of(range(300))
    assert len(pack(rows, 2048)) == -(-sum(map(len, rows)) // 2048)


def test_a_row_that_does_not_fit_is_named():
    rows = rows_of([1])
    with pytest.raises(ValueError, match=rf"row random:1 has {len(rows[0])} tokens, pack_length is 16"):
        pack(rows, 16)
