"""Files that are whole or not there, and shards that several runs share."""

import os
import time

import numpy as np
import pyarrow
import pytest

from recipes.storage import shards
from recipes.storage.whole import write_whole

SCHEMA = pyarrow.schema({"number": pyarrow.int64()})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    return tmp_path / "flexmask"


def batch(*numbers):
    return pyarrow.RecordBatch.from_pylist([{"number": number} for number in numbers], schema=SCHEMA)


def of(count, size=2):
    """`count` shards of `size` records each, whose numbers are those that they have among all."""
    kept = [
        shards.keep(str(i), SCHEMA, lambda i=i: [batch(*range(i * size, (i + 1) * size))]).file for i in range(count)
    ]
    return shards.Shards(kept, [size] * count)


def number_of(some, number):
    table, at = some.record(number)
    return table["number"][at].as_py()


# Breaks if a write that fails costs the file that was there, or the error names a file that nobody knows.
def test_a_file_stays_until_another_is_whole(tmp_path):
    file = tmp_path / "result.json"
    write_whole(file, "first")
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "x" * 10**6 + "\ud800")
    assert file.read_text() == "first"
    (tmp_path / "result.json.partial").unlink()
    (tmp_path / "result.json.partial").mkdir()
    with pytest.raises(OSError) as error:
        write_whole(file, "second")
    assert error.value.filename == str(file) and file.read_text() == "first"


# Breaks if a long run's shards count as unused while it reads them, or the map that is dropped is the one in use.
def test_a_shard_that_is_read_counts_as_used_and_stays_mapped(cache):
    some = of(shards._MAPPED + 2)
    os.utime(cache / "3", (0, 0))
    assert number_of(some, 7) == 7 and (cache / "3").stat().st_mtime > time.time() - 60
    last = [some.record(2 * i)[0] for i in range(shards._MAPPED + 2)][-1]
    assert some.record(2 * (shards._MAPPED + 1))[0] is last


def test_another_process_is_given_the_shards_that_it_needs():
    some, numbers = of(5).only(np.array([8, 2, 3, 9]))
    assert [file.parent.name for file in some.files] == ["1", "4"]
    assert [number_of(some, number) for number in numbers] == [8, 2, 3, 9]


# Breaks if the second of two runs that prepare the same fails when it is done.
def test_two_runs_that_store_the_same_have_it_both(cache):
    def while_another_is_faster():
        yield batch(1)
        shards.store(cache / "same", SCHEMA, [batch(1)])

    kept = shards.keep("same", SCHEMA, while_another_is_faster)
    assert shards.find(cache / "same") == kept.file and not list(cache.glob("partial-*"))


# Breaks if what another run is writing at this moment is taken for what a killed one left.
def test_what_is_being_written_is_not_removed(cache):
    for name, age in (("partial-now", 60), ("partial-old", 2 * shards._ABANDONED_SECONDS)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age,) * 2)
    shards.remove_old()
    assert [path.name for path in cache.iterdir()] == ["partial-now"]
