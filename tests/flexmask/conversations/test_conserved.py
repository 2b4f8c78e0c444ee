"""Whatever a record says, in any format and at any depth, is in the conversation, named, or an error."""

import copy
import json
import re
from pathlib import Path

import pytest
from records import FLAT, LUND, OSLO, WAYS_TO_CALL, assistant, call, system, tool, user

from flexmask import read_conversation

PAGE = Path(__file__).parents[3] / "docs" / "data.md"
RECORDS = (
    WAYS_TO_CALL
    | {
        f"line {i} of the page": json.loads(one)
        for i, one in enumerate(re.findall(r"\| `(\{.*\})` \|", PAGE.read_text("utf-8")))
    }
    | {
        "what is empty": {"messages": [system(""), {"role": "developer", "content": ""}, user(), assistant()]},
        "a system text in parts": {"messages": [system([{"type": "text", "text": "s"}]), user(), assistant()]},
        "details of reasoning": {
            "messages": [user(), assistant(reasoning_details=[{"type": "reasoning.text", "text": "t", "index": 0}])]
        },
        "a result and a question in one message": {
            "messages": [
                user(),
                assistant(
                    [{"type": "text", "text": "Let me see."}, {"type": "tool_use", "name": "f", "input": {"a": 1}}]
                ),
                user(
                    [
                        {"type": "tool_result", "content": [{"type": "text", "text": "7"}]},
                        {"type": "text", "text": "so?"},
                    ]
                ),
                assistant(
                    [{"type": "thinking", "thinking": [{"type": "text", "text": "t"}]}, {"type": "text", "text": "a"}]
                ),
            ]
        },
        "encrypted blocks": {
            "messages": [user(), assistant([{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "a"}])]
        },
        "encrypted items": {"input": [user(), {"type": "reasoning", "encrypted_content": "x"}, assistant()]},
        "items that say nothing": {"input": [user(), {"type": "reasoning", "id": "r", "summary": []}, assistant()]},
        "all that stands beside messages": {
            "messages": [user(), assistant()],
            "tools": [FLAT],
            "chat_template_kwargs": {"enable_thinking": True},
            "reasoning": "on",
        },
    }
)
UNSEEN = "unseen_key", ("unseen text", ["unseen text"], {"unseen": "unseen text"})


def objects(value):
    """All objects of a value, itself included."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(inner)


def said(record):
    """(all that reading a record gives as text, its keys that are named as unread, its notes); None for an error that
    begins with the name of the conversation."""
    try:
        found = read_conversation(record, "c")
    except ValueError as error:
        assert str(error).startswith("c: ")
        return None
    return json.dumps([found.messages, found.tools, found.template_kwargs]), found.unread, found.notes


# Breaks if a reader takes what it knows out of an object and leaves the rest.
@pytest.mark.parametrize("unseen", UNSEEN[1], ids=["text", "list", "object"])
@pytest.mark.parametrize("name", RECORDS)
def test_a_key_that_no_one_has_seen_is_not_lost(name, unseen):
    key = UNSEEN[0]
    for i in range(sum(1 for _ in objects(RECORDS[name]))):
        record = copy.deepcopy(RECORDS[name])
        list(objects(record))[i][key] = unseen
        found = said(record)
        assert found is None or key in found[0] or key in found[1], f"lost: {record}"


# Breaks if a reader takes a key that it awaits and does not find for empty.
@pytest.mark.parametrize("name", RECORDS)
def test_a_key_under_another_name_is_not_lost(name):
    before = said(RECORDS[name])
    for i, one in enumerate(objects(RECORDS[name])):
        for key in [key for key, value in one.items() if value not in (None, "", [], {})]:
            record = copy.deepcopy(RECORDS[name])
            changed = list(objects(record))[i]
            changed[f"{key}_unseen"] = changed.pop(key)
            found = said(record)
            assert found is None or f"{key}_unseen" in found[0] + str(found[1]) or found[2] != before[2], (
                f"lost: {record}"
            )


def notes(*messages, **beside):
    return read_conversation({"messages": list(messages), **beside}, "c").notes


def test_results_behind_a_message_that_calls_nothing_are_named():
    """Breaks if a call in a form that nobody knows is trained as text without a word."""
    text = '[weather(town="Lund")]'
    (note,) = notes(user(), assistant(text), tool("7"), assistant())
    assert note.startswith("results of tools stand behind messages that call none")
    assert notes(user(), assistant("", None, LUND), tool("7"), user(), tool("7"), assistant()) == (note,)
    assert notes(user(), assistant("", None, LUND, OSLO), tool("7"), tool("8"), assistant()) == ()


def test_results_in_another_order_than_the_calls_are_named():
    first, second = call(id="c1"), call(id="c2")
    results = tool("7", tool_call_id="c1"), tool("8", tool_call_id="c2")
    assert notes(user(), assistant("", None, first, second), *results, assistant()) == ()
    (note,) = notes(user(), assistant("", None, first, second), *results[::-1], assistant())
    assert note.startswith("results of tools stand in another order than the calls")


@pytest.mark.parametrize(
    "keys", [{"finish_reason": "length"}, {"stop_reason": "max_tokens"}, {"status": "incomplete"}], ids=str
)
def test_answers_that_were_cut_off_are_named(keys):
    (note,) = notes(user(), assistant(**keys))
    assert note.startswith("answers that were cut off")
    assert notes(user(), assistant(**dict.fromkeys(keys, "stop"))) == ()


def test_a_step_that_thinks_nothing_is_none():
    steps = {"role": "reasoning", "content": "\n"}, {"role": "answer", "content": "a"}
    assert read_conversation({"messages": [user(), *steps]}, "c").messages == (user(), assistant())


def test_whether_an_answer_was_liked_is_named():
    """Breaks if an answer that a preference data set marks as rejected is trained without a word."""
    assert read_conversation({"prompt": "q", "completion": "a", "label": False}, "c").unread == ("label",)


def test_a_summary_of_thinking_that_stands_beside_it_is_named():
    items = [{"type": "reasoning", "content": "in full", "summary": "s"}, {"type": "message", **assistant()}]
    found = read_conversation({"input": [user(), *items]}, "c")
    assert found.messages[1]["reasoning_content"] == "in full"
    assert found.notes == ("summaries of thinking that stands beside them in full are left out",)


def test_thinking_of_which_only_the_signature_is_given_is_named():
    (note,) = notes(
        user(), assistant([{"type": "thinking", "thinking": "", "signature": "x"}, {"type": "text", "text": "a"}])
    )
    assert note.startswith("thinking that is encrypted")
    assert notes(user(), assistant(reasoning_details=[{"type": "reasoning.text", "text": ""}])) == ()
