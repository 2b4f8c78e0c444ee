"""Loading: every record is either a conversation or accounted for, and held-out text is never trained."""

import json
import random
import sys

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexmask.conversation import Conversation
from recipes.data import load_conversations, read_jsonl, split_heldout


def record(number, thinking=None, system=None):
    reply = {"role": "assistant", "content": f"It is {number}."}
    if thinking:
        reply["reasoning_content"] = thinking
    messages = [{"role": "user", "content": f"What is {number}?"}, reply]
    return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}


def write(path, *lines):
    path.write_bytes(b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n"
                              for line in lines))  # fmt: skip
    return path


def names(conversations):
    return [conversation.name for conversation in conversations]


# --- files -------------------------------------------------------------------------------------------------


def test_names_are_the_lines_of_the_file_blank_lines_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + json.dumps(record(1)).encode(), b"", b"  \r", record(2))
    assert list(read_jsonl(path)) == [("a.jsonl:1", record(1)), ("a.jsonl:4", record(2))]


def test_only_a_newline_ends_a_line(tmp_path):
    # Breaks with str.splitlines or a text file's universal newlines, which cut JSON strings at U+2028.
    odd = {"text": "a\u2028b\x85c"}
    path = write(tmp_path / "a.jsonl", json.dumps(odd, ensure_ascii=False).encode(), {})
    assert [value for _, value in read_jsonl(path)] == [odd, {}]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"messages": [}', "malformed JSON at column 15: Expecting value, found '}'"),
        (b'{"messages": []', "malformed JSON at column 16"),
        (b'{"a": 1} {"b": 2}', "malformed JSON at column 10: Extra data, found '{\"b\": 2}'"),
        (b'{"a": "\xff"}', "byte 8 (0xff) is not UTF-8"),
        (b"[1, 2]", "a JSON list in place of an object"),
        (b"null", "a JSON NoneType in place of an object"),
        (b'{"messages": [{"role": "user", "role": "tool"}]}', "the key 'role' stands twice in one object"),
    ],
)
def test_a_bad_line_is_named_with_file_line_and_place(tmp_path, line, text):
    path = write(tmp_path / "a.jsonl", record(1), b"", line)
    with pytest.raises(ValueError) as raised:
        list(read_jsonl(path))
    assert str(raised.value).startswith(f"{path}:3: ")
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.jsonl", b"", "holds no records"),
        ("a.jsonl", b"\n \n", "holds no records"),
        ("a.json", b"[]", "holds an empty list"),
        ("a.json", b'[{"messages": \n}]', "malformed JSON at line 2, column 1"),
        ("a.parquet", b"nothing", "is not a Parquet file"),
        ("b/a.jsonl", None, "no such file"),
        (".", None, "is a folder"),
    ],
)
def test_a_file_without_conversations_is_refused(tmp_path, name, content, text):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as raised:
        load_conversations("jsonl", path=path, on_invalid="drop")
    assert str(path) in str(raised.value) and text in str(raised.value)


def test_every_file_format_gives_the_same_conversations(tmp_path):
    records = [record(1, thinking="1=1"), record(2), record(3, system="Be brief.")]
    write(tmp_path / "a.jsonl", *records)
    write(tmp_path / "lines.json", *records)
    (tmp_path / "list.json").write_text(json.dumps(records, indent=1))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
    read = {
        name: load_conversations("jsonl", path=tmp_path / name).train
        for name in ("a.jsonl", "lines.json", "list.json", "a.parquet")
    }
    expected = [Conversation.from_record(entry, "x").messages for entry in records]
    for conversations in read.values():
        assert [conversation.messages for conversation in conversations] == expected
    assert names(read["lines.json"]) == ["lines.json:1", "lines.json:2", "lines.json:3"]
    assert names(read["list.json"]) == ["list.json[0]", "list.json[1]", "list.json[2]"]
    assert names(read["a.parquet"]) == ["a.parquet[0]", "a.parquet[1]", "a.parquet[2]"]


# --- invalid records ---------------------------------------------------------------------------------------


def mixed_file(path, bad_lines):
    bad = [b"{", b"[]", {"messages": []}, {"messages": [{"role": "user", "content": "q"}]}]
    return write(path, record(1), *(bad[index % len(bad)] for index in range(bad_lines)), record(2))


@pytest.mark.parametrize("bad_lines", [1, 5, 7])
def test_invalid_records_are_one_error_that_counts_them_all(tmp_path, bad_lines):
    path = mixed_file(tmp_path / "a.jsonl", bad_lines)
    with pytest.raises(ValueError) as raised:
        load_conversations("jsonl", path=path)
    message = str(raised.value)
    assert message.startswith(f"{bad_lines} of {bad_lines + 2} conversations are invalid:\n")
    shown = [line for line in range(2, bad_lines + 2) if f"a.jsonl:{line}: " in message]
    assert shown == list(range(2, 2 + min(bad_lines, 5)))
    assert (f"and {bad_lines - 5} more" in message) == (bad_lines > 5)
    assert "on_invalid=drop" in message


def test_dropped_records_are_accounted_for(tmp_path):
    # Breaks if a record is neither read nor reported.
    data = load_conversations("jsonl", path=mixed_file(tmp_path / "a.jsonl", 7), on_invalid="drop")
    assert names(data.train) == ["a.jsonl:1", "a.jsonl:9"]
    assert len(data.dropped) == 7
    for line, reason in zip(range(2, 9), data.dropped, strict=True):
        assert f"a.jsonl:{line}: " in reason


def test_nothing_left_after_dropping_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no valid conversation; 2 were dropped"):
        load_conversations("jsonl", path=write(tmp_path / "a.jsonl", b"{", b"{"), on_invalid="drop")


# --- the held-out split ------------------------------------------------------------------------------------


@st.composite
def conversations(draw):
    """Conversations some of which say the same, with other thinking, system prompts or white space."""
    found = []
    for index, number in enumerate(draw(st.lists(st.integers(0, 12), min_size=2, max_size=30))):
        entry = record(number, draw(st.sampled_from([None, "t", "u"])), draw(st.sampled_from([None, "s"])))
        if draw(st.booleans()):
            entry["messages"][-1]["content"] += " \n"
        found.append(Conversation.from_record(entry, f"{index}"))
    return found


def spoken(conversation):
    return tuple(m["content"].strip() for m in conversation.messages if m["role"] != "system")


@given(conversations(), st.integers(0, 10), st.integers(0, 3))
def test_heldout_is_exact_disjoint_and_free_of_duplicates(given_conversations, count, seed):
    try:
        train, heldout = split_heldout(given_conversations, count, seed)
    except ValueError as error:
        assert f"heldout_conversations={count}: cannot be taken from {len(given_conversations)}" in str(error)
        return
    assert len(heldout) == count and train
    # Breaks if a conversation is lost, stands on both sides, or if its duplicate is trained.
    order = [int(name) for name in names(train)], [int(name) for name in names(heldout)]
    assert sorted(order[0] + order[1]) == list(range(len(given_conversations)))
    assert order == (sorted(order[0]), sorted(order[1]))
    assert not set(map(spoken, train)) & set(map(spoken, heldout))


def numbered(count):
    return [Conversation.from_record(record(number), f"{number}") for number in range(count)]


def test_heldout_depends_on_the_seed_and_the_text_only():
    everything = numbered(60)
    chosen = set(names(split_heldout(everything, 10, seed=0)[1]))
    shuffled = random.Random(0).sample(everything, len(everything))
    assert set(names(split_heldout(shuffled, 10, seed=0)[1])) == chosen
    assert set(names(split_heldout(everything, 10, seed=1)[1])) != chosen
    # Of a longer source only what sorts before the last one chosen can displace it.
    assert len(set(names(split_heldout(numbered(66), 10, seed=0)[1])) & chosen) >= 4


def test_the_number_of_training_conversations_does_not_move_the_heldout_ones(tmp_path):
    path = write(tmp_path / "a.jsonl", *map(record, range(30)))
    everything = load_conversations("jsonl", path=path, heldout_conversations=5, seed=3)
    some = load_conversations("jsonl", path=path, heldout_conversations=5, seed=3, train_conversations=7)
    assert some.heldout == everything.heldout and len(some.heldout) == 5
    assert some.train == everything.train[:7] and len(everything.train) == 25


@pytest.mark.parametrize("count", [3, 4])
def test_heldout_must_leave_something_to_train_on(count):
    with pytest.raises(ValueError, match=f"heldout_conversations={count}: cannot be taken from 3"):
        split_heldout(numbered(3), count, seed=0)


# --- kinds -------------------------------------------------------------------------------------------------


def test_tutoring_is_generated_in_the_numbers_asked_for():
    data = load_conversations("tutoring", train_conversations=12, heldout_conversations=4, seed=5)
    assert (len(data.train), len(data.heldout), data.dropped) == (12, 4, ())
    assert data.train[0].name == "tutoring/train[0]"
    again = load_conversations("tutoring", train_conversations=12, heldout_conversations=4, seed=5)
    assert again == data != load_conversations(
        "tutoring", train_conversations=12, heldout_conversations=4, seed=6
    )  # fmt: skip


GSM8K = {"question": "Q", "answer": "A? ** 1+1=<<1+1=2>>2\n#### 2"}
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "1+1?", "reasoning": None},
        {"from": "gpt", "value": "2", "reasoning": "1+1=2"},
    ]
}


@pytest.mark.parametrize(("kind", "source"), [("gsm8k_socratic", GSM8K), ("mathchatsync", SHAREGPT)])
def test_local_files_of_the_named_data_sets(tmp_path, kind, source):
    (conversation,) = load_conversations(kind, path=write(tmp_path / "a.jsonl", source)).train
    assert conversation.name == "a.jsonl:1"
    assert conversation.messages[1] == {"role": "assistant", "content": conversation.messages[1]["content"],
                                        "reasoning_content": "1+1=2"}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "arguments", "asked"),
    [
        ("gsm8k_socratic", {}, ("openai/gsm8k", "socratic", "train")),
        ("gsm8k_socratic", {"split": "test"}, ("openai/gsm8k", "socratic", "test")),
        ("gsm8k_socratic", {"hub_id": "me/gsm8k"}, ("me/gsm8k", None, "train")),
        ("mathchatsync", {}, ("devrev-research/MathChatSync-reasoning", None, "train")),
        ("jsonl", {"hub_id": "me/chats", "hub_config": "en"}, ("me/chats", "en", "train")),
    ],
)
def test_hub_sources(monkeypatch, kind, arguments, asked):
    calls = []

    def load_dataset(path, name, split):
        calls.append((path, name, split))
        return datasets.Dataset.from_list([GSM8K if kind == "gsm8k_socratic" else SHAREGPT])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (conversation,) = load_conversations(kind, **arguments).train
    assert calls == [asked]
    assert conversation.name == f"{asked[0]}/{asked[2]}[0]"
    assert conversation.messages[1]["reasoning_content"] == "1+1=2"


def test_an_unreachable_hub_says_how_to_go_on_without(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError) as raised:
        load_conversations("gsm8k_socratic")
    for text in ("'openai/gsm8k'", "'socratic'", "'train'", "Couldn't reach it", "data.path=<file>"):
        assert text in str(raised.value)


def test_a_local_file_needs_no_hub_library(tmp_path, monkeypatch):
    # Breaks if `datasets` (seconds to import) is loaded for a local file.
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert load_conversations("jsonl", path=write(tmp_path / "a.jsonl", record(1))).train


@pytest.mark.parametrize(
    ("kind", "arguments", "text"),
    [
        ("csv", {}, "data kind 'csv' is unknown; choose one of tutoring, gsm8k_socratic"),
        ("jsonl", {}, "data kind 'jsonl' reads a local file; give its path"),
        ("tutoring", {}, "tutoring dialogues have no end; give the number"),
        ("tutoring", {"on_invalid": "skip"}, "on_invalid='skip': write 'error' or 'drop'"),
        ("tutoring", {"train_conversations": 0}, "train_conversations=0: must be at least 1"),
        ("tutoring", {"train_conversations": 1, "heldout_conversations": -1}, "heldout_conversations=-1"),
    ],
)
def test_arguments_are_checked(kind, arguments, text):
    with pytest.raises(ValueError) as raised:
        load_conversations(kind, **arguments)
    assert text in str(raised.value)
