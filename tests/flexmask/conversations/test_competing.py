"""Records of answers that compete: what is their prompt, what of them is trained, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from factories import chatml_tokenizer

from flexmask import Calls, lay_out, prepare_conversation, read_record, render_passes
from flexmask.conversations.reading import read_conversation

TOKENIZER = chatml_tokenizer()


def user(text):
    return {"role": "user", "content": text}


def assistant(text, thinking=None):
    return {"role": "assistant", "content": text} | ({"reasoning_content": thinking} if thinking else {})


SHARED = [user("hi"), assistant("ho", "greet"), user("2+2?")]
BETTER, WORSE = assistant("4", "two and two"), assistant("5", "two and three")


def rows_of(record):
    return prepare_conversation(read_record(record, "r"), TOKENIZER).rows


def same_rows(one, other):
    names = ("input_ids", "loss_weights", "roles", "node_start", "node_parent")
    return len(one) == len(other) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for a, b in zip(one, other, strict=True) for name in names
    )


# The shapes of TRL and of the data sets of the hub: all of them are the same pair.
SHAPES = {
    "prompt": {"prompt": SHARED, "chosen": [BETTER], "rejected": [WORSE]},
    "whole conversations": {"chosen": [*SHARED, BETTER], "rejected": [*SHARED, WORSE]},
    "prompt and whole conversations": {"prompt": SHARED, "chosen": [*SHARED, BETTER], "rejected": [*SHARED, WORSE]},
    "messages, not lists": {"prompt": SHARED, "chosen": BETTER, "rejected": WORSE},
    "text of a table": {"prompt": SHARED, "chosen": json.dumps([BETTER]), "rejected": json.dumps([WORSE])},
    "ShareGPT": {
        "prompt": SHARED,
        "chosen": [{"from": "gpt", "value": "<think>\ntwo and two\n</think>\n\n4"}],
        "rejected": [{"from": "gpt", "value": "<think>\ntwo and three\n</think>\n\n5"}],
    },
    "completions with rewards": {"prompt": SHARED, "completions": [[BETTER], [WORSE]], "rewards": [1, 0]},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_all_shapes_of_a_pair_are_the_same(shape):
    read = read_record(SHAPES[shape], "r")
    assert isinstance(read, Calls) and read.rewards == (1.0, 0.0)
    assert [call.candidate for call in read.calls] == [0, 1]
    assert same_rows(rows_of(SHAPES[shape]), rows_of(SHAPES["prompt"]))


# Breaks if the answer of the prompt is trained, or a pass is another than that of the conversation alone.
def test_each_answer_is_trained_as_alone():
    passes = [
        dataclasses.replace(
            render_passes(read_conversation({"messages": [*SHARED, answer]}, "r"), TOKENIZER)[-1], turn=number
        )
        for number, answer in enumerate((BETTER, WORSE))
    ]
    assert same_rows(rows_of(SHAPES["prompt"]), lay_out(passes, "one_pass").rows)
    (row,) = rows_of(SHAPES["prompt"])
    assert row.passes.reward.tolist() == [1, 0] and row.passes.candidate.tolist() == [0, 1]
    assert "greet" not in TOKENIZER.decode(row.input_ids)


# Breaks if of an answer of several turns only the last is trained, or a turn with weight 0.
def test_an_answer_may_be_several_turns():
    record = {
        "prompt": SHARED,
        "chosen": [
            BETTER,
            user("sure?"),
            assistant("yes", "count again"),
            user("and?"),
            assistant("ok") | {"weight": 0},
        ],
        "rejected": [WORSE],
    }
    read = read_record(record, "r")
    assert [call.candidate for call in read.calls] == [0, 0, 1]
    assert [call.name for call in read.calls][:2] == ["r: chosen, message 3", "r: chosen, message 5"]
    (row,) = rows_of(record)
    assert row.passes.candidate.tolist() == [0, 0, 1]


# Breaks if one turn of a record is dropped and the other is compared with nothing.
def test_a_pair_of_which_a_turn_is_too_long_is_dropped_whole():
    record = {"prompt": [user("q")], "chosen": [assistant("a " * 300)], "rejected": [assistant("b")]}
    laid_out = prepare_conversation(read_record(record, "r"), TOKENIZER, pack_length=100, too_long="drop")
    assert laid_out.rows == () and laid_out.dropped_turns == (0, 1)


def test_turns_are_selected_of_each_answer():
    record = {
        "prompt": [user("q")],
        "chosen": [assistant("a"), user("?"), assistant("b")],
        "rejected": [assistant("c")],
    }
    (row,) = prepare_conversation(read_record(record, "r"), TOKENIZER, turns="-1").rows
    assert row.passes.turn.tolist() == [1, 2]


# Breaks if a pair without a difference is trained without a word.
def test_answers_that_are_the_same_are_named():
    (note,) = read_record(SHAPES["prompt"] | {"rejected": [BETTER]}, "r").notes
    assert "are the same, from which nothing is learned" in note
    assert read_record(SHAPES["prompt"], "r").notes == ()


# Breaks if records of an episode whose calls compete become one, in which candidates of different records are the same.
def test_calls_that_compete_are_a_record_of_their_own():
    calls = [{"prompt": [1, 2], "completion": [3 + i], "candidate": i} for i in range(2)]
    record = {"calls": calls, "rewards": [1, 0], "group": "a"}
    assert read_record(record, "r", episode_key="group").episode is None
    alone = {"calls": calls[:1], "group": "a"}
    assert read_record(alone, "r", episode_key="group").episode == "group=a"


# Breaks if rewards of a log, which are not read, vanish without a word.
def test_rewards_of_logs_are_named():
    rollout = {"prompt_ids": [1, 2], "completion_ids": [3, 4], "rewards": [1.0]}
    assert "rewards" in read_record(rollout, "r").unread


def test_what_nothing_reads_is_named_once():
    record = SHAPES["prompt"] | {"foo": 1, "source": "x"}
    assert read_record(record, "r").unread == ("foo",)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"chosen": "a", "rejected": "b"}, "no 'prompt', and 'chosen' is no list of messages; give both"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "'rejected' is empty; remove the record"),
        ({"prompt": "q", "completions": ["a"], "rewards": [1, 2]}, "'completions' is 1 answers beside 2 rewards"),
        ({"prompt": "q", "completions": ["a"], "rewards": ["x"]}, "'rewards' holds 'x'"),
        ({"prompt": "q", "completions": ["a"], "rewards": [float("nan")]}, "'rewards' holds nan"),
        ({"prompt": "q", "completions": ["a"], "rewards": 1}, "'rewards' is 1"),
        ({"chosen": [user("a"), BETTER], "rejected": [user("b"), WORSE]}, "begin with nothing in common"),
        ({"chosen": [user("a"), BETTER], "rejected": [user("a"), BETTER]}, "'chosen' adds nothing to the prompt"),
        ({"messages": SHARED, "chosen": [BETTER], "rejected": [WORSE]}, "both 'chosen' and 'messages'"),
        ({"prompt": 3, "chosen": [BETTER], "rejected": [WORSE]}, "chosen: 'prompt' is 3"),
        ({"prompt": "q", "chosen": {"x": 1}, "rejected": [WORSE]}, "chosen: message 1: a message without a role"),
        (SHAPES["prompt"] | {"completions": ["a"], "rewards": [1]}, "both 'chosen' and 'completions'"),
    ],
)
def test_what_is_no_pair_is_refused(record, message):
    with pytest.raises(ValueError, match="^f:1: ") as error:
        read_record(record, "f:1")
    assert message in str(error.value)
