"""The loop of call, result and next question: a scripted model acts in an environment, rightly and wrongly."""

import pytest
from scripted import TOKENIZER, Scripted

from flexmask.conversations.conversation import Conversation
from recipes.evaluation.chat import chat
from recipes.evaluation.environments import MOST_CALLS, act
from recipes.evaluation.replies import figures


def call(thing):
    return {"type": "function", "function": {"name": "count", "arguments": {"thing": thing}}}


def text_of(thing):
    return f'<tool_call>\n{{"name": "count", "arguments": {{"thing": "{thing}"}}}}\n</tool_call><|im_end|>'


EPISODE = Conversation(
    "test:1",
    (
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "", "tool_calls": [call("pens")]},
        {"role": "tool", "content": "pens 3"},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": "done 3"},
    ),
)


class Counting:
    """Counts pens and coins; the task is done by an answer with a 3."""

    def __init__(self, conversation):
        self.name = conversation.name

    def call(self, name, arguments):
        counts = {"pens": 3, "coins": 5}
        if arguments.get("thing") not in counts:
            raise ValueError(f"no {arguments}")
        return f"{arguments['thing']} {counts[arguments['thing']]}"

    def succeeded(self, answer):
        return "3" in answer


def act_out(monkeypatch, *replies, episode=EPISODE, **settings):
    """What a model that gives these replies in turn makes of the episode, and the prompts that it was shown."""
    left = iter(replies)
    script = Scripted(lambda prompt: next(left))
    settings = {"environment": Counting, **settings}
    (result,) = chat(script.install(monkeypatch), TOKENIZER, [episode], max_new_tokens=200, batch_size=4, **settings)
    assert next(left, None) is None  # all of them were asked for
    return result, script.prompts


def test_calls_are_carried_out_and_results_go_back(monkeypatch):
    # Broken by showing the data's results or answers in place of the model's own.
    replies = (text_of("pens"), "three<|im_end|>", "done 3<|im_end|>")
    result, prompts = act_out(monkeypatch, *replies)
    assert result.succeeded and result.correct and [turn.turn for turn in result.turns] == [0, 1, 2]
    assert "<tool_response>\npens 3\n</tool_response>" in prompts[1] and "q2" not in prompts[1]
    assert prompts[2].endswith("three<|im_end|>\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n")


def test_a_wrong_call_has_its_own_result_and_may_still_end_well(monkeypatch):
    replies = (text_of("coins"), text_of("pens"), "three<|im_end|>", "done 3<|im_end|>")
    result, prompts = act_out(monkeypatch, *replies)
    assert "coins 5" in prompts[1] and "pens 3" in prompts[2]
    assert [turn.correct for turn in result.turns] == [False, False, True, True]
    assert result.succeeded and not result.correct


def test_an_answer_without_the_call_goes_on_to_the_next_question(monkeypatch):
    result, prompts = act_out(monkeypatch, "three<|im_end|>", "done 4<|im_end|>")
    assert [(turn.turn, turn.correct) for turn in result.turns] == [(0, False), (2, False)]
    assert "tool_response" not in prompts[1] and result.succeeded is False and not result.unasked


@pytest.mark.parametrize(
    "malformed", ['<tool_call>\n{"name": "count", "argum<|im_end|>', "<tool_call>[]x</tool_call><|im_end|>"]
)
def test_a_malformed_call_has_an_error_as_its_result(monkeypatch, malformed):
    # Broken by an exception, which would end an evaluation, or by taking the text as the answer to the question.
    result, prompts = act_out(monkeypatch, malformed, text_of("pens"), "three<|im_end|>", "done 3<|im_end|>")
    assert "<tool_response>\nerror: " in prompts[1] and "q2" not in prompts[1]
    assert [turn.correct for turn in result.turns] == [False, False, True, True] and result.succeeded


def test_a_call_that_cannot_be_carried_out_has_an_error_as_its_result(monkeypatch):
    result, prompts = act_out(monkeypatch, text_of("ships"), "three<|im_end|>", "done 3<|im_end|>")
    assert "error: no {'thing': 'ships'}" in prompts[1]
    assert [turn.correct for turn in result.turns] == [False, True, True]


def test_calls_without_end_are_ended(monkeypatch):
    # Broken by asking on: an evaluation would never return.
    with pytest.warns(UserWarning, match=f"2 turns were not asked: the model called tools {MOST_CALLS} times in a row"):
        result, _ = act_out(monkeypatch, *[text_of("pens")] * MOST_CALLS)
    assert result.succeeded is False and not result.correct


def test_a_last_answer_that_does_not_end_is_no_success(monkeypatch):
    result, _ = act_out(monkeypatch, text_of("pens"), "three<|im_end|>", "done 3")
    assert result.succeeded is False


def test_an_episode_that_ends_with_a_call_expects_no_more(monkeypatch):
    episode = Conversation("test:2", EPISODE.messages[:2])
    result, _ = act_out(monkeypatch, text_of("pens"), "done 3<|im_end|>", episode=episode)
    assert result.succeeded and [turn.correct for turn in result.turns] == [True, False]


def test_the_rate_of_success_is_of_chats_in_an_environment(monkeypatch):
    won, _ = act_out(monkeypatch, text_of("pens"), "three<|im_end|>", "done 3<|im_end|>")
    lost, _ = act_out(monkeypatch, "three<|im_end|>", "done<|im_end|>")
    assert figures([won, lost])["success_rate"] == 0.5
    plain, _ = act_out(
        monkeypatch, "a<|im_end|>", environment=None, episode=Conversation("test:3", EPISODE.messages[4:])
    )
    assert plain.succeeded is None and figures([plain])["success_rate"] is None


def test_the_results_of_several_calls_stand_in_their_order():
    several = "".join(text_of(thing).removesuffix("<|im_end|>") for thing in ("pens", "ships", "coins"))
    message, results = act({"role": "assistant", "content": f"so\n{several}"}, Counting(EPISODE))
    assert message["content"] == "so" and len(message["tool_calls"]) == 3
    assert [one["content"] for one in results] == ["pens 3", "error: no {'thing': 'ships'}", "coins 5"]
