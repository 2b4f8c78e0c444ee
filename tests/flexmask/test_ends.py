"""The token that ends a turn, in what a template writes behind the turn's last text."""

import pytest
from factories import template_tokenizer

from flexmask import Conversation
from flexmask.text.ends import end_of_turn
from flexmask.text.template import ChatTemplate

TALK = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})
NEXT = "<|im_end|>\n<|im_start|>user\n"


def found(tail, followed, eos="<|im_end|>"):
    tokenizer = template_tokenizer("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    tokenizer.eos_token = eos
    return end_of_turn(tail, followed, ChatTemplate(tokenizer, Conversation("c", TALK)), "data.jsonl:7: turn 0")


@pytest.mark.parametrize(
    "tail, followed, eos, end",
    [
        ("<|im_end|>\n", NEXT, "<|im_end|>", "<|im_end|>"),
        ("\n</s><|im_end|>\n", "\n</s>" + NEXT, "<|im_end|>", "\n</s><|im_end|>"),
        ("<|im_end|>\n", "", "<|im_end|>", "<|im_end|>"),  # the template takes nothing behind it
        # Breaks if the end of the whole, the tokenizer's here as Phi-3's is, is taken for that of a turn.
        ("<|im_end|>\n<|endoftext|>", NEXT, "<|endoftext|>", "<|im_end|>"),
        # Breaks if all that stands behind every turn is its end, whatever the tokenizer ends with.
        ("<|im_end|><|endoftext|>", "<|im_end|><|endoftext|>user: ", "<|im_end|>", "<|im_end|>"),
        # Breaks if a header that the template writes whatever it is asked for is of the turn.
        ("<|im_end|>\n<|im_start|>assistant\n", NEXT, "<|endoftext|>", "<|im_end|>"),
        # A run of tokens ends a turn as a whole, where history has all of it.
        ("<|im_end|><|endoftext|>\n", "<|im_end|><|endoftext|>\nuser: ", None, "<|im_end|><|endoftext|>"),
        # Breaks if a model is not taught to stop where the next message begins: nothing else ends a turn.
        ("", "<|im_start|>user\n", "<|im_end|>", "<|im_start|>"),
        ("\n\n", "\n<|im_start|>user\n", "<|im_end|>", "\n<|im_start|>"),
    ],
)
def test_the_end_of_a_turn(tail, followed, eos, end):
    assert found(tail, followed, eos) == end


@pytest.mark.parametrize("tail, followed", [("", ""), ("\n", "\nuser: "), ("", "user: <|im_start|>"), ("x", "y")])
def test_a_turn_that_nothing_ends_is_refused(tail, followed):
    with pytest.raises(ValueError, match="^data.jsonl:7: turn 0: no special token ends the generated text"):
        found(tail, followed)
