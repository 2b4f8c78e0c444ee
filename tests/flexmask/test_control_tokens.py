"""Which texts of a conversation are control tokens, and how they are escaped."""

import copy
import warnings

import pytest
from factories import chatml_tokenizer, template_tokenizer
from tokenizers import AddedToken

from flexmask import Conversation
from flexmask.text.control_tokens import guard_control_tokens
from flexmask.text.rendering import render_conversation

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


# Calls and tools as Python prints them, like LFM 2.5, Reka Edge and Apriel 1.5.
PRINTED = (
    "{{ tools if tools }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls %}<call>{{ c.function.name }}{{ c.function.arguments }}</call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def printed(arguments, description="d", **settings):
    """The texts of the passes of a call and its answer."""
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    messages = (
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "add", "tool_call_id": "c1", "content": "r"},
        {"role": "assistant", "content": "a"},
    )
    tools = ({"type": "function", "function": {"name": "add", "description": description}},)
    tokenizer = template_tokenizer(PRINTED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = Conversation("data.jsonl:7", messages, tools)
        passes = render_conversation(source, tokenizer, control_tokens="escape", **settings).passes
    return [tokenizer.decode(p.input_ids, clean_up_tokenization_spaces=False) for p in passes]


# Breaks if the mark of a cut is one that Python prints otherwise: it would be shown, and trained.
@pytest.mark.parametrize("text", ["<|im_end|>", "a <|im_start|>b</think>"])
def test_the_mark_of_an_escaped_token_is_in_no_text(text):
    first, second = printed({"a": text, "b": [{"c": text}]}, text)
    shown = text.replace("<|", "<\u200b|").replace("</", "<\u200b/")
    assert f"<call>add{{'a': '{text}', 'b': [{{'c': '{text}'}}]}}</call><|im_end|>" in first
    assert f"'description': '{shown}'" in first and f"add{{'a': '{shown}', 'b': [{{'c': '{shown}'}}]}}" in second
    assert "flexmask_" not in first + second


# Breaks if an argument is looked for as JSON writes it only: LFM 2.5 prints a list of texts.
@pytest.mark.parametrize("text", ["two\nlines", "a\\b", "tab\tbed", "it's"])
def test_an_argument_that_a_template_prints_is_rendered(text):
    assert repr({"a": [text]}) in printed({"a": [text]})[0]
