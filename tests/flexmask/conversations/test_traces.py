"""Logs, trajectories and rollouts, as the software that makes them writes them -> the calls that they were made of."""

import copy
import json

import numpy as np
import pytest
import torch
import traces
from factories import chatml_tokenizer, tiny_qwen3
from records import CALLING_TEMPLATE
from reference import gradients, per_turn_loss, worst_gradient_difference

from flexmask import Role, lay_out, pack, prepare_model, read_record, token_losses
from flexmask.conversations.model_calls import joined
from flexmask.text.calls import render_calls

TOKENIZER = chatml_tokenizer()
END, CLOSE = TOKENIZER.convert_tokens_to_ids(["<|im_end|>", "</think>"])
CANONICAL = {"tools": [traces.TOOL], "calls": [
    {"prompt": [{"role": "system", "content": "be brief"}, traces.QUESTION], "completion": traces.CALLING},
    {"prompt": [{"role": "system", "content": "be brief"}, traces.QUESTION, traces.CALLING, traces.RESULT],
     "completion": traces.ANSWER},
]}  # fmt: skip


def said(calls):
    """What calls say, their names apart."""
    one = [(call.conversation, call.prompt_ids, call.completion_ids, call.weight) for call in calls.calls]
    return [((c.messages, c.tools, c.template_kwargs) if c else None, *others) for c, *others in one]


def ids(calls):
    masks = [call.completion_mask or (True,) * len(call.completion_ids) for call in calls.calls]
    return [(call.prompt_ids, call.completion_ids, mask) for call, mask in zip(calls.calls, masks, strict=True)]


# ---- masks within a completion ----


# Breaks if what a tool said within a completion is trained, if the thought of a later answer is taken for that of the
# first, or if a token behind the model's last one ends turns.
def test_what_the_mask_leaves_out_is_context():
    record = {"calls": [{"prompt": [1, 5], "completion": [7, CLOSE, 8, END, 30, CLOSE, 9, CLOSE, 8, END],
                         "completion_mask": [1, 1, 1, 1, 0, 0, 1, 1, 1, 1], "weight": 2}]}  # fmt: skip
    (one,) = render_calls(read_record(record, "x"), TOKENIZER, thinking_weight=0.5).passes
    thinking, answer, context = Role.THINKING, Role.ANSWER, Role.PROMPT
    turn = [thinking] * 2 + [answer] * 2
    assert one.roles.tolist() == [context, context, *turn, context, context, *turn]
    assert one.loss_weights.tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2] and one.ends
    record["calls"][0]["completion_mask"] = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    (cut,) = render_calls(read_record(record, "x"), TOKENIZER).passes
    assert not cut.ends and cut.loss_weights.tolist() == [0, 0, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0]
    record["calls"][0]["completion_mask"] = [0] * 10
    assert render_calls(read_record(record, "x"), TOKENIZER).passes == []


# Two rollouts of one prompt, tools' results inside. Breaks if masked tokens weigh in the tree otherwise than alone.
def test_masked_calls_are_exact_on_one_tree():
    calls = [{"prompt": [5, 6, 7], "completion": [8, 9, 30, 31, 10, END], "completion_mask": [1, 1, 0, 0, 1, 1]},
             {"prompt": [5, 6, 7], "completion": [8, 9, 30, 32, 11, END], "completion_mask": [1, 1, 0, 0, 1, 1]},
             {"prompt": [5, 6, 7, 8, 9, 30, 31], "completion": [10, END], "weight": 0.5}]  # fmt: skip
    passes = render_calls(read_record({"calls": calls}, "x"), TOKENIZER).passes
    (row,) = lay_out(passes, "one_pass", None).rows
    assert len(row) == 3 + 6 + 3 and row.loss_weights.sum() == 4 + 4 + 1
    model = tiny_qwen3(len(TOKENIZER), torch.float64)
    expected = per_turn_loss(model, passes)
    theirs = gradients(model, expected)
    prepare_model(model)
    mine = sum(token_losses(model, one, 16).total for one in pack([row], 256))
    assert abs(mine.item() / expected.item() - 1) < 1e-10
    assert worst_gradient_difference(theirs, gradients(model, mine)) < 1e-10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            {"completion": [7], "completion_mask": [1, 0]},
            r"'completion_mask' is \[1, 0\] .*one for each of the 1 token",
        ),
        ({"completion": [7, 8], "completion_mask": [1, 0.5]}, "'completion_mask' holds 0.5 .*; give 1 where the model"),
        ({"completion": [7], "completion_mask": 1}, "'completion_mask' is 1"),
        ({"prompt": [traces.QUESTION], "completion": traces.ANSWER, "completion_mask": [1]}, "stands beside a message"),
    ],
)
def test_what_is_no_mask_is_refused(call, message):
    with pytest.raises(ValueError, match=f"x: call 0: .*{message}"):
        read_record({"calls": [{"prompt": [1], **call}]}, "x")


# ---- rollouts ----

ROLLOUT = [((1, 5, 9), (7, 8, 30, 31, 9, 2), (True, True, False, False, True, True))]


@pytest.mark.parametrize(
    ("record", "unread"),
    [
        (traces.VERL, ("response_logprobs",)),
        (traces.TRL, ()),
        (traces.PRIME_RL, ("logprobs", "temperatures")),
        ({"input_ids": traces.PRIME_RL["token_ids"], "loss_mask": traces.PRIME_RL["mask"]}, ()),
        ({"prompt_token_ids": [1, 5, 9], "completion_ids": traces.TRL["completion_ids"], "prompt_mask": [1, 1, 1],
          "completion_mask": [1, 1, 0, 0, 1, 1], "messages": [traces.QUESTION, traces.RESULT]}, ()),
    ],
)  # fmt: skip
def test_token_ids_of_a_rollout_are_a_call(record, unread):
    found = read_record(record, "x.jsonl:3")
    assert ids(found) == ROLLOUT and found.format == "token ids of rollouts"
    assert found.unread == unread and [call.name for call in found.calls] == ["x.jsonl:3"]
    assert len(found.notes) == ("messages" in record)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            traces.VERL_DUMP,
            "a rollout dump of verl, whose text has lost the special tokens.* give prompt_ids, response",
        ),
        ({"token_ids": [1, 2], "mask": [1, 1]}, "the mask begins with 1, behind nothing"),
        ({"token_ids": [1, 2], "mask": [0, 0]}, "the mask is 0 everywhere"),
        ({"token_ids": [1, 2], "mask": [0]}, "give lists of one length"),
        ({"prompt_ids": [9, 1], "completion_ids": [2], "prompt_mask": [0, 1]}, "'prompt_mask' is .* padding; give"),
        ({"prompt_ids": [1], "prompt_token_ids": [2], "completion_ids": [2]}, "'prompt_ids' and .* differ; keep one"),
        # A completion with the tool's tokens in it, and nothing that says so: they would be trained.
        (
            {"prompt_ids": [1], "completion_ids": [2], "messages": [traces.RESULT]},
            "no mask says which .* give completi",
        ),
        ({"prompt_ids": [1]}, "'prompt_ids' are token ids, which are not read"),
    ],
)
def test_a_rollout_that_does_not_say_enough_is_refused(record, message):
    with pytest.raises(ValueError, match=f"^x: .*{message}"):
        read_record(record, "x")


def test_completions_that_trl_logs_are_a_prompt_with_its_completion():
    found = read_record(traces.TRL_COMPLETIONS, "x")
    assert found.format == "prompt and completion" and found.unread == ("step", "accuracy_reward", "advantage")


# ---- verifiers and prime-rl ----


# Breaks if a node is trained in each branch that it is part of, or behind another history than its path.
def test_a_graph_of_messages_is_a_call_a_sampled_node():
    found = read_record(traces.episode_of_verifiers(), "x")
    assert ids(found) == [
        ((1, 5, 9, 10), (7, 8), (True, True)),
        ((1, 5, 9, 10, 7, 8, 30, 31, 10), (9, 2), (True, True)),
        ((1, 5, 9, 40, 41, 10), (11, 2), (True, True)),
    ]
    assert found.format == "verifiers traces" and found.unread == found.notes == ()
    assert [call.name for call in found.calls][1] == "x: call 1 (trace 0, node 3)"
    (row,) = lay_out(render_calls(found, TOKENIZER).passes, "one_pass", None).rows
    assert len(row) == 3 + 3 + 2 + 3 + 2 + 3 and row.loss_weights.sum() == 6
    alone = read_record(traces.episode_of_verifiers()["traces"][0], "x")
    assert ids(alone) == ids(found) and alone.unread == ()


def test_a_trace_without_token_ids_is_calls_of_messages():
    record = traces.episode_of_verifiers(ok=False, calls=[{"node": 3, "finish_reason": "length"}])
    for node in record["traces"][0]["nodes"]:
        node.update(token_ids=[], mask=[])
    flat = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
    record["traces"][0]["nodes"][0]["tools"] = [{"type": "function", **flat}]
    record["traces"][0]["nodes"][1]["message"]["tool_calls"] = [{"id": "c1", "name": "add", "arguments": "{}"}]
    record["traces"][0]["nodes"][3]["advantages"] = [0.5]
    found = read_record(record, "x")
    last = found.calls[1].conversation
    assert [one["role"] for one in last.messages] == ["user", "assistant", "tool", "assistant"]
    assert last.messages[1]["weight"] == 0 and last.tools == ({"type": "function", "function": flat},)
    assert found.unread == ("nodes.advantages",)
    assert any("did not end well" in note for note in found.notes) and any("cut off" in note for note in found.notes)


# Breaks if a compaction that the harness gave up is trained, or is left out without a word.
def test_what_prime_rl_does_not_train_is_left_out_and_said():
    record = traces.episode_of_verifiers()
    nodes = record["traces"][0]["nodes"]
    nodes[5]["semantic_parents"] = [{"node": 1, "type": "compaction_attempt"}]
    found = read_record(record, "x")
    assert [call.completion_ids for call in found.calls] == [(7, 8), (9, 2)] and "left out" in found.notes[0]
    nodes[3]["semantic_parents"] = [{"node": 5, "type": "compaction"}]
    assert len(read_record(record, "x").calls) == 3
    record["traces"][0]["agent"]["trainable"] = False
    with pytest.raises(ValueError, match="x: no trace has an answer of a model that is trained"):
        read_record(record, "x")


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (2, {"token_ids": []}, "trace 0: node 3: a node of its path has token_ids"),
        (2, {"mask": [False]}, "trace 0: node 3: a node of its path has token_ids"),
        (1, {"parent": 4}, "trace 0: node 1 has the parent 4 .*, which is no node before it"),
        (
            0,
            {"message": {"role": "user", "content": [{"type": "image_url"}]}},
            "trace 0: node 1: content part .* is not text",
        ),
    ],
)
def test_a_graph_that_does_not_hold_together_is_refused(number, change, message):
    record = traces.episode_of_verifiers()
    record["traces"][0]["nodes"][number].update(change)
    with pytest.raises(ValueError, match=f"^x: {message}"):
        read_record(record, "x")


def test_the_trajectory_of_older_verifiers_is_a_call_a_step():
    without = traces.STEP | {"tokens": None}
    found = read_record({"trajectory": [traces.STEP, without], "prompt": [traces.QUESTION], "completion": [{}]}, "x")
    assert found.calls[0].completion_ids == (7, 2) and found.calls[1].conversation.messages[-1]["content"] == "seven"
    assert found.unread == ("trajectory.reward", "trajectory.tokens.completion_logprobs")
    assert found.format == "verifiers traces"


# ---- logs of requests ----


def test_a_log_is_the_calls_that_it_is_made_of():
    lines = [
        traces.logged(call["prompt"], call["completion"], session_id="s", latency_ms=3) for call in CANONICAL["calls"]
    ]  # fmt: skip
    found = [read_record(one, f"log.jsonl:{i}") for i, one in enumerate(lines, start=1)]
    expected = said(read_record(CANONICAL, "x"))
    assert said(joined(found)) == expected
    assert [call.name for call in joined(found).calls] == ["log.jsonl:1", "log.jsonl:2"]
    assert {one.episode for one in found} == {"session_id=s"} and found[0].unread == ("latency_ms",)
    as_text = {f"{key}_body": json.dumps(lines[0][key]) for key in ("request", "response")}
    within = {key: {"body": lines[0][key]} for key in ("request", "response")}
    in_one = {**lines[0]["request"], "choices": lines[0]["response"]["choices"], "metadata": {"episode_id": 4}}
    for one in (as_text, within, in_one):
        assert said(read_record(one, "x")) == expected[:1] and read_record(one, "x").unread == ()
    assert read_record(in_one, "x").episode == "episode_id=4"


def test_each_choice_is_a_call():
    line = traces.logged([traces.QUESTION], traces.ANSWER)
    line["response"]["choices"].append({"index": 1, "message": {"role": "assistant", "content": "8"}})
    found = read_record(line, "x")
    assert [call.conversation.messages[-1]["content"] for call in found.calls] == ["seven", "8"]
    assert [call.name for call in found.calls] == ["x: call 0", "x: call 1"]


def test_the_responses_and_the_messages_api_are_logged_likewise():
    expected = said(read_record({"calls": [{"prompt": [{"role": "system", "content": "be brief"}, traces.QUESTION],
                                            "completion": traces.CALLING}]}, "x"))  # fmt: skip
    responses = {
        "request": {"instructions": "be brief", "input": "add 3 and 4", "max_output_tokens": 9, "reasoning": {}},
        "response": {"object": "response", "status": "completed", "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "ask"}]},
            {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 3, "b": 4}'}]},
    }  # fmt: skip
    messages = {
        "request": {"system": "be brief", "messages": [traces.QUESTION], "thinking": {"type": "enabled"}},
        "response": {"type": "message", "role": "assistant", "stop_reason": "tool_use", "content": [
            {"type": "thinking", "thinking": "ask", "signature": "s"},
            {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 3, "b": 4}}]},
    }  # fmt: skip
    for one in (responses, messages):
        assert said(read_record(one, "x")) == expected and read_record(one, "x").unread == ()
    responses["request"]["reasoning"] = {"effort": "high"}
    assert read_record(responses, "x").calls[0].conversation.template_kwargs == {"reasoning_effort": "high"}


# Breaks if the ids that a server gave are left aside for a text that is tokenized anew.
def test_token_ids_of_a_server_are_taken_as_they_are():
    line = traces.logged([traces.QUESTION], traces.ANSWER)
    line["response"] |= {"prompt_token_ids": [1, 5]}
    line["response"]["choices"][0]["token_ids"] = [7, 2]
    found = read_record(line, "x")
    assert ids(found) == [((1, 5), (7, 2), (True, True))] and "the ids are what the model was given" in found.notes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"response": {"error": {"message": "busy"}}},
            "the response holds no answer, but the error .*busy.*; remove the record",
        ),
        ({"response": None}, "'response' is None .*, not an object"),
        ({"response": {"choices": [{"text": "a"}]}}, "a choice is .*, without a message"),
        ({"request": {"model": "m"}}, "the request has no 'messages' .*model"),
        ({"request": {"messages": [1], "input": [1]}}, "the request has both 'messages' and 'input'"),
        ({"request": {"messages": [{"role": "users", "content": "a"}]}}, "message 0: unknown role 'users'"),
        ({"session_id": [1]}, r"'session_id' is \[1\] .*; the id of an episode is text"),
    ],
)
def test_a_line_that_is_no_call_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=f"^log.jsonl:7: .*{message}|^{message}"):
        read_record(traces.logged([traces.QUESTION], traces.ANSWER) | change, "log.jsonl:7")


def test_unknown_keys_of_a_request_and_a_response_are_named():
    line = traces.logged([traces.QUESTION], traces.ANSWER)
    line["request"]["templ"], line["response"]["answr"] = 1, 2
    assert read_record(line, "x").unread == ("request.templ", "response.answr")


# ---- messages and answer ----


# Breaks if the greeting, which stands among what the model was given, is trained in place of the answer, or if lines of
# a dialog are trained otherwise than the calls that they are.
def test_an_answer_beside_the_messages_is_what_is_trained():
    lines = traces.turns_of_dialog("d1")
    found = [read_record(one, f"t:{i}", episode_key="metadata.source_dialog_id") for i, one in enumerate(lines, 1)]
    canonical = [{"prompt": one["messages"], "completion": one["answer"]} for one in lines]
    assert said(joined(found)) == said(read_record({"calls": canonical}, "x"))
    assert [call.name for call in joined(found).calls] == ["t:1", "t:2"]
    assert {(one.episode, one.format, one.unread) for one in found} == {
        ("metadata.source_dialog_id=d1", "messages and answer", ())
    }
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = CALLING_TEMPLATE
    passes = render_calls(joined(found), tokenizer).passes
    trained = [tokenizer.decode(one.input_ids[one.loss_weights > 0]) for one in passes]
    assert trained == ['<think>\nask\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": 4}}\n'
                       "</tool_call><|im_end|>", "<think>\nadd them\n</think>\n\nseven<|im_end|>"]  # fmt: skip


SAID = {"role": "assistant", "content": "seven"}
GREETED = [traces.QUESTION, {"role": "assistant", "content": "of what?"}, {"role": "user", "content": "of tens"}]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": GREETED, "completion": SAID},
        {"messages": GREETED, "response": {"content": "seven"}},
        {"messages": GREETED, "output": [SAID]},
        {"messages": json.dumps(GREETED), "answer": SAID, "completion": None},
        {"conversations": [{"from": "human", "value": "add 3 and 4"}, {"from": "gpt", "value": "of what?"},
                           {"from": "human", "value": "of tens"}], "answer": SAID},
    ],
)  # fmt: skip
def test_an_answer_has_several_names(record):
    found = read_record(record, "x")
    assert said(found) == said(read_record({"calls": [{"prompt": GREETED, "completion": SAID}]}, "x"))
    assert found.unread == () and "calls without the id of an episode" in found.notes[0]


# Calls of a line each are joined by the keys that logs have. Breaks if turns of a dialog come to stand on both sides of
# the held-out split though their lines name it.
def test_the_id_of_a_dialog_is_looked_for():
    record = {"messages": GREETED, "answer": SAID, "metadata": {"conversation_id": 7}}
    assert read_record(record, "x").episode == "conversation_id=7"
    assert read_record(record, "x", episode_key=None).episode is None


@pytest.mark.parametrize("key", ["answer", "completion", "label", "result", "extra_info", "best_model"])
@pytest.mark.parametrize("held", ["seven", SAID, [traces.QUESTION, SAID]])
@pytest.mark.parametrize("messages", [GREETED, GREETED[:2], [*GREETED[:2], traces.RESULT]])
def test_no_answer_is_lost_whatever_its_key_is_called(key, held, messages):
    """Breaks if an answer vanishes because its key describes conversations elsewhere, or if the history is trained
    without a word in place of it."""
    try:
        found = read_record({"messages": messages, key: held}, "x")
    except ValueError as error:
        assert messages is not GREETED[:2] and f"{key!r} beside the messages is" in str(error)
        return
    if found.format == "messages and answer":
        assert found.calls[0].conversation.messages[-1] == SAID
    else:
        describing = held == "seven" and key in ("extra_info", "best_model")
        assert found.unread == (() if describing else (key,)) and found.messages[1]["content"] == "of what?"
        assert messages == GREETED[:2] or isinstance(held, str) and key not in ("answer", "completion")


# Real sets of problems have the number that is right beside a whole conversation. Breaks if they are refused.
@pytest.mark.parametrize("key", ["answer", "response", "ground_truth", "expected_answer", "solution"])
def test_what_stands_beside_a_whole_conversation_is_named(key):
    found = read_record({"messages": [traces.QUESTION, SAID], key: "7", "id": 3}, "x")
    assert found.unread == (key,) and found.format == "chat messages" and found.notes == ()


# ---- ATIF ----


def test_a_trajectory_is_a_call_a_step_of_the_agent():
    found = read_record(traces.TRAJECTORIES["plain"], "x")
    assert said(found) == said(read_record(CANONICAL, "x")) and found.format == "ATIF trajectories"
    assert found.unread == found.notes == ()
    assert [call.name for call in found.calls] == ["x: call 0 (step 3)", "x: call 1 (step 4)"]


def last(kind):
    """(messages of the last call's prompt, that call, notes)."""
    found = read_record(traces.TRAJECTORIES[kind], "x")
    conversation = found.calls[-1].conversation
    messages = conversation and [(one["role"], one["content"]) for one in conversation.messages[:-1]]
    return messages, found.calls[-1], " ".join(found.notes)


# Breaks if a summary that the agent wrote in the step that replaced the context is not trained, or is trained behind
# the history that it left; and if a step in which no model was called becomes a call.
def test_what_the_agent_wrote_in_a_step_that_replaced_the_context_is_a_call():
    asked, written = {"source": "user", "message": "sum up"}, traces.SUMMARY | {"source": "agent"}
    found = read_record(traces.atif(*traces.more(asked, written | {"message": "7, so far"}, traces.LATER)), "x")
    *_, summary, later = found.calls
    *before, said = summary.conversation.messages
    assert (before[-1]["content"], said["content"]) == ("sum up", "7, so far")
    assert [one["content"] for one in later.conversation.messages] == ["so far 7", "add"]
    sampled = {"message": "", "metrics": {"prompt_token_ids": [1, 5], "completion_token_ids": [7, 8]}}
    found = read_record(traces.atif(*traces.more(written | sampled, traces.LATER)), "x")
    assert found.calls[-2].completion_ids == (7, 8)
    for nothing in ({"message": ""}, {"message": "compacted", "llm_call_count": 0}):
        assert len(read_record(traces.atif(*traces.more(written | nothing, traces.LATER)), "x").calls) == 3


# Breaks if log-probabilities and rewards that nobody reads vanish without a word, at any depth of a trace.
@pytest.mark.parametrize(
    ("record", "named"),
    [
        (traces.TRAJECTORIES["token ids"], {"steps.metrics.logprobs"}),
        (traces.episode_of_verifiers(rewards={"right": 1.0}), {"traces.rewards"}),
        ({"trajectory": [traces.STEP]}, {"trajectory.reward", "trajectory.tokens.completion_logprobs"}),
        (
            {"messages": [traces.QUESTION], "choices": [{"message": traces.ANSWER, "logprobs": {"content": [1]}}]},
            {"response.choices.logprobs"},
        ),
    ],
)
def test_what_a_trace_says_of_its_samples_is_named(record, named):
    assert named <= set(read_record(record, "x").unread)


# Breaks if a call behind a compaction is given what the compaction took away, which is what it would be trained on.
def test_a_compaction_begins_the_history_anew():
    messages, _, notes = last("compaction")
    assert messages == [("user", "so far 7")] and "behind a step that replaced the context" in notes
    messages, _, notes = last("copied")
    assert messages == [("user", "so far")] and "is_copied_context" in notes
    for change, message in (
        ({"observation": None}, "step 7: what the model was given is not stated: step 6 replaced the context"),
        (
            {"extra": {"context_management": {"boundary": "append"}}},
            "step 7: .* step 6 changed the context in a way that is not",
        ),
    ):
        with pytest.raises(ValueError, match=f"^x: .*{message}"):
            read_record(traces.atif(*traces.more(traces.SUMMARY | change, traces.LATER)), "x")


def test_token_ids_of_metrics_are_taken_whatever_the_history():
    _, call, _ = last("token ids")
    assert (call.prompt_ids, call.completion_ids, call.name) == ((1, 5), (7, 8), "x: call 2 (step 7)")
    messages, call, _ = last("answer in token ids")
    assert messages[-1] == ("user", "so") and call.completion_ids == (7, 8)


def test_sub_agents_are_calls_of_the_same_record():
    messages, call, _ = last("sub-agent")
    assert messages == [("user", "so 3")] and call.name == "x: call 4 (sub-agent 'helper', step 2)"
    assert call.conversation.tools is None
    without = copy.deepcopy(traces.TRAJECTORIES["sub-agent"])
    del without["steps"][5]["observation"]["results"][0]["content"]
    with pytest.raises(
        ValueError, match="x: step 7: what the model was given is not stated: a result of step 6 has no"
    ):
        read_record(without, "x")
    without["subagent_trajectories"] = None
    with pytest.raises(ValueError, match="x: step 6: refers to the sub-agent 'helper', which is none of"):
        read_record(without, "x")
    without["steps"][5]["observation"]["results"][0] |= {
        "content": "3", "subagent_trajectory_ref": [{"trajectory_path": "helper.json"}]
    }  # fmt: skip
    assert any("in other files are records of their own" in note for note in read_record(without, "x").notes)


def test_only_what_a_call_of_the_model_made_is_trained():
    messages, _, notes = last("dispatched")
    assert messages[-2:] == [("assistant", "so"), ("user", "7")] and "llm_call_count 0" in notes
    several = read_record(traces.atif(*traces.more(traces.LATER | {"llm_call_count": 2})), "x")
    assert len(several.calls) == 2 and any("llm_call_count above 1" in note for note in several.notes)
    with pytest.raises(ValueError, match="x: no step of the trajectory is a call of the model that is trained"):
        read_record(traces.atif(*(one | {"is_copied_context": True} for one in traces.atif_steps())), "x")


def test_what_atif_leaves_open_is_said():
    steps = traces.atif_steps()
    del steps[2]["observation"]["results"][0]["source_call_id"]
    steps[3]["reasoning_effort"] = 0.5
    notes = " ".join(read_record(traces.atif(*steps), "x").notes)
    assert "belong to no tool call" in notes and "no observation states" in notes and "that is a number" in notes
    steps[3]["reasoning_effort"] = "low"
    found = read_record(traces.atif(*steps, extra={}, continued_trajectory_ref="b.json"), "x")
    assert found.calls[1].conversation.template_kwargs == {"reasoning_effort": "low"}
    assert any("continuations in other files" in note for note in found.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": "ATIF-v2.0"}, "'schema_version' is 'ATIF-v2.0' .*; trajectories of ATIF-v1.0 to v1.8"),
        ({"steps": []}, r"'steps' is \[\] .*, no step; remove"),
        ({"agent": 3}, "'agent' is 3 .*, not an object"),
        ({"steps": traces.atif_steps()[1:]}, "step 1 has the step_id 2 .*, so steps are missing"),
        ({"steps": [{"step_id": 1, "source": "model", "message": "a"}]}, "step 1: 'source' is 'model'"),
        ({"steps": [*traces.atif_steps(), traces.LATER]}, "step 5: the agent's message before it is followed by noth"),
        ({"steps": [{"step_id": 1, "source": "agent", "message": "a"}]}, "step 1: what .*: no step stands before it"),
        ({"steps": [{"step_id": 1, "source": "user", "message": [{"type": "image", "source": {}}]}]},
         "step 1: content part .* is not text"),
    ],
)  # fmt: skip
def test_a_trajectory_that_cannot_be_read_is_refused_by_step(change, message):
    with pytest.raises(ValueError, match=f"^x: {message}"):
        read_record(traces.atif() | change, "x")


def test_unknown_keys_of_a_trajectory_are_named():
    steps = traces.atif_steps()
    steps[0]["mesage"] = "a"
    steps[2]["tool_calls"][0]["timeout"] = 3
    steps[2]["observation"]["results"][0]["exit_code"] = 0
    found = read_record(traces.atif(*steps, agents=[1]), "x")
    assert found.unread == ("agents", "steps.mesage", "steps.tool_calls.timeout", "steps.observation.exit_code")


# ---- all of them ----


# Breaks if an answer that is sampled and has no token of the model vanishes without a word.
def test_a_node_without_a_token_of_the_model_is_named():
    asked = traces.node("user", "q", [1, 2], [False, False], None)
    masked = traces.node("assistant", "a", [3], [False], 0) | {"sampled": True}
    other = traces.node("assistant", "b", [4], [True], 0) | {"sampled": True}
    read = read_record({"traces": [{"nodes": [asked, masked, other]}]}, "x")
    assert len(read.calls) == 1 and any("no token is the model's" in note for note in read.notes)


def test_what_a_request_says_of_reasoning_and_nothing_reads_is_named():
    request = {"messages": [traces.QUESTION], "reasoning": {"effort": "high", "summary": "auto", "style": "x"}}
    record = {"request": request, "response": {"choices": [{"message": traces.ANSWER}]}}
    assert read_record(record, "x").unread == ("request.reasoning.style",)


@pytest.mark.parametrize(
    "record",
    [*traces.TRAJECTORIES.values(), traces.VERL, traces.TRL, traces.PRIME_RL, traces.episode_of_verifiers(),
     traces.logged([traces.QUESTION], traces.CALLING), {"trajectory": [traces.STEP]}, *traces.turns_of_dialog("d")],
)  # fmt: skip
def test_every_trace_is_trained_and_left_as_it_was(record):
    before, tokenizer = copy.deepcopy(record), copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = CALLING_TEMPLATE
    calls = read_record(record, "x")
    assert record == before
    passes = render_calls(calls, tokenizer).passes
    assert len(passes) == len(calls.calls) and all(one.is_trained for one in passes)
    assert all(np.all(one.loss_weights[: one.prompt_length] == 0) for one in passes)
