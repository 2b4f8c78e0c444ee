"""Context rules under every real chat template: calls are rendered as the turns that they are."""

import functools
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from every_template import load, names
from stock_templates import STOCK

from flexmask import Calls, Conversation, calls_of, read_record
from flexmask.conversations.contexts import RULES
from flexmask.conversations.model_calls import joined
from flexmask.text.calls import render_calls
from flexmask.text.rendering import render_conversation

pytestmark = pytest.mark.network
SAMPLE = Path(__file__).parents[1] / "journeys" / "data" / "tau2_sample.jsonl"
TOWN = {"type": "object", "properties": {"town": {"type": "string", "description": "its name"}}, "required": ["town"]}
TOOLS = ({"type": "function", "function": {"name": "weather", "description": "Of a town.", "parameters": TOWN}},)


def turns(towns, thinks):
    """A question about each town, a call with its result, and an answer."""
    messages, read = [], {"reasoning_content": "As it says."} if thinks else {}
    for number, town in enumerate(towns):
        one = f"call0000{number}"
        call = {"id": one, "type": "function", "function": {"name": "weather", "arguments": {"town": town}}}
        thought = {"reasoning_content": f"Look {town} up."} if thinks else {}
        messages += [
            {"role": "user", "content": f"Is it warm in {town}?"},
            {"role": "assistant", "content": "", "tool_calls": [call], **thought},
            {"role": "tool", "name": "weather", "tool_call_id": one, "content": f"{number + 7} degrees"},
            {"role": "assistant", "content": f"{number + 7}.", **read},
        ]
    return tuple(messages)


def plain(thinks):
    """The same without calls, and with a turn that is not trained."""
    left = [
        one for one in turns(("Lund", "Oslo", "Turku"), thinks) if one["role"] != "tool" and "tool_calls" not in one
    ]
    return (*left[:2], left[2], left[3] | {"weight": 0}, *left[4:])


CHATS = {
    "calls": (turns(("Lund", "Oslo", "Turku"), False), TOOLS),
    "thinking and calls": (turns(("Lund", "Oslo", "Turku"), True), TOOLS),
    "plain": (plain(False), None),
    "thinking": (plain(True), None),
}


def outcome(render, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return render(*arguments).passes
        except ValueError:
            return None


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one.turn, one.prompt_length) == (other.turn, other.prompt_length)
        for name in ("input_ids", "roles", "loss_weights"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


# Breaks if calls are not rendered as the turns of a conversation, or refused where those are not.
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", names())
def test_a_rule_that_changes_nothing(name, chat):
    messages, tools = CHATS[chat]
    conversation, tokenizer = Conversation(name, messages, tools), load(name)
    expected = outcome(render_conversation, conversation, tokenizer)
    with pytest.warns(UserWarning, match="changes nothing"):
        calls = calls_of(conversation, lambda shown: shown)
    found = outcome(render_calls, calls, tokenizer)
    assert (found is None) == (expected is None)
    if expected is not None:
        same(found, expected)


# Breaks if what calls share changes one of them: tokens, forms of turns, or what is asked of the template once.
@pytest.mark.parametrize("chat", ["calls", "thinking and calls"])
@pytest.mark.parametrize("name", names())
def test_calls_together_are_each_alone(name, chat):
    messages, tools = CHATS[chat]
    conversation, tokenizer = Conversation(name, messages, tools), load(name)
    calls = calls_of(conversation, functools.partial(RULES["keep_last_tool_results"], keep=1))
    found = outcome(render_calls, calls, tokenizer)
    alone = [outcome(render_calls, Calls(name, (call,)), tokenizer) for call in calls.calls]
    if found is None:
        assert None in alone
        return
    for one, passes in zip(found, alone, strict=True):
        if passes is not None:  # by itself a call may say what only another one shows
            np.testing.assert_array_equal(one.input_ids, passes[0].input_ids)
    assert sum(passes is None for passes in alone) < len(alone)


# An assistant that greets first, calls without ids, and thinking under two names. Breaks if a turn is trained behind
# another prompt than the one that inference shows, thinking of the calls since the last question included.
def test_turns_of_dialogs_are_shown_as_inference_shows_them():
    tokenizer = STOCK["qwen3"].load("qwen3")
    lines = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()][:7]
    found = [read_record(line, f"line {i}") for i, line in enumerate(lines)]
    passes = render_calls(joined(found), tokenizer).passes
    for line, one in zip(lines, passes, strict=True):
        messages = [
            {("reasoning_content" if key == "reasoning" else key): value for key, value in message.items()}
            for message in line["messages"]
        ]
        shown = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(one.input_ids[: one.prompt_length]) == shown
        answer = line["answer"]
        calls = "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in answer.get("tool_calls", ()))
        said = f"<think>\n{answer['thinking']}\n</think>\n\n{answer['content']}{calls}<|im_end|>"
        assert tokenizer.decode(one.input_ids[one.loss_weights > 0]) == said
    assert any("<think>" in tokenizer.decode(one.input_ids[: one.prompt_length]) for one in passes)
