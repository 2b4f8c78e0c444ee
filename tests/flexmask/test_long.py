"""A conversation of 131,072 tokens is prepared, laid out and masked in memory that follows its tokens."""

import time
import tracemalloc

import pytest
from factories import chatml_tokenizer
from random_trees import LargestTensor

from flexmask import Conversation, build_block_mask, pack, prepare_conversation

LENGTH, TURNS = 131_072, 64
# The lists of 1,024 x 1,024 pairs of blocks have 16 bytes a pair, and a row about 100 a token. A byte for each pair of
# tokens would be 17 GB.
MOST = 64 * 2**20
SECONDS = 10


def measured(work):
    """What `work` returns, its seconds, and the most bytes that Python and NumPy have at once."""
    start = time.process_time()
    work()
    seconds = time.process_time() - start
    tracemalloc.start()
    with LargestTensor() as largest:
        made = work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert largest.elements <= max(LENGTH, (LENGTH // 128) ** 2)  # torch's memory, which Python does not count
    return made, seconds, peak


@pytest.fixture(scope="module")
def conversation():
    """Turns of equal length that fill a pack nearly: thinking of earlier ones stays out of later ones' sight."""
    messages = []
    for turn in range(TURNS):
        messages.append({"role": "user", "content": f"and then {turn} " + "two small numbers is 12 " * 30})
        thought = "so add them then carry one and check it again " * 170
        answer = f"the sum is {turn} " + "of two small numbers " * 18
        messages.append({"role": "assistant", "reasoning_content": thought, "content": answer})
    return Conversation("long", tuple(messages))


@pytest.fixture(scope="module")
def prepared(conversation):
    return measured(lambda: prepare_conversation(conversation, chatml_tokenizer(), pack_length=LENGTH))


# Breaks if preparation keeps something for each pair of tokens, or renders so that its time follows their square.
def test_it_is_prepared_and_laid_out(prepared):
    laid_out, seconds, peak = prepared
    (row,) = laid_out.rows
    assert 0.9 * LENGTH < len(row) <= LENGTH and len(row.turns) == TURNS
    assert peak < MOST and seconds < SECONDS


# Breaks if a mask is made pair by pair of tokens, with or without a window.
@pytest.mark.parametrize("window", [None, 128, 4096])
def test_it_is_masked(prepared, window):
    (one,) = pack(prepared[0].rows, LENGTH)
    positions = None if window is None else one.position_ids
    mask, seconds, peak = measured(
        lambda: build_block_mask(one.visible_until, position_ids=positions, window=window, length=LENGTH)
    )
    assert mask.seq_lengths == (LENGTH, LENGTH)
    assert peak < MOST and seconds < SECONDS
