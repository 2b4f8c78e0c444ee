"""What a record says twice is the same, or refused by name: of two that differ none is lost in silence."""

import json

import pytest
from records import FLAT, LUND, LUND_TEXT, OSLO, PARAMETERS, SCHEMA, assistant, system, tool, user, written

from flexmask import read_conversation


def read(record):
    return read_conversation(record, "c")


def details(*texts):
    return [{"type": "reasoning.text", "text": text} for text in texts]


THINKING_PARTS = [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "a"}]
HERMES = f"<tool_call>{LUND_TEXT}</tool_call>"
CHANNELS = (
    f"<|channel|>commentary to=functions.temperature<|message|>{json.dumps(LUND['function']['arguments'])}<|call|>"
)
TWO = {"name": "temperature", "parameters": {**PARAMETERS, "required": []}, "description": "Of a town."}


def declared(schema):
    return system(f"<tools>{json.dumps([schema])}</tools>")


def message(*messages, **beside):
    return {"messages": [user(), *messages], **beside}


# (the same twice, the answer that it is; two that differ; what the error says)
DOUBLED = {
    "reasoning and its details": (
        message(assistant("a", reasoning="t", reasoning_details=details("t"))),
        message(assistant("a", reasoning="t", reasoning_details=details("u"))),
        "contradicting thinking in 'reasoning' and 'reasoning_details'",
    ),
    "reasoning_content and the details": (
        message(assistant("a", "t u", reasoning_details=details("t ", "u"))),
        message(assistant("a", "t", reasoning_details=details("t ", "u"))),
        "contradicting thinking in 'reasoning_content' and 'reasoning_details'",
    ),
    "details and tags": (
        message(assistant("<think>t</think>a", reasoning_details=details("t"))),
        message(assistant("<think>t</think>a", reasoning_details=details("u"))),
        "contradicting thinking in 'reasoning_details' and 'the content'",
    ),
    "details and blocks": (
        message({"role": "assistant", "content": THINKING_PARTS, "reasoning_details": details("t")}),
        message({"role": "assistant", "content": THINKING_PARTS, "reasoning_details": details("u")}),
        "contradicting thinking",
    ),
    "reasoning_content and blocks": (
        message({"role": "assistant", "content": THINKING_PARTS, "reasoning_content": "t"}),
        message({"role": "assistant", "content": THINKING_PARTS, "reasoning_content": "u"}),
        "'reasoning_content' beside blocks",
    ),
    "reasoning and blocks": (
        message({"role": "assistant", "content": THINKING_PARTS, "reasoning": "t"}),
        message({"role": "assistant", "content": THINKING_PARTS, "reasoning": "u"}),
        "contradicting thinking",
    ),
    "two texts of a block": (
        message({"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "text": "t"}]}),
        message({"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "text": "u"}]}),
        "contradicting thinking in 'thinking' and 'text' of a block",
    ),
    "thinking of a record and of its message": (
        {"prompt": "q", "completion": [assistant("a", reasoning="t")], "reasoning": "t"},
        {"prompt": "q", "completion": [assistant("a", reasoning="t")], "reasoning": "u"},
        "'reasoning' of the record is not that of its last message",
    ),
    "thinking of a record and of its message, other names": (
        {"prompt": "q", "completion": [assistant("a", reasoning="t")], "thinking": "t"},
        {"prompt": "q", "completion": [assistant("a", reasoning="t")], "thinking": "u"},
        "contradicting thinking in 'reasoning' and 'thinking'",
    ),
    "calls and Hermes": (
        message(assistant(HERMES, None, {**LUND, "id": "c1"})),
        message(assistant(HERMES, None, OSLO)),
        "other calls in the text than in 'tool_calls'",
    ),
    "calls and more Hermes": (
        message(assistant(HERMES, None, LUND)),
        message(assistant(HERMES * 2, None, LUND)),
        "other calls in the text than in 'tool_calls'",
    ),
    "calls and channels": (
        message(assistant(CHANNELS, None, LUND)),
        message(assistant(CHANNELS, None, OSLO)),
        "other calls in the text than in 'tool_calls'",
    ),
    "calls and the role of a call": (
        message({"role": "tool_call", "content": LUND_TEXT, "tool_calls": [LUND]}),
        message({"role": "tool_call", "content": LUND_TEXT, "tool_calls": [OSLO]}),
        "other calls in the text than in 'tool_calls'",
    ),
    "schemas beside and in <tools>": (
        message(assistant(), tools=[SCHEMA]) | {"messages": [declared(FLAT), user(), assistant()]},
        message(assistant(), tools=[SCHEMA]) | {"messages": [declared(TWO), user(), assistant()]},
        "they differ in temperature.function.parameters.required",
    ),
    "functions beside and in <tools>": (
        message(assistant(), tools=[SCHEMA]) | {"messages": [declared(FLAT), user(), assistant()]},
        message(assistant(), tools=[SCHEMA, {"name": "g"}]) | {"messages": [declared(FLAT), user(), assistant()]},
        "they differ in g",
    ),
    "three keys of tools": (
        message(assistant(), tools=[SCHEMA], tool_defs=[FLAT], functions=[FLAT]),
        message(assistant(), tools=[SCHEMA], tool_defs=[FLAT], functions=[TWO]),
        "different tools in 'tools' and 'functions'",
    ),
    "two schemas of one parameter": (
        message(assistant(), tools=[{**FLAT, "input_schema": PARAMETERS}]),
        message(assistant(), tools=[{**FLAT, "input_schema": {}}]),
        "'parameters' and 'input_schema' differ in",
    ),
    "a switch and an argument of the template": (
        message(assistant(), reasoning="off", chat_template_kwargs={"enable_thinking": False}),
        message(assistant(), reasoning="off", chat_template_kwargs={"enable_thinking": True}),
        "'reasoning' and the template argument 'enable_thinking' say different things",
    ),
    "two system texts": (
        message(assistant(), system="s") | {"messages": [system("s"), user(), assistant()]},
        message(assistant(), system="s") | {"messages": [system("t"), user(), assistant()]},
        "both 'system' and a first system message",
    ),
}
REFUSED_ALSO_IF_EQUAL = {"reasoning_content and blocks"}


# Breaks if one of the two wins without a word.
@pytest.mark.parametrize("pair", DOUBLED)
def test_what_stands_twice_is_the_same_or_refused(pair):
    same, other, error = DOUBLED[pair]
    with pytest.raises(ValueError, match=f"^c: .*{error}.*; keep one"):
        read(other)
    if pair in REFUSED_ALSO_IF_EQUAL:
        with pytest.raises(ValueError, match=error):
            read(same)
        return
    conversation = read(same)
    assert conversation.unread == ()
    answer = conversation.messages[-1]
    assert answer.get("reasoning_content", "t") in ("t", "t u") and len(answer.get("tool_calls", [1])) == 1


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (dict(function_call=LUND["function"], tool_calls=[OSLO]), "both 'function_call' and 'tool_calls'"),
        (dict(tool_calls=[{**LUND, "name": "other"}]), "unknown key 'name' in the call of 'temperature'"),
        (dict(tool_calls=[{"name": "f", "arguments": {"a": 1}, "input": {"a": 2}}]), "unknown key 'input' in the call"),
    ],
)
def test_calls_that_stand_under_two_keys_are_refused(call, error):
    with pytest.raises(ValueError, match=error):
        read(message({"role": "assistant", "content": "", **call}))


# Breaks if an empty text of the message takes the place of what the tool put out.
def test_the_output_of_a_call_is_not_lost_to_a_content():
    called = {"type": "function_call", "name": "temperature", "arguments": written("x")}
    output = {"type": "function_call_output", "output": "7"}
    record = message({**called, "arguments": "{}"}, {**output, "content": ""}, assistant())
    assert read(record).messages[2] == tool("7")
    with pytest.raises(ValueError, match="'content' beside 'output'; keep one"):
        read(message({**called, "arguments": "{}"}, {**output, "content": "8"}, assistant()))


def test_thinking_of_which_some_is_encrypted_is_named():
    mixed = [*details("t"), {"type": "reasoning.encrypted", "data": "x"}]
    conversation = read(message(assistant("a", reasoning="t", reasoning_details=mixed)))
    assert conversation.messages[1] == assistant("a", "t") and "encrypted" in conversation.notes[0]


# Breaks if a text that is about the tags has no way through, though errors and documentation name one.
def test_a_text_that_begins_with_tags_stays_with_no_thinking_in_text():
    text = "<think>t</think> is how Qwen writes a thought."
    found = read_conversation(message(assistant(text)), "c", thinking_tags=None)
    assert found.messages[1] == assistant(text)
