"""Every trained token of every conversation is trained once an epoch, however the epoch is cut up."""

import functools
import tempfile
from collections import Counter
from itertools import pairwise

import pytest
from accelerate import skip_first_batches
from factories import chatml_tokenizer
from hypothesis import given, note, settings
from hypothesis import strategies as st
from torch.utils.data import RandomSampler, SequentialSampler
from trainers import CONVERSATIONS, Stream, rows_in
from transformers import TrainingArguments

from flexmask import OnePassCollator, render_passes
from flexmask.training.batches import ByLength, train_batches

EPOCHS = 2
LENGTHS = (180, 256, 1024)  # of packs; the shorter ones split conversations over rows
EVERY = rows_in("one_pass")


def ends_of_chains(ids, previous):
    """For each token a hash of itself and all that it follows: tokens of two turns, or of two places, have two."""
    chains = []
    for token, before in zip(ids, previous, strict=True):
        chains.append(hash((chains[before] if before >= 0 else None, token)))
    return chains


@functools.cache
def tokens_of(name):
    """The trained tokens of a conversation, from its passes: no layout has had a hand in them."""
    (conversation,) = [one for one in CONVERSATIONS if one.name == name]
    found = Counter()
    for one in render_passes(conversation, chatml_tokenizer()):
        chains = ends_of_chains(one.input_ids.tolist(), range(-1, len(one.input_ids) - 1))
        found.update((name, chain) for chain, weight in zip(chains, one.loss_weights, strict=True) if weight > 0)
    assert set(found.values()) == {1}
    return found


def tokens_in(packs):
    found = Counter()
    for one in packs:
        previous, row = one.previous[0].tolist(), -1
        chains = ends_of_chains(one.input_ids[0].tolist(), previous)
        for before, chain, weight in zip(previous, chains, one.loss_weights[0].tolist(), strict=True):
            row += before == -1
            if weight > 0:
                found[one.rows[row], chain] += 1
        assert row == len(one.rows) - 1
    return found


def steps_of(make_loader, stops):
    """(epoch, packs) of each step of a run that begins anew, as the Trainer (5.23) does, behind each of `stops`."""
    per_epoch = len(make_loader())
    ends = sorted({min(stop, EPOCHS * per_epoch) for stop in stops} | {0, EPOCHS * per_epoch})
    for begin, end in pairwise(ends):
        loader, step = make_loader(), begin
        epochs_trained, skipped = divmod(begin, per_epoch)
        for epoch in range(epochs_trained, EPOCHS):
            batches = skip_first_batches(loader, skipped) if epoch == epochs_trained and skipped else loader
            batches.set_epoch(epoch)
            for batch in batches:
                if step == end:
                    break
                yield epoch, batch["packs"]
                step += 1


ORDERS = {
    "random": lambda rows, arguments: RandomSampler(rows),
    "by length": ByLength,
    "as they stand": lambda rows, arguments: SequentialSampler(rows),
}


# Hypothesis prints what failed, the seed of the order included. Breaks if a batch is left out or taken twice where a
# run goes on, if an epoch has another order then, if a share of a batch is nobody's, or if a turn that is split over
# rows is trained in each of them.
@given(
    layout=st.sampled_from(["one_pass", "per_turn"]),
    pack_length=st.sampled_from(LENGTHS),
    order=st.sampled_from(sorted(ORDERS)),
    seed=st.integers(0, 2**16),
    at_once=st.integers(1, 9),
    processes=st.integers(1, 4),
    stops=st.lists(st.integers(1, 2 * len(CONVERSATIONS)), max_size=4),
)
@settings(max_examples=30, deadline=None)
def test_each_token_is_trained_once_an_epoch(layout, pack_length, order, seed, at_once, processes, stops):
    rows = rows_in(layout, pack_length)
    expected = sum((tokens_of(one.name) for one in CONVERSATIONS), Counter())
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=at_once, seed=seed, use_cpu=True, report_to=[],
            accelerator_config={"split_batches": True},
        )  # fmt: skip

    def loader(process):
        collator = OnePassCollator(pack_length, processes=processes, process_index=process)
        return train_batches(rows, collator, arguments, ORDERS[order](rows, arguments))

    trained, orders = [Counter() for _ in range(EPOCHS)], []
    for process in range(processes):
        of_steps = list(steps_of(lambda process=process: loader(process), stops))
        note(f"process {process}: {len(of_steps)} steps")
        for epoch, packs in of_steps:
            trained[epoch] += tokens_in(packs)
        orders.append([epoch for epoch, _ in of_steps])
    assert all(one == orders[0] for one in orders), "processes take another number of steps"
    assert trained == [expected] * EPOCHS


def test_the_length_of_packs_does_split_rows():
    rows = [sum(map(len, rows_in("one_pass", length))) for length in LENGTHS]
    assert rows == sorted(set(rows), reverse=True)


# Breaks if the order is that of the first epoch in every one, or another one where a run goes on.
@pytest.mark.parametrize("order", ["random", "by length"])
@pytest.mark.parametrize("epoch", range(3))
def test_an_epoch_has_its_own_order_and_the_same_one_again(tmp_path, order, epoch):
    arguments = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=3, seed=5, use_cpu=True)

    def names(number):
        loader = train_batches(EVERY, OnePassCollator(1024), arguments, ORDERS[order](EVERY, arguments))
        loader.set_epoch(number)
        return [batch["figures"].rows for batch in loader]

    assert names(epoch) == names(epoch) != names(epoch + 1)


# Breaks if each worker that reads ahead reads all of a stream: every conversation would be trained once a worker.
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing_of_what_a_stream_trains(tmp_path, workers):
    def names(number):
        arguments = TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=5, use_cpu=True, dataloader_num_workers=number
        )
        return [batch["figures"].rows for batch in train_batches(Stream(EVERY), OnePassCollator(1024), arguments, None)]

    assert names(workers) == names(0)
    assert sum(map(len, names(workers))) == len(CONVERSATIONS)
