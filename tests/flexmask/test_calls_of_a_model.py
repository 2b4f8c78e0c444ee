"""Calls of a model as training data: histories that change between calls, messages and token ids, exact on one tree."""

import random

import numpy as np
import pytest
import torch
from factories import WORDS, chatml_tokenizer, random_conversation, tiny_qwen3
from reference import distinct_prefixes, gradients, per_turn_loss, worst_gradient_difference

from flexmask import (
    Calls,
    Conversation,
    OnePassConfig,
    OnePassTrainer,
    Role,
    lay_out,
    pack,
    prepare_conversation,
    prepare_model,
    read_record,
    render_passes,
    token_losses,
)
from flexmask.text.calls import render_calls

TOKENIZER = chatml_tokenizer()
END, CLOSE = TOKENIZER.convert_tokens_to_ids(["<|im_end|>", "</think>"])


def words(rng, most):
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def episode(seed):
    """A record of an agent whose harness shows the last two observations and, from the sixth call on, a summary that
    the model wrote."""
    rng = random.Random(seed)
    system, task = ({"role": role, "content": words(rng, 8)} for role in ("system", "user"))
    steps, calls = [], []
    for number in range(8):
        shown = [one if i >= len(steps) - 2 else (one[0], {"role": "user", "content": "cleared"}) for i, one in
                 enumerate(steps)]  # fmt: skip
        prompt = [system, task, *(message for one in shown for message in one)]
        if number >= 5:
            prompt = [system, {"role": "user", "content": f"so far {calls[4]['completion']['content']}"}, *prompt[12:]]
        answer = {"role": "assistant", "content": words(rng, 6), "reasoning_content": words(rng, 9)}
        calls.append({"prompt": prompt, "completion": answer, "weight": rng.choice([1, 0.5, 1])})
        seen = {key: value for key, value in answer.items() if key != "reasoning_content"}
        steps.append((seen, {"role": "user", "content": words(rng, 12)}))
    return {"calls": calls}


def with_ids(record, seed):
    """The record with some calls as token ids: prompt and answer, or the answer alone."""
    rng, made = random.Random(seed), []
    for call in record["calls"]:
        (one,) = render_calls(read_record({"calls": [call]}, "one"), TOKENIZER).passes
        ids = {"prompt": one.input_ids[: one.prompt_length].tolist()} if rng.random() < 0.5 else {}
        of_answer = {"completion": one.input_ids[one.prompt_length :].tolist()}
        made.append(call if rng.random() < 0.7 else call | ids | of_answer)
    return {"calls": made}


# Breaks if a call is trained behind another history than its own, a token is computed twice, or a weight is lost.
@pytest.mark.parametrize("pack_length", [None, 256])
@pytest.mark.parametrize("seed", range(4))
def test_one_pass_over_calls_is_each_call_alone(seed, pack_length):
    record = with_ids(episode(seed), seed)
    calls = read_record(record, "episode")
    passes = render_calls(calls, TOKENIZER).passes
    assert [one.turn for one in passes] == list(range(8))
    rows = lay_out(passes, "one_pass", pack_length).rows
    if pack_length is None:
        assert sum(map(len, rows)) == distinct_prefixes(passes) < sum(map(len, passes))
    else:
        assert len(rows) > 1
    model = tiny_qwen3(len(TOKENIZER), torch.float64)
    expected = per_turn_loss(model, passes)
    theirs = gradients(model, expected)
    prepare_model(model)
    mine = sum(token_losses(model, one, 16).total for one in pack(rows, 2048))
    assert abs(mine.item() / expected.item() - 1) < 1e-10
    assert worst_gradient_difference(theirs, gradients(model, mine)) < 1e-10


# Breaks if the calls of a conversation are not its turns: the reader of calls would then have a rendering of its own.
@pytest.mark.parametrize("seed", range(6))
def test_calls_that_only_go_on_are_a_conversation(seed):
    conversation = random_conversation(seed)
    calls = [
        {"prompt": list(conversation.messages[:i]), "completion": message}
        for i, message in enumerate(conversation.messages)
        if message["role"] == "assistant"
    ]
    found = render_calls(read_record({"calls": calls}, conversation.name), TOKENIZER).passes
    for one, turn in zip(found, render_passes(conversation, TOKENIZER), strict=True):
        assert (one.name, one.turn, one.prompt_length) == (turn.name, turn.turn, turn.prompt_length)
        for name in ("input_ids", "roles", "loss_weights"):
            np.testing.assert_array_equal(getattr(one, name), getattr(turn, name))


# What a sampler gave is often not how its text is tokenized. Breaks if ids go through text.
def test_token_ids_are_trained_as_they_are():
    letters = TOKENIZER.convert_tokens_to_ids(["a", "d", "d"])  # of "add", which has a token of its own
    assert TOKENIZER("add", add_special_tokens=False).input_ids != letters
    record = {"calls": [{"prompt": [1, 5, 9], "completion": [*letters, CLOSE, *letters, END], "weight": 2}]}
    (one,) = render_calls(read_record(record, "ids"), TOKENIZER, thinking_weight=0.5).passes
    assert one.input_ids.tolist() == [1, 5, 9, *letters, CLOSE, *letters, END]
    assert one.roles.tolist() == [Role.PROMPT] * 3 + [Role.THINKING] * 4 + [Role.ANSWER] * 4
    assert one.loss_weights.tolist() == [0] * 3 + [1] * 4 + [2] * 4


# Breaks if the last token of an answer that was cut off is taken for one that ends turns: the model would stop there.
def test_an_answer_that_was_cut_off_ends_nothing():
    calls = [{"prompt": [1, 5], "completion": [7, END]}, {"prompt": [1, 6], "completion": [8, 9]}]
    assert prepare_conversation(read_record({"calls": calls}, "cut"), TOKENIZER).ends == (END,)


# Two agents take turns, and each has a long context of its own. Breaks if calls share a pack by their time only.
def test_calls_that_begin_alike_share_a_pack():
    rng = random.Random(0)
    contexts = [words(rng, 40), words(rng, 40)]
    histories, calls = [[], []], []
    for number in range(8):
        agent = number % 2
        prompt = [{"role": "system", "content": contexts[agent]}, *histories[agent], {"role": "user", "content": "go"}]
        answer = {"role": "assistant", "content": words(rng, 8)}
        calls.append({"prompt": prompt, "completion": answer})
        histories[agent] = [*prompt[1:], answer]
    passes = render_calls(read_record({"calls": calls}, "agents"), TOKENIZER).passes
    least = distinct_prefixes(passes)
    rows = lay_out(passes, "one_pass", least * 2 // 3).rows
    assert len(rows) == 2 and sum(map(len, rows)) <= least + 10  # what both agents begin with
    assert sorted(turn for row in rows for turn in row.turns) == list(range(8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            {"completion": {"role": "assistant", "content": "a"}},
            r"record: call 0: no 'prompt' \(found \['completion'\]\)",
        ),
        ({"prompt": [1, 2]}, "no 'completion'"),
        ({"prompt": "2 + 2", "completion": [1]}, "'prompt' is '2 . 2' .*; give a list of messages, or token"),
        ({"prompt": [1, 2], "completion": {"content": "a"}}, "whose tokens would be a guess; give its token ids too"),
        ({"prompt": [1, 2.5], "completion": [1]}, "'prompt' holds 2.5 .* among token ids"),
        ({"prompt": [1, -2], "completion": [1]}, "'prompt' holds -2 .* among token ids"),
        ({"prompt": [1], "completion": []}, "'completion' is empty"),
        ({"prompt": [1], "completion": [1], "tools": []}, "'tools' beside token ids"),
        ({"prompt": [1], "completion": [1], "weight": -1}, "'weight'"),
        ({"prompt": [1], "completion": [1], "train": "no"}, "'train' is 'no' .*; write true or false"),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": {"role": "user", "content": "b"}}, "role 'user'"),
        ({"prompt": [{"role": "users", "content": "a"}], "completion": {"content": "b"}}, "call 0: message 0: unknown"),
        ({"prompt": [1], "messages": [1], "completion": [1]}, "both 'prompt' and 'messages'; keep one"),
    ],
)
def test_what_is_no_call_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        read_record({"calls": [call]}, "record")


def test_what_cannot_be_rendered_is_refused_by_name():
    calls = read_record({"calls": [{"prompt": [1], "completion": [10**6]}]}, "record")
    with pytest.raises(ValueError, match=r"record: call 0: token 1,000,000 is none of the tokenizer"):
        render_calls(calls, TOKENIZER)
    with pytest.raises(ValueError, match="keep_thinking.* is for conversations .*, and this has calls"):
        prepare_conversation(calls, TOKENIZER, layout="keep_thinking")


# Breaks if what servers log is another thing than the calls that it is made of, or a key is lost without a word.
def test_logs_of_a_server_are_calls():
    prompt, answer = [{"role": "user", "content": "add"}], {"role": "assistant", "content": "b"}
    choice = {"index": 0, "message": answer, "finish_reason": "length"}
    logged = {"messages": prompt, "choices": [choice], "temprature": 1}
    found = read_record({"calls": [logged], "id": 7, "sorce": "x"}, "log")
    assert isinstance(found, Calls) and found.unread == ("sorce", "temprature")
    assert len(found.notes) == 1 and "cut off" in found.notes[0]
    assert found.calls == read_record({"calls": [{"prompt": prompt, "completion": answer}]}, "log").calls
    assert isinstance(read_record({"messages": [*prompt, answer]}, "chat"), Conversation)


# The road of a library's user: records of calls beside conversations, to a model whose loss of them falls.
def test_a_trainer_takes_records_of_calls(tmp_path):
    records = [episode(seed) for seed in range(4)] + [{"messages": list(random_conversation(3).messages)}]
    arguments = OnePassConfig(
        str(tmp_path), max_steps=12, learning_rate=1e-2, pack_length=2048, per_device_train_batch_size=5, use_cpu=True,
        save_strategy="no", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    model = tiny_qwen3(len(TOKENIZER), torch.float32)
    trainer = OnePassTrainer(model, arguments, train_dataset=records, processing_class=TOKENIZER)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2


# Breaks if an answer in token ids is prepared where nothing is: a conversation has no passes then.
def test_without_a_weight_there_are_no_passes():
    calls = [{"prompt": [{"role": "user", "content": "add"}], "completion": ids} for ids in ([7, END], [8, END])]
    named = read_record({"calls": [calls[0] | {"name": "first"}, *calls[1:]]}, "record")
    assert render_calls(named, TOKENIZER, thinking_weight=0, answer_weight=0).passes == []
    assert [call.name for call in named.calls] == ["record: call 0 (first)", "record: call 1"]


# Breaks if a system text beside the calls is not shown to them, or what cannot be shown is left out.
def test_what_stands_beside_calls_is_that_of_each():
    def calls(number, **beside):
        one = {"prompt": [{"role": "user", "content": "add"}], "completion": {"content": "b"}}
        return read_record({"calls": [one] * number, **beside}, "x")

    found = calls(2, system="be brief", reasoning="off")
    assert [call.conversation.messages[0]["content"] for call in found.calls] == ["be brief"] * 2
    assert [call.conversation.thinks for call in found.calls] == [False] * 2 and found.unread == ()
    with pytest.raises(ValueError, match="x: call 0: 'documents' beside the messages is not supported; remove it"):
        calls(1, documents=[{"text": "a"}])


# A Trainer joins nothing. Breaks if it says that it does.
def test_a_trainer_says_nothing_of_episodes(tmp_path, recwarn):
    logged = {"messages": [{"role": "user", "content": "add"}], "choices": [{"message": {"content": "b"}}]}
    OnePassTrainer(
        tiny_qwen3(len(TOKENIZER), torch.float32),
        OnePassConfig(str(tmp_path), max_steps=1, use_cpu=True),
        train_dataset=[logged | {"session_id": "a"}, logged],
        processing_class=TOKENIZER,
    )
    assert not [one for one in recwarn if "episode" in str(one.message) or "one record" in str(one.message)]
