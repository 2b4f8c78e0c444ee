"""Context rules under every real chat template: calls are rendered as the turns that they are."""

import functools
import warnings

import numpy as np
import pytest
from every_template import load, names

from flexmask import Calls, Conversation, calls_of
from flexmask.conversations.contexts import RULES
from flexmask.text.calls import render_calls
from flexmask.text.rendering import render_conversation

pytestmark = pytest.mark.network
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
