"""Translation to one form, and an error for everything that cannot be translated."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexmask.conversations.conversation import ROLES, Conversation
from flexmask.conversations.reading import read_conversation
from flexmask.conversations.thinking import split_thinking

NAME = "train.jsonl:12"
# No "<": a tag would be inline thinking. No newlines at the ends of thinking: the inline split removes those.
texts = st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]), max_size=30)
thinkings = texts.map(lambda text: text.strip("\n")).filter(str.strip)
answers = texts.map(lambda text: text.lstrip("\n"))


@st.composite
def dialogues(draw):
    """Messages in canonical form: optional system prompt, then 1 to 4 turns, some with thinking."""
    # An empty system text is none.
    messages = [{"role": "system", "content": draw(texts.filter(str.strip))}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        reply = {"role": "assistant", "content": draw(answers)}
        if draw(st.booleans()):
            reply["reasoning_content"] = draw(thinkings)
        messages += [{"role": "user", "content": draw(texts)}, reply]
    return messages


def chat(*replies, **record):
    """A record with the given assistant messages, each after a question."""
    messages = [message for reply in replies for message in ({"role": "user", "content": "q"}, reply)]
    return {"messages": messages, **record}


def reply(content="a", **keys):
    return {"role": "assistant", "content": content, **keys}


def read(record):
    return read_conversation(record, NAME)


def as_inline(message):
    if "reasoning_content" not in message:
        return message
    thinking = message["reasoning_content"]
    return {"role": "assistant", "content": f"<think>\n{thinking}\n</think>\n\n{message['content']}"}


def as_sharegpt(message):
    speaker = {"user": "human", "assistant": "gpt", "system": "system"}[message["role"]]
    return {"from": speaker, "value": message["content"], "reasoning": message.get("reasoning_content")}


@given(dialogues())
def test_all_formats_read_as_the_same_conversation(messages):
    # Breaks if a format loses, strips or alters any text, or invents thinking where there is none.
    expected = Conversation(NAME, tuple(messages))
    assert read({"messages": messages, "id": 7}) == expected
    assert read({"messages": [as_inline(message) for message in messages]}) == expected
    assert read({"conversations": [as_sharegpt(message) for message in messages]}) == expected
    for alias in ("reasoning", "thinking"):
        renamed = [{alias if key == "reasoning_content" else key: message[key] for key in message}
                   for message in messages]  # fmt: skip
        assert read({"messages": renamed}) == expected


@given(dialogues())
def test_nulls_as_tables_write_them_count_as_absent(messages):
    # Breaks if a null key of a Parquet row is taken for thinking "None" or for an unknown key.
    columns = ("reasoning_content", "tool_calls", "tool_call_id", "name", "train")
    table = [{**dict.fromkeys(columns), **message} for message in messages]
    assert read({"messages": table, "conversations": None, "tools": None}) == read({"messages": messages})


@given(dialogues())
def test_a_read_conversation_reads_again_as_itself(messages):
    conversation = read({"messages": messages})
    assert read({"messages": json.loads(json.dumps(conversation.messages))}) == conversation


def test_input_records_are_left_as_they_were():
    record = chat(reply("<think>\nt\n</think>\n\na"), system="s")
    before = json.dumps(record)
    read(record)
    assert json.dumps(record) == before


@pytest.mark.parametrize(
    ("content", "thinking", "answer"),
    [
        ("<think>\n7*8=56\n</think>\n\n56", "7*8=56", "56"),
        ("<think>7*8=56</think>56", "7*8=56", "56"),
        ("\n <think>one\n\ntwo </think>\n\n  56\n", "one\n\ntwo ", "  56\n"),  # only newlines by the tags go
        ("<think>t</think>", "t", ""),
        ("<think>\n\n</think>\n\n56", None, "56"),  # the scaffold that templates write for no thinking
        ("<think> </think>56", None, "56"),
        ("7*8=56\n</think>\n\n56", "7*8=56", "56"),  # the prompt has opened the thought
        ("7*8=56</think>56", "7*8=56", "56"),
        ("56", None, "56"),
    ],
)
def test_inline_thinking(content, thinking, answer):
    message = read(chat(reply(content))).messages[1]
    assert message["content"] == answer
    assert message.get("reasoning_content") == thinking


@pytest.mark.parametrize("reasoning", [None, "", " \n"])
def test_empty_thinking_is_no_thinking(reasoning):
    # Breaks if an empty string is kept: a template would render an empty thinking block to be trained on.
    assert "reasoning_content" not in read(chat(reply(reasoning_content=reasoning))).messages[1]


def test_tags_around_the_thinking_of_a_field_are_no_part_of_it():
    # Breaks if they are trained inside of the tags that the template writes.
    assert read(chat(reply(reasoning="<think>\nt\n</think>"))).messages[1]["reasoning_content"] == "t"


def test_the_same_thinking_twice_is_one():
    message = read(chat(reply("<think>\nt\n</think>\n\na", reasoning="t", thinking="t\n"))).messages[1]
    assert message == {"role": "assistant", "content": "a", "reasoning_content": "t"}


def test_tools_system_train_and_text_parts():
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    schema = {"type": "function", "function": {"name": "add"}}
    record = {
        "system": "Be brief.",
        "tools": json.dumps([schema]),
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "use add"},
            {"role": "tool", "content": "2", "name": "add", "tool_call_id": "x"},
            {"role": "assistant", "content": "2", "train": False, "tool_calls": []},
        ],
    }
    conversation = read(record)
    system, question, calling, _, last = conversation.messages
    assert conversation.tools == (schema,)
    assert system == {"role": "system", "content": "Be brief."}
    assert question["content"] == "1+1?"
    assert calling == {
        "role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "use add",
    }  # fmt: skip
    assert last == {"role": "assistant", "content": "2", "weight": 0}
    assert read({**record, "tools": []}).tools is None


def test_sharegpt_tool_results_keep_their_place():
    turns = [("human", "q"), ("gpt", "a"), ("observation", "o"), ("gpt", "b")]
    conversation = read({"conversations": [{"from": speaker, "value": text} for speaker, text in turns]})
    assert [message["role"] for message in conversation.messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]


USER = {"role": "user", "content": "q"}
# (record, index of the message at fault or None, what the error must say)
INVALID = {
    "no object": ([1], None, "is a JSON object"),
    "no messages": ({"text": "q", "answers": "a"}, None, "'answers'"),
    "both lists": ({"messages": [USER], "conversations": [USER]}, None, "both 'messages' and 'conversations'"),
    "messages no list": ({"messages": "hi"}, None, "'hi' (str), not a list"),
    "empty": ({"messages": []}, None, "is empty"),
    "no assistant": (
        {"messages": [USER, USER]},
        None,
        "no assistant message to learn from (roles: user, user)",
    ),
    "message no object": (chat("a"), 1, "'a' (str)"),
    "unknown role": (
        chat({"role": "bot", "content": "a"}),
        1,
        "unknown role 'bot' (str); known roles: system",
    ),
    "missing role": (chat({"content": "a"}), 1, "a message without a role (its keys: 'content')"),
    "missing content": (chat({"role": "assistant"}), 1, "'content' is missing"),
    "null content": (chat(reply(None)), 1, "'content' is missing"),
    "null content, empty calls": (chat(reply(None, tool_calls=[])), 1, "'content' is missing"),
    "number as content": (chat(reply(56)), 1, "'content' is 56 (int), not a string"),
    "image": (chat(reply([{"type": "image"}])), 1, "{'type': 'image'} (dict) is not text"),
    "lone surrogate": (chat(reply("ab\ud83d")), 1, "half a surrogate pair ('\\ud83d') at character 2"),
    "unknown key": (chat(reply(prefix=True)), 1, "unknown key 'prefix' with value True (bool)"),
    "thinking of a user": ({"messages": [{**USER, "thinking": "t"}]}, 0, "unknown key 'thinking'"),
    "train no boolean": (chat(reply(train=0)), 1, "'train' is 0 (int); give true or false"),
    "number as thinking": (chat(reply(reasoning=3)), 1, "'reasoning' is 3 (int), not a string"),
    "unclosed think": (chat(reply(), reply("<think>cut of")), 3, "<think> is not closed"),
    "text before think": (chat(reply("Well. <think>t</think>a")), 1, "text 'Well. ' (str) before <think>"),
    "think twice": (chat(reply("<think>t</think>a<think>u</think>b")), 1, "2 pairs of <think> tags"),
    # The cause is not that the text was cut off.
    "opened twice": (chat(reply("<think>\n<think>t</think>a")), 1, "<think> stands twice"),
    "closed twice": (chat(reply("<think>t</think>\n</think>a")), 1, "</think> stands twice"),
    "closed three times": (chat(reply("<think>t</think></think></think>a")), 1, "</think> stands 3 times"),
    "nested think": (chat(reply("<think>t<think>u</think></think>b")), 1, "2 pairs of <think> tags"),
    "tags in reverse": (chat(reply("</think>t<think>")), 1, "</think> stands before <think>"),
    "contradicting": (
        chat(reply("<think>t</think>a", reasoning="u")),
        1,
        "in 'reasoning' and 'the content'",
    ),
    "calls no list": (chat(reply(tool_calls="add")), 1, "'tool_calls': malformed JSON at column 1"),
    "call no object": (chat(reply(tool_calls=[3])), 1, "not 3 (int)"),
    "call without a name": (chat(reply(tool_calls=[{"function": {"arguments": {}}}])), 1, "call without a name"),
    "arguments of another kind": (chat(reply(tool_calls=[{"name": "f", "arguments": [1]}])), 1, "are [1] (list)"),
    "arguments that are no number": (
        chat(reply(tool_calls=[{"name": "f", "arguments": {"a": math.nan}}])),
        1,
        "function.arguments.a is nan, which JSON has not",
    ),
    "weight below 0": (chat(reply(weight=-1)), 1, "'weight' is -1 (int); give 0 (context only)"),
    "weight no number": (chat(reply(weight="1")), 1, "'weight' is '1' (str)"),
    "weight without end": (chat(reply(weight=math.inf)), 1, "'weight' is inf (float)"),
    "two weights": (chat(reply(weight=1, train=False)), 1, "contradicting weights"),
    "an object as content": (chat({"role": "tool", "content": {"a": 1}}), 1, "'content' is {'a': 1} (dict)"),
    "tools no list": (chat(reply(), tools={"a": 1}), None, "'tools' is {'a': 1} (dict), not a list"),
    "tools no JSON": (chat(reply(), tools="add"), None, "'tools' is a string that is not JSON"),
    "images beside": (chat(reply(), images=["x.png"]), None, "'images' beside the messages is not supported"),
    "two systems": ({"system": "t", "messages": [{"role": "system", "content": "s"}]}, None, "both 'system'"),
    "system no text": (chat(reply(), system=3), None, "'system' is 3 (int)"),
    "token ids": ({"input_ids": [1, 2], "labels": [1, 2]}, None, "'input_ids' are token ids, which are not read"),
    "completion of token ids": ({"prompt": [1], "completion": [2]}, None, "'prompt' holds token ids"),
    "unknown speaker": (
        {"conversations": [{"from": "bing", "value": "a"}]},
        0,
        "unknown 'from' 'bing' (str); known: human",
    ),
    "function_call": ({"conversations": [{"from": "function_call", "value": "{}"}]}, 0, "a tool call without a name"),
    "no value": ({"conversations": [{"from": "gpt"}]}, 0, "'content' is missing"),
    "mixed keys": ({"conversations": [{"from": "gpt", "content": "a"}]}, 0, "'from'/'value' and 'content'"),
}


@pytest.mark.parametrize(("record", "index", "text"), INVALID.values(), ids=INVALID.keys())
def test_invalid_records_are_refused_by_name(record, index, text):
    with pytest.raises(ValueError) as raised:
        read(record)
    message = str(raised.value)
    assert message.startswith(f"{NAME}: " if index is None else f"{NAME}: message {index}: ")
    assert text in message


@pytest.mark.parametrize(
    "message",
    [
        reply(reasoning_content=""),
        reply(reasoning_content=None),
        reply(tool_calls=[]),
    ],
)
def test_a_conversation_made_directly_must_be_in_canonical_form(message):
    # Breaks if only read_conversation validates: later stages rely on the form whoever made the conversation.
    with pytest.raises(ValueError, match="^x: message 1: "):
        Conversation("x", (USER, message))


def test_a_user_may_write_think_tags():
    # Whether tags in user text are control tokens is the tokenizer's business, decided when rendering.
    message = {"role": "user", "content": "What does </think> mean?"}
    assert read({"messages": [message, reply()]}).messages[0] == message


@given(st.lists(st.sampled_from(["a", "b", "\n", " ", "<think>", "</think>"]), max_size=8).map("".join))
def test_inline_split_never_leaves_a_tag_and_never_loses_a_letter(content):
    # Breaks if some arrangement of tags slips through, or if text is dropped as Qwen3's template would do.
    try:
        split = split_thinking(content, "x")
    except ValueError as error:
        assert str(error).startswith("x: ")
        return
    thinking, answer = split.thinking, split.answer
    assert "think>" not in thinking + answer
    bare = content.replace("<think>", "").replace("</think>", "")
    assert (thinking + answer).replace("\n", "").replace(" ", "") == bare.replace("\n", "").replace(" ", "")


def test_errors_list_every_known_role():
    with pytest.raises(ValueError) as raised:
        read(chat({"role": "bot", "content": "a"}))
    assert all(role in str(raised.value) for role in ROLES)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (["a"], r"file:1: template_kwargs is \['a'\] \(list\), not names with values"),
        ({1: 2}, r"file:1: template_kwargs is \{1: 2\} \(dict\), not names with values"),
        ({"tokenize": True}, "file:1: template_kwargs has 'tokenize', which rendering sets itself; remove it"),
    ],
)
def test_template_kwargs_that_are_no_arguments_of_a_template_are_refused(kwargs, message):
    messages = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    with pytest.raises(ValueError, match=message):
        Conversation("file:1", messages, template_kwargs=kwargs)
