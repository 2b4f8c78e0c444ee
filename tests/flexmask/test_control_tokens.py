"""Which texts of a conversation are control tokens, and how they are escaped."""

import copy

import pytest
from factories import chatml_tokenizer, template_tokenizer
from tokenizers import AddedToken

from flexmask import Conversation
from flexmask.text.control_tokens import guard_control_tokens

TEMPLATE = "{% for m in messages %}<tool_call>{{ m.content }}<|im_end|>{% endfor %}"


def with_tokens(*tokens, template=TEMPLATE):
    tokenizer = copy.deepcopy(template_tokenizer(template))
    tokenizer.add_tokens([AddedToken(one, special=False, normalized=False) for one in tokens])
    return tokenizer


def asking(text):
    return Conversation("data.jsonl:7", ({"role": "user", "content": text}, {"role": "assistant", "content": "a"}))


# Breaks if only special tokens are looked for: Qwen3's <tool_call> is none, and opens a call.
def test_an_added_token_that_the_template_writes_is_a_control_token():
    tokenizer = with_tokens("<tool_call>", "<other>")
    with pytest.raises(ValueError, match='messages.0..content contains the control token "<tool_call>"'):
        guard_control_tokens(asking("a <tool_call> b"), tokenizer, "refuse")
    assert guard_control_tokens(asking("an <other> b"), tokenizer, "refuse") == asking("an <other> b")


# Breaks if what is left of an escaped token is not looked at again.
def test_what_is_left_of_an_escaped_token_is_no_token():
    tokenizer = with_tokens("<tool_call>", "tool_call>", template=TEMPLATE + "tool_call>")
    guarded = guard_control_tokens(asking("<tool_call>"), tokenizer, "escape")
    assert guarded.messages[0]["content"] == "<\u200bt\u200bool_call>"
    ids = set(tokenizer(guarded.messages[0]["content"])["input_ids"])
    assert ids.isdisjoint(tokenizer.convert_tokens_to_ids(["<tool_call>", "tool_call>"]))


def test_escaping_is_refused_or_asked_for():
    with pytest.raises(ValueError, match='control_tokens="drop": write "refuse" or "escape"'):
        guard_control_tokens(asking("a"), chatml_tokenizer(), "drop")
