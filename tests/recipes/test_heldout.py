"""Which conversations are held out, and how often the others stand in an epoch."""

import hashlib
import json
import random
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexmask.conversations.reading import read_conversation
from recipes.sources.heldout import HASH, apportion, hash_of, repeated, share, split_heldout


def record(number, thinking=None, system=None):
    reply = {"role": "assistant", "content": f"It is {number}."}
    if thinking:
        reply["reasoning_content"] = thinking
    messages = [{"role": "user", "content": f"What is {number}?"}, reply]
    return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}


@st.composite
def conversations(draw):
    """Conversations some of which say the same, with other thinking, system prompts or white space."""
    found = []
    for index, number in enumerate(draw(st.lists(st.integers(0, 12), min_size=2, max_size=30))):
        entry = record(number, draw(st.sampled_from([None, "t", "u"])), draw(st.sampled_from([None, "s"])))
        if draw(st.booleans()):
            entry["messages"][-1]["content"] += " \n"
        found.append(read_conversation(entry, f"{index}"))
    return found


def spoken(conversation):
    return tuple(m["content"].strip() for m in conversation.messages if m["role"] != "system")


def hashes(some, seed, purpose=""):
    return np.array([hash_of(seed, one, purpose) for one in some], dtype=HASH)


def split(sources, count, seed):
    """(the rest, held out) of each source."""
    held = split_heldout([hashes(some, seed) for some in sources], count)
    return [
        tuple([one for one, is_held in zip(some, mask, strict=True) if is_held is side] for side in (False, True))
        for some, mask in zip(sources, (mask.tolist() for mask in held), strict=True)
    ]


@given(st.lists(conversations(), min_size=1, max_size=3), st.none() | st.integers(0, 10), st.integers(0, 3))
def test_heldout_is_exact_disjoint_and_free_of_duplicates(sources, count, seed):
    total = sum(map(len, sources))
    try:
        parts = split(sources, count, seed)
    except ValueError as error:
        assert count is not None  # a share always fits
        assert f"data.heldout_conversations={count}: cannot be taken from {total}" in str(error)
        return
    heldout = [one for _, held in parts for one in held]
    assert len(heldout) == count if count is not None else len(heldout) <= total // 20
    # Breaks if a conversation is lost, stands on both sides, or if its duplicate is trained, of whatever source.
    for conversations_, (train, held) in zip(sources, parts, strict=True):
        order = [int(one.name) for one in train], [int(one.name) for one in held]
        assert train and sorted(order[0] + order[1]) == list(range(len(conversations_)))
        assert order == (sorted(order[0]), sorted(order[1]))
    assert not {spoken(one) for train, _ in parts for one in train} & set(map(spoken, heldout))


def as_in_0_1(sources, count, seed):
    """Which are held out, source by source, in the words of release 0.1, which had all conversations in memory."""
    groups = defaultdict(list)
    for source, some in enumerate(sources):
        for index, one in enumerate(some):
            said = [
                [message["role"], " ".join(message["content"].split()), message.get("tool_calls")]
                for message in one.messages
                if message["role"] not in ("system", "developer")
            ]
            text = f"{seed}\n{json.dumps(said, sort_keys=True)}"
            groups[hashlib.sha256(text.encode()).hexdigest()].append((source, index))
    sizes = list(map(len, sources))
    left = share(sizes) if count is None else apportion(count, sizes)
    heldout = set()
    for _, members in sorted(groups.items()):
        of_source = Counter(source for source, _ in members)
        if all(left[source] >= number for source, number in of_source.items()):
            heldout.update(members)
            left = [number - of_source[source] for source, number in enumerate(left)]
    for _, members in sorted(groups.items()) if count is not None else ():
        if members[0] not in heldout and len(heldout) + len(members) <= count:
            heldout.update(members)
    return [[(source, index) in heldout for index in range(size)] for source, size in enumerate(sizes)]


# Broken by another hash, another order of equal ones, or by stopping before the last that is taken: what a run trained
# would then be held out by the next version.
@given(st.lists(conversations(), min_size=1, max_size=3), st.none() | st.integers(0, 10), st.integers(0, 3))
def test_the_same_are_held_out_as_in_the_first_release(sources, count, seed):
    try:
        found = split_heldout([hashes(some, seed) for some in sources], count)
    except ValueError:
        return
    assert [mask.tolist() for mask in found] == as_in_0_1(sources, count, seed)


def numbered(count):
    return [read_conversation(record(number), f"{number}") for number in range(count)]


def heldout_names(conversations, count, seed):
    ((_, heldout),) = split([conversations], count, seed)
    return {one.name for one in heldout}


def test_heldout_depends_on_the_seed_and_the_text_only():
    everything = numbered(60)
    chosen = heldout_names(everything, 10, seed=0)
    assert heldout_names(random.Random(0).sample(everything, len(everything)), 10, seed=0) == chosen
    assert heldout_names(everything, 10, seed=1) != chosen
    # Of a longer source only what sorts before the last one chosen can displace it.
    assert len(heldout_names(numbered(66), 10, seed=0) & chosen) >= 4


@pytest.mark.parametrize("count", [3, 4])
def test_heldout_must_leave_something_to_train_on(count):
    with pytest.raises(ValueError, match=f"heldout_conversations={count}: cannot be taken from 3"):
        split([numbered(3)], count, seed=0)


@given(st.integers(0, 50), st.lists(st.integers(1, 100), min_size=1, max_size=5))
def test_parts_add_up_and_are_in_proportion(total, counts):
    parts = apportion(total, counts)
    assert sum(parts) == total
    assert all(abs(part - total * count / sum(counts)) < 1 for part, count in zip(parts, counts, strict=True))


@pytest.mark.parametrize(("weight", "times"), [(1, [1]), (2, [2]), (0.5, [0, 1]), (2.3, [2, 3])])
def test_a_weight_is_how_often_each_stands_in_an_epoch(weight, times):
    everything = numbered(40)

    def epoch_of(seed):
        return [everything[i].name for i in repeated(hashes(everything, seed, "weight"), weight)]

    epoch = epoch_of(seed=0)
    assert len(epoch) == weight * 40
    assert sorted({epoch.count(one.name) for one in everything}) == sorted(set(times))
    assert (epoch == epoch_of(seed=1)) == (weight % 1 == 0)
