"""Whether answers follow from their thinking: what is changed in it, and what a model that ignores it says."""

import re

import pytest
from scripted import TOKENIZER, Scripted

from flexmask.conversations.conversation import Conversation
from recipes.configuration.rules import ConfigError
from recipes.evaluation.chat import chat
from recipes.evaluation.matchers import load_matcher
from recipes.evaluation.probes import last_number, load_probe
from recipes.evaluation.replies import figures
from recipes.run.summary import _chat_lines
from recipes.sources import tutoring
from recipes.sources.numbers import last_number as value_of
from recipes.sources.tutoring import in_words
from recipes.sources.tutoring_results import another_result


def asked(*answers):
    messages = [
        message
        for answer in answers
        for message in (
            {"role": "user", "content": "How many?"},
            {"role": "assistant", "content": answer, "reasoning_content": "as the data thinks"},
        )
    ]
    return Conversation(name="test:1", messages=tuple(messages))


def probed(reply, monkeypatch, **settings):
    """A model that is asked twice, with the probe `last_number`; what it was given, and its turns."""
    script = Scripted(reply)
    (result,) = chat(
        script.install(monkeypatch),
        TOKENIZER,
        [asked("7", "8")],
        max_new_tokens=60,
        batch_size=4,
        matcher=load_matcher("number"),
        probe=last_number,
        **settings,
    )
    return script.prompts, result


# Broken by a probe that does not reach the model, that goes on from the unchanged thinking, or that is put into the
# history that later turns are asked on.
def test_a_model_that_reads_its_thinking_follows_it(monkeypatch):
    def reads(prompt):
        thought = re.search(r"<think>\nSo (\d)\n</think>", prompt.rpartition("assistant")[2])
        return f"\n\nIt is {thought[1]}.<|im_end|>" if thought else "<think>\nSo 7\n</think>\n\nIt is 7.<|im_end|>"

    prompts, result = probed(reads, monkeypatch)
    assert [turn.follows for turn in result.turns] == [True, True]
    assert [turn.correct for turn in result.turns] == [True, False]  # what it says by itself stays what is judged
    assert prompts[1].endswith("<think>\nSo 4\n</think>") and "It is 7." in prompts[2] and "It is 4." not in prompts[2]
    assert figures([result])["answers_follow_thinking"] == 1.0
    assert figures([result])["probed_replies"] == 2


def test_a_model_that_ignores_its_thinking_does_not(monkeypatch):
    def ignores(prompt):
        begun = prompt.endswith("</think>")
        return "\n\nIt is 7.<|im_end|>" if begun else "<think>\nSo 7\n</think>\n\nIt is 7.<|im_end|>"

    _, result = probed(ignores, monkeypatch)
    assert [turn.follows for turn in result.turns] == [False, False]
    assert figures([result])["probed_replies"] == 2


# Broken by counting an answer that was cut off: it may have gone on to say something else.
def test_an_answer_that_does_not_end_does_not_follow(monkeypatch):
    def goes_on(prompt):
        return "\n\nIt is 4." if prompt.endswith("</think>") else "<think>\nSo 7\n</think>\n\nIt is 7.<|im_end|>"

    assert [turn.follows for turn in probed(goes_on, monkeypatch)[1].turns] == [False, False]


@pytest.mark.parametrize(
    "reply", ["It is 7.<|im_end|>", "<think>\nno number\n</think>\n\n7<|im_end|>", "<think>\nSo 7"]
)
def test_where_nothing_can_be_changed_nothing_is_tried(reply, monkeypatch):
    prompts, result = probed(lambda prompt: reply, monkeypatch)
    assert [turn.follows for turn in result.turns] == [None, None] and len(prompts) == 2
    assert figures([result])["answers_follow_thinking"] is None


SEVEN = "<think>\nSo 7\n</think>\n\n7<|im_end|>"


def fails(*given):
    raise KeyError("mine")


# Broken by a judge that ends the run when the training is done, or whose word is taken for another one in silence.
@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (fails, "failed on 1 replies.*KeyError: 'mine'"),
        (lambda *given: ("So 4", "4", 1), "a probe gave .'So 4', '4', 1. in place of two texts"),
        (lambda *given: "44", "a probe gave '44' in place of two texts"),
        (lambda *given: ("So 4", 4), "in place of two texts"),
        (lambda *given: True, "a probe gave True in place of two texts"),
    ],
)
def test_a_probe_that_is_at_fault_is_a_warning(gives, message, monkeypatch):
    settings = {"max_new_tokens": 60, "batch_size": 4, "probe": gives}
    with pytest.warns(UserWarning, match=message):
        (result,) = chat(Scripted(lambda prompt: SEVEN).install(monkeypatch), TOKENIZER, [asked("7")], **settings)
    assert result.turns[0].follows is None and result.turns[0].correct


# Broken by taking any text or number for True.
@pytest.mark.parametrize("gives", ["no", 0.5, [], {}])
def test_a_matcher_that_does_not_say_what_is_right_is_a_warning(gives, monkeypatch):
    settings = {"max_new_tokens": 60, "batch_size": 4, "matcher": lambda answer, expected, messages: gives}
    with pytest.warns(UserWarning, match="failed on 1 replies.*a matcher gave .* in place of True, False or None"):
        (result,) = chat(Scripted(lambda prompt: SEVEN).install(monkeypatch), TOKENIZER, [asked("7")], **settings)
    assert result.turns[0].correct is False


# Broken by giving it the messages themselves: what it writes there would be asked on.
def test_a_matcher_cannot_change_what_is_asked(monkeypatch):
    def writes(answer, expected, messages):
        messages[0]["content"] = "MINE"
        messages.append({"role": "user", "content": "MINE"})
        return True

    script = Scripted(lambda prompt: SEVEN)
    settings = {"max_new_tokens": 60, "batch_size": 4, "matcher": writes}
    chat(script.install(monkeypatch), TOKENIZER, [asked("7", "8")], **settings)
    assert len(script.prompts) == 2 and not any("MINE" in prompt for prompt in script.prompts)


# Broken by changing what stands in the tags too.
def test_thinking_is_changed_inside_its_tags_alone(monkeypatch):
    script = Scripted(lambda prompt: "<think>\nthin\n</think>\n\n7<|im_end|>")
    settings = {"max_new_tokens": 60, "batch_size": 4, "probe": lambda thinking, expected: ("other", expected)}
    chat(script.install(monkeypatch), TOKENIZER, [asked("7")], **settings)
    assert script.prompts[1].endswith("<think>\nother\n</think>")


# Broken by a comparison of the answers, or by a reply that did not think counting as right.
def test_thinking_is_judged_by_its_own_matcher(monkeypatch):
    script = Scripted(lambda prompt: "<think>\nas the data thinks\n</think>\n\nwrong<|im_end|>")
    settings = {"max_new_tokens": 60, "batch_size": 4, "thinking_matcher": load_matcher("exact")}
    (result,) = chat(script.install(monkeypatch), TOKENIZER, [asked("7")], **settings)
    assert result.turns[0].thinking_correct is True and result.turns[0].correct is False
    (other,) = chat(Scripted(lambda prompt: "7<|im_end|>").install(monkeypatch), TOKENIZER, [asked("7")], **settings)
    assert other.turns[0].thinking_correct is False
    assert figures([result, other])["thinking_accuracy"] == 0.5
    script = Scripted(lambda prompt: "<think>\nas the data thinks")  # never closed
    (cut,) = chat(script.install(monkeypatch), TOKENIZER, [asked("7")], **settings)
    assert cut.turns[0].thinking_correct is False


@pytest.mark.parametrize(
    ("thinking", "changed", "answer"),
    [
        ("4*6=24", "4*6=57", "57"),
        ("24 is 4 * 6, so 24", "24 is 4 * 6, so 57", "57"),
        ("in all 1,240", "in all 4,573", "4,573"),
        ("so 0.5", "so 3.8", "3.8"),
        ("5 - 8 = -3", "5 - 8 = -6", "-6"),
        ("it is $-4", "it is $-7", "$-7"),
        ("2e3", "5e3", "5e3"),
        ("(3,4)", "(3,7)", "7"),
        ("7", "4", "4"),
        ("no number", None, None),
    ],
)
def test_the_last_number_is_another_one(thinking, changed, answer):
    assert last_number(thinking, "") == (None if changed is None else (changed, answer))
    if answer:
        assert value_of(answer) != value_of(thinking)


# Broken by a probe whose answer is not what the changed thinking comes to.
def test_another_result_of_a_tutor():
    tried = 0
    for record in tutoring.generate(200, seed=0, split="heldout"):
        for message in record["messages"]:
            found = another_result(message.get("reasoning_content", ""), message["content"])
            if found is None:
                assert "Result" not in message.get("reasoning_content", "") or not re.search("ty", message["content"])
                continue
            thinking, answer = found
            (was,), (value,) = (re.findall(r"Result (\d+)\.", one) for one in (message["reasoning_content"], thinking))
            assert value != was and len(value) == 2 and value[0] != was[0]
            assert value[1] != was[1] or was[1] == "0"
            assert message["content"].replace(in_words(int(was)), in_words(int(value))) == answer != message["content"]
            tried += 1
    assert tried > 400


def test_a_probe_by_name(tmp_path, monkeypatch):
    assert load_probe(None, "exact") is None and load_probe("last_number", "number") is last_number
    assert load_probe("recipes.sources.tutoring_results:another_result", "exact") is another_result
    for name, message in (
        ("first_number", "evaluation.probe=first_number: no such probe; choose last_number, or give"),
        ("recipes.sources.tutoring:nothing", "evaluation.probe="),
        ("recipes.sources.tutoring:in_words", "evaluation.probe="),
        ("last_number", "evaluation.probe=last_number: .* give evaluation.matcher=number"),  # exact would never hold
    ):
        with pytest.raises(ConfigError, match=message):
            load_probe(name, "exact")


# Broken by figures that stand in result.json alone: whoever asks for a probe looks at the terminal.
def test_what_was_judged_is_printed(monkeypatch):
    def reads(prompt):
        return "\n\nIt is 4.<|im_end|>" if prompt.endswith("</think>") else "<think>\nSo 7\n</think>\n\n7<|im_end|>"

    _, result = probed(reads, monkeypatch, thinking_matcher=load_matcher("exact"))
    lines = _chat_lines(figures([result]))
    assert (
        "  0.0% of thinking right" in lines and "  100.0% of 2 answers follow when their thinking is changed" in lines
    )
    assert not [
        line for line in _chat_lines({"answer_accuracy": 1.0, "conversation_accuracy": 1.0}) if "of thinking" in line
    ]
