"""Segments: what a person is shown of a row is what the row says."""

import numpy as np
import pytest
import torch
from factories import chatml_tokenizer, random_conversation

from flexmask import Conversation, Role, lay_out, render_passes
from flexmask.attention.masks import dense_mask
from flexmask.tree.segments import pass_lengths, segments, visible_segments


def row_of(*messages):
    (row,) = lay_out(render_passes(Conversation("c", messages), chatml_tokenizer()), "one_pass").rows
    return row


def user(text):
    return {"role": "user", "content": text}


def assistant(text, thinking=None, **more):
    return {"role": "assistant", "content": text, **({"reasoning_content": thinking} if thinking else {}), **more}


def test_two_turns_by_hand():
    row = row_of(user("add 12"), assistant("12", "carry"), user("more"), assistant("13", "one"))
    shown = [(s.role, s.turn) for s in segments(row)]
    assert shown == [
        (Role.PROMPT, None),
        (Role.COPY, None),
        (Role.PROMPT, None),
        (Role.THINKING, 1),
        (Role.ANSWER, 1),
        (Role.THINKING, 0),
        (Role.ANSWER, 0),
    ]
    assert visible_segments(row, segments(row)).astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 0, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 1, 1],
    ]


def test_a_turn_that_is_not_trained_has_no_segment_of_its_own():
    row = row_of(user("a"), assistant("b", "c", weight=0), user("d"), assistant("e", "f"))
    assert [s.turn for s in segments(row) if s.turn is not None] == [1, 1]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("layout", ["one_pass", "per_turn", "keep_thinking"])
def test_segments_of_random_rows(layout, seed):
    passes = render_passes(random_conversation(seed), chatml_tokenizer())
    # Some conversations are split; thinking that is kept makes one long chain.
    pack_length = None if layout == "keep_thinking" else max(map(len, passes)) + 40
    rows = lay_out(passes, layout, pack_length).rows
    for row in rows:
        parts = segments(row)
        assert [s.start for s in parts] == [0, *(s.end for s in parts[:-1])] and parts[-1].end == len(row)
        assert sum(s.trained for s in parts) == (row.loss_weights > 0).sum()
        visible = visible_segments(row, parts)
        dense = dense_mask(torch.from_numpy(row.visible_until)[None])[0, 0].numpy()
        for i, query in enumerate(parts):
            assert (row.roles[query.start : query.end] == query.role).all()
            assert np.array_equal(row.position_ids[query.start : query.end], query.position + np.arange(len(query)))
            for j, key in enumerate(parts):
                block = dense[query.start : query.end, key.start : key.end]
                assert np.array_equal(
                    block, np.tril(np.ones_like(block)) if i == j else np.full_like(block, visible[i, j])
                )
    if layout != "keep_thinking":  # whose passes are other ones
        lengths = dict(pair for row in rows for pair in zip(row.turns, pass_lengths(row).tolist(), strict=True))
        assert lengths == {p.turn: len(p) for p in passes}
