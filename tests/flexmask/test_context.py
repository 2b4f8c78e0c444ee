"""Several processes compute one pack: each some blocks of its queries, over the keys of all."""

import json

import numpy as np
import pytest
import torch
from factories import random_passes
from families import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from stateful_families import BRANCHING
from trainers import make_trainer

from flexmask import UnsupportedModelError, lay_out, pack, prepare_model
from flexmask.attention.context import divide
from flexmask.attention.masks import build_block_mask, dense_mask
from flexmask.model.support import check_context
from flexmask.tree.sharing import spread, token_costs

BLOCK = 16


# Breaks if a process leaves out or doubles a gradient of keys and values, a token is predicted by nobody or twice, the
# masks of windows and chunks count queries of this process for tokens of the pack, or a layer that runs again in
# backward does not gather.
def test_every_family_computes_a_pack_in_parts(tmp_path, python):
    python.run_on_ranks(2, "ranks.context", str(tmp_path / "differences.json"), cwd=tmp_path)
    differences = json.loads((tmp_path / "differences.json").read_text())
    assert differences.keys() == {*FAMILIES, "one block for all"}
    assert max(differences.values()) < 1e-9, differences


# Breaks if a block of queries is given twice or to nobody, if a part depends on anything but the length of the mask in
# its shape, which would compile a kernel anew for each pack, or if a line of a part's mask is not that of its token.
@given(
    seed=st.integers(0, 200),
    processes=st.integers(1, 9),
    length=st.sampled_from([512, 640]),
    window=st.sampled_from([None, 12]),
)
def test_parts_of_a_pack_are_its_mask_line_by_line(seed, processes, length, window):
    (whole,) = pack(lay_out(random_passes(seed), "one_pass").rows, length)[:1]
    contexts, _ = divide(token_costs(whole.position_ids[0].numpy(), 0.1), length, BLOCK, processes)
    positions = whole.position_ids
    dense = dense_mask(whole.visible_until, positions, window)[0, 0]
    own = [context.tokens[context.owner[context.tokens] == context.process] for context in contexts]
    assert sorted(torch.cat(own).tolist()) == list(range(len(whole)))
    shapes = {len(context.blocks) for context in contexts}
    assert shapes <= {-(-length // BLOCK // processes), max(length // BLOCK // processes, 1)}
    assert all(len(context.tokens) for context in contexts)  # a model is never run over nothing
    gathered = torch.zeros(processes * contexts[0].longest, dtype=torch.int64)
    for context in contexts:
        mask = build_block_mask(whole.visible_until, BLOCK, positions, window, length=length, context=context)
        index = torch.arange(len(context.tokens))[:, None], torch.arange(len(whole))[None]
        zero = torch.zeros((), dtype=torch.int64)
        assert torch.equal(mask.mask_mod(zero, zero, *index), dense[context.tokens])
        blocks = np.zeros((len(context.blocks), length // BLOCK), dtype=bool)
        for i, line in enumerate(blocks):
            line[mask.kv_indices[0, 0, i, : mask.kv_num_blocks[0, 0, i]]] = True
            line[mask.full_kv_indices[0, 0, i, : mask.full_kv_num_blocks[0, 0, i]]] = True
        listed = torch.from_numpy(blocks).repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        assert (listed[: len(context.tokens), : len(whole)] | ~dense[context.tokens]).all()
        gathered[context.process * context.longest :][: len(context.tokens)] = context.tokens
    assert torch.equal(gathered[contexts[0].order], torch.arange(len(whole)))


# A long conversation. Breaks if blocks are dealt out in their order: the last process of eight then sees most.
@pytest.mark.parametrize("processes", [2, 3, 8])
def test_parts_cost_nearly_the_same(processes):
    costs = token_costs(np.concatenate([np.arange(9_000), np.arange(4_000, 7_000)]), 1e-3)
    contexts, sums = divide(costs, 16_384, 128, processes)
    assert spread(sums) < 1.02
    assert spread([len(context.tokens) for context in contexts]) < 1.08


def test_state_cannot_be_cut_between_processes(tmp_path):
    model = prepare_model(BRANCHING["Qwen3.5"].build(torch.float32))
    with pytest.raises(UnsupportedModelError, match="carry state .* context_parallel would cut"):
        check_context(model)
    with pytest.raises(UnsupportedModelError, match="context_parallel"):
        make_trainer(tmp_path, model="hybrid", context_parallel=True)


def test_a_pack_is_masked_in_the_blocks_that_it_was_divided_in():
    (whole,) = pack(lay_out(random_passes(3), "one_pass").rows, 512)[:1]
    contexts, _ = divide(np.ones(len(whole)), 512, 16, 2)
    with pytest.raises(ValueError, match="block_size=32, and the pack was divided in blocks of 16"):
        build_block_mask(whole.visible_until, 32, context=contexts[0])


def test_a_backend_with_blocks_of_its_own_is_refused():
    model = prepare_model(FAMILIES["Qwen3"].build(torch.float32))
    with pytest.raises(ValueError, match="context_parallel with backend=flash: .* leave backend out"):
        check_context(model, "flash")


# NEFTune's noise is alpha over the root of the number of tokens. Breaks if that is the number of a process's own.
def test_noise_of_a_part_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neftune_noise_alpha=5 with context_parallel: .* leave one of the two out"):
        make_trainer(tmp_path, context_parallel=True, neftune_noise_alpha=5)
