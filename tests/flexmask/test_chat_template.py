"""Prompts of long conversations are put together from short renders: the same text, in linear time, or counted."""

import copy
from dataclasses import replace

import pytest
from factories import Work, chatml_tokenizer, random_conversation

from flexmask import Conversation
from flexmask.text.chat_template import ChatTemplate, render_turns
from flexmask.text.rendering import render_conversation
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
    result = render_turns(conversation, ChatTemplate(tokenizer, conversation))
    for text in result.texts:
        full = tokenizer.apply_chat_template(messages[: text.index], add_generation_prompt=True, tokenize=False)
        assert text.prompt == full
    return result


# Breaks if one turn that does not fit is rendered in full and the others are believed.
@pytest.mark.parametrize("name", FAR_REACHING)
@pytest.mark.parametrize("seed", range(4))
def test_a_far_reaching_template_is_rendered_in_full_and_counted(name, seed):
    assert rendered(FAR_REACHING[name], seed).slow_turns == 16


@pytest.mark.parametrize("name", NEAR)
@pytest.mark.parametrize("seed", range(4))
def test_a_template_that_reaches_back_one_exchange_is_not(name, seed):
    assert rendered(NEAR[name], seed).slow_turns == 0


# Breaks if a turn costs more the more turns stand before it: work per token then grows with their number. Eight
# times the turns, quadratic, is about five times the work.
@pytest.mark.parametrize("name", NEAR)
def test_preparation_is_linear_in_the_text(name, monkeypatch):
    tokenizer = with_template(NEAR[name])
    work = Work(tokenizer, monkeypatch)

    def per_token(turns):
        before = work.characters
        conversation = conversation_without_thinking(turns, turns)
        passes = render_conversation(conversation, tokenizer).passes
        return (work.characters - before) / len(passes[-1])

    assert per_token(64) <= 1.5 * per_token(8)


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
    (text,) = render_turns(conversation, ChatTemplate(tokenizer, conversation, run)).texts
    assert text.prompt.startswith(shown + "<|im_start|>")
