"""Prompts are those of inference, however far back a template looks, under the arguments of the conversation."""

import copy
import datetime
from dataclasses import replace

import pytest
from factories import chatml_tokenizer, random_conversation

from flexmask import Conversation
from flexmask.text.template import ChatTemplate
from flexmask.text.turns import turn_texts
from recipes.models.tiny import CHAT_TEMPLATE

ASKED = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
COUNTED = "{% set ns = namespace(n=0) %}{% set total = messages | selectattr('role', 'eq', 'user') | list | length %}"


def chat(question="", shown="true", front=""):
    """A template that writes `question` into each user message and shows the messages for which `shown` holds; in both
    `ns.n` counts the questions so far and `total` those of the conversation."""
    return (
        f"{COUNTED}{front}{{% for m in messages %}}"
        "{% if m.role == 'user' %}{% set ns.n = ns.n + 1 %}{% endif %}"
        f"{{% if {shown} %}}<|im_start|>{{{{ m.role }}}}\n{{% if m.role == 'user' %}}{question}{{% endif %}}"
        f"{{{{ m.content }}}}<|im_end|>\n{{% endif %}}{{% endfor %}}{ASKED}"
    )


# Each shows a message otherwise by what stands far away, so that no short render can give its text.
FAR_REACHING = {
    "numbered questions": chat("{{ ns.n }}. "),
    "a reminder at every fifth question": chat("{% if ns.n % 5 == 0 %}be brief\n{% endif %}"),
    "the number of questions": chat("{% if ns.n == total %}{{ total }} questions\n{% endif %}"),
    "a long conversation is announced": chat("{% if ns.n == total and total > 9 %}long\n{% endif %}"),
    "another head of a long conversation": chat(front="{{ 'long' if total > 9 else 'brev' }}"),
    "only the last exchanges": chat(shown="ns.n > total - 5"),
    "all questions in front": chat(front="{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"),
}
NEAR = {
    "plain": chat(),
    "stripped": chat().replace("m.content", "(m.content | trim)"),
    "thinking dropped": CHAT_TEMPLATE,
    "a reminder in the last question": chat("{% if ns.n == total %}be brief\n{% endif %}"),
    "the first question again": chat("{% if ns.n == total %}{{ messages[0].content }}\n{% endif %}"),
}


def with_template(source):
    tokenizer = chatml_tokenizer()
    return tokenizer.__class__(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>", chat_template=source
    )


def conversation_without_thinking(seed, turns):
    messages = random_conversation(seed, turns=turns).messages
    return Conversation(
        "c", tuple({key: value for key, value in m.items() if key != "reasoning_content"} for m in messages)
    )


def rendered(source, seed, turns=24):
    tokenizer = with_template(source)
    conversation = (random_conversation if "think" in source else conversation_without_thinking)(seed, turns)
    messages = list(conversation.messages)
    for text in turn_texts(conversation, ChatTemplate(tokenizer, conversation), range(turns)):
        full = tokenizer.apply_chat_template(messages[: text.index], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(messages[: text.index + 1], tokenize=False)
        assert text.prompt == full and whole.startswith(text.prompt + text.generated)


# Breaks if a prompt is put together from renders of some of its messages.
@pytest.mark.parametrize("name", FAR_REACHING | NEAR)
@pytest.mark.parametrize("seed", range(4))
def test_prompts_are_those_of_inference_however_far_back_a_template_looks(name, seed):
    rendered((FAR_REACHING | NEAR)[name], seed)


# Breaks if the arguments of a conversation are lost, or lose to those of the run.
@pytest.mark.parametrize(
    ("run", "own", "shown"),
    [
        (None, None, "-"),
        ({"style": "long"}, None, "long-"),
        ({"style": "long", "language": "en"}, {"style": "short"}, "short-en"),
        (None, {"style": "short"}, "short-"),
    ],
)
def test_template_arguments_of_a_conversation_are_over_those_of_the_run(run, own, shown):
    tokenizer = copy.deepcopy(chatml_tokenizer())
    tokenizer.chat_template = "{{ style }}-{{ language }}" + CHAT_TEMPLATE
    conversation = replace(random_conversation(0, turns=1), template_kwargs=own)
    (text,) = turn_texts(conversation, ChatTemplate(tokenizer, conversation, run), [0])
    assert text.prompt.startswith(shown + "<|im_start|>")


# Breaks if renders of one run ask the clock, or take another day than the one that was given.
def test_the_current_date_is_the_one_that_is_given():
    tokenizer = with_template("{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE)
    conversation = random_conversation(0, turns=1)
    template = ChatTemplate(tokenizer, conversation, date=datetime.date(1999, 2, 3))
    (text,) = turn_texts(conversation, template, [0])
    assert text.prompt.startswith("03 Feb 1999<|im_start|>")


# Breaks if a template that joins arguments to other text (DeepSeek V3) gets an object, or JSON text is written twice.
@pytest.mark.parametrize("given", [{"a": "x\ny", "é": 1}, '{"a": "x\\ny", "é": 1}'], ids=["object", "text"])
@pytest.mark.parametrize("written", ["'' + c.function.arguments", "c.function.arguments | tojson"])
def test_arguments_are_given_as_a_template_takes_them(given, written):
    tokenizer = with_template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        f"{{% for c in m.tool_calls %}}{{{{ c.function.name }}}}{{{{ {written} }}}}{{% endfor %}}"
        "<|im_end|>\n{% endfor %}" + ASKED
    )
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": given}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    conversation = Conversation("c", ({"role": "user", "content": "q"}, answer))
    (text,) = turn_texts(conversation, ChatTemplate(tokenizer, conversation), [0])
    assert text.generated == 'add{"a": "x\\ny", "é": 1}<|im_end|>'


# Breaks if what only a trainer knows of a message is shown to the model.
def test_a_template_does_not_see_weights():
    answer = {"role": "assistant", "content": "a", "weight": 0.5}
    conversation = Conversation("c", ({"role": "user", "content": "q"}, answer))
    assert "weight" not in ChatTemplate(chatml_tokenizer(), conversation).messages[1]
