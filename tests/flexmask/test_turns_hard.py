"""Turns that depend on what stands around them, and texts that templates write in ways of their own."""

import pytest
from factories import template_tokenizer

from flexmask import Conversation
from flexmask.text.rendering import render_conversation

ASKED = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
BASE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}CALLS<|im_end|>\n{% endfor %}" + ASKED
CALLS = "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}ARGUMENTS</call>{% endfor %}"
PLAIN = BASE.replace("CALLS", "")
TOOLS = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"


def calling(arguments="{{ c.function.arguments | tojson }}"):
    return BASE.replace("CALLS", CALLS.replace("ARGUMENTS", arguments))


def user(text):
    return {"role": "user", "content": text}


def assistant(text, thinking=None, name=None, **arguments):
    thought = {} if thinking is None else {"reasoning_content": thinking}
    call = {"id": "call00001", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": text, **thought, **({"tool_calls": [call]} if name else {})}


def tool(text):
    return {"role": "tool", "tool_call_id": "call00001", "name": "f", "content": text}


def texts(template, *messages, tools=None, **settings):
    """(prompt, generated text) of each turn."""
    tokenizer = template_tokenizer(template)
    for p in render_conversation(Conversation("data.jsonl:7", messages, tools), tokenizer, **settings).passes:
        yield tokenizer.decode(p.input_ids[: p.prompt_length]), tokenizer.decode(p.input_ids[p.prompt_length :])


# A turn that is written otherwise by what stands far in front of it: Command R7B numbers the calls of a conversation.
@pytest.mark.parametrize("where", ["front", "end", "calls"])
def test_a_turn_that_counts_what_stands_in_front_of_it(where):
    counted = "{{ loop.index0 ~ ': ' if m.role == 'assistant' }}"
    template = {
        "front": PLAIN.replace("{{ m.content }}", counted + "{{ m.content }}"),
        "end": PLAIN.replace("{{ m.content }}", "{{ m.content }}" + counted),
        "calls": "{% set ns = namespace(n=0) %}"
        + calling().replace("<call>", "<call {{ ns.n }}>{% set ns.n = ns.n + 1 %}"),
    }[where]
    messages = (
        (user("q"), assistant("a"), user("r"), assistant("b"))
        if where != "calls"
        else (user("q"), assistant("", name="f"), tool("1"), assistant("a"), user("r"), assistant("", name="f"))
    )
    tokenizer = template_tokenizer(template)
    whole = tokenizer.apply_chat_template(list(messages), tokenize=False)
    prompt, generated = list(texts(template, *messages))[-1]
    assert whole.startswith(prompt + generated)


# Gemma 4 writes what is said beside a call behind its result.
BEHIND_RESULTS = (
    "{% for m in messages %}{% set before = messages[loop.index0 - 1] %}"
    "{% if m.role == 'assistant' and before.role != 'tool' %}<|im_start|>assistant\n{% endif %}"
    "{% if m.tool_calls %}<call>{{ m.tool_calls[0].function.name }}</call>"
    "{% if loop.last %}{{ m.content }}<|im_end|>\n{% endif %}"
    "{% elif m.role == 'tool' %}<res>{{ m.content }}</res>{{ before.content ~ '<|im_end|>\n' if before.content }}"
    "{% else %}{{ '<|im_start|>user\n' if m.role == 'user' }}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role != 'tool' %}<|im_start|>assistant\n{% endif %}"
)


def test_an_earlier_exchange_changes_nothing_of_a_turn():
    earlier = (user("q"), assistant("", name="f"), tool("1"), assistant("a"))
    later = (user("r"), assistant("beside", name="f"), tool("2"), assistant("", name="f"), tool("3"), assistant("b"))
    alone = [generated for _, generated in texts(BEHIND_RESULTS, *later)]
    assert [generated for _, generated in texts(BEHIND_RESULTS, *earlier, *later)][2:] == alone


# Bielik 3 closes a result only where a generation prompt follows; Hy3 an answer only where another message does.
def test_the_header_of_a_prompt_is_not_generated_behind_what_only_the_prompt_closes():
    thinking = "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    template = PLAIN.replace("{{ m.content }}<|im_end|>\n", thinking + "{{ m.content }}END").replace(
        "END", "{% if m.role != 'user' or loop.last %}<|im_end|>\n{% endif %}"
    )
    ((_, generated),) = texts(template, user("q"), assistant("a", "two"))
    assert generated == "<think>two</think>a<|im_end|>"


# SmolLM3 with a system message /no_think; DeepSeek V3.2; Nemotron Nano 2.
def test_a_template_whose_loop_variable_is_message():
    template = (
        PLAIN.replace(" m ", " message ").replace("m.role", "message.role").replace("m.content", "message.content")
    )
    template = template.replace("assistant\n{% endif", "assistant\n<think></think>{% endif")
    with pytest.raises(ValueError, match="data.jsonl:7: assistant turn 0 .* has closed the thought"):
        list(texts(template, user("q"), assistant("a", "two")))


# Nemotron Nano 2 and GigaChat 3 write a call behind an answer as a message of its own: who generates stops before it.
def test_the_end_of_a_turn_does_not_stand_inside_of_it():
    apart = "{{ '<|im_end|>\n<|im_start|>assistant\n' if m.content and m.tool_calls }}" + CALLS.replace("ARGUMENTS", "")
    with pytest.warns(UserWarning, match="writes '<|im_end|>', which ends turns, inside of turns".replace("|", r"\|")):
        ((_, generated),) = texts(BASE.replace("CALLS", apart), user("q"), assistant("look", name="f"))
    assert generated.count("<|im_end|>") == 2


def test_a_cut_leaves_no_mark_where_a_template_escapes_characters():
    template = calling("{{ c.function.arguments | tojson(ensure_ascii=true) }}")
    try:
        found = list(texts(template, user("q"), assistant("", name="f", a="x<|im_end|>y"), control_tokens="escape"))
    except ValueError:
        return
    assert "x<|im_end|>y" in found[0][1]


@pytest.mark.parametrize(
    "template, tool",
    [
        (TOOLS + PLAIN, {"function": {"name": "f", "parameters": {"properties": {}, "required": True}}}),
        (TOOLS + PLAIN, {"function": {"name": "f", "parameters": {"properties": {}, "required": [["a"]]}}}),
        (TOOLS + PLAIN, {"function": "f", "name": "f"}),
        (TOOLS + PLAIN + "{{ 1 / 0 }}", {"function": {"name": "f"}}),
    ],
)
def test_everything_that_makes_a_conversation_untrainable_is_a_named_error(template, tool):
    try:
        list(texts(template, user("q"), assistant("a"), tools=({"type": "function", **tool},)))
    except ValueError as error:
        assert str(error).startswith("data.jsonl:7")


def test_what_a_template_that_takes_no_probes_leaves_out_is_not_lost_in_silence():
    known = "{% for t in tools or [] if t.function.name != 'f' %}{{ raise_exception('unknown tool') }}{% endfor %}"
    with pytest.raises(ValueError, match="data.jsonl:7: .* shows the tools to no turn"):
        list(texts(known + PLAIN, user("q"), assistant("a"), tools=({"type": "function", "function": {"name": "f"}},)))


# gpt-oss and Gemma 4 leave out patterns, minima and what is said of nested parameters.
def test_what_is_said_of_parameters_is_not_lost():
    parameters = {"type": "object", "properties": {"town": {"type": "string", "description": "in capitals"}}}
    tools = ({"type": "function", "function": {"name": "f", "parameters": parameters}},)
    shown = "{% for t in tools or [] %}{{ t.function.name }}{{ t.function.parameters.properties | list }}{% endfor %}"
    with pytest.raises(ValueError, match="data.jsonl:7"):
        list(texts(shown + PLAIN, user("q"), assistant("a"), tools=tools))


# LFM2 writes the arguments of calls in Python.
def test_arguments_that_a_template_writes_in_python_are_trained():
    template = calling("({{ c.function.arguments }})")
    ((_, generated),) = texts(template, user("q"), assistant("", name="run", code="a\nb"))
    assert generated.endswith("</call><|im_end|>")


# Breaks if a form that was learned with a call is taken for one without: their probes differ.
@pytest.mark.filterwarnings("ignore:the chat template")
def test_a_thinking_turn_without_an_answer_behind_one_that_calls():
    seen = "{% if m.reasoning_content and m.tool_calls %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    template = calling().replace("{{ m.content }}", seen + "{{ m.content }}")
    thinks = [assistant("", "two"), assistant("so", "two"), assistant("", "two")]
    found = list(texts(template, *(one for turn in thinks for one in (user("q"), turn))))
    assert [generated for _, generated in found] == [f"<think>two</think>{end}<|im_end|>" for end in ("", "so", "")]


# Functionary's python, and the builtin_tools of Llama 3.1.
KNOWN = (
    "{% for c in m.tool_calls or [] %}{% if c.function.name == 'run' %}<run>{{ c.function.arguments | tojson }}"
    "{% else %}<call>{{ c.function.name }}{{ c.function.arguments | tojson }}</call>{% endif %}{% endfor %}"
)


# Breaks if calls are only known by a probe in place of their names.
@pytest.mark.parametrize("text", ["", "look"])
@pytest.mark.parametrize("thinking", [None, "two"])
@pytest.mark.filterwarnings("ignore:the chat template")
def test_a_call_that_a_template_knows_by_name(text, thinking):
    turn = assistant(text, thinking, name="run", code="a\nb")
    ((_, generated),) = texts(BASE.replace("CALLS", KNOWN), user("q"), turn)
    thought = "<think>\ntwo\n</think>\n\n" if thinking else ""
    assert generated == thought + text + '<run>{"code": "a\\nb"}<|im_end|>'


# Breaks if a call that a template knows by name is not missed: it forgets each behind the first, or each.
@pytest.mark.parametrize("written", ["{% if not loop.first %}", "{% if c.function.name == 'run' %}"])
def test_a_call_that_a_template_knows_by_name_and_leaves_out_is_refused(written):
    turn = assistant("", name="run", code="a")
    turn["tool_calls"] *= 2
    template = BASE.replace("CALLS", KNOWN.replace("{% if", f"{written}{{% elif", 1))
    with pytest.raises(ValueError, match=r"data.jsonl:7: assistant turn 0 .*does not render each"):
        list(texts(template, user("q"), turn))


# Breaks if the error names another text than the one that the template changes: Ministral escapes the names of calls.
@pytest.mark.parametrize(
    "written, said",
    [
        ("{{ c.function.name | escape }}", "the name of its call 'a<b' is written as HTML in 'say<call>a&lt;b"),
        (
            "{{ c.function.name | replace('<', '') }}",
            "the name of its call 'a<b' does not stand as it is in 'say<call>ab",
        ),
    ],
)
def test_a_name_that_a_template_changes_is_named(written, said):
    template = calling().replace("{{ c.function.name }}", written)
    with pytest.raises(ValueError, match=f"data.jsonl:7: assistant turn 0 .* rewrites the turn: {said}"):
        list(texts(template, user("q"), assistant("say", name="a<b")))
