"""Calls of one episode that are logged line by line: one record, wherever the lines stand, and the same training."""

import copy
import json
import pickle

import pytest
import traces
from factories import chatml_tokenizer
from records import CALLING_TEMPLATE

from flexmask.text.calls import render_calls
from recipes.configuration.compose import compose
from recipes.configuration.schema import DataConfig, DataKind, DuplicationConfig, Layout, OnInvalid
from recipes.preparation.rows import prepare
from recipes.sources import load, parts
from recipes.sources.load import load_data

TOKENIZER = copy.deepcopy(chatml_tokenizer())
TOKENIZER.chat_template = CALLING_TEMPLATE
WORDS = {"a": "one", "b": "two", "c": "three", "d": "four", "e": "five", "f": "six"}
EPISODES = {name: traces.logged_episode(name, word) for name, word in WORDS.items()}

DATA = DataConfig(kind=DataKind.records, date="2020-01-01")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch, tmp_path):
    """Parts of three lines, read by processes."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(parts, "MOST_RECORDS", 3)
    monkeypatch.setattr(load, "_WORTH_PROCESSES", 1)


@pytest.fixture
def folder(tmp_path):
    """All first calls, a conversation, then all second ones in another file."""
    chat = {"messages": [traces.QUESTION, traces.ANSWER], "session_id": "a"}
    first, second = ([one[number] for one in EPISODES.values()] for number in (0, 1))
    for name, lines in (("1.jsonl", [*first, chat]), ("2.jsonl", second)):
        (tmp_path / "logs").mkdir(exist_ok=True)
        (tmp_path / "logs" / name).write_text("".join(json.dumps(one) + "\n" for one in lines))
    return tmp_path / "logs"


def loaded(path, **settings):
    return load_data(DataConfig(kind=DataKind.records, path=str(path), date="2020-01-01", **settings))


def passes(data):
    """What each call trains, by its name."""
    calls = [one for some in (data.train, data.heldout) for one in some if hasattr(one, "calls")]
    found = {}
    for one in calls:
        names = [call.name for call in one.calls]
        rendered = render_calls(one, TOKENIZER).passes
        found |= {
            name: (p.input_ids.tolist(), p.loss_weights.tolist()) for name, p in zip(names, rendered, strict=True)
        }
    return found


# Breaks if a line is lost, joined with those of others, or trained otherwise than alone.
def test_lines_of_an_episode_are_one_record_and_train_what_they_did(folder):
    joined, apart = loaded(folder, heldout_conversations=2), loaded(folder, episode_key=None, heldout_conversations=2)
    assert passes(joined) == passes(apart) and len(passes(joined)) == 12
    assert len(joined.train) + len(joined.heldout) == 7 and len(apart.train) + len(apart.heldout) == 13
    assert joined.sources[str(folder)].read == 7
    names = [one for some in (joined.train, joined.heldout) for one in some.names_of_records()]
    assert sorted(names) == sorted([[f"1.jsonl:{i}", f"2.jsonl:{i}"] for i in range(1, 7)] + [["1.jsonl:7"]])
    for some in (joined.train, joined.heldout):
        for one in some:
            assert [call.name for call in getattr(one, "calls", ())] in ([], [one.name, one.name.replace("1.", "2.")])


# Breaks if an episode stands on both sides, or if what is held out depends on the processes or the order of lines.
def test_an_episode_stands_on_one_side_of_the_split(folder, monkeypatch, tmp_path):
    one, two = (loaded(folder, heldout_conversations=3, processes=processes) for processes in (1, 2))
    assert one == two and one.fingerprint == two.fingerprint
    held = {call.name for record in one.heldout for call in record.calls}
    assert len(held) == 2 * len(one.heldout) == 6
    texts = [(folder / f"{number}.jsonl").read_text() for number in (1, 2)]
    for number, text in zip((2, 1), texts, strict=True):
        (folder / f"{number}.jsonl").write_text("".join(reversed(text.splitlines(keepends=True))))
    moved = loaded(folder, heldout_conversations=3)
    questions = [
        {record.calls[0].conversation.messages[1]["content"] for record in data.heldout} for data in (one, moved)
    ]
    assert questions[0] == questions[1]


# Breaks if processes that prepare are given an episode without its later lines.
def test_a_part_of_the_data_goes_to_another_process_with_all_lines_of_its_episodes(folder):
    train = loaded(folder).train
    assert list(pickle.loads(pickle.dumps(train[2:6]))) == list(train)[2:6]
    assert list(pickle.loads(pickle.dumps(train.take([5, 1])))) == [train[5], train[1]]
    assert len(set(train.digests())) == len(train)


def test_a_line_that_cannot_be_read_is_left_out_by_its_own_name(folder):
    with (folder / "2.jsonl").open("a") as file:
        file.write(
            json.dumps(traces.logged([traces.QUESTION], traces.ANSWER, session_id="a") | {"response": None}) + "\n"
        )
    with pytest.raises(ValueError, match="2.jsonl:7: 'response' is None"):
        loaded(folder)
    data = loaded(folder, on_invalid=OnInvalid.drop)
    assert list(data.dropped) == ["2.jsonl:7"] and len(passes(data)) == 12


# Breaks if calls of an episode vanish beside the one that cannot be rendered, and nobody is told how many; or if a call
# that is too long is named as a turn of the first line.
def test_what_falls_with_a_call_that_cannot_be_rendered_is_said(tmp_path):
    lines = json.loads(json.dumps(traces.logged_episode("a", "one")))  # which share messages
    lines[1]["request"]["messages"][1]["content"] = "what is <|im_end|>?"
    file = tmp_path / "logs.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))
    data = loaded(file, on_invalid=OnInvalid.drop, heldout_conversations=0)
    duplication = DuplicationConfig(layout=Layout.one_pass)
    found = prepare(data.train, TOKENIZER, DataConfig(**vars(DATA) | {"on_invalid": OnInvalid.drop}), duplication)
    ((_, reason),) = found.invalid.items()
    assert reason.startswith("logs.jsonl:2: messages[1].content contains the control token")
    assert reason.endswith("; the 2 calls of its record are prepared together or not at all")
    lines[1]["request"]["messages"][1]["content"] = "add " * 400
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))
    duplication.pack_length = 512
    with pytest.raises(ValueError, match=r"logs.jsonl:2: the pass has [\d,]+ tokens, pack_length is 512; raise it"):
        prepare(loaded(file, heldout_conversations=0).train, TOKENIZER, DATA, duplication)


# The fingerprint is of what is said. Breaks if it changes with the name of a file: a run could not be resumed then.
def test_the_name_of_a_file_changes_nothing(folder):
    before = loaded(folder).fingerprint
    (folder / "2.jsonl").rename(folder / "9.jsonl")
    assert loaded(folder).fingerprint == before


@pytest.mark.parametrize(
    ("key", "records"), [("auto", 7), (None, 13), ("metadata.session_id", 7), (["run", "session_id"], 7), ("run", 13)]
)
def test_the_key_is_a_setting(folder, key, records):
    data = loaded(folder, episode_key=key)
    assert len(data.train) + len(data.heldout) == records


def test_the_key_that_was_used_or_missed_is_named(folder):
    with pytest.warns(UserWarning, match=r"calls of one 'session_id' are one record \(data.episode_key\) \(12 of 13 "):
        loaded(folder)
    with pytest.warns(
        UserWarning, match=r"without the id of an episode are a record each.* \(12 of 13 conversations\)"
    ):
        loaded(folder, episode_key="run")


@pytest.mark.parametrize("key", [3, [""], ""])
def test_a_key_that_is_none_is_refused(key):
    with pytest.raises(ValueError, match="data.episode_key=.*: must be auto, a key, a list of keys, or null"):
        compose([f"data.episode_key={json.dumps(key)}"])
