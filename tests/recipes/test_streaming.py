"""Data larger than memory: what is held of it, what a kill costs, and the order of it whatever the processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from factories import chatml_tokenizer, random_conversation
from torch.utils.data import DataLoader

from flexmask import OnePassCollator
from flexmask.conversations.records import read_record
from recipes.configuration.compose import compose
from recipes.configuration.schema import DataConfig, DataKind, OnInvalid
from recipes.preparation import rows as preparation
from recipes.sources import conversation_store, load, parts
from recipes.sources.load import load_data
from recipes.storage import shards

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
FORMATS = [json.loads(one) for one in re.findall(r"^\| [^|`]+ \| `(\{.*\})` \|$", PAGE, re.MULTILINE)]
CONVERSATIONS = [random_conversation(seed) for seed in range(24)]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "flexmask"


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of three records, read by processes; shards of four conversations."""
    monkeypatch.setattr(parts, "MOST_RECORDS", 3)
    monkeypatch.setattr(load, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(preparation, "_WORTH_A_PROCESS", 1)
    monkeypatch.setattr(preparation, "_CONVERSATIONS_A_SHARD", 4)


def record(number, text="?"):
    asked = {"role": "user", "content": f"What is {number}{text}"}
    return {"messages": [asked, {"role": "assistant", "content": f"It is {number}.", "reasoning_content": "look"}]}


def write(path, records):
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return str(path)


def load_file(path, **settings):
    return load_data(DataConfig(kind=DataKind.records, path=str(path), date="2020-01-01", **settings))


def test_the_cache_is_beside_that_of_datasets(monkeypatch):
    """Broken when `datasets` decides otherwise where its cache is: a user who moves it would fill two disks."""
    script = "import datasets; from recipes.storage.shards import cache; print(cache().parent == %s)"
    for variables in ({"HF_DATASETS_CACHE": "/x/y"}, {"HF_HOME": "~/z"}, {"XDG_CACHE_HOME": "/x"}, {}):
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_"))}
        done = subprocess.run(
            [sys.executable, "-c", script % "datasets.config.HF_DATASETS_CACHE"],
            cwd=ROOT, env=environment | variables, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == "True", variables


# --- what is read is what was there ------------------------------------------------------------------------


def test_conversations_of_every_format_come_back_from_disk_as_they_were_read(tmp_path):
    """Breaks if a field, a type or the order of keys is lost on the way: fingerprints and templates see them."""
    data = load_file(write(tmp_path / "a.jsonl", FORMATS), heldout_conversations=0)
    expected = [read_record(one, f"a.jsonl:{line}") for line, one in enumerate(FORMATS, start=1)]
    assert list(data.train) == expected == data.train[:]
    for found, one in zip(data.train, expected, strict=True):
        assert repr(found) == repr(one)  # the fields that equality leaves out, and the order of keys


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "folder"])
def test_parts_and_processes_change_nothing(tmp_path, monkeypatch, small_parts, name):
    """Breaks if records of a part are lost, named or numbered anew, or mixed up by the processes."""
    records = [record(number) for number in range(20)]
    path = tmp_path / name
    if name == "a.jsonl":
        write(path, [*records[:7], {"messages": 5}, *records[7:]])
    elif name == "a.json":
        path.write_text(json.dumps([*records[:7], 5, *records[7:]]))
    elif name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*records[:7], {"messages": []}, *records[7:]]), path)
    else:
        path.mkdir()
        for number, one in enumerate([*records[:7], {"messages": 5}, *records[7:]]):
            (path / f"{number:02}.json").write_text(json.dumps(one, indent=1))
    found = []
    for processes in (1, 2):
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / f"cache{processes}"))
        found.append(load_file(path, processes=processes, heldout_conversations=4, on_invalid=OnInvalid.drop))
    one, two = found
    assert one == two and one.fingerprint == two.fingerprint
    stored = {file.parent.name for file in shards.cache().glob("*/shard.arrow")}
    assert len(stored) == 7  # of 3 records each
    monkeypatch.setattr(parts, "MOST_RECORDS", 256)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "whole"))
    whole = load_file(path, heldout_conversations=4, on_invalid=OnInvalid.drop)
    assert whole == one and whole.fingerprint == one.fingerprint
    everything = sorted([*one.train.names(), *one.heldout.names(), *one.dropped])
    assert len(set(everything)) == len(everything) == 21


# --- what is found again -----------------------------------------------------------------------------------


def test_only_parts_that_changed_are_read_anew(tmp_path, monkeypatch, small_parts):
    """Breaks if the text of a part, its place in the file or what decides how it is read is no part of its name."""
    read, reader = [], conversation_store.read_record
    monkeypatch.setattr(
        conversation_store,
        "read_record",
        lambda one, name, **more: read.append(name) or reader(one, name, **more),
    )

    def newly_read(records, **settings):
        read.clear()
        load_file(write(tmp_path / "a.jsonl", records), processes=1, **settings)
        return [int(name.rpartition(":")[2]) for name in read]

    records = [record(number) for number in range(9)]
    assert newly_read(records) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert newly_read(records) == []
    assert newly_read([*records[:4], record(99), *records[5:], record(9)]) == [4, 5, 6, 10]
    assert newly_read([record(-1), *records])[:3] == [1, 2, 3]
    assert len(newly_read(records, thinking_tags=None)) == len(newly_read(records, seed=1)) == 9


KILLED = """
import sys
sys.path[:0] = ["tests", "."]
from recipes.configuration.compose import compose
from recipes.preparation import rows
from tests.recipes.test_streaming import CONVERSATIONS, chatml_tokenizer
import time
done = rows._prepare_one
rows._prepare_one = lambda *some: time.sleep(0.1) or done(*some)
rows._CONVERSATIONS_A_SHARD, rows._WORTH_A_PROCESS = 4, 1
config = compose(["data.processes=2"])
rows.prepare(CONVERSATIONS, chatml_tokenizer(), config.data, config.duplication)
"""


def test_a_killed_preparation_goes_on_with_the_shards_that_are_there(cache, monkeypatch, small_parts):
    """Breaks if shards are found by something that changes from run to run, or if half of one is taken for a shard."""
    run = subprocess.Popen([sys.executable, "-c", KILLED], cwd=ROOT, env=dict(os.environ))
    end = time.monotonic() + 60
    while len(list(cache.glob("*/shard.arrow"))) < 2 and run.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    time.sleep(0.5)  # its processes end with it
    there = list(cache.glob("*/shard.arrow"))
    assert 2 <= len(there) < 6
    rendered, one = [], preparation._prepare_one
    monkeypatch.setattr(
        preparation,
        "_prepare_one",
        lambda conversation, *more: rendered.append(conversation) or one(conversation, *more),
    )
    config = compose(["data.processes=1"])
    prepared = preparation.prepare(CONVERSATIONS, chatml_tokenizer(), config.data, config.duplication)
    assert len(rendered) == len(CONVERSATIONS) - 4 * len(there)
    assert [rows[0].name for rows in prepared.items] == [one.name for one in CONVERSATIONS]


# --- order -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_packs_are_the_same_whatever_the_number_of_processes_that_read_rows(small_parts, workers):
    """Breaks if the order, or what a process reads from a shard, depends on who reads it."""
    config = compose(["data.processes=1"])
    items = preparation.prepare(CONVERSATIONS, chatml_tokenizer(), config.data, config.duplication).items
    order = np.random.default_rng(0).permutation(len(items)).tolist()

    def batches(number):
        loader = DataLoader(items, 5, sampler=order, num_workers=number, collate_fn=OnePassCollator(1024))
        return [(one["figures"], [pack.input_ids.tolist() for pack in one["packs"]]) for one in loader]

    expected = batches(0)
    assert batches(workers) == expected and len(expected) == 5


# --- memory ------------------------------------------------------------------------------------------------

MEASURED = r"""
import re, sys, warnings
from recipes.configuration.compose import compose
from recipes.preparation import rows
from recipes.preparation.row_store import to_record
from recipes.sources.load import load_data
sys.path[:0] = ["tests"]
from factories import chatml_tokenizer, random_conversation
from flexmask import prepare_conversation
config = compose(["data=jsonl", f"data.path={sys.argv[1]}", "data.processes=1"])
one = prepare_conversation(random_conversation(0), chatml_tokenizer())
rows._prepare_one = lambda conversation, *_: to_record(conversation.name, one, ())  # rendering takes no memory
data = load_data(config.data)
prepared = rows.prepare(data.train, chatml_tokenizer(), config.data, config.duplication)
assert sum(len(rows[0]) for rows in prepared.items) > 0 and len(data.fingerprint) == 64
print(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1], len(prepared.items))
"""


def test_peak_memory_does_not_follow_the_number_of_conversations(tmp_path):
    """Broken when records, conversations or rows are held together: four times as many have 60 MB more of text."""
    peaks = {}
    for count in (2_500, 10_000):
        path = write(tmp_path / f"{count}.jsonl", (record(number, "?" * 8_000) for number in range(count)))
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, path], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        peak, conversations = map(int, done.stdout.split())
        assert conversations == count - min(count // 20, 200)
        peaks[count] = peak / 1024
    assert peaks[10_000] - peaks[2_500] < 25, peaks  # MiB


# Breaks if a run whose cache is emptied ends in words that name neither place nor remedy.
def test_what_is_removed_or_damaged_under_a_run_is_named(tmp_path, cache):
    found = load_file(write(tmp_path / "a.jsonl", map(record, range(8)))).train
    (folder,) = cache.iterdir()
    for change in (
        (folder / "shard.arrow").unlink,
        lambda: (folder / "shard.arrow").write_bytes(b"ARROW1 and no more"),
    ):
        change()
        with pytest.raises(
            OSError, match=f"{folder}: what was prepared there has been removed or damaged since; it is"
        ):
            found[:][0]
