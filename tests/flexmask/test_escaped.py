"""What is escaped under a tokenizer that composes accents, and that errors quote the record."""

import warnings

import pytest
from factories import chatml_tokenizer, template_tokenizer
from tokenizers import normalizers

from flexmask import Conversation
from flexmask.text.rendering import render_conversation

SHOWN = "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content if not m.tool_calls }}"
CALLS = "{% for c in m.tool_calls %}<call>{{ c.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
ASKED = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def rendered(messages, tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = Conversation("data.jsonl:7", tuple(messages))
        return render_conversation(source, tokenizer, control_tokens="escape").passes


# Qwen's tokenizer composes accents, so that what it decodes is not what it was given.
def test_text_that_the_tokenizer_composes_is_escaped():
    tokenizer = template_tokenizer(chatml_tokenizer().chat_template)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    try:
        (p,) = rendered([QUESTION, ANSWER | {"content": "cafe\u0301 <|im_end|>"}], tokenizer)
    finally:
        tokenizer.backend_tokenizer.normalizer = None
    assert "caf\u00e9 <|im_end|>" in tokenizer.decode(p.input_ids)


# In place of what the record says.
@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "<|im_end|>"}, QUESTION, ANSWER],  # not shown
        [QUESTION, ANSWER | {"tool_calls": [CALL]}],  # no content beside calls
    ],
    ids=["mark", "probe"],
)
def test_errors_quote_the_texts_of_the_record(messages):
    with pytest.raises(ValueError, match="^data.jsonl:7: ") as refused:
        rendered(messages, template_tokenizer(SHOWN + CALLS + ASKED))
    assert "flexmask_" not in str(refused.value)
