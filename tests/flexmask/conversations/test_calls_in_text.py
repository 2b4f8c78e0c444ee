"""Calls that stand in the text of an answer are read as calls, or refused by name: nobody's form is trained as text."""

import pytest
from records import CALLED, LUND, LUND_TEXT, OSLO, SCHEMA, assistant, call, system, tool, turns, user

from flexmask import read_conversation
from flexmask.conversations.conversation import Conversation

EXPECTED = [user("Lund?"), assistant("", None, LUND), tool("7"), assistant("Seven.", "7 it says")]


def read(record):
    return read_conversation(record, "c")


def xml(name="temperature", **parameters):
    inside = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters.items())
    return f"<tool_call>\n<function={name}>\n{inside}</function>\n</tool_call>"


WAYS = {
    "Qwen's XML": (xml(town="Lund"), tool("<tool_response>\n7\n</tool_response>"), "Hermes calls"),
    "Glaive": ("""<functioncall> {"name": "temperature", "arguments": '{"town": "Lund"}'} <|endoftext|>""",
               user("FUNCTION RESPONSE: 7"), "Glaive calls"),
    "Glaive without quotes": (f"<functioncall> {LUND_TEXT}", tool("FUNCTION RESPONSE: 7"), "Glaive calls"),
    "Mistral": (f"[TOOL_CALLS] [{LUND_TEXT}]</s>", tool("7"), "Mistral calls"),
    "Mistral, names": ('[TOOL_CALLS]temperature[ARGS]{"town": "Lund"}', tool("7"), "Mistral calls"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("thinking", [None, "look"])
def test_calls_of_every_form_are_the_same_messages(way, thinking):
    text, result, name = WAYS[way]
    thought = f"<think>\n{thinking}\n</think>\n\n" if thinking else ""
    record = {"messages": [CALLED[0], assistant(thought + text), result, CALLED[-1]]}
    conversation = read({**record, "tools": [SCHEMA]})
    assert list(conversation.messages) == [CALLED[0], assistant("", thinking, LUND), *EXPECTED[2:]]
    assert conversation.format == f"chat messages with {name}" and conversation.notes == ()


@pytest.mark.parametrize("way", WAYS)
def test_text_in_front_of_calls_stays(way):
    text, _, _ = WAYS[way]
    assert read({"messages": [user(), assistant(f"Let me see.\n{text}")]}).messages[1]["content"] == "Let me see."


def test_several_calls():
    texts = (
        xml(town="Lund") + "\n" + xml(town="Oslo"),
        f"[TOOL_CALLS] [{LUND_TEXT}, {LUND_TEXT.replace('Lund', 'Oslo')}]",
        '[TOOL_CALLS]temperature[ARGS]{"town": "Lund"}[TOOL_CALLS]temperature[CALL_ID]a1[ARGS]{"town": "Oslo"}',
    )
    for text in texts:
        found = read({"messages": [user(), assistant(text)]}).messages[1]["tool_calls"]
        assert [one["function"] for one in found] == [LUND["function"], OSLO["function"]]
    assert found[1]["id"] == "a1"


def test_an_apostrophe_in_arguments_that_stand_in_single_quotes():
    text = """<functioncall> {"name": "say", "arguments": '{"text": "I'm\\nhere"}'}"""
    assert read({"messages": [user(), assistant(text)]}).messages[1] == assistant(
        "", None, call("say", {"text": "I'm\nhere"})
    )


# Breaks if an argument is trained as text where a template writes JSON, or the other way round.
@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "5", "5"),
        ({"type": "string"}, "null", "null"),
        ({"type": "string"}, " two\n\nlines ", " two\n\nlines "),
        ({"type": "string"}, "\n", "\n"),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": "integer"}, "5", 5),
        ({"type": "number"}, "5", 5),
        ({"type": "number"}, "0.5", 0.5),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "False", False),
        ({"type": "array", "items": {}}, '["a", 1]', ["a", 1]),
        ({"type": "object"}, "{'a': None}", {"a": None}),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "None", None),
        ({"enum": [1, 2]}, "1", 1),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"type": "int"}, "5", 5),  # as those write who think of Python
        ({"type": "List[int]"}, "[5]", "[5]"),
        ({"type": 3, "anyOf": 4}, "5", "5"),
    ],
)
def test_arguments_in_xml_have_the_types_that_are_declared(schema, text, value):
    tools = [{"name": "f", "parameters": {"type": "object", "properties": {"x": schema}}}]
    record = {"messages": [user(), assistant(xml("f", x=text))], "tools": tools}
    (found,) = read(record).messages[1]["tool_calls"]
    assert repr(found["function"]["arguments"]) == repr({"x": value})


def test_types_may_be_declared_in_the_system_text():
    tools = '<tools>[{"name": "f", "parameters": {"properties": {"x": {"type": "integer"}}}}]</tools>'
    conversation = read({"messages": [system(tools), user(), assistant(xml("f", x="5"))]})
    assert conversation.messages[1] == assistant("", None, call("f", {"x": 5}))


def test_arguments_without_a_declared_type_stay_text_and_are_named():
    conversation = read({"messages": [user(), assistant(xml("f", x="5"))]})
    assert conversation.messages[1] == assistant("", None, call("f", {"x": "5"}))
    assert type(conversation.messages[1]["tool_calls"][0]["function"]["arguments"]["x"]) is str
    assert "whose type no tool schema declares" in conversation.notes[0]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (xml("f", x="five"), "message 1: the argument 'x' of the call of 'f'.*malformed JSON"),
        (
            xml("f", x="0.5"),
            r"message 1: the argument 'x' of the call of 'f' is '0.5' \(str\), and its schema declares",
        ),
        (xml("f", x="true"), "message 1: the argument 'x' of the call of 'f' is 'true'"),
        ("<tool_call><function=f>x</function></tool_call>", "'x' .* is neither a function nor a parameter"),
        ("<tool_call><function=f></tool_call>", "in a call in XML is neither a function nor a parameter"),
        (xml("f", x="1").replace("</function>", "<parameter=x>2</parameter></function>"), "'x' stands twice"),
        ("<functioncall> f(1)", "a tool call: malformed JSON"),
        ("[TOOL_CALLS] f(1)", "a tool call: malformed JSON"),
        ("[TOOL_CALLS][]x", "a tool call: malformed JSON"),
        ('<|python_tag|>f.call(x="1")', r"<\|python_tag\|> in the text of an answer opens a call in a form"),
        ('Wait. <function=f>{"x": 1}</function>', "<function= in the text of an answer opens a call"),
        ("<\uff5ctool\u2581calls\u2581begin\uff5c>f", "in the text of an answer opens a call"),
    ],
)
def test_what_cannot_be_read_as_a_call_is_refused_by_name(text, error):
    tools = [{"name": "f", "parameters": {"properties": {"x": {"type": "integer"}}}}]
    with pytest.raises(ValueError, match=f"^c: message 1: .*{error.removeprefix('message 1: ')}"):
        read({"messages": [user(), assistant(text)], "tools": tools})


@pytest.mark.parametrize("tag", ["<tool_call>", "<functioncall>", "[TOOL_CALLS]", "<function=", "<|python_tag|>"])
def test_tags_in_quotes_are_the_topic(tag):
    text = f"A call begins with '{tag}' there."
    assert read({"messages": [user(), assistant(text)]}).messages[1] == assistant(text)
    assert read({"messages": [user(f"What is {tag}?"), assistant()]}).messages[0] == user(f"What is {tag}?")


# Breaks if the name under which a format keeps the text of a call is one that a record may have.
def test_a_key_or_a_role_named_call_is_nothing_but_unknown():
    with pytest.raises(ValueError, match="unknown key 'call'"):
        read({"messages": [user(), assistant("a", **{"call": LUND_TEXT})]})
    for role in ("call", "thinking "):
        with pytest.raises(ValueError, match=f"unknown role '{role}'"):
            read({"messages": [user(), {"role": role, "content": LUND_TEXT}]})
    with pytest.raises(ValueError, match="unknown 'from' 'call'"):
        read(turns(("human", "q"), ("call", LUND_TEXT)))


def test_a_tool_that_is_named_after_thinking_gives_no_note():
    record = turns(("human", "q"), ("function_call", '{"name": "think", "arguments": {}}'), ("gpt", "a"))
    assert read(record).notes == ()


CUSTOM = {"call_id": "c1", "name": "shell", "input": '{"looks": "like arguments"}'}


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [user(), {"type": "custom_tool_call", **CUSTOM}, assistant()]},
        {"messages": [user(), assistant(), {"type": "custom_tool_call_output", "call_id": "c1", "output": "x"}]},
        {"messages": [user(), assistant("", None, {"id": "c", "type": "custom", "custom": CUSTOM})]},
        {"messages": [user(), assistant()], "tools": [{"type": "custom", "name": "shell", "format": {"type": "text"}}]},
    ],
)
def test_calls_with_free_text_are_refused_by_name(record):
    """Breaks if text that happens to be JSON is taken for named arguments."""
    with pytest.raises(ValueError, match="^c: .*(custom_tool_call|custom tool).*make it a function"):
        read(record)


# Breaks if two shapes of a call reach the chat template.
@pytest.mark.parametrize("function", [{"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": '{"x": 1}'}])
def test_a_conversation_made_directly_keeps_one_shape_of_calls_and_schemas(function):
    for one in (function, {"type": "function", "function": function}):
        conversation = Conversation("c", (user(), assistant("", None, one)), tools=({"name": "f", "parameters": {}},))
        assert conversation.messages[1]["tool_calls"] == [call("f", {"x": 1})]
        assert conversation.tools == ({"type": "function", "function": {"name": "f", "parameters": {}}},)
