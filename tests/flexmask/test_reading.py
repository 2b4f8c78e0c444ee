"""Records as people have them, and the conversation that each must be read as: whatever its format, nothing is lost.

The inputs are written for these tests after what public reports of this field describe.
"""

import json
import math

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from factories import chatml_tokenizer
from records import (
    CALLED,
    FLAT,
    LUND,
    LUND_TEXT,
    OSLO,
    PARAMETERS,
    SCHEMA,
    TABLE,
    WAYS_TO_CALL,
    assistant,
    call,
    system,
    tool,
    turns,
    user,
    written,
)

from flexmask import OnePassConfig, read_conversation
from flexmask.conversations.notes import unread_and_notes
from flexmask.conversations.values import without_nulls
from flexmask.training.data import Preparation, prepare_dataset
from recipes.sources.files import read_path

NAME = "train.jsonl:12"


def read(record, **settings):
    return read_conversation(record, NAME, **settings)


def said(record, **settings):
    return list(read(record, **settings).messages)


# Breaks if a format loses thinking, a call or a result, or leaves one of them in the text of a message.
@pytest.mark.parametrize("way", WAYS_TO_CALL)
def test_calls_of_every_format_are_the_same_messages(way):
    before = json.dumps(WAYS_TO_CALL[way])
    assert said(WAYS_TO_CALL[way]) == CALLED
    assert json.dumps(WAYS_TO_CALL[way]) == before  # the record is somebody's


def test_calls_that_follow_each_other_are_one_message_with_its_thinking():
    """Breaks if a model learns to end its turn between two calls."""
    record = turns(
        ("human", "Both?"),
        ("function_call", f"<think>Two towns.</think>{LUND_TEXT}"),
        ("function_call", written("temperature", town="Oslo")),
        ("observation", "7"),
        ("observation", "3"),
        ("gpt", "7 and 3."),
    )
    expected = [user("Both?"), assistant("", "Two towns.", LUND, OSLO), tool("7"), tool("3"), assistant("7 and 3.")]
    assert said(record) == expected
    steps = [
        {"role": "reasoning", "content": "Two towns."},
        {"role": "tool_call", "content": LUND_TEXT},
        {"role": "tool_call", "content": written("temperature", town="Oslo")},
    ]
    assert said({"messages": [user("Both?"), *steps, *expected[2:]]}) == expected


def test_new_thinking_begins_a_new_message():
    """Breaks if the second thought is glued to the first, in front of both calls."""
    record = turns(
        ("human", "Both?"),
        ("function_call", f"<think>One.</think>{LUND_TEXT}"),
        ("function_call", f"<think>Two.</think>{written('temperature', town='Oslo')}"),
        ("gpt", "Done."),
    )
    assert said(record) == [
        user("Both?"), assistant("", "One.", LUND), assistant("", "Two.", OSLO), assistant("Done."),
    ]  # fmt: skip


def test_text_before_calls_stays_in_front_of_them():
    expected = [user(), assistant("Let me see.", "t", LUND), tool("7"), assistant("Seven.")]
    hermes = f"<think>t</think>Let me see.\n<tool_call>{LUND_TEXT}</tool_call>"
    assert said({"messages": [user(), assistant(hermes), *expected[2:]]}) == expected
    blocks = [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "Let me see."},
              {"type": "tool_use", "name": "temperature", "input": {"town": "Lund"}}]  # fmt: skip
    assert said({"messages": [user(), {"role": "assistant", "content": blocks}, *expected[2:]]}) == expected


def test_parallel_calls_of_hermes_are_one_message_and_their_results_two():
    text = "".join(f"<tool_call>\n{written('temperature', town=town)}\n</tool_call>\n" for town in ("Lund", "Oslo"))
    results = "<tool_response>\n7\n</tool_response>\n<tool_response>\n3\n</tool_response>"
    record = turns(("human", "q"), ("gpt", text), ("tool", results), ("gpt", "a"))
    assert said(record) == [user(), assistant("", None, LUND, OSLO), tool("7"), tool("3"), assistant()]


@pytest.mark.parametrize("given", [{"arguments": value} for value in ("", " ", None, "null", "{}", {}, [])] + [{}])
def test_a_call_without_arguments_has_none(given):
    """Breaks if one of the ways to write none is refused, or an error names another message."""
    function = {"name": "now", **given}
    for one in ({"id": "c", "type": "function", "function": function}, {"id": "c", **function}):
        record = {"messages": [user(), {"role": "assistant", "content": None, "tool_calls": [one]}, tool("noon")]}
        assert said(record)[1] == assistant("", None, call("now", id="c"))


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (assistant("<tool_call>{'name':</tool_call>"), "message 1: a tool call: malformed JSON"),
        (assistant(f"<tool_call>{LUND_TEXT}"), "message 1: <tool_call> that is not closed; calls come last"),
        (assistant(f"<tool_call>{LUND_TEXT}</tool_call>Wait."), r"message 1: text 'Wait\.' \(str\) behind a call"),
        (assistant([{"type": "text", "text": "a"}, {"type": "thinking", "thinking": "t"}]), "stands behind 'content'"),
        (assistant("a", refusal="I cannot."), "unknown key 'refusal' with value 'I cannot.'"),
        (assistant("a", audio={"id": "x"}), "unknown key 'audio'"),
        (assistant("", None, {"name": "f", "arguments": {}, "note": "x"}), "unknown key 'note' in the call of 'f'"),
        (assistant("", None, {"function": {"name": "f", "strict": True}}), "unknown key 'strict' in the call of 'f'"),
        (assistant("<|channel|>final<|message|>a<|end|>b"), r"text 'b' \(str\) outside of the channels"),
        ({"type": "web_search_call", "id": "w"}, "message 1: a message of the type 'web_search_call' without a role"),
    ],
)
def test_what_is_no_message_of_its_format_is_refused_by_name(message, error):
    with pytest.raises(ValueError, match=f"^{NAME}: message 1: ") as raised:
        read({"messages": [user(), message]})
    raised.match(error)


def test_text_and_results_of_a_user_keep_their_order():
    """Breaks if a text in front of a result is lost, or comes behind it."""
    result = {"type": "tool_result", "content": "7", "is_error": True}
    blocks = [
        {"type": "text", "text": "Look: "},
        {"type": "text", "text": "here."},
        result,
        {"type": "text", "text": "So?"},
    ]
    conversation = read(
        {"messages": [user(), assistant("", None, LUND), {"role": "user", "content": blocks}, assistant()]}
    )
    assert list(conversation.messages[2:5]) == [user("Look: here."), tool("7"), user("So?")]
    assert "'is_error' of tool results is not shown" in conversation.notes[0]


# ---- tools ----


@pytest.mark.parametrize(
    "tools",
    [
        [SCHEMA],
        [FLAT],
        [{"type": "function", **FLAT}],
        json.dumps([FLAT]),
        [json.dumps(SCHEMA)],
        str([SCHEMA]),  # as Python prints it
        SCHEMA,
        [{"name": "temperature", "description": "Of a town.", "input_schema": PARAMETERS}],
    ],
)
@pytest.mark.parametrize("key", ["tools", "tool_defs", "functions"])
def test_tools_under_every_key_and_in_every_shape(key, tools):
    assert read({"messages": [user(), assistant()], key: tools}).tools == (SCHEMA,)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"You may call functions inside <tools></tools>: <tools>{json.dumps(SCHEMA)}</tools> and answer with "
         "<tool_call></tool_call>.", None),
        (f"Be kind. Here are tools: <tools>[{SCHEMA}]</tools>\nFor each call write\n<tool_call>\n{{'name': <name>}}\n"
         "</tool_call>\nNever lie.", "Be kind. Never lie."),
        (f"# Tools\n\n<tools>\n{json.dumps(SCHEMA)}\n</tools>", None),
    ],
)  # fmt: skip
def test_tools_that_the_system_text_declares_are_tools(text, left):
    """Breaks if schemas stay text, or a sentence that says more than how to call is lost."""
    conversation = read({"messages": [system(text), user(), assistant("a")]})
    assert conversation.tools == (SCHEMA,)
    assert [one["content"] for one in conversation.messages if one["role"] == "system"] == ([left] if left else [])
    assert any("<tools>" in note for note in conversation.notes)


def test_a_system_text_that_only_mentions_tools_is_left_alone():
    text = "Write <tools> where you mean the tag, and </tools> to close it."
    assert said({"messages": [system(text), user(), assistant()]})[0] == system(text)


def test_tools_may_stand_one_a_line():
    text = f"<tools>\n{json.dumps(SCHEMA)}\n{json.dumps({**FLAT, 'name': 'g'})}\n</tools>"
    names = [one["function"]["name"] for one in read({"messages": [system(text), user(), assistant()]}).tools]
    assert names == ["temperature", "g"]


# ---- thinking ----


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nt\n</think>\n\na",
        "t\n</think>\n\na",
        "t</think>a",
        "<thinking>\nt\n</thinking>\n\na",
        "<reasoning>t</reasoning>a",
        "<thought>t</thought>\na",
        "<seed:think>t</seed:think>a",
        "[THINK]t[/THINK]a",
        "\u25c1think\u25b7t\u25c1/think\u25b7a",
        "<|channel>thought\nt\n<channel|>a",
        "<|begin_of_thought|>\n\nt\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\na\n\n<|end_of_solution|>",
        "<|START_THINKING|>t<|END_THINKING|><|START_RESPONSE|>a<|END_RESPONSE|>",
        "<|channel|>analysis<|message|>t<|end|><|start|>assistant<|channel|>final<|message|>a<|return|>",
    ],
)
def test_thinking_in_delimiters_of_every_kind(text):
    """Breaks if thinking is trained as the answer, and kept in the history of later turns."""
    assert said({"messages": [user(), assistant(text)]})[1] == assistant("a", "t")
    assert said(turns(("human", "q"), ("gpt", text)))[1] == assistant("a", "t")


def test_granite_says_in_words_where_thinking_begins():
    text = "Here is my thought process:\n\nt\n\nHere is my response:\n\na"
    assert said({"messages": [user(), assistant(text)]})[1] == assistant("a", "t")


@pytest.mark.parametrize(
    "text",
    ["<scratchpad>t</scratchpad>a", "<|thinking_start|>t<|thinking_end|>a", "[REASONING]t[/REASONING]a",
     "<inner_monologue>\nt\n</inner_monologue>\na",
     "**Thinking:** t\n**Answer:** a", "### Reasoning\nt\n### Answer\na"],
)  # fmt: skip
def test_text_that_looks_like_unknown_delimiters_is_noted(text):
    conversation = read({"messages": [user(), assistant(text)]})
    assert conversation.messages[1] == assistant(text)
    (note,) = conversation.notes
    assert text[:6] in note and "thinking_tags=[" in note


def test_known_words_that_stand_inside_a_text_are_noted():
    """Breaks if thinking behind a greeting is trained as the answer, in silence."""
    for text in ("Well. <thinking>t</thinking>a", "t</reasoning>a"):
        conversation = read({"messages": [user(), assistant(text)]})
        assert conversation.messages[1] == assistant(text) and "</" in conversation.notes[0]


def test_own_delimiters():
    text = "<scratchpad>t</scratchpad>a"
    assert said({"messages": [user(), assistant(text)]}, thinking_tags=["<scratchpad>", "</scratchpad>"])[1] == (
        assistant("a", "t")
    )


@pytest.mark.parametrize("text", ["<b>t</b> a", "[1] a", "<answer>4</answer>", "# Heading\na", "I think so.", "{a}"])
def test_other_text_in_brackets_is_no_thinking(text):
    conversation = read({"messages": [user(), assistant(text)]})
    assert (conversation.messages[1]["content"], conversation.notes) == (text, ())


@pytest.mark.parametrize(
    "message",
    [
        assistant("Use text.split('</think>')[-1] in Python.", "a code answer"),
        assistant("Take what follows the tag.", "text.split('</think>')[-1], so say that"),
        assistant("The tag </think> closes it.", "asked for the tag"),
    ],
)
def test_tags_that_are_the_topic_stay_in_the_text(message):
    """Breaks if there is no way through for them; control_tokens decides what becomes of them."""
    assert said({"messages": [user(), message]})[1] == message


def test_quoted_tags_are_the_topic_also_without_other_thinking():
    text = "In Qwen '<think>' opens and '</think>' closes."
    assert said({"messages": [user(), assistant(text)]})[1] == assistant(text)
    text = "Split at '</think>' then."
    assert said({"messages": [user(), assistant(text)]})[1] == assistant(text)
    inside = "<think>\nIt is split('</think>').\n</think>\n\nSplit it."
    assert said({"messages": [user(), assistant(inside)]})[1] == assistant("Split it.", "It is split('</think>').")


def test_what_an_error_on_tags_advises_works():
    text = "The tag <think> opens a thought."
    with pytest.raises(ValueError, match="thinking_tags=null"):
        read({"messages": [user(), assistant(text)]})
    assert said({"messages": [user(), assistant(text)]}, thinking_tags=None)[1] == assistant(text)
    assert said({"messages": [user(), assistant(text, "asked")]})[1] == assistant(text, "asked")


@pytest.mark.parametrize("setting", ["on", ["<t>"], ["<t>", ""], [1, 2], 3, {"open": "<t>"}])
def test_delimiters_that_are_none_are_refused(setting, tmp_path):
    for use in (
        lambda: read({"messages": []}, thinking_tags=setting),
        lambda: OnePassConfig(str(tmp_path), thinking_tags=setting),
    ):  # noqa: E501
        with pytest.raises(ValueError, match="^thinking_tags is .*; give"):
            use()


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "a"}],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "t"}], "closed": True},
         {"type": "text", "text": "a"}],
        [{"type": "reasoning", "text": "t"}, {"type": "text", "text": "a"}],
    ],
)  # fmt: skip
def test_thinking_parts(parts):
    assert said({"messages": [user(), {"role": "assistant", "content": parts}]})[1] == assistant("a", "t")


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "a"}]}],
        [{"type": "reasoning", "summary": [], "encrypted_content": "x"}, assistant("a")],
        [assistant("a", reasoning_details=[{"type": "reasoning.encrypted", "data": "x"}])],
    ],
)
def test_encrypted_thinking_is_left_out_and_noted(messages):
    conversation = read({"messages": [user(), *messages]})
    assert list(conversation.messages) == [user(), assistant("a")] and "encrypted" in conversation.notes[0]


# ---- keys of messages ----


def test_keys_of_an_export_that_hold_nothing_count_as_absent():
    export = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None, "name": ""}
    described = {
        "id": "msg_1",
        "timestamp": "2026-01-31",
        "model": "m",
        "finish_reason": "stop",
        "usage": {"tokens": 3},
    }
    assert said({"messages": [user(), assistant("a", "t", **export, **described)]})[1] == assistant("a", "t")


def test_reasoning_details_are_thinking():
    details = [{"type": "reasoning.text", "text": "t", "format": "unknown", "index": 0}]
    for keys in (dict(reasoning="t", reasoning_details=details), dict(reasoning_details=details)):
        assert said({"messages": [user(), assistant("a", **keys)]})[1] == assistant("a", "t")


@pytest.mark.parametrize(
    ("keys", "weight"),
    [({"weight": 0}, 0), ({"weight": 0.25}, 0.25), ({"weight": 1}, None), ({"train": False}, 0),
     ({"train": True}, None),
     ({"loss": False}, 0), ({"weight": 0, "train": False}, 0), ({"weight": None, "train": None}, None)],
)  # fmt: skip
def test_weights(keys, weight):
    message = said({"messages": [user(), assistant("a", **keys)]})[1]
    assert message == assistant("a", **({} if weight is None else {"weight": weight}))
    assert (
        said(turns(("human", "q")) | {"messages": [user(), assistant("a", **keys)], "conversations": None})[1]
        == message
    )


def test_the_weight_of_a_record_multiplies_those_of_its_messages():
    record = {"messages": [user(), assistant("a"), user(), assistant("b", weight=0.5)], "weight": 0.5}
    assert [one.get("weight") for one in said(record)] == [None, 0.5, None, 0.25]
    with pytest.raises(ValueError, match=f"^{NAME}: 'weight' is nan"):
        read({**record, "weight": math.nan})


def test_a_weight_of_somebody_else_changes_nothing_and_is_noted_where_it_means_something():
    assert read({"messages": [{**user(), "weight": 0}, assistant()]}).notes == ()
    conversation = read({"messages": [{**user(), "weight": 1}, {**user(), "train": True}, assistant()]})
    assert list(conversation.messages) == [user(), user(), assistant()]
    with_half = read({"messages": [{**user(), "weight": 0.5}, assistant()]})
    assert "changes nothing" in with_half.notes[0] and list(with_half.messages) == [user(), assistant()]


# ---- records ----


@pytest.mark.parametrize("key", ["system", "system_prompt", "instructions"])
def test_a_system_text_beside_the_messages(key):
    for record in ({"messages": [user(), assistant()]}, turns(("human", "q"), ("gpt", "a"))):
        assert said({**record, key: "Answer in French."}) == [system("Answer in French."), user(), assistant()]
        assert said({**record, key: ""}) == [user(), assistant()]
        assert said({**record, key: [{"type": "text", "text": "Kind."}]}) == [system("Kind."), user(), assistant()]


def test_an_empty_system_text_is_none():
    """Breaks if the template's own default does not stand."""
    for nothing in ("", None, []):
        assert said({"messages": [{"role": "system", "content": nothing}, user(), assistant()]}) == [
            user(),
            assistant(),
        ]
    assert said(turns(("system", " \n"), ("human", "q"), ("gpt", "a"))) == [user(), assistant()]
    assert said({"messages": [system("s"), user(), assistant()], "system": "s"})[0] == system("s")


def test_two_system_texts_contradict_each_other():
    with pytest.raises(ValueError, match="both 'system' and a first system message"):
        read({"messages": [system("t"), user(), assistant()], "system": "s"})
    with pytest.raises(ValueError, match="different texts in 'system' and 'instructions'"):
        read({"messages": [user(), assistant()], "system": "s", "instructions": "t"})


@pytest.mark.parametrize(
    ("beside", "kwargs", "thinks"),
    [
        ({}, None, None),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}, None),
        ({"chat_template_kwargs": '{"effort": "low"}', "enable_thinking": True},
         {"effort": "low", "enable_thinking": True}, None),
        ({"chat_template_kwargs": {}, "enable_thinking": None}, None, None),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}, None),
        ({"reasoning": "on"}, None, True),
        ({"thinking": "off"}, None, False),
        ({"thinking": True, "reasoning": "on"}, None, True),
    ],
)  # fmt: skip
def test_switches_of_a_record(beside, kwargs, thinks):
    conversation = read({"messages": [user("q /no_think"), assistant()], **beside})
    assert (conversation.template_kwargs, conversation.thinks, conversation.unread) == (kwargs, thinks, ())
    assert conversation.messages[0] == user("q /no_think")  # what somebody wrote there stays


@pytest.mark.parametrize(
    ("beside", "error"),
    [
        ({"enable_thinking": "yes"}, "'enable_thinking' is 'yes'"),
        ({"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}, "'enable_thinking' is True"),
        ({"chat_template_kwargs": [1]}, "'chat_template_kwargs' is"),
        ({"chat_template_kwargs": {"tokenize": True}}, "template_kwargs has 'tokenize', which rendering sets itself"),
        ({"thinking": "on", "reasoning": "off"}, "'reasoning' and 'thinking' say different things"),
        ({"documents": [{"text": "x"}]}, "'documents' beside the messages is not supported"),
        ({"tools": [SCHEMA], "functions": [{"name": "other"}]}, "different tools in 'tools' and 'functions'"),
        ({"tools": ["add"]}, "'tools': malformed JSON"),
        ({"tools": [{"type": "web_search"}]}, "a function schema without a name"),
    ],
)
def test_what_a_record_says_that_cannot_be_is_refused_by_name(beside, error):
    with pytest.raises(ValueError, match=f"^{NAME}: .*{error}"):
        read({"messages": [user(), assistant()], **beside})


def test_unknown_keys_of_records_are_named_once_with_their_number():
    known = {"id": 7, "source": "s", "category": "math", "num_turns": 2, "created_at": "x", "__index_level_0__": 3,
             "metadata": {"reasoning": "off"}, "prompt_id": "p", "empty": [], "nothing": None}  # fmt: skip
    records = [{"messages": [user(), assistant()], **known, **({"persona": "p"} if i % 2 else {})} for i in range(4)]
    conversations = [read(record) for record in records]
    assert [one.unread for one in conversations] == [(), ("persona",)] * 2
    (text,) = unread_and_notes(conversations)
    assert "'persona' (2)" in text


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"prompt": [user("2+2?")], "completion": [assistant("4", "t")]}, [user("2+2?"), assistant("4", "t")]),
        ({"prompt": "2+2?", "completion": "<think>t</think>4"}, [user("2+2?"), assistant("4", "t")]),
        ({"prompt": "2+2?", "response": "4", "reasoning": "t"}, [user("2+2?"), assistant("4", "t")]),
        # What stands in the prompt is context.
        ({"prompt": [user(), assistant(), user("r")], "completion": [assistant("b")]},
         [user(), assistant(weight=0), user("r"), assistant("b")]),
        ({"input": [user()], "output": "<think>t</think>a", "system_prompt": "s"},
         [system("s"), user(), assistant("a", "t")]),
        ({"instruction": "Add.", "input": "2 and 2", "output": "4"}, [user("Add.\n2 and 2"), assistant("4")]),
        ({"instruction": "Add.", "input": "", "output": "4", "history": [["q", "a"]]},
         [user(), assistant(), user("Add."), assistant("4")]),
    ],
)  # fmt: skip
def test_records_that_are_no_list_of_messages(record, messages):
    assert said(record) == messages


@pytest.mark.parametrize("ids", [{"input_ids": [1], "labels": [1]}, {"prompt_ids": [1], "completion_ids": [2]},
                                 {"prompt": [1, 2], "completion": [3]}])  # fmt: skip
def test_token_ids_are_refused_by_name(ids):
    with pytest.raises(ValueError, match=f"^{NAME}: .*token ids, which are not read"):
        read(ids)


def test_consecutive_messages_of_one_speaker_stay_apart():
    messages = [user(), assistant("First.", "a"), assistant("Then.", "b"), user(), user("There?"), assistant("Yes.")]
    assert said({"messages": messages}) == messages


def test_what_no_turn_sees_is_noted():
    conversation = read({"messages": [user(), assistant(), user("trailing")]})
    assert conversation.messages[-1] == user("trailing") and "is shown to no turn" in conversation.notes[0]


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"messages": [user(), assistant()]}, "chat messages"),
        (turns(("human", "q"), ("gpt", "a")), "sharegpt"),
        (WAYS_TO_CALL["hermes"], "sharegpt with Hermes calls"),
        (WAYS_TO_CALL["agentic roles"], "agentic roles"),
        (WAYS_TO_CALL["content blocks"], "content blocks"),
        (WAYS_TO_CALL["Responses items"], "prompt and completion with Responses items"),
        ({"prompt": "q", "completion": "a"}, "prompt and completion"),
        ({"instruction": "q", "output": "a"}, "alpaca"),
    ],
)
def test_a_conversation_says_what_it_was_read_from(record, name):
    assert read(record).format == name


# ---- tables ----


def filled(value, like):
    """`value` with the keys of everything beside it, as a table gives it back."""
    return datasets.Dataset.from_list(like)[value]


def test_a_table_gives_the_conversations_of_the_json_lines_it_was_made_from(tmp_path):
    """Breaks if a null that the table has filled in is trained as an argument, or shown in a schema."""
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps(one) + "\n" for one in TABLE))
    table = pyarrow.Table.from_pylist([{**one, "tools": one.get("tools")} for one in TABLE])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pyarrow.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")

    def records(path):
        return [record for part in read_path(str(path), "train", "data.path") for _, record in part.entries()]

    expected = [read(record).messages for record in records(lines)]
    assert expected[0][1]["tool_calls"][0]["function"]["arguments"] == {"town": "Lund"}
    for name in ("a.parquet", "a.arrow", "saved"):
        found = [read(record) for record in records(tmp_path / name)]
        assert [one.messages for one in found] == expected, name
        assert found[0].tools == tuple(TABLE[0]["tools"])


def test_a_table_that_a_trainer_is_given(monkeypatch):
    """Breaks if only the recipes know of tables."""
    seen = []
    monkeypatch.setattr(Preparation, "rows_of", lambda self, one: seen.append(one) or 1 / 0)
    records = [{"messages": one["messages"]} for one in TABLE]  # without schemas, which would tell as well
    for data in (datasets.Dataset.from_list(records), datasets.Dataset.from_list(records).to_iterable_dataset()):
        with pytest.raises(ZeroDivisionError):
            prepare_dataset(data, "train_dataset", Preparation(chatml_tokenizer(), {}))
    for one in seen:
        assert one.messages[1]["tool_calls"][0]["function"]["arguments"] == {"town": "Lund"} and not one.notes


def test_json_lines_written_from_a_table_are_known_by_their_schemas():
    (record,) = [json.loads(json.dumps(filled(0, TABLE)))]
    assert record["messages"][1]["tool_calls"][0]["function"]["arguments"]["to"] is None
    conversation = read(record)
    assert conversation == read(without_nulls(TABLE[0]))


def test_a_null_that_the_author_wrote_stays():
    """Breaks if an argument that may be null is taken out, or one that a table has filled in stays though the schema
    does not know it."""
    parameters = {"type": "object", "properties": {"town": {"type": ["string", "null"], "default": None}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    record = {"messages": [user(), assistant("", None, call("f", {"town": None, "other": None}))], "tools": tools}
    conversation = read(record)
    assert conversation.messages[1]["tool_calls"][0]["function"]["arguments"] == {"town": None}
    left_out, trained = conversation.notes
    assert conversation.tools == tuple(tools)
    assert "nulls in tool schemas, or in arguments" in left_out and "arguments that are null" in trained
    del record["tools"]
    assert read(record).messages[1]["tool_calls"][0]["function"]["arguments"] == {"town": None, "other": None}


def test_unicode_is_left_as_it_is():
    text = "nul \u0000, bom \ufeff, joined \U0001f468\u200d\U0001f469, right to left \u202e, crlf\r\nend  \n"
    assert said({"messages": [user(text), assistant(text, "\u200b")]}) == [user(text), assistant(text, "\u200b")]


# Breaks if what stands under another pair of keys is taken for read: a text would be lost without a word.
def test_a_text_beside_prompt_and_response_is_not_lost():
    read = read_conversation({"prompt": "Translate", "input": "Hello", "response": "Bonjour"}, "c")
    assert [message["content"] for message in read.messages] == ["Translate", "Bonjour"] and read.unread == ("input",)


# Breaks if what stands in front of the explanation of the tags goes with it.
def test_instructions_in_front_of_declared_tools_stay():
    tools = '<tools>[{"name": "weather", "parameters": {}}]</tools>'
    text = f"- Always answer in French\n- Use metric units\nHere are the tools: {tools}"
    messages = [
        {"role": "system", "content": text},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    assert read_conversation({"messages": messages}, "c").messages[0]["content"].startswith("- Always answer in French")
