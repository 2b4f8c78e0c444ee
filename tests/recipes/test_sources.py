"""Files of every kind, read for what they are; what they are not, in one error whose advice works."""

import bz2
import gzip
import io
import json
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from flexmask.conversations.reading import read_conversation
from recipes.sources.files import read_path


def record(number, thinking=None, system=None):
    reply = {"role": "assistant", "content": f"It is {number}."}
    if thinking:
        reply["reasoning_content"] = thinking
    messages = [{"role": "user", "content": f"What is {number}?"}, reply]
    return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}


RECORDS = [record(1, thinking="1=1"), record(2), record(3, system="Be brief.")]
LINES = "".join(json.dumps(one) + "\n" for one in RECORDS).encode()
ARRAY = json.dumps(RECORDS, indent=1).encode()


def entries(path, split="train"):
    return [entry for part in read_path(str(path), split, "data.path") for entry in part.entries()]


def records(path, split="train"):
    return [value for _, value in entries(path, split)]


def names(path):
    return [name for name, _ in entries(path)]


def zstd(data):
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def parquet(rows=RECORDS):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def arrow(new, rows=RECORDS):
    table = pyarrow.Table.from_pylist(rows)
    sink = io.BytesIO()
    with new(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


# --- one file ----------------------------------------------------------------------------------------------

FILES = {
    "a.jsonl": (LINES, "a.jsonl:{line}"),
    "a.ndjson": (LINES, "a.ndjson:{line}"),
    "chats": (LINES, "chats:{line}"),
    "lines.json": (LINES, "lines.json:{line}"),
    "marked.json": (b"\xef\xbb\xbf" + ARRAY, "marked.json[{index}]"),
    "array.json": (ARRAY, "array.json[{index}]"),
    "a.jsonl.gz": (gzip.compress(LINES[:100]) + gzip.compress(LINES[100:]), "a.jsonl.gz:{line}"),
    "a.jsonl.zst": (zstd(LINES), "a.jsonl.zst:{line}"),
    "a.jsonl.bz2": (bz2.compress(LINES), "a.jsonl.bz2:{line}"),
    "array.json.gz": (gzip.compress(ARRAY), "array.json.gz[{index}]"),
    "a.parquet": (parquet(), "a.parquet[{index}]"),
    "file.arrow": (arrow(pyarrow.ipc.new_file), "file.arrow[{index}]"),
    "stream.arrow": (arrow(pyarrow.ipc.new_stream), "stream.arrow[{index}]"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_records(tmp_path, name):
    contents, pattern = FILES[name]
    (tmp_path / name).write_bytes(contents)
    found = entries(tmp_path / name)
    assert [read_conversation(value, "x") for _, value in found] == [read_conversation(one, "x") for one in RECORDS]
    assert [one for one, _ in found] == [pattern.format(index=index, line=index + 1) for index in range(3)]


def test_one_object_over_several_lines_is_a_record(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(RECORDS[0], indent=2))
    assert entries(tmp_path / "a.json") == [("a.json[0]", RECORDS[0])]


def test_names_are_the_lines_of_the_file_blank_lines_counted(tmp_path):
    one, other = LINES.splitlines()[:2]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + one + b"\n\n  \r\n" + other)
    assert entries(tmp_path / "a.jsonl") == [("a.jsonl:1", RECORDS[0]), ("a.jsonl:4", RECORDS[1])]


def test_only_a_newline_ends_a_line(tmp_path):
    # Breaks with str.splitlines or a text file's universal newlines, which cut JSON strings at U+2028.
    odd = {"text": "a\u2028b\x85c"}
    (tmp_path / "a.jsonl").write_text(json.dumps(odd, ensure_ascii=False) + "\n{}", encoding="utf-8")
    assert records(tmp_path / "a.jsonl") == [odd, {}]


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
@pytest.mark.parametrize("first", [True, False])
def test_a_bad_line_among_good_ones_is_that_lines_fault(tmp_path, line, text, first):
    lines = [line, *LINES.splitlines()] if first else [*LINES.splitlines(), line]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    values = records(path)
    error = values.pop(0 if first else -1)
    assert values == RECORDS
    assert str(error).startswith(f"{path}:{1 if first else 4}: ") and text in str(error)


def test_keys_that_a_table_filled_in_are_absent(tmp_path):
    """Of two tool calls with other arguments, and of two schemas, each has nulls for what only the other has."""

    def calling(name, arguments):
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        reply = {"role": "assistant", "content": "", "tool_calls": [call]}
        tool = {"name": name, "parameters": dict.fromkeys(arguments, "any")}
        return {"messages": [{"role": "user", "content": "u"}, reply], "tools": [tool]}

    rows = [calling("weather", {"town": "Lund"}), calling("convert", {"amount": 10.0, "to": "SEK"})]
    (tmp_path / "a.parquet").write_bytes(parquet(rows))
    (tmp_path / "a.arrow").write_bytes(arrow(pyarrow.ipc.new_file, rows))
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    for name in ("a.parquet", "a.arrow", "saved"):
        assert records(tmp_path / name) == rows, name


def test_columns_that_datasets_wrote_as_json(tmp_path):
    features = datasets.Features({"messages": datasets.List(datasets.Json())})
    table = datasets.Dataset.from_list([{"messages": one["messages"]} for one in RECORDS], features=features)
    table.to_parquet(str(tmp_path / "a.parquet"))
    assert records(tmp_path / "a.parquet") == RECORDS


# --- files of another kind than their name says ------------------------------------------------------------


def zipped():
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a.jsonl", LINES)
    return sink.getvalue()


def tarred():
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.jsonl"), io.BytesIO())
    return sink.getvalue()


# Renaming is the advice, and the name is the last word.
RENAMED = {
    "array as lines": ("a.jsonl", ARRAY, "this is a JSON array: rename it to a.json"),
    "array in one line": ("a.jsonl", json.dumps(RECORDS).encode(), "this is a JSON array: rename it to a.json"),
    "packed array": ("a.jsonl.gz", gzip.compress(ARRAY), "this is a JSON array: rename it to a.json.gz"),
    "array without a name": ("chats", ARRAY, "this is a JSON array: rename it to chats.json"),
    "pretty object": (
        "a.jsonl",
        json.dumps(RECORDS[0], indent=2).encode(),
        "one JSON object over several lines: rename it to a.json",
    ),
    "gzip": ("a.jsonl", gzip.compress(LINES), "this is packed with gzip; rename it to a.jsonl.gz"),
    "gzip without a name": ("chats", gzip.compress(LINES), "this is packed with gzip; rename it to chats.jsonl.gz"),
    "zstd": ("a.jsonl", zstd(LINES), "this is packed with zstd; rename it to a.jsonl.zst"),
    "not packed": ("a.jsonl.gz", LINES, "is not packed as .gz says; name it a.jsonl"),
    "parquet": ("a.jsonl", parquet(), "this is a Parquet file; rename it to a.parquet"),
    "parquet as arrow": ("a.arrow", parquet(), "this is a Parquet file; rename it to a.parquet"),
    "arrow": ("a.json", arrow(pyarrow.ipc.new_file), "this is an Arrow file; rename it to a.arrow"),
    "arrow stream": ("a.parquet", arrow(pyarrow.ipc.new_stream), "this is a stream of Arrow; rename it to a.arrow"),
    "lines as parquet": ("a.parquet", LINES, "this is no Parquet file but JSON; rename it to a.jsonl"),
    "array as parquet": ("a.parquet", ARRAY, "this is no Parquet file but JSON; rename it to a.json"),
}


@pytest.mark.parametrize("case", RENAMED)
def test_a_file_under_another_name_is_one_error_and_its_advice_works(tmp_path, case):
    name, contents, text = RENAMED[case]
    path = tmp_path / name
    path.write_bytes(contents)
    with pytest.raises(ValueError) as raised:
        entries(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ") and text in message
    advised = text.rpartition(" ")[2]
    path.rename(tmp_path / advised)
    assert records(tmp_path / advised)[0]["messages"] == RECORDS[0]["messages"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_and_the_command_that_is_advised(tmp_path, encoding):
    path = tmp_path / "it's mine.jsonl"
    path.write_bytes(LINES.decode().encode(encoding))
    with pytest.raises(ValueError, match="this is UTF-16") as raised:
        entries(path)
    subprocess.run(str(raised.value).partition("with ")[2], shell=True, check=True)
    assert records(tmp_path / "it's mine.utf8.jsonl") == RECORDS


OTHERS = {
    "pretty objects": ("a.jsonl", "\n".join(json.dumps(one, indent=2) for one in RECORDS), "jq -c . "),
    "pretty objects as json": ("a.json", "\n".join(json.dumps(one, indent=2) for one in RECORDS), "jq -c . "),
    "damaged pretty object": ("a.jsonl", '{"messages":\n [1,\n 2,,\n 3]}\n', "malformed at line 3, column 4"),
    "damaged array": ("a.json", '[{"messages": \n}]', "malformed JSON at line 2, column 1"),
    "csv": ("a.jsonl", "prompt,answer\n" + "a,b\n" * 249, "looks like a table (CSV) and begins 'prompt,answer'"),
    "csv by name": ("a.csv", "prompt\tanswer\n" + "a\tb\n" * 249, "looks like a table (CSV)"),
    "csv as parquet": ("a.parquet", "prompt,answer\n", "is not a Parquet file: this looks like a table (CSV)"),
    "html": ("a.jsonl", "<!DOCTYPE html>\n<html>\n" + "<p>\n" * 249, "a page of HTML or XML"),
    "lfs": ("a.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 1\n", "run git lfs pull"),
    "lfs lines": ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 1\n", "run git lfs pull"),
    "text": ("a.txt", "hello\n" * 249, "no line is a JSON object, and it begins 'hello'"),
    "numbers": ("a.jsonl", "1\n" * 249, "no line is a JSON object, and it begins '1'"),
    "bytes": ("a.jsonl", b"{\x00\x01\x02" * 60, "this is no text"),
    "zip": ("a.jsonl", zipped(), "this is a ZIP archive, or an Excel workbook"),
    "tar": ("a.jsonl", tarred(), "this is a tar archive; unpack it"),
    "packed tar": ("a.jsonl.gz", gzip.compress(tarred()), "this is a tar archive; unpack it"),
    "empty": ("a.jsonl", b"", "is empty"),
    "empty parquet": ("a.parquet", b"", "is empty"),
    "packed nothing": ("a.jsonl.gz", gzip.compress(b""), "holds no records"),
    "blank": ("a.jsonl", "\n \n", "holds no records"),
    "empty array": ("a.json", "[]", "holds no records"),
    "no rows": ("a.parquet", parquet([])[:], "holds no records"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(LINES * 50)[:150], "Truncated compressed stream"),
    "cut zstd": ("a.jsonl.zst", zstd(LINES)[:-20], "Truncated compressed stream"),
    "cut parquet": ("a.parquet", parquet()[:-50], "is damaged"),
    "cut arrow": ("a.arrow", arrow(pyarrow.ipc.new_file)[:-300], "is damaged"),
    "packed parquet": ("a.parquet.gz", gzip.compress(parquet()), "Parquet is packed in itself"),
}


# Breaks, for instance, when 249 lines of a CSV file are 249 invalid records.
@pytest.mark.parametrize("case", OTHERS)
def test_other_contents_are_one_error_that_names_the_file(tmp_path, case):
    name, contents, text = OTHERS[case]
    path = tmp_path / name
    path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    with pytest.raises(ValueError) as raised:
        entries(path)
    assert str(raised.value).startswith(f"{path}: ") and text in str(raised.value)


# --- folders and patterns ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Files that share a name, one packed; hidden files, which nobody means."""
    (tmp_path / "data/sub").mkdir(parents=True)
    (tmp_path / "data/.cache").mkdir()
    one, *others = LINES.splitlines(keepends=True)
    (tmp_path / "data/sub/a.jsonl").write_bytes(b"".join(others))
    (tmp_path / "data/a.jsonl").write_bytes(one)
    (tmp_path / "data/b.jsonl.gz").write_bytes(gzip.compress(one))
    (tmp_path / "data/.cache/a.parquet").write_bytes(b"nothing")
    return tmp_path / "data"


def test_files_of_a_folder_come_in_the_order_of_their_names_and_records_have_unique_ones(folder):
    expected = ["a.jsonl:1", "b.jsonl.gz:1", "sub/a.jsonl:1", "sub/a.jsonl:2"]
    assert names(folder) == expected
    assert names(folder / "**/*.jsonl*") == expected
    assert names(folder.parent / "*/sub/*.jsonl") == ["data/sub/a.jsonl:1", "data/sub/a.jsonl:2"]


# Breaks if data behind a link is left out in silence, or a link that leads back is followed without end.
def test_links_of_a_folder_are_followed_once_and_those_to_nothing_refused(tmp_path):
    inside, outside = tmp_path / "data", tmp_path / "elsewhere"
    for place, text in ((inside, "here"), (outside, "there")):
        place.mkdir()
        (place / f"{text}.jsonl").write_text(json.dumps({"messages": text}) + "\n")
    (inside / "linked").symlink_to(outside)
    (outside / "back").symlink_to(inside)
    assert names(inside) == ["here.jsonl:1", "linked/there.jsonl:1"]
    (inside / "gone.jsonl").symlink_to(tmp_path / "nothing.jsonl")
    for path in (inside, inside / "*.jsonl", inside / "gone.jsonl"):
        with pytest.raises(ValueError, match="gone.jsonl is a link to .*nothing.jsonl, and nothing is there; put the"):
            names(path)
    (inside / "gone.jsonl").unlink()
    assert len(names(inside)) == 2


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
    (tmp_path / "a[1].jsonl").write_bytes(LINES)
    assert names(tmp_path / "a[1].jsonl")[0] == "a[1].jsonl:1"


def test_what_is_not_read_of_a_folder_is_said(folder):
    (folder / "README.md").write_text("about")
    with pytest.warns(UserWarning, match=r"data.path=.*data: not read, being no data by their names: README.md"):
        assert len(names(folder)) == 4


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "sub/info.json",
            "files of several kinds (3 of JSON lines, such as a.jsonl; 1 of JSON, such as sub/info.json)",
        ),
        ("b.parquet", "files of several kinds"),
    ],
)
def test_a_folder_of_several_kinds_is_refused_and_a_pattern_chooses(folder, name, text):
    (folder / name).write_text("{}")
    with pytest.raises(ValueError) as raised:
        names(folder)
    advised = str(raised.value).rpartition("for instance data.path=")[2]
    assert text in str(raised.value)
    assert names(advised) == ["a.jsonl:1", "sub/a.jsonl:1", "sub/a.jsonl:2"]


def test_the_pattern_that_is_advised_is_of_files_that_are_there(tmp_path):
    # Broken by a pattern of .jsonl, which no file here is.
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "b.parquet").write_bytes(parquet())
    with pytest.raises(ValueError, match="files of several kinds") as raised:
        names(tmp_path)
    assert len(names(str(raised.value).rpartition("for instance data.path=")[2])) == len(RECORDS)


# Names of files to train, of others, and the pattern that is advised where there is one.
SPLITS = {
    "one each": (["train.jsonl"], ["test.jsonl"], None),
    # Broken by a pattern of the first letters: it names both files again, and the same error follows.
    "the same beginning": (["data_train.jsonl"], ["data_test.jsonl"], None),
    "parts": ([f"train-0000{i}-of-00002.jsonl" for i in (0, 1)], ["test-00000-of-00001.jsonl"], "train-0000*"),
    "no pattern": (["a_train.jsonl", "b_train.jsonl"], ["a_val.jsonl"], None),
    "folders": (["train/a.jsonl", "train/b.jsonl"], ["test/a.jsonl"], "train/*"),
    "beside what says nothing": (["train_1.jsonl", "train_2.jsonl"], ["dev.jsonl", "extra.jsonl"], "train_*"),
}


@pytest.mark.parametrize("folder_name", ["two", "two [of] many"])
@pytest.mark.parametrize("case", SPLITS)
def test_test_files_are_not_trained_because_they_lie_beside_and_the_advice_works(tmp_path, case, folder_name):
    train, others, pattern = SPLITS[case]
    for name in (*train, *others):
        (tmp_path / folder_name / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / folder_name / name).write_bytes(LINES)
    with pytest.raises(ValueError, match="files of several splits") as raised:
        names(tmp_path / folder_name)
    advised = str(raised.value).rpartition("for instance data.path=")[2]
    assert advised.endswith(f"/{pattern or train[0]}")
    chosen = train if pattern else train[:1]
    lines = range(1, 1 + len(RECORDS))
    assert [Path(name).name for name in names(advised)] == [f"{Path(name).name}:{n}" for name in chosen for n in lines]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nothing", "no such file or folder, and no file of that pattern"),
        ("*.jsonl", "no such file"),
        ("", "only a.txt"),
    ],
)
def test_a_path_of_nothing(tmp_path, name, text):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError) as raised:
        names(tmp_path / name)
    assert str(raised.value).startswith(f"data.path={tmp_path / name}: ") and text in str(raised.value)


def test_what_datasets_saved(tmp_path):
    table = datasets.Dataset.from_list([{"messages": one["messages"]} for one in RECORDS])
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=table, test=table.select([0])).save_to_disk(str(tmp_path / "two"))
    assert records(tmp_path / "one") == RECORDS and names(tmp_path / "one")[0] == "one[0]"
    assert len(records(tmp_path / "two")) == 3 and len(records(tmp_path / "two", split="test")) == 1
    with pytest.raises(ValueError, match="has the splits train, test, not dev; choose one with data.split=<name>"):
        records(tmp_path / "two", split="dev")
    shutil.copyfile(tmp_path / "one" / "data-00000-of-00001.arrow", tmp_path / "a.arrow")
    assert entries(tmp_path / "a.arrow")[2] == ("a.arrow[2]", RECORDS[2])
