"""Training in several processes: the run of one, whatever their number and whatever each of them holds."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainers import ON_RANKS, SHARDED, assert_same_run, make_trainer, rows_in, trained

from flexmask import OnePassCollator
from flexmask.tree.sharing import even_groups, spread
from recipes.benchmarking.workloads import MATHCHATSYNC, statistical_lengths

EVERY = rows_in("one_pass", 512)


# Breaks if a rank divides by its own weight, gradients are averaged where they should be summed, a batch that does not
# come out even is filled up with conversations, or what a process counts is taken for what all have trained. It hangs
# where one process runs more passes than another.
@pytest.mark.parametrize("processes", [2, 3])
def test_the_same_run_on_several_processes(tmp_path, python, processes):
    python.run_on_ranks(processes, "ranks.training", str(tmp_path), cwd=tmp_path)
    for name, settings in ON_RANKS.items():
        losses, parameters, held_out, totals = torch.load(tmp_path / f"{name}.pt", weights_only=False)
        settings = {"pack_length": 512} | {key: value for key, value in settings.items() if key not in SHARDED}
        alone = make_trainer(tmp_path, heldout=EVERY[:5], **settings)
        assert_same_run(trained(alone), (losses, parameters))
        for key, value in alone.evaluate().items():
            if key.endswith("loss"):
                assert held_out[key] == pytest.approx(value, rel=1e-9), (name, key)
        for key in ("tokens_computed", "tokens_trained"):
            assert totals[key] == getattr(alone.run_totals, key), (name, key)


# Breaks if a sharded checkpoint belongs to the number of processes that wrote it, or to their share of the weights.
def test_a_sharded_run_goes_on_in_another_number_of_processes(tmp_path, python):
    python.run_on_ranks(2, "ranks.resuming", str(tmp_path), cwd=tmp_path)
    whole_run = torch.load(tmp_path / "2 processes.pt", weights_only=False)
    for processes in (3, 1):
        python.run_on_ranks(processes, "ranks.resuming", str(tmp_path), cwd=tmp_path)
        assert_same_run(whole_run, torch.load(tmp_path / f"{processes} processes, resumed.pt", weights_only=False))


# Whatever the number of processes: each row is trained once, every process knows how many all are, and all run as many
# passes. Breaks if a share is left out or given twice, or the weight of a step is that of one process.
@given(
    chosen=st.lists(st.integers(0, len(EVERY) - 1), min_size=1, max_size=9),
    processes=st.integers(1, 7),
    pair_cost=st.sampled_from([0.0, 1e-3, 1.0]),
    alone=st.booleans(),
)
def test_every_row_is_in_one_share(chosen, processes, pair_cost, alone):
    batch = [EVERY[i] for i in chosen]
    shares = [
        OnePassCollator(512, one_row_per_pack=alone, processes=processes, process_index=i, pair_cost=pair_cost)(batch)
        for i in range(processes)
    ]
    assert len({len(share["packs"]) for share in shares}) == 1 and len({share["figures"] for share in shares}) == 1
    packs = [pack for share in shares for pack in share["packs"] if pack.loss_weights.any()]
    figures = shares[0]["figures"]
    assert sorted(name for pack in packs for name in pack.rows) == sorted(row.name for rows in batch for row in rows)
    assert sum(float(pack.loss_weights.sum()) for pack in packs) == pytest.approx(figures.target_weight)
    assert (sum(map(len, packs)), len(packs)) == (figures.tokens_computed, figures.packs)


@given(st.lists(st.floats(0.1, 10), max_size=30), st.integers(1, 9))
def test_groups_hold_each_once(costs, count):
    groups = even_groups(costs, count)
    assert len(groups) == count and sorted(i for group in groups for i in group) == list(range(len(costs)))


# Breaks if conversations are dealt out by number: the slowest of eight then takes 19 % longer than the mean.
def test_shares_of_a_step_are_even_at_eight_processes():
    rng, sample = np.random.default_rng(0), statistical_lengths(MATHCHATSYNC)
    spreads = []
    for _ in range(100):
        costs = [sum(map(sum, sample(rng))) for _ in range(64)]
        sums = [sum(costs[i] for i in group) for group in even_groups(costs, 8)]
        spreads.append(spread(sums))
    assert max(spreads) < 1.05
