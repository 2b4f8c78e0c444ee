"""Loading: every record is either a conversation or accounted for, and held-out text is never trained."""

import json
import sys
import warnings

import datasets
import pytest

from recipes.configuration.schema import DataConfig, DataKind, OnInvalid, SourceConfig
from recipes.sources.load import load_data


def record(number, thinking=None, system=None):
    reply = {"role": "assistant", "content": f"It is {number}."}
    if thinking:
        reply["reasoning_content"] = thinking
    messages = [{"role": "user", "content": f"What is {number}?"}, reply]
    return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}


def write(path, *lines):
    path.write_bytes(b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n"
                              for line in lines))  # fmt: skip
    return str(path)


def load(path=None, kind=DataKind.records, **settings):
    return load_data(DataConfig(kind=kind, path=path and str(path), date="2020-01-01", **settings))


def names(conversations):
    return [conversation.name for conversation in conversations]


# --- invalid records ---------------------------------------------------------------------------------------


def mixed_file(path, bad_lines):
    bad = [b"{", b"[]", {"messages": []}, {"messages": [{"role": "user", "content": "q"}]}]
    return write(path, record(1), *(bad[index % len(bad)] for index in range(bad_lines)), record(2))


@pytest.mark.parametrize("bad_lines", [1, 7, 12])
def test_invalid_records_are_one_error_that_counts_them_all(tmp_path, bad_lines):
    path = mixed_file(tmp_path / "a.jsonl", bad_lines)
    with pytest.raises(ValueError) as raised:
        load(path)
    message = str(raised.value)
    assert message.startswith(f"{bad_lines} of {bad_lines + 2} conversations are invalid:\n")
    shown = [line for line in range(2, bad_lines + 2) if f"a.jsonl:{line}: " in message]
    assert shown == list(range(2, 2 + min(bad_lines, 7)))
    assert (f"and {bad_lines - 7} more" in message) == (bad_lines > 7)
    assert "data.on_invalid=drop" in message


def test_dropped_records_are_accounted_for(tmp_path):
    # Breaks if a record is neither read nor reported.
    data = load(mixed_file(tmp_path / "a.jsonl", 7), on_invalid=OnInvalid.drop)
    assert names(data.train) == ["a.jsonl:1", "a.jsonl:9"]
    assert len(data.dropped) == 7
    for line, (name, reason) in zip(range(2, 9), data.dropped.items(), strict=True):
        assert name == f"a.jsonl:{line}" and f"{name}: " in reason
    ((name, counts),) = data.sources.items()
    assert name == str(tmp_path / "a.jsonl")
    assert str(counts) == "2 conversations, 2 to train in an epoch, 0 held out, 7 invalid and left out"


def test_nothing_left_after_dropping_is_an_error(tmp_path):
    path = write(tmp_path / "a.jsonl", b"{}", b"{}")
    with pytest.raises(ValueError, match="a.jsonl has no valid conversation; 2 were left out"):
        load(path, on_invalid=OnInvalid.drop)


def nested(levels):
    return {"a": nested(levels - 1)} if levels else 1


def call(arguments):
    reply = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    return {"messages": [{"role": "user", "content": "u"}, reply]}


# What Python, pickle, JSON or a tokenizer would stumble over later, with an error that names nothing.
@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"a": ' * 100_000, "too deep to be read"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "a number of more digits than can be read"),
        (call(nested(200)), "more than 100 deep"),
        (call('{"a":' * 5_000 + "1" + "}" * 5_000), "too deep to be read"),
        ({**record(1), "tools": [{"name": "\ud800"}]}, "half a surrogate pair ('\\ud800')"),
    ],
    ids=["brackets", "digits", "arguments", "arguments as text", "surrogate"],
)
def test_what_a_later_stage_would_stumble_over_is_an_invalid_record(tmp_path, line, text):
    path = write(tmp_path / "a.jsonl", record(1), line)
    with pytest.raises(ValueError, match="^1 of 2 conversations are invalid") as raised:
        load(path)
    assert "a.jsonl:2: " in str(raised.value) and text in str(raised.value)
    data = load(path, on_invalid=OnInvalid.drop)
    assert (len(data.train), len(data.dropped)) == (1, 1)


def test_nesting_that_people_have_is_valid(tmp_path):
    assert load(write(tmp_path / "a.jsonl", call(nested(60)))).train


# --- held out ----------------------------------------------------------------------------------------------


def test_the_number_of_training_conversations_does_not_move_the_heldout_ones(tmp_path):
    path = write(tmp_path / "a.jsonl", *map(record, range(30)))
    everything = load(path, heldout_conversations=5, seed=3)
    some = load(path, heldout_conversations=5, seed=3, train_conversations=7)
    assert some.heldout == everything.heldout and len(some.heldout) == 5
    assert some.train == everything.train[:7] and len(everything.train) == 25


def test_more_training_conversations_than_there_are_is_said(tmp_path):
    path = write(tmp_path / "a.jsonl", *map(record, range(30)))
    with pytest.warns(UserWarning, match=r"^data.train_conversations=26: 25 are left to train when 5 are held out"):
        assert len(load(path, heldout_conversations=5, train_conversations=26).train) == 25
    with warnings.catch_warnings(action="error"):
        load(path, heldout_conversations=5, train_conversations=25)


@pytest.mark.parametrize(("conversations", "heldout"), [(1, 0), (8, 0), (19, 0), (20, 1), (300, 15), (5000, 200)])
def test_without_a_number_a_share_that_fits_is_held_out(tmp_path, conversations, heldout):
    data = load(write(tmp_path / "a.jsonl", *map(record, range(conversations))))
    assert (len(data.train), len(data.heldout)) == (conversations - heldout, heldout)


@pytest.mark.parametrize("count", [8, 200])
def test_a_number_that_cannot_be_had_is_an_error(tmp_path, count):
    with pytest.raises(ValueError, match=f"^data.heldout_conversations={count}: cannot be taken from 8"):
        load(write(tmp_path / "a.jsonl", *map(record, range(8))), heldout_conversations=count)


# --- fingerprint -------------------------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_the_conversations(tmp_path):
    lines = [record(number, thinking="t") for number in range(4)]
    before = load(write(tmp_path / "a.jsonl", *lines)).fingerprint
    assert load(write(tmp_path / "renamed.jsonl", *lines)).fingerprint == before
    # Breaks if a run may go on with other conversations than it began with.
    others = {
        "one less": lines[:-1],
        "another order": lines[::-1],
        "other thinking": [*lines[:-1], record(3, thinking="u")],
    }
    for changed in others.values():
        assert load(write(tmp_path / "b.jsonl", *changed)).fingerprint != before
    assert load(tmp_path / "a.jsonl", heldout_conversations=1).fingerprint != before


# --- kinds -------------------------------------------------------------------------------------------------


def test_tutoring_is_generated_in_the_numbers_asked_for():
    def generate(**settings):
        return load(kind=DataKind.tutoring, train_conversations=12, **settings)

    data = generate(heldout_conversations=4, seed=5)
    assert (len(data.train), len(data.heldout), data.dropped) == (12, 4, {})
    assert data.train[0].name == "tutoring/train[0]"
    assert generate(heldout_conversations=4, seed=5) == data != generate(heldout_conversations=4, seed=6)
    assert len(load(kind=DataKind.tutoring, train_conversations=40).heldout) == 2


GSM8K = {"question": "Q", "answer": "A? ** 1+1=<<1+1=2>>2\n#### 2"}
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "1+1?", "reasoning": None},
        {"from": "gpt", "value": "2", "reasoning": "1+1=2"},
    ]
}


@pytest.mark.parametrize(("kind", "source"), [(DataKind.gsm8k_socratic, GSM8K), (DataKind.records, SHAREGPT)])
def test_local_files_of_the_named_data_sets(tmp_path, kind, source):
    (conversation,) = load(write(tmp_path / "a.jsonl", source), kind).train
    assert conversation.name == "a.jsonl:1"
    assert conversation.messages[1] == {"role": "assistant", "content": conversation.messages[1]["content"],
                                        "reasoning_content": "1+1=2"}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "settings", "asked"),
    [
        (DataKind.gsm8k_socratic, {}, ("openai/gsm8k", "socratic", "train")),
        (DataKind.gsm8k_socratic, {"split": "test"}, ("openai/gsm8k", "socratic", "test")),
        (DataKind.gsm8k_socratic, {"hub_id": "me/gsm8k"}, ("me/gsm8k", None, "train")),
        (DataKind.records, {"hub_id": "me/chats", "hub_config": "en"}, ("me/chats", "en", "train")),
    ],
)
def test_hub_sources(monkeypatch, kind, settings, asked):
    calls = []

    def load_dataset(path, name, split):
        calls.append((path, name, split))
        return datasets.Dataset.from_list([GSM8K if kind is DataKind.gsm8k_socratic else SHAREGPT])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (conversation,) = load(kind=kind, **settings).train
    assert calls == [asked]
    assert conversation.name == f"{asked[0]}/{asked[2]}[0]"
    assert conversation.messages[1]["reasoning_content"] == "1+1=2"


def test_an_unreachable_hub_says_how_to_go_on_without(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError) as raised:
        load(kind=DataKind.records, hub_id="me/chats", hub_config="en")
    for text in (
        "data.hub_id=me/chats: ",
        "data.hub_config=en",
        "data.split=train",
        "Couldn't reach it",
        "data.path=<",
    ):
        assert text in str(raised.value)


def test_a_local_file_needs_no_hub_library(tmp_path, monkeypatch):
    # Breaks if `datasets` (seconds to import) is loaded for a local file.
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert load(write(tmp_path / "a.jsonl", record(1))).train


def test_data_from_nowhere():
    with pytest.raises(ValueError, match="data.path: has no value; give a file, folder or pattern"):
        load()


# --- mixes -------------------------------------------------------------------------------------------------


def mix(sources, **settings):
    return load(
        kind=DataKind.mix, sources={name: SourceConfig(**source) for name, source in sources.items()}, **settings
    )


def test_a_mix_has_each_source_in_its_own_format_and_weight(tmp_path):
    ours = write(tmp_path / "a.jsonl", *map(record, range(100)))
    maths = write(tmp_path / "maths.jsonl", *({**GSM8K, "question": f"Q{number}"} for number in range(40)))
    sources = {
        "ours": dict(path=ours, weight=0.5),
        "maths": dict(kind=DataKind.gsm8k_socratic, path=maths, weight=2, template_kwargs={"enable_thinking": True}),
        "made": dict(kind=DataKind.tutoring, train_conversations=20),
    }
    data = mix(sources, heldout_conversations=16)
    counts = {name: (one.read, one.heldout, one.train) for name, one in data.sources.items()}
    assert counts == {"ours": (100, 10, 45), "maths": (40, 4, 72), "made": (20, 2, 18)}
    trained = names(data.train)
    assert len(trained) == 45 + 72 + 18 and len(set(trained)) == 45 + 36 + 18
    # Held out is each conversation once, whatever its weight, and none of them is trained.
    assert len(set(names(data.heldout))) == len(data.heldout) == 16
    assert not set(names(data.heldout)) & set(trained)
    assert {name.partition("/")[0] for name in trained} == set(sources)
    assert all(one.name.startswith("maths/maths.jsonl:") == bool(one.template_kwargs) for one in data.train)
    assert mix(sources, heldout_conversations=16) == data
    assert names(mix(sources, heldout_conversations=16, seed=1).train) != trained


def test_sources_of_a_mix_may_say_the_same(tmp_path):
    one, other = (write(tmp_path / f"{name}.jsonl", *map(record, range(30))) for name in "ab")
    data = mix({"a": dict(path=one), "b": dict(path=other)}, heldout_conversations=10)

    def said(conversations):
        return {conversation.messages[0]["content"] for conversation in conversations}

    # Breaks if a conversation is held out of one source and trained from the other.
    assert len(data.heldout) == 10 and not said(data.heldout) & said(data.train)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (dict(path="none.jsonl"), "data.sources.other.path=none.jsonl: no such file"),
        (dict(), "data.sources.other.path: has no value"),
        (dict(weight=0.001), "data.sources.other.weight=0.001: leaves none of 1 conversations"),
    ],
)
def test_errors_name_the_source_of_a_mix(tmp_path, source, text):
    file = write(tmp_path / "a.jsonl", record(1))
    if "weight" in source:
        source["path"] = file
    with pytest.raises(ValueError, match=text):
        mix({"mine": dict(path=file), "other": source})


def test_a_conversations_own_template_arguments_win(tmp_path):
    file = write(tmp_path / "a.jsonl", {**record(1), "chat_template_kwargs": {"enable_thinking": False}})
    data = mix({"mine": dict(path=file, template_kwargs={"enable_thinking": True, "effort": "low"})})
    assert data.train[0].template_kwargs == {"enable_thinking": False, "effort": "low"}
