"""Rows: the node table, what follows from it, splitting, and the baselines."""

import numpy as np
import pytest
import torch
from factories import chatml_tokenizer, random_conversation, random_passes

from flexmask import Pass, Role, build_block_mask, keep_thinking, lay_out, one_pass, per_turn, render_passes
from flexmask.tree.layouts import LAYOUTS


def make_pass(prompt, thinking, answer, turn=0):
    roles = np.repeat(np.int8([Role.PROMPT, Role.THINKING, Role.ANSWER]), [len(prompt), len(thinking), len(answer)])
    ids = np.frombuffer((prompt + thinking + answer).encode("utf-32-le"), dtype="<u4").astype(np.int64)
    weights = (np.arange(len(ids)) >= len(prompt)).astype(np.float32)
    return Pass("hand", turn, len(prompt), ids, roles, weights)


def path_to(row, index):
    """Token ids from the root to `index`, by `previous`."""
    ids = []
    while index >= 0:
        ids.append(int(row.input_ids[index]))
        index = row.previous[index]
    return ids[::-1]


# The example in the design and in the module's docstring, written by hand.
def test_two_turns_by_hand():
    (row,) = one_pass([make_pass("q", "t", "a"), make_pass("qaQ", "T", "A", 1)])
    assert "".join(map(chr, row.input_ids)) == "qaQTAta"
    assert row.node_start.tolist() == [0, 1, 5]
    assert row.node_end.tolist() == [1, 5, 7]
    assert row.node_parent.tolist() == [-1, 0, 0]
    assert row.position_ids.tolist() == [0, 1, 2, 3, 4, 1, 2]
    assert row.visible_until.tolist() == [7, 5, 5, 5, 5, 7, 7]
    assert row.previous.tolist() == [-1, 0, 1, 2, 3, 0, 5]
    assert row.loss_weights.tolist() == [0, 0, 0, 1, 1, 1, 1]


# A turn without thinking still carries loss, and its answer is not written twice.
def test_a_turn_without_thinking_is_not_duplicated():
    (row,) = one_pass([make_pass("q", "", "a"), make_pass("qaQ", "", "A", 1)])
    assert "".join(map(chr, row.input_ids)) == "qaQA"
    assert row.loss_weights.tolist() == [0, 1, 0, 1]


# Two samples of one prompt: what both generate is trained for both. Breaks if only one of the weights is kept.
def test_tokens_that_two_passes_generate_are_trained_for_both():
    (row,) = one_pass([make_pass("q", "tu", "a"), make_pass("q", "tv", "a", 1)])
    assert "".join(map(chr, row.input_ids)) == "qtvaua"
    assert row.loss_weights.tolist() == [0, 2, 1, 1, 1, 1]


# Whichever pass comes first: figures by role count what is generated. Breaks if the role of the first pass stays.
@pytest.mark.parametrize("order", [1, -1])
def test_a_token_that_any_pass_generates_has_a_generated_role(order):
    (row,) = one_pass([make_pass("q", "", "a"), make_pass("qaQ", "", "A", 1)][::order])
    assert row.roles.tolist() == [Role.PROMPT, Role.ANSWER, Role.PROMPT, Role.ANSWER]


@pytest.mark.parametrize("seed", range(40))
def test_every_pass_is_a_path_of_its_row(seed):
    passes = random_passes(seed, vocab=4)  # few tokens: branches share more than the template made them share
    (row,) = one_pass(passes)
    paths = {tuple(path_to(row, i)): i for i in range(len(row))}
    assert len(paths) == len(row), "one prefix stands twice"
    for p in passes:
        for length in range(1, len(p) + 1):
            index = paths[tuple(p.input_ids[:length].tolist())]
            assert row.position_ids[index] == length - 1


@pytest.mark.parametrize("seed", range(40))
def test_visible_until_marks_exactly_the_ancestors(seed):
    (row,) = one_pass(random_passes(seed, vocab=4))
    q = np.arange(len(row))
    visible = (q[None, :] <= q[:, None]) & (q[:, None] < row.visible_until[None, :])
    for i in range(len(row)):
        ancestors, at = set(), i
        while at >= 0:
            ancestors.add(int(at))
            at = row.previous[at]
        assert set(np.flatnonzero(visible[i]).tolist()) == ancestors


@pytest.mark.parametrize("seed", range(20))
def test_split_rows_fit_and_train_every_pass_once(seed):
    passes = random_passes(seed)
    pack_length = max(len(p) for p in passes) + seed
    rows = one_pass(passes, pack_length)
    assert max(len(row) for row in rows) <= pack_length
    assert sorted(turn for row in rows for turn in row.turns) == [p.turn for p in passes]
    assert sum(row.loss_weights.sum() for row in rows) == sum(p.loss_weights.sum() for p in passes)
    # Breaks if a pass is sent to a new row that would have fit into the one before, where it shares most of its tokens.
    groups = [passes[:1]]
    for p in passes[1:]:
        fits = sum(map(len, one_pass([*groups[-1], p]))) <= pack_length
        groups[-1:] = [[*groups[-1], p]] if fits else [groups[-1], [p]]
    assert sum(map(len, rows)) <= sum(len(row) for group in groups for row in one_pass(group))


def test_per_turn_is_a_row_a_pass():
    passes = random_passes(5, turns=4)
    rows = per_turn(passes)
    assert [row.input_ids.tolist() for row in rows] == [p.input_ids.tolist() for p in passes]


def test_last_turn_skips_untrained_turns():
    passes = render_passes(random_conversation(1, turns=4), chatml_tokenizer(), turns="0:3")
    (row,) = lay_out(passes, "last_turn").rows
    assert row.turns == (2,)


@pytest.mark.parametrize("seed", range(10))
def test_keep_thinking_is_a_chain_with_all_thinking_and_the_same_targets(seed):
    tokenizer = chatml_tokenizer()
    conversation = random_conversation(seed, turns=3)
    passes = render_passes(conversation, tokenizer)
    (row,) = lay_out(passes, "keep_thinking").rows
    assert np.array_equal(row.previous, np.arange(-1, len(row) - 1))
    text = tokenizer.decode(row.input_ids)
    cursor = 0
    for message in conversation.messages:  # all of it, in order: nothing dropped, nothing twice
        for part in (message.get("reasoning_content", ""), message["content"]):
            cursor = text.index(part.strip(), cursor) + len(part.strip())
    trained = lambda ids, weights: ids[weights > 0].tolist()  # noqa: E731
    assert trained(row.input_ids, row.loss_weights) == [
        token for p in passes for token in trained(p.input_ids, p.loss_weights)
    ]
    assert set(row.loss_weights.tolist()) == {0, 1}  # each turn is trained in its own pass and not as context


# Breaks if thinking that stays in the history is trained again in each pack that it stands in.
def test_keep_thinking_over_several_packs_trains_each_turn_once():
    passes = render_passes(random_conversation(1, turns=4), chatml_tokenizer())
    longest = max(map(len, keep_thinking(passes)))
    rows = lay_out(passes, "keep_thinking", longest).rows
    apart = [row for p in keep_thinking(passes) for row in one_pass([p])]
    trained = sum(float(p.loss_weights.sum()) for p in passes)
    assert sum(float(row.loss_weights.sum()) for row in rows) == trained
    assert sum(float(row.loss_weights.sum()) for row in apart) == trained


def test_keep_thinking_says_which_answer_it_cannot_find():
    passes = [make_pass("q", "t", "a"), make_pass("qbQ", "T", "A", 1)]
    with pytest.raises(ValueError, match=r"hand: .*answer of assistant turn 0 .* prompt of turn 1"):
        keep_thinking(passes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pass_longer_than_the_pack_is_an_error_that_names_it(layout):
    passes = [make_pass("q", "t", "a"), make_pass("qaQ", "T" * 50, "A", 1)]
    with pytest.raises(ValueError, match=r"hand: the pass of assistant turn 1 has 5\d tokens, pack_length is 32"):
        lay_out(passes, layout, 32)


def test_a_pass_longer_than_the_pack_can_be_dropped_and_is_counted():
    passes = [make_pass("q", "t", "a"), make_pass("qaQ", "T" * 50, "A", 1), make_pass("qaQAr", "u", "b", 2)]
    laid_out = lay_out(passes, "one_pass", 32, too_long="drop")
    assert laid_out.dropped_turns == (1,)
    assert [row.turns for row in laid_out.rows] == [(0, 2)]


@pytest.mark.parametrize("argument", [{"layout": "onepass"}, {"layout": "one_pass", "too_long": "cut"}])
def test_unknown_settings_are_named(argument):
    with pytest.raises(ValueError, match=r'(layout="onepass"|too_long="cut"): write'):
        lay_out([make_pass("q", "t", "a")], **argument)


def test_a_thousand_turns_do_not_overflow_anything():
    history, passes = "", []
    for turn in range(1000):
        passes.append(make_pass(history + "q", "t", "a", turn))
        history += "qa"
    (row,) = one_pass(passes)
    assert len(row) == 999 * 4 + 3


def earliest_first(row):
    """visible_until of the same tree in the other depth-first order: each branch right behind what it continues."""
    until = []

    def write(node):
        start = len(until)
        tokens = int(row.node_end[node] - row.node_start[node])
        until.extend([0] * tokens)
        for child in reversed(np.flatnonzero(row.node_parent == node)):
            write(child)
        until[start : start + tokens] = [len(until)] * tokens

    for root in np.flatnonzero(row.node_parent < 0):
        write(root)
    return np.array(until, dtype=np.int32)


# Breaks if a row puts the earliest branch first: then every earlier turn is a hole in what a query sees.
def test_the_latest_branch_first_costs_half_the_blocks():
    rng, history, passes = np.random.default_rng(0), np.empty(0, dtype=np.int64), []
    for turn in range(24):
        question, thinking, answer = (rng.integers(0, 10**6, size) for size in (20, 80, 30))
        prompt = np.concatenate([history, question])
        ids = np.concatenate([prompt, thinking, answer])
        roles = np.repeat([Role.PROMPT, Role.THINKING, Role.ANSWER], [len(prompt), 80, 30]).astype(np.int8)
        passes.append(Pass("long", turn, len(prompt), ids, roles, (roles != Role.PROMPT).astype(np.float32)))
        history = np.concatenate([prompt, answer])
    (row,) = one_pass(passes)

    def computed(visible_until):
        mask = build_block_mask(torch.from_numpy(visible_until)[None])
        return int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum()) * 128**2

    visible = int((row.position_ids + 1).sum())
    assert computed(row.visible_until) < 1.6 * visible
    assert computed(earliest_first(row)) > 1.9 * computed(row.visible_until)


def test_ends_are_those_of_the_passes_that_are_trained():
    untrained = make_pass("qabaQ", "T", "U", 2)
    untrained.loss_weights[:] = 0
    passes = [make_pass("q", "t", "ab"), make_pass("qabQ", "T" * 9, "A", 1), untrained, make_pass("qa", "", "cb", 3)]
    assert lay_out(passes, "one_pass").ends == (ord("A"), ord("b"))
    assert lay_out(passes, "one_pass", pack_length=8, too_long="drop").ends == (ord("b"),)
    assert lay_out(passes, "last_turn").ends == (ord("b"),)
