"""What is generated behind a prompt, under templates of the kinds that real models have, written small."""

import warnings

import pytest
from factories import template_tokenizer
from small_templates import CALLS, TEMPLATES

from flexmask import Conversation, Role
from flexmask.text.rendering import render_conversation

BLOCK = "<think>\ntwo and two\n</think>\n\n"
END = "4<|im_end|>"
# What is generated with thinking "two and two" and without; a pattern: the refusal. A dict: arguments of the template.
GENERATED = [
    ("plain", {}, BLOCK + END, END),
    ("thinking", {}, "<think>two and two</think>" + END, END),
    ("opens", {}, "two and two</think>" + END, "</think>" + END),
    ("opens with a newline", {}, "two and two</think>" + END, "</think>" + END),
    ("closes only", {}, "two and two</think>" + END, END),
    ("own words", {}, "<think>two and two</think>" + END, END),
    ("closed scaffold", {}, ValueError("has closed the thought"), END),
    ("deepseek", {}, ValueError(r'has closed the thought .* set template_kwargs={"thinking": true}'), END),
    ("deepseek", {"thinking": True}, "two and two</think>" + END, "</think>" + END),
    ("late system", {}, BLOCK + END, END),
    ("header whatever is asked", {}, BLOCK + END, END),
    ("no generation prompt", {}, "<|im_start|>assistant\n" + BLOCK + END, "<|im_start|>assistant\n" + END),
    ("reads reasoning", {}, "<think>two and two</think>" + END, END),
    ("thinking in parts", {}, "<think>two and two</think>" + END, END),
    ("end of the whole", {}, BLOCK + END, END),
    ("nothing behind an answer", {}, BLOCK + "4<|im_start|>", "4<|im_start|>"),
]
SYSTEM = {"role": "system", "content": "Be brief."}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, thinking=None, calls=()):
    message = {"role": "assistant", "content": text} | ({"reasoning_content": thinking} if thinking else {})
    functions = [{"name": name, "arguments": arguments} for name, arguments in calls]
    named = [{"id": f"c{i}", "type": "function", "function": one} for i, one in enumerate(functions)]
    return message | ({"tool_calls": named} if calls else {})


def texts(name, messages, **settings):
    """(prompt, thinking, answer) of each turn."""
    tokenizer = template_tokenizer(TEMPLATES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        passes = render_conversation(Conversation("data.jsonl:7", tuple(messages)), tokenizer, **settings).passes
    for p in passes:
        parts = [p.input_ids[: p.prompt_length], *(p.input_ids[p.roles == r] for r in (Role.THINKING, Role.ANSWER))]
        yield tuple(tokenizer.decode(ids) for ids in parts)


# Breaks if what the prompt holds already is generated once more, or if a part of the turn is not.
@pytest.mark.parametrize(
    "name, arguments, thinking, plain",
    GENERATED,
    ids=[f"{name} {arguments or ''}" for name, arguments, *_ in GENERATED],
)
@pytest.mark.parametrize("thinks", [True, False], ids=["thinks", "plain"])
@pytest.mark.parametrize("system", [True, False], ids=["system", ""])
def test_what_is_generated(name, arguments, thinking, plain, thinks, system):
    expected = thinking if thinks else plain
    messages = [
        *([SYSTEM] if system else []),
        *(user("2 + 2?"), assistant("4", "two and two" if thinks else None)),
        *(user("again"), assistant("4", "two and two" if thinks else None)),
    ]
    if isinstance(expected, ValueError):
        with pytest.raises(ValueError, match=f"data.jsonl:7: assistant turn 0 .*{expected}"):
            list(texts(name, messages, template_kwargs=arguments))
        return
    found = list(texts(name, messages, template_kwargs=arguments))
    tokenizer = template_tokenizer(TEMPLATES[name])
    for (prompt, thought, answer), end in zip(found, (1 + system, 3 + system), strict=True):
        assert thought + answer == expected
        assert answer.startswith("4") or not thought  # all that stands in front of the answer is thinking
        asked = [{key: value for key, value in one.items() if key != "reasoning_content"} for one in messages[:end]]
        shown = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False, **arguments)
        assert prompt == shown


# Breaks if the form of thinking is guessed where the template shows it: beside a call.
def test_the_form_of_thinking_is_the_one_that_the_template_shows_beside_calls():
    (found,) = texts("thinking beside calls", [user("a"), assistant("4", "two and two")])
    assert found[1] + found[2] == "<think>two and two</think>4<|im_end|>"


# Breaks if what closes the thinking of a turn that only calls counts as its answer.
def test_a_call_begins_behind_the_thinking():
    (found,) = texts("thinking beside calls", [user("a"), assistant("", "look", [("add", {"a": 1})])])
    assert found[1:] == ("<think>look</think>", '<call>add{"a": 1}</call><|im_end|>')


@pytest.mark.parametrize(
    "written, lost",
    [
        ("{{ c.function.name }}{{ c.function.arguments.a | tojson }}", "b"),
        ("{{ c.function.name }}{{ c.function.arguments.keys() | list }}", "17"),
        ("{{ c.function.name }}{{ {'a': 17, 'b': {'c': 'Málaga'}} | tojson }}", "a"),  # of its own
        ("{{ c.function.name }}{{ c.function.arguments | string | truncate(16, true) }}", "c"),
    ],
)
def test_an_argument_that_a_template_leaves_out_is_refused(written, lost):
    template = TEMPLATES["thinking beside calls"].replace(CALLS, CALLS.replace("{{ c.function.name }}", written))
    template = template.replace("{{ c.function.arguments | tojson }}", "")
    messages = [user("a"), assistant("", None, [("add", {"a": 17, "b": {"c": "Málaga"}})])]
    with pytest.raises(ValueError, match=f"data.jsonl:7: assistant turn 0 .*does not render '?{lost}'? of the call of"):
        render_conversation(Conversation("data.jsonl:7", tuple(messages)), template_tokenizer(template))


def test_an_empty_block_is_trained_or_is_context():
    source = Conversation("c", (user("a"), assistant("4"), user("b"), assistant("4", "two")))
    tokenizer = template_tokenizer(TEMPLATES["opens"])
    weights = {
        setting: [
            set(p.loss_weights[p.roles == Role.THINKING].tolist())
            for p in render_conversation(source, tokenizer, empty_thinking=setting).passes
        ]
        for setting in ("train", "context")
    }
    assert weights == {"train": [{1.0}, {1.0}], "context": [{0.0}, {1.0}]}
    with pytest.raises(ValueError, match="empty_thinking=\"no\": write 'train' or 'context'"):
        render_conversation(source, tokenizer, empty_thinking="no")


# Each record under its own switch, over that of the run, and under its own arguments first of all.
@pytest.mark.parametrize(
    "thinks, own, prompt",
    [(True, None, "<think>"), (False, None, "</think>"), (None, None, "</think>"), (False, {"thinking": 1}, "<think>")],
)
def test_the_switch_of_a_record_is_the_argument_of_the_template(thinks, own, prompt):
    source = Conversation("c", (user("a"), assistant("4")), thinks=thinks, template_kwargs=own)
    (p,) = render_conversation(source, template_tokenizer(TEMPLATES["deepseek"])).passes
    shown = template_tokenizer(TEMPLATES["deepseek"]).decode(p.input_ids[: p.prompt_length])
    assert shown.endswith(f"assistant\n{prompt}")
