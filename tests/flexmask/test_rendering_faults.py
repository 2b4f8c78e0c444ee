"""Faults of rendering that are known and not yet mended. Each test goes where its rule belongs once it passes."""

import warnings

import pytest
from factories import chatml_tokenizer, template_tokenizer
from tokenizers import normalizers

from flexmask import Conversation
from flexmask.text.rendering import render_conversation

ASKED = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# Calls and tools as Python prints them, like LFM 2.5, Reka Edge and Apriel 1.5.
PRINTED = (
    "{{ tools if tools }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls %}<call>{{ c.function.name }}{{ c.function.arguments }}</call>{% endfor %}<|im_end|>\n"
    "{% endfor %}" + ASKED
)
TALK = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})


def rendered(messages, template, tools=None, **settings):
    tokenizer = template if not isinstance(template, str) else template_tokenizer(template)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        passes = render_conversation(Conversation("data.jsonl:7", messages, tools), tokenizer, **settings).passes
    return [tokenizer.decode(p.input_ids, clean_up_tokenization_spaces=False) for p in passes]


def calling(arguments):
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    result = {"role": "tool", "name": "add", "tool_call_id": "c1", "content": "r"}
    return TALK[0], {"role": "assistant", "content": "", "tool_calls": [call]}, result, TALK[1]


# Looking for the template's argument that opens a thought tries its variables as keywords of our own functions. Of the
# survey's templates that close a thought, most name their loop's variable so.
@pytest.mark.xfail(strict=True, raises=TypeError, reason="got multiple values for an argument")
@pytest.mark.parametrize("name", ["message", "self", "where"])
def test_variables_of_a_template_have_any_name(name):
    template = (
        "{% for NAME in messages %}<|im_start|>{{ NAME.role }}\n{{ NAME.content }}<|im_end|>\n{% endfor %}" + ASKED
    )
    template = template.replace("assistant\n", "assistant\n<think></think>").replace("NAME", name)
    with pytest.raises(ValueError, match="data.jsonl:7: .* has closed the thought"):
        rendered((TALK[0], TALK[1] | {"reasoning_content": "t"}), template)


# `repr` writes the mark, which is no character, as six that stay in the text; it is trained, or shown.
@pytest.mark.xfail(strict=True, reason="the mark of an escaped token survives where a template writes Python's repr")
@pytest.mark.parametrize("where", ["tool", "call"])
def test_the_mark_of_an_escaped_token_is_in_no_text(where):
    text = "<|im_end|>"
    tools = ({"type": "function", "function": {"name": "add", "description": text if where == "tool" else "d"}},)
    messages = calling({"a": text if where == "call" else "b", "c": "d"})
    texts = rendered(messages, PRINTED, tools, control_tokens="escape", turns="-1")
    assert len(texts) == 1 and "ufdd0" not in texts[0]


# The same where the turn is trained: refused, as if the template left the argument out.
@pytest.mark.xfail(strict=True, raises=ValueError, reason="does not render '<\\ufdd0|im_end|>' of the call")
def test_an_escaped_argument_that_a_template_prints_is_trained():
    texts = rendered(calling({"a": "<|im_end|>"}), PRINTED, control_tokens="escape")
    assert "{'a': '<|im_end|>'}" in texts[0]


# Python writes it as JSON does, in other quotes. LFM 2.5 prints a list of texts so.
@pytest.mark.xfail(strict=True, raises=ValueError, reason="does not render it of the call")
@pytest.mark.parametrize("text", ["two\nlines", "a\\b", "tab\tbed"])
def test_an_argument_that_a_template_prints_is_rendered(text):
    assert repr({"a": text}) in rendered(calling({"a": text}), PRINTED)[0]


# Qwen's tokenizer composes accents, so that what it decodes is not what it was given.
@pytest.mark.xfail(strict=True, raises=ValueError, reason="tokenizing the two apart does not give the text back")
def test_text_that_the_tokenizer_composes_is_escaped():
    tokenizer = template_tokenizer(chatml_tokenizer().chat_template)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    try:
        texts = rendered((TALK[0], TALK[1] | {"content": "cafe\u0301 <|im_end|>"}), tokenizer, control_tokens="escape")
    finally:
        tokenizer.backend_tokenizer.normalizer = None
    assert "caf\u00e9 <|im_end|>" in texts[0]


# What errors quote has our own marks and probes in it, in place of what the record says.
@pytest.mark.xfail(strict=True, reason="errors quote what was rendered with marks and probes")
@pytest.mark.parametrize("kind", ["mark", "probe"])
def test_errors_quote_the_texts_of_the_record(kind):
    hides = (
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    hidden = ({"role": "system", "content": "<|im_end|>"}, *TALK)
    beside = PRINTED.replace("{{ m.content }}", "{{ m.content if not m.tool_calls }}")
    call, settings = list(calling({"a": 1})), dict(control_tokens="escape")
    call[1] = call[1] | {"content": "so"}
    with pytest.raises(ValueError) as refused:
        rendered(*((hidden, hides + ASKED) if kind == "mark" else (tuple(call), beside)), **settings)
    assert "ufdd0" not in str(refused.value) and "\ufdd0" not in str(refused.value)
    assert "flexmask_tool" not in str(refused.value)
