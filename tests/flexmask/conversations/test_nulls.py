"""Nulls and empty values: what a table has filled in goes, what somebody wrote stays, and nothing goes in silence."""

import json

import datasets
import pytest
import traces
from records import FLAT, LUND, OSLO, PARAMETERS, SCHEMA, TABLE, assistant, call, tool, turns, user, written

from flexmask import read_conversation, read_record
from flexmask.conversations.notes import unread_and_notes
from flexmask.conversations.values import without_nulls

NULLABLE = {"type": "object", "properties": {"town": {"type": ["string", "null"]}}}
EMPTY = [None, "", [], {}]


def read(record):
    return read_conversation(record, "c")


def arguments(conversation):
    return [call["function"]["arguments"] for one in conversation.messages for call in one.get("tool_calls", ())]


def exported(*records):
    """The records of JSON lines that a table wrote which was made from `records`."""
    return [json.loads(json.dumps(one)) for one in datasets.Dataset.from_list(list(records))]


# Breaks if a null in a schema is taken for the mark of a table: an argument that somebody wrote would be lost.
@pytest.mark.parametrize("null", [{"description": None}, {"strict": None}, {"parameters": {**NULLABLE, "title": None}}])
def test_a_null_in_a_schema_says_nothing_of_the_arguments(null):
    tools = [{"type": "function", "function": {"name": "temperature", "parameters": NULLABLE, **null}}]
    conversation = read({"messages": [user(), assistant("", None, call(arguments={"town": None}))], "tools": tools})
    assert arguments(conversation) == [{"town": None}]
    assert any("arguments that are null" in note for note in conversation.notes)


# Breaks if any null of a message is taken for the mark of a table, also where its messages have other keys.
@pytest.mark.parametrize("null", [{"content": None}, {"content": "", "refusal": None, "audio": None}])
def test_a_null_in_a_message_says_nothing_of_the_arguments(null):
    called = {"role": "assistant", **null, "tool_calls": [call(arguments={"town": None})]}
    assert arguments(read({"messages": [user(), called, tool("7", tool_call_id=None)]})) == [{"town": None}]


# Breaks if what a schema has lost to the rule for tables is not said.
def test_a_null_that_goes_is_named_once_with_the_number_of_conversations():
    tools = [{"type": "function", "function": {**FLAT, "strict": None}}]
    records = [{"messages": [user(), assistant("", None, LUND)], "tools": tools}] * 3
    (said,) = unread_and_notes(map(read, records))
    assert "left out: a table has filled them in" in said and "(3 of 3 conversations)" in said
    undeclared = {"messages": [user(), assistant("", None, call(arguments={"x": None}))], "tools": [SCHEMA]}
    (said,) = unread_and_notes([read(undeclared)])
    assert "left out" in said and arguments(read(undeclared)) == [{}]


# Breaks if only schemas tell a table: its calls would be trained with the arguments of all others.
def test_json_lines_of_a_table_without_schemas_are_known_by_their_messages():
    records = [{"messages": one["messages"]} for one in TABLE]
    for record, origin in zip(exported(*records), records, strict=True):
        conversation = read(record)
        assert conversation == read(origin)
        assert any("left out" in note for note in conversation.notes)


def test_json_lines_of_a_table_of_one_call_a_record():
    """Breaks if a table is known only by two calls that differ."""
    talks = [[user(), assistant("", None, one), tool("7")] for one in (LUND, call("convert", {"to": "SEK"}))]
    found = exported(*({"messages": talk} for talk in talks))
    assert found[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"to": None, "town": "Lund"}
    assert [arguments(read(one)) for one in found] == [[{"town": "Lund"}], [{"to": "SEK"}]]


# Breaks if messages that somebody wrote are taken for a table's because their schemas stood in one.
def test_messages_beside_schemas_of_a_table_are_judged_by_themselves():
    (record, _) = exported(*({"tools": one.get("tools")} for one in TABLE))
    messages = [user(), assistant("", None, call("convert", {"to": None}), call(arguments={"town": "Lund"}))]
    conversation = read({**record, "messages": messages})
    assert conversation.tools == tuple(TABLE[0]["tools"])
    assert arguments(conversation) == [{"to": None}, {"town": "Lund"}]


# Breaks if what stands in text is taken for a table's, which fills in no text.
def test_nulls_in_the_text_of_arguments_are_somebodys():
    text = {"name": "temperature", "arguments": '{"town": null}'}
    called = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": text}]}
    (record, _) = exported({"messages": [user(), called]}, {"messages": [{**user(), "name": "x"}]})
    assert arguments(read(record)) == [{"town": None}]
    hermes = turns(("human", "q"), ("gpt", f"<tool_call>{written('temperature', town=None)}</tool_call>"))
    assert arguments(read(hermes)) == [{"town": None}]


# Breaks if what is said of nulls that go advises what does not keep them.
def test_what_the_note_on_nulls_advises_keeps_them():
    padded = [{**user(), "tool_calls": None}, assistant("", None, call(arguments={"x": None}))]
    conversation = read({"messages": padded})
    assert arguments(conversation) == [{}] and "declare it and give the arguments as JSON text" in conversation.notes[0]
    padded[1]["tool_calls"] = [{"type": "function", "function": {"name": "temperature", "arguments": '{"x": null}'}}]
    tools = [{"name": "temperature", "parameters": {"properties": {"x": {"type": ["string", "null"]}}}}]
    assert arguments(read({"messages": padded, "tools": tools})) == [{"x": None}]


# Breaks if blocks, whose messages all have two keys, are taken for a table's by a null that somebody wrote.
def test_a_null_in_the_input_of_a_block_stays():
    block = {"type": "tool_use", "name": "temperature", "input": {"town": None}}
    assert arguments(read({"messages": [user(), {"role": "assistant", "content": [block]}]})) == [{"town": None}]


def test_a_schema_that_takes_other_names_knows_them():
    parameters = {"type": "object", "properties": {}, "additionalProperties": {"type": ["string", "null"]}}
    tools = [{"name": "temperature", "parameters": parameters}]
    messages = [user(), assistant("", None, call(arguments={"x": None}))]
    assert arguments(read({"messages": messages, "tools": tools})) == [{"x": None}]


def test_a_parameter_whose_schema_is_null_is_not_declared():
    """Breaks if the arguments of other functions stay where a message was added to those of a table by hand."""
    tools = [{"name": "temperature", "parameters": {"type": "object", "properties": {"town": {}, "to": None}}}]
    messages = [user(), assistant("", None, call(arguments={"town": "Lund", "to": None}))]
    assert arguments(read({"messages": messages, "tools": [*tools, FLAT | {"name": "g"}]})) == [{"town": "Lund"}]


# ---- null or empty counts as absent ----

ANSWERED = [user(), assistant()]
OF_RECORDS = """messages conversations conversation system system_prompt instructions tools tool_defs functions
chat_template_kwargs enable_thinking reasoning_effort reasoning thinking weight documents images input_ids persona
instruction prompt completion response input output history""".split()


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("key", OF_RECORDS)
def test_a_key_of_a_record_that_is_empty_counts_as_absent(key, empty):
    for record in (
        {"messages": ANSWERED},
        turns(("human", "q"), ("gpt", "a")),
        {"instruction": "q", "output": "a"},
        {"prompt": "q", "completion": "a"},
        {"input": "q", "output": "a"},
    ):
        if key not in record:
            found = read({key: empty, **record})
            assert (found, found.unread) == (read(record), ()), record


KINDS = {
    "conversation": {"messages": ANSWERED},
    "calls": {"calls": [{"prompt": [1], "completion": [2]}]},
    "pair": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "group": {"prompt": "q", "completions": ["a", "b"], "rewards": [1, 0]},
    "request and response": traces.logged([user()], assistant()),
    "bodies": {"request_body": {"messages": [user()]}, "response_body": {"choices": [{"message": assistant()}]}},
    "choices": {"messages": [user()], "choices": [{"message": assistant()}]},
    "ATIF": traces.atif(),
    "traces": traces.episode_of_verifiers(),
    "trace": traces.episode_of_verifiers()["traces"][0],
    "trajectory": {"trajectory": [traces.STEP]},
    "verl": traces.VERL,
    "prime-rl": traces.PRIME_RL,
    "messages and answer": traces.turns_of_dialog("d")[1],
}


# Breaks if a kind of record is known by a key that a table filled in, because other records of it have that key.
@pytest.mark.parametrize("kind", KINDS)
def test_a_table_of_all_kinds_of_records_holds_each(kind):
    filled = dict.fromkeys(key for record in KINDS.values() for key in record)
    alone, found = (read_record(record, "c") for record in (KINDS[kind], filled | KINDS[kind]))
    assert (found, found.format, found.unread, found.notes) == (alone, alone.format, alone.unread, alone.notes)


OF_MESSAGES = """reasoning_content reasoning thinking reasoning_details tool_calls function_call tool_call_id name
weight train loss type refusal call_id from value role content""".split()


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("key", OF_MESSAGES)
def test_a_key_of_a_message_that_is_empty_counts_as_absent(key, empty):
    items = [{"type": "function_call", "name": "f", "arguments": "{}"}, {"type": "function_call_output", "output": "7"},
             {"type": "reasoning", "summary": [{"text": "t"}]}, {"type": "message", **assistant()}]  # fmt: skip
    blocks = [{"type": "thinking", "thinking": "t"}, {"type": "tool_use", "name": "f", "input": {}}]
    for messages in (
        ANSWERED,
        [user(), assistant("", "t", LUND), tool("7"), assistant()],
        [user(), {"role": "reasoning", "content": "t"}, {"role": "answer", "content": "a"}],
        [user(), {"role": "assistant", "content": blocks}],
        [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
        [user(), *items],
    ):
        filled = [{key: empty, **one} for one in messages]
        assert read({"messages": filled}) == read({"messages": messages}), messages


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("key", ["id", "type", "index", "name", "arguments", "parameters", "input", "function", "note"])
def test_a_key_of_a_call_that_is_empty_counts_as_absent(key, empty):
    for one in (LUND, LUND["function"], {"type": "function", "function": {key: empty, **LUND["function"]}}):
        assert read({"messages": [user(), assistant("", None, {key: empty, **one})]}).messages[1]["tool_calls"] == [
            LUND
        ]


@pytest.mark.parametrize(
    "schema",
    [{"function": None, **FLAT}, {"input_schema": None, **FLAT}, {**FLAT, "type": None},
     {"name": FLAT["name"], "description": FLAT["description"], "input_schema": PARAMETERS, "parameters": None}],
)  # fmt: skip
def test_a_key_of_a_schema_that_is_null_counts_as_absent(schema):
    assert read({"messages": ANSWERED, "tools": [schema]}).tools == (SCHEMA,)


@pytest.mark.parametrize(
    "block",
    [{"type": "thinking", "thinking": "", "text": "t"}, {"type": "reasoning", "reasoning": None, "text": "t"},
     {"type": "thinking", "thinking": "t", "text": "", "content": [], "signature": None}],
)  # fmt: skip
def test_a_key_of_a_block_that_is_empty_counts_as_absent(block):
    content = [block, {"type": "text", "text": "a", "thinking": None}]
    assert read({"messages": [user(), {"role": "assistant", "content": content}]}).messages[1] == assistant("a", "t")
    result = {"type": "tool_result", "content": "7", "tool_use_id": ""}
    messages = [user(), assistant("", None, LUND), {"role": "user", "content": [result]}]
    assert read({"messages": messages}).messages[2] == tool("7")


def test_an_argument_of_the_template_that_is_null_counts_as_absent():
    """Breaks if a table's null is set over the run's argument."""
    given = {"enable_thinking": None, "effort": "low"}
    assert read({"messages": ANSWERED, "chat_template_kwargs": given}).template_kwargs == {"effort": "low"}
    assert read({"messages": ANSWERED, "chat_template_kwargs": {"enable_thinking": None}}).template_kwargs is None


# Breaks if the rule for keys is applied to texts: an empty answer is one.
def test_an_empty_text_is_a_text():
    assert read({"messages": [user(), assistant("")]}).messages[1] == assistant("")
    assert read(turns(("human", "q"), ("gpt", ""))).messages[1] == assistant("")
    assert read({"prompt": "q", "completion": ""}).messages[1] == assistant("")
    assert read({"instruction": "q", "output": ""}).messages[1] == assistant("")
    with pytest.raises(ValueError, match="'content' is missing"):
        read({"messages": [user(), {"role": "assistant", "content": None}]})


def test_an_empty_list_of_messages_is_said_to_be_empty():
    with pytest.raises(ValueError, match="the conversation is empty"):
        read({"messages": []})


# Breaks if the pair that says something is passed over for one that is empty.
def test_of_two_pairs_that_which_is_filled_is_read():
    record = {"prompt": "", "completion": "", "input": "q", "output": "a"}
    assert list(read(record).messages) == [user(), assistant()]
    assert read(record).unread == ()


def test_a_table_is_freed_of_nulls_at_every_depth():
    assert without_nulls({"a": None, "b": [{"c": None}, None]}) == {"b": [{}, None]}
    assert arguments(read({"messages": [user(), assistant("", None, LUND, OSLO)]})) == [
        {"town": "Lund"}, {"town": "Oslo"},
    ]  # fmt: skip
