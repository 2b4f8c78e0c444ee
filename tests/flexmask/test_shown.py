"""Nothing that a conversation says is lost: what a template shows to no trained turn is named."""

import itertools
import random
import re

import pytest
from factories import template_tokenizer

from flexmask import Conversation
from flexmask.text.rendering import render_conversation

TOOLS = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
CALLS = "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
NAME = "{{ m.name if m.name and m.role != 'tool' }}"
ALL = (
    TOOLS
    + "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    + NAME
    + "{{ m.content }}"
    + CALLS
    + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KEPT = "{% for m in messages %}{% if KEEP %}<|im_start|>"
SCHEMA = {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Of a town.", "parameters": SCHEMA}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"town": "Lund"}}}


def keeping(condition):
    """The template that shows only messages for which a condition holds."""
    shown = ALL.replace("{% for m in messages %}<|im_start|>", KEPT.replace("KEEP", condition))
    return shown.replace("<|im_end|>\n{% endfor %}", "<|im_end|>\n{% endif %}{% endfor %}")


def user(text, **more):
    return {"role": "user", "content": text, **more}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def conversation(*messages, tools=None, **more):
    return Conversation("data.jsonl:7", messages, tools, **more)


TALK = (user("q"), assistant("a"), user("r"), assistant("b"))
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "c1", "content": "7"}
LOST = {
    "the text of developer messages": (
        keeping("m.role != 'developer'"),
        conversation({"role": "developer", "content": "CAPITALS"}, *TALK),
    ),
    "the text of system messages": (  # a second one
        keeping("m.role != 'system' or loop.first"),
        conversation(
            {"role": "system", "content": "one"}, user("q"), {"role": "system", "content": "two"}, assistant("a")
        ),
    ),
    "the name of user messages": (ALL.replace(NAME, ""), conversation(user("q", name="Ada"), assistant("a"))),
    "the tools": (ALL.replace(TOOLS, ""), conversation(*TALK, tools=(TOOL,))),
    "the descriptions of tools": (
        ALL.replace("t | tojson", "t.function.name, t.function.parameters"),
        conversation(*TALK, tools=(TOOL,)),
    ),
    "the parameters of tools": (
        ALL.replace("t | tojson", "t.function.name, t.function.description"),
        conversation(*TALK, tools=(TOOL,)),
    ),
    "the text of tool messages": (
        keeping("m.role != 'tool'"),
        conversation(user("q"), assistant("", tool_calls=[CALL]), RESULT, assistant("a"), tools=(TOOL,)),
    ),
    "the text of assistant messages beside tool calls": (
        ALL.replace("{{ m.content }}", "{{ m.content if not m.tool_calls }}"),
        conversation(user("q"), assistant("look", tool_calls=[CALL], weight=0), RESULT, assistant("a"), tools=(TOOL,)),
    ),
    "the tool calls of assistant messages": (
        ALL.replace("<call>{{ c.function | tojson }}</call>", ""),
        conversation(user("q"), assistant("look", tool_calls=[CALL], weight=0), RESULT, assistant("a"), tools=(TOOL,)),
    ),
    "the template argument 'style'": (ALL, conversation(*TALK, template_kwargs={"style": "long"})),
    "the switch of thinking": (ALL, conversation(*TALK, thinks=False)),
    "the arguments of the tool calls of assistant messages": (
        ALL.replace("c.function | tojson", "c.function.name"),
        conversation(user("q"), assistant("look", tool_calls=[CALL], weight=0), RESULT, assistant("a"), tools=(TOOL,)),
    ),
    "the name of assistant messages": (ALL.replace(NAME, ""), conversation(user("q"), assistant("a", name="Ada"))),
}


@pytest.mark.parametrize("kind", LOST)
def test_what_a_template_leaves_out_is_refused_or_said(kind):
    template, source = LOST[kind]
    tokenizer = template_tokenizer(template)
    with pytest.raises(
        ValueError, match=f"data.jsonl:7: the chat template .* shows {kind} to no turn .* not_shown=.warn"
    ):
        render_conversation(source, tokenizer)
    with pytest.warns(UserWarning, match=f"the chat template shows {kind} to no turn that is trained"):
        passes = render_conversation(source, tokenizer, not_shown="warn").passes
    assert passes


@pytest.mark.parametrize("kind", [kind for kind in LOST if not re.search("template argument|switch", kind)])
def test_nothing_is_said_of_what_is_shown(kind):
    assert render_conversation(LOST[kind][1], template_tokenizer(ALL)).passes


# Breaks if only the arguments of a conversation are looked at, and not those of the run.
def test_an_argument_of_the_run_that_the_template_does_not_know_is_refused():
    with pytest.raises(ValueError, match="shows the template argument 'style' to no turn .* \\('long'\\)"):
        render_conversation(conversation(*TALK), template_tokenizer(ALL), template_kwargs={"style": "long"})
    known = template_tokenizer("{{ style }}" + ALL)
    assert render_conversation(conversation(*TALK), known, template_kwargs={"style": "long"}).passes


# Breaks for a keyword that is looked for by name: whatever a schema says, at whatever depth, under a template that
# writes it in a way of its own.
SAID = {
    "pattern": {"pattern": "^[A-Z]"},
    "minimum": {"minimum": 3},
    "default": {"default": False},
    "enum": {"enum": ["Lund", "Oslo"]},
    "nullable": {"nullable": True},
    "type": {"type": "string"},
    "anything": {"anything": {"inside": [1, None, "x"]}},
}
WRITTEN = "{{ t.function.name }}({% for n, p in t.function.parameters.properties.items() %}{{ n }}REST{% endfor %})"


@pytest.mark.parametrize("keyword", SAID)
@pytest.mark.parametrize("nested", [False, True])
def test_whatever_a_schema_says_of_a_parameter_is_not_lost(keyword, nested):
    inner = SAID[keyword]
    said = {"type": "object", "properties": {"inner": inner}} if nested else inner
    parameters = {"type": "object", "properties": {"town": said}}
    source = conversation(*TALK, tools=({"type": "function", "function": {"name": "f", "parameters": parameters}},))
    kind = re.escape(f"{keyword.replace('anything', 'inside')!r} in the schemas of tools")
    names = "{{ p.properties | list if p.properties }}"
    without = ALL.replace("{{ t | tojson }}", WRITTEN.replace("REST", names))
    with pytest.raises(ValueError, match=f"shows {kind} to no turn .*f: parameters.properties.town"):
        render_conversation(source, template_tokenizer(without))
    for told in ("{{ p | tojson }}", "{{ p.items() | list }}"):
        shown = ALL.replace("{{ t | tojson }}", WRITTEN.replace("REST", told))
        assert render_conversation(source, template_tokenizer(shown)).passes


# Breaks if it is enough that another value would be written.
def test_what_a_template_writes_only_of_what_is_true_is_not_lost():
    parameters = {"type": "object", "properties": {"town": {"default": False}}}
    source = conversation(*TALK, tools=({"type": "function", "function": {"name": "f", "parameters": parameters}},))
    template = ALL.replace("{{ t | tojson }}", WRITTEN.replace("REST", "{{ p.default if CONDITION }}"))
    with pytest.raises(ValueError, match="shows 'default' in the schemas of tools to no turn"):
        render_conversation(source, template_tokenizer(template.replace("CONDITION", "p.default")))
    assert render_conversation(source, template_tokenizer(template.replace("CONDITION", "p.default is defined"))).passes


# Breaks if a name among the parameters counts as what is said of it: nested lists of those that must be given.
def test_which_parameters_are_required_is_not_lost():
    inner = {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["b"]}
    parameters = {"type": "object", "properties": {"town": inner}, "required": ["town"]}
    source = conversation(*TALK, tools=({"type": "function", "function": {"name": "f", "parameters": parameters}},))
    inside = "{% for m in p.properties or {} %}{{ m }}INNER{% endfor %}"
    outer = "{{ '!' if n in t.function.parameters.required }}"
    named = ALL.replace("{{ t | tojson }}", WRITTEN.replace("REST", outer + inside))
    with pytest.raises(ValueError, match="shows 'required' in the schemas of tools to no turn .*town.required.0: 'b'"):
        render_conversation(source, template_tokenizer(named.replace("INNER", "")))
    assert render_conversation(
        source, template_tokenizer(named.replace("INNER", "{{ '!' if m in p.required }}"))
    ).passes


# Breaks if a template that writes all of a short schema, or nothing of what structure says already, is refused.
@pytest.mark.parametrize(
    "parameters", [{}, {"type": "object", "properties": {}}, {"type": "object", "properties": {}, "required": []}]
)
def test_a_tool_without_parameters_says_no_more_than_its_name(parameters):
    source = conversation(*TALK, tools=({"type": "function", "function": {"name": "f", "parameters": parameters}},))
    assert render_conversation(source, template_tokenizer(ALL.replace("t | tojson", "t.function.name"))).passes


def calling(**arguments):
    return {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}


# Breaks if arguments are looked for anywhere: each of these stands elsewhere in the text as well.
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("lost", ["b", "c"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"a": 1, "b": 1, "c": 1},
        {"a": "weather", "b": "weather", "c": "weather"},
        {"a": {"b": [1, 1], "c": 1}, "b": 1, "c": "1"},
        {"a": False, "b": False, "c": False},
        {"a": None, "b": None, "c": None},
        {"a": "bc", "b": "", "c": []},
        {"a": 0.5, "b": 0.5, "c": 0},
    ],
    ids=str,
)
def test_an_argument_is_looked_for_in_its_place(arguments, lost, trained):
    kept = "{% for k, v in c.function.arguments.items() if k != LOST %}{{ k }}={{ v | tojson }};{% endfor %}"
    calls = [calling(**arguments)]
    messages = (user("q"), assistant("", tool_calls=calls, weight=int(trained)), RESULT, assistant("a"))
    source = conversation(*messages, tools=(TOOL,))
    template = ALL.replace("{{ c.function | tojson }}", "{{ c.function.name }}" + kept)
    error = "does not render" if trained else "shows the arguments of the tool calls of assistant messages to no turn"
    with pytest.raises(ValueError, match=error):
        render_conversation(source, template_tokenizer(template.replace("LOST", repr(lost))))
    assert render_conversation(source, template_tokenizer(template.replace("LOST", "''"))).passes


# Breaks if it is enough that a value makes some difference: these are written as another value is, or as if they were
# not there, or only when they are short.
@pytest.mark.parametrize(
    "written, value",
    [
        ("{{ k }}", False),
        ("{{ k }}", None),
        ("{{ k ~ '=' ~ v if v }}", False),
        ("{{ k ~ '=' ~ v if v is not none }}", None),
        ("{{ k }}={{ v[:30] }}", "x" * 40),
    ],
)
def test_an_argument_that_is_written_only_in_part_is_refused(written, value):
    each = "{{ c.function.name }}{% for k, v in c.function.arguments.items() %}EACH;{% endfor %}"
    source = conversation(user("q"), assistant("", tool_calls=[calling(a=value)]), tools=(TOOL,))
    template = ALL.replace("{{ c.function | tojson }}", each)
    with pytest.raises(ValueError, match="does not render .* of the call of 'weather' .arguments: a."):
        render_conversation(source, template_tokenizer(template.replace("EACH", written)))
    assert render_conversation(source, template_tokenizer(template.replace("EACH", "{{ k }}={{ v }}"))).passes


# Breaks if only one call of a kind is asked for: this template forgets the arguments of those before the last question.
def test_arguments_that_only_later_turns_lose_are_named():
    later = ALL.replace("c.function | tojson", "c.function | tojson if loop.index > 1 or LAST else c.function.name")
    messages = (user("q"), assistant("", tool_calls=[CALL], weight=0), RESULT, assistant("a"))
    source = conversation(*messages, tools=(TOOL,))
    with pytest.raises(ValueError, match="shows the arguments of the tool calls .*'Lund'"):
        render_conversation(source, template_tokenizer(later.replace("LAST", "messages[-1].role != 'tool'")))
    assert render_conversation(source, template_tokenizer(later.replace("LAST", "true"))).passes


# Breaks if the name of who speaks last is neither generated nor missed.
def test_the_name_of_the_last_speaker_is_generated_where_the_template_writes_it():
    tokenizer = template_tokenizer(ALL)
    source = conversation(user("q"), assistant("a", name="Ada"), user("r"), assistant("b", name="Eve"))
    passes = render_conversation(source, tokenizer).passes
    assert [tokenizer.decode(p.input_ids[p.prompt_length :]) for p in passes] == ["Adaa<|im_end|>", "Eveb<|im_end|>"]


# Breaks if only the last prompt is looked at: this template clears results once they are answered.
def test_what_only_an_earlier_turn_sees_is_not_lost():
    cleared = keeping("m.role != 'tool' or loop.index > messages | length - 1")
    messages = (user("q"), assistant("", tool_calls=[CALL]), RESULT, assistant("a"), user("r"), assistant("b"))
    source = conversation(*messages, tools=(TOOL,))
    assert len(render_conversation(source, template_tokenizer(cleared)).passes) == 3
    with pytest.raises(ValueError, match="the text of tool messages to no turn"):
        render_conversation(source, template_tokenizer(cleared), turns="-1")


# Breaks for a kind of message that is not asked for: whatever role a template hides, in whatever order.
@pytest.mark.parametrize("seed", range(30))
def test_every_hidden_role_is_named(seed):
    rng = random.Random(seed)
    head = [{"role": role, "content": f"{role} {seed}"} for role in ("system", "developer") if rng.random() < 0.7]
    messages = [*head]
    for turn in range(rng.randint(1, 4)):
        messages += [user(f"q{turn}"), assistant(f"a{turn}", weight=int(rng.random() < 0.6))]
    messages += [user("last"), assistant("last")]
    hidden = rng.choice(["system", "developer", "user", "assistant"])
    tokenizer = template_tokenizer(keeping(f"m.role != '{hidden}' or (m.role == 'assistant' and loop.last)"))
    source = conversation(*messages)
    there = [m for m in messages[:-1] if m["role"] == hidden and (hidden != "assistant" or not m.get("weight", 1))]
    if there:
        with pytest.raises(ValueError, match=f"shows the text of {hidden} messages to no turn"):
            render_conversation(source, tokenizer)
    else:
        render_conversation(source, tokenizer)


# Breaks if a template that does not take probes is not asked at all.
def test_a_template_that_rejects_probes_is_asked_with_the_texts_themselves():
    picky = keeping("m.role != 'developer'").replace(
        "{{ m.content }}", "{{ raise_exception('?') if 'flexmask_' in m.content }}{{ m.content }}"
    )
    source = conversation({"role": "developer", "content": "CAPITALS"}, *TALK)
    with pytest.raises(ValueError, match="shows the text of developer messages to no turn .*CAPITALS"):
        render_conversation(source, template_tokenizer(picky))
    assert render_conversation(conversation(*TALK), template_tokenizer(picky)).passes


def test_what_stands_behind_the_last_trained_turn_is_context_of_nothing():
    source = conversation(*TALK, {"role": "developer", "content": "later"})
    tokenizer = template_tokenizer(keeping("m.role != 'developer'"))
    assert len(render_conversation(source, tokenizer).passes) == 2
    assert len(list(itertools.chain(render_conversation(source, tokenizer, turns="0").passes))) == 1


def test_the_setting_is_one_of_two():
    with pytest.raises(ValueError, match="not_shown=\"never\": write 'error' or 'warn'"):
        render_conversation(conversation(*TALK), template_tokenizer(ALL), not_shown="never")
