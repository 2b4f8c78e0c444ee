"""How a template writes a turn is found with probes, whatever else it writes of the conversation."""

import warnings

import pytest
from factories import Work, template_tokenizer

from flexmask import Conversation
from flexmask.text.rendering import render_conversation

LOOP = "{% for m in messages %}"
CHATML = LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}CALLS<|im_end|>\n{% endfor %}"
ASKED = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CALLS = "{% for c in m.tool_calls %}<call>{{ c.function | tojson }}</call>{% endfor %}"


def user(text):
    return {"role": "user", "content": text}


def assistant(text, *arguments):
    functions = [{"name": "add", "arguments": one} for one in arguments]
    calls = [{"id": f"c{i}", "type": "function", "function": one} for i, one in enumerate(functions)]
    return {"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})


def generated(template, *messages):
    """What is generated of each turn."""
    tokenizer = template_tokenizer(template)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        passes = render_conversation(Conversation("c", messages), tokenizer).passes
    return [tokenizer.decode(p.input_ids[p.prompt_length :]) for p in passes]


# Breaks if a form that was learned of one call serves another turn in the same place.
def test_calls_are_learned_turn_by_turn():
    result = {"role": "tool", "name": "add", "tool_call_id": "c0", "content": "r"}
    first, second = assistant("", {"a": 1}), assistant("", {"a": 2}, {"b": [3]})
    written = generated(
        CHATML.replace("CALLS", CALLS) + ASKED, user("q"), first, result, assistant("a"), user("r"), second
    )
    calls = [f'<call>{{"name": "add", "arguments": {one}}}</call>' for one in ('{"a": 1}', '{"a": 2}', '{"b": [3]}')]
    assert written == [calls[0] + "<|im_end|>", "a<|im_end|>", calls[1] + calls[2] + "<|im_end|>"]


# Breaks if a turn begins where its question stands first.
def test_a_template_may_write_the_question_twice():
    asked = "Topic: {{ (messages | selectattr('role', 'equalto', 'user') | list | last).content }}\n"
    template = asked + CHATML.replace("CALLS", "") + ASKED
    assert generated(template, user("q"), assistant("a"), user("r"), assistant("b")) == ["a<|im_end|>", "b<|im_end|>"]


# Breaks if what a prompt opens a turn with has to be all that history opens it with.
def test_a_prompt_may_open_a_turn_with_less_than_history_does():
    template = CHATML.replace("CALLS", "") + ASKED.replace("<|im_start|>", "")
    assert generated(template, user("q"), assistant("a"), user("r"), assistant("b")) == ["a<|im_end|>", "b<|im_end|>"]


# Breaks if what stands behind a call is looked for behind the first place of its name.
def test_a_call_may_write_its_name_twice():
    calls = CALLS.replace("{{ c.function | tojson }}", "{{ c.function.name }}: {{ c.function.arguments | tojson }}")
    calls = calls.replace("</call>", "</{{ c.function.name }}>")
    template = CHATML.replace("CALLS<|im_end|>\n", calls + "{{ '<|im_end|>' if m.role != 'assistant' }}") + ASKED
    assert generated(template, user("q"), assistant("", {"a": 1})) == ['<call>add: {"a": 1}</add><|im_start|>']


# Breaks if tags that an instruction names count as a thought that the prompt has closed: it is opened behind them.
def test_a_thought_that_the_prompt_opens_behind_its_instructions_is_open():
    template = CHATML.replace("CALLS", "{{ ' (think in <think> and </think>)' if m.role == 'user' }}")
    template += ASKED.replace("assistant\n", "assistant\n<think>")
    thoughtful = assistant("a") | {"reasoning_content": "t"}
    assert generated(template, user("q"), thoughtful) == ["t\n</think>\n\na<|im_end|>"]


# Breaks if a template's variables are tried as keywords of our own functions in search of what opens a thought.
@pytest.mark.parametrize("name", ["message", "self", "where", "tokenizer", "template", "settings"])
def test_variables_of_a_template_have_any_name(name):
    template = (CHATML.replace("CALLS", "") + ASKED.replace("assistant\n", "assistant\n<think></think>")).replace
    template = template("for m in", f"for {name} in").replace("m.", f"{name}.")
    with pytest.raises(ValueError, match="c: assistant turn 0 .* has closed the thought"):
        generated(template, user("q"), assistant("a") | {"reasoning_content": "t"})


# Breaks if an exchange has to begin with a question.
def test_a_turn_may_answer_instructions():
    template = CHATML.replace("CALLS", "") + ASKED
    assert generated(template, SYSTEM, assistant("a"), assistant("b"), user("q"), assistant("c")) == [
        *("a<|im_end|>", "b<|im_end|>", "c<|im_end|>")
    ]


RESULT = {"role": "tool", "name": "add", "tool_call_id": "c0", "content": "r"}
SYSTEM = {"role": "system", "content": "quiet"}
QUIET = "{% if messages[0].content == 'quiet' %}<think></think>{% endif %}"
LONG = {
    "questions": [one for i in range(30) for one in (user(f"q{i}"), assistant(f"a{i}"))],
    "behind a system message": [SYSTEM, *(one for i in range(30) for one in (user(f"q{i}"), assistant(f"a{i}")))],
    "calls": [user("q"), *(one for i in range(30) for one in (assistant("", {"a": i}), RESULT)), assistant("a")],
}


# Breaks if forms are learned behind all that was said before, which gives the same, or if the few messages that they
# are learned behind are not those that decide it, so that all are needed after all.
@pytest.mark.parametrize("kind", LONG)
def test_forms_are_learned_from_the_exchange_of_a_turn(kind, monkeypatch):
    template = CHATML.replace("CALLS", CALLS) + ASKED.replace("assistant\n", "assistant\n" + QUIET)
    tokenizer, messages = template_tokenizer(template), LONG[kind]
    work = Work(tokenizer, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        render_conversation(Conversation("c", tuple(messages)), tokenizer)
    histories = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    # The prompt and the turn itself are rendered behind all that was said.
    assert work.messages <= 2 * sum(histories) + 30 * len(histories)
