"""Records of local files: one file, all of a folder, or those that a pattern names.

Names of records: `<file>:<line>` for JSON lines (blank lines count), `<file>[<index from 0>]` for a JSON array, Parquet
and Arrow; `<file>` is the path inside the folder or pattern, so it is unique.
"""

import glob
import io
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from recipes.sources import Part
from recipes.sources.json_text import BYTE_ORDER_MARK, decode, is_object
from recipes.sources.kinds import (
    ARROW,
    COMPRESSIONS,
    JSON,
    JSON_LINES,
    KINDS,
    PARQUET,
    check_contents,
    check_lines,
    check_packing,
    compression,
    kind_by_name,
)
from recipes.sources.parts import (
    MOST_RECORDS,
    decoded,
    if_object,
    parts_of_dataset,
    parts_of_entries,
    parts_of_lines,
    parts_of_table,
    together,
)

_TRAIN = {"train", "training"}
_NOT_TRAIN = {"test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation"}


def read_path(path: str, split: str, key: str) -> Iterator[Part]:
    """The records of a file, of all files in a folder, or of those of a pattern, in the order of their names.

    All but a JSON array is read as it is asked for.

    split: of a folder that `datasets` has saved with several. key: of the setting whose value `path` is, for errors.
    Raises ValueError naming the file for one that is not what its name says, and naming `key` for a path of nothing,
    and for a folder of several kinds of files or of several splits.
    """
    place = Path(path)
    if place.is_dir() and any((place / name).is_file() for name in ("state.json", "dataset_dict.json")):
        yield from _read_saved(place, split, key)
        return
    yield from together(part for file, name in list_files(path, key) for part in _read_file(file, name))


def list_files(path: str, key: str) -> list[tuple[Path, str]]:
    """Each file that `path` stands for, with the name for its records. Raises as `read_path` does."""
    place = Path(path)
    if place.is_file():
        return [(place, place.name)]
    if place.is_dir():
        base, found = place, _data_files(place, key)
    else:
        base = Path(*_without_pattern(place.parts))
        found = [Path(one) for one in sorted(glob.glob(path, recursive=True))]
        _refuse_broken_links(found, key)
        found = [one for one in found if one.is_file()]
        if not found:
            raise ValueError(f"{key}={path}: no such file or folder, and no file of that pattern")
    names = {file: file.relative_to(base).as_posix() for file in found}
    kinds: dict[str, list[str]] = {}
    for file, name in names.items():
        kinds.setdefault(kind_by_name(file) or JSON_LINES, []).append(name)
    if len(kinds) > 1:
        shown = "; ".join(f"{len(some)} of {kind}, such as {some[0]}" for kind, some in kinds.items())
        suffix = next(_suffix(file) for file in found if kind_by_name(file))
        raise ValueError(
            f"{key}={path}: files of several kinds ({shown}); choose some by a pattern, for instance "
            f"{key}={glob.escape(str(base))}/**/*{suffix}"
        )
    _refuse_two_splits(names, f"{key}={path}", key)
    return list(names.items())


def _data_files(folder: Path, key: str) -> list[Path]:
    places = sorted(_places_in(folder))
    _refuse_broken_links([one for one in places if kind_by_name(one) is not None], key)
    files = [one for one in places if one.is_file()]
    found = [file for file in files if kind_by_name(file) is not None]
    others = [file.relative_to(folder).as_posix() for file in files if kind_by_name(file) is None]
    shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    suffixes = f"{', '.join(KINDS)}, also packed: {', '.join(COMPRESSIONS)}"
    if not found:
        raise ValueError(
            f"{key}={folder}: the folder has no data file ({suffixes}){f', only {shown}' if others else ''}"
        )
    if others:
        warnings.warn(f"{key}={folder}: not read, being no data by their names: {shown}", stacklevel=2)
    return found


def _places_in(folder: Path) -> Iterator[Path]:
    """What is in a folder and those in it, but what is hidden. Links to folders are followed, each folder once."""
    entered = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if (real := os.path.realpath(place)) in entered:
            folders.clear()
            continue
        entered.add(real)
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _refuse_broken_links(places: Iterable[Path], key: str) -> None:
    """Nobody learns of a file that is not read because it has been moved or removed from behind its link."""
    broken = [one for one in places if one.is_symlink() and not one.exists()]
    if broken:
        more = f" (and {len(broken) - 1:,} more links)" if len(broken) > 1 else ""
        raise ValueError(
            f"{key}: {broken[0]} is a link to {os.readlink(broken[0])}, and nothing is there{more}; put the file back, "
            "or remove the link"
        )


def _without_pattern(parts: tuple[str, ...]) -> Iterator[str]:
    for part in parts[:-1]:
        if glob.has_magic(part):
            return
        yield part


def _suffix(file: Path) -> str:
    """What ends the names of files of this kind, packed in this way: `.jsonl.gz`."""
    packed = compression(file) or ""
    return Path(file.name.removesuffix(packed)).suffix + packed


def _refuse_two_splits(names: dict[Path, str], setting: str, key: str) -> None:
    """Nobody wants to train on the test files that lie beside those for training. names: by file."""
    words = {file: set(re.findall("[a-z]+", name.lower())) for file, name in names.items()}
    train = [file for file in names if words[file] & _TRAIN]
    other = [file for file in names if words[file] & _NOT_TRAIN and not words[file] & _TRAIN]
    if train and other:
        raise ValueError(
            f"{setting}: files of several splits, such as {names[train[0]]} and {names[other[0]]}; choose some, for "
            f"instance {key}={_path_of(train)}"
        )


def _path_of(files: list[Path]) -> str:
    """A pattern that names these files and no other; the first of them where there is no simple one."""
    pattern = glob.escape(os.path.commonprefix([str(file) for file in files])) + "*"
    return pattern if len(files) > 1 and {Path(one) for one in glob.glob(pattern)} == set(files) else str(files[0])


# --- one file ----------------------------------------------------------------------------------------------


def _read_file(path: Path, name: str) -> Iterator[Part]:
    """The records of one file, which are called by `name`.

    Raises ValueError naming `path` when it is not what its name says, is damaged, or holds no record.
    """
    check_packing(path)
    kind = kind_by_name(path) or JSON_LINES  # a name that does not say
    readers: dict[str, Callable[[Path, str], Iterator[Part]]] = {
        JSON_LINES: _read_lines,
        JSON: _read_json,
        PARQUET: _read_table,
        ARROW: _read_table,
    }
    empty = True
    try:
        with _opened(path) as file:
            check_contents(path, kind, file.read(512))
        for part in readers[kind](path, name):
            empty = False
            yield part
    except OSError as error:
        raise ValueError(f"{path}: cannot be read, {error}; if it is damaged, copy or download it again") from error
    if empty:
        raise ValueError(f"{path}: holds no records; give a file with at least one conversation")


def _opened(path: Path) -> BinaryIO:
    """The contents, unpacked. A packed file that was cut off raises OSError where it ends."""
    if compression(path) is None:
        return path.open("rb")
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path)))


def _read_lines(path: Path, name: str) -> Iterator[Part]:
    return parts_of_lines(_numbered_lines(path), name, str(path))


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    unseen = True
    with _opened(path) as file:  # binary: only \n ends a line, and bad UTF-8 is ours to report
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
            if not line.strip():
                continue
            if unseen and not is_object(line):
                with _opened(path) as whole:
                    check_lines(path, line.strip(), whole.read())
            unseen = False
            yield number, line.rstrip(b"\r\n")


def _read_json(path: Path, name: str) -> Iterator[Part]:
    """A JSON array of records, a single record over any number of lines, or JSON lines."""
    with _opened(path) as file:
        first = next((line for line in file if line.removeprefix(BYTE_ORDER_MARK).strip()), b"")
    first = first.removeprefix(BYTE_ORDER_MARK).lstrip()
    if first.startswith(b"["):
        with _opened(path) as file:
            # Malformed JSON here is no single record's fault, so it is raised.
            data = file.read().removeprefix(BYTE_ORDER_MARK)
        values = decode(data, str(path))
        entries = ((f"{name}[{i}]", if_object(value, f"{path}[{i}]")) for i, value in enumerate(values))
        yield from parts_of_entries(entries, size=len(data))
        return
    if not is_object(first):
        with _opened(path) as file:
            data = file.read().removeprefix(BYTE_ORDER_MARK)
        if is_object(data):
            yield from parts_of_entries([(f"{name}[0]", decoded(data, f"{path}[0]"))], size=len(data))
            return
    yield from _read_lines(path, name)


def _read_table(path: Path, name: str) -> Iterator[Part]:
    import pyarrow
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            batches = pyarrow.parquet.ParquetFile(path).iter_batches(MOST_RECORDS)
        else:
            source = pyarrow.memory_map(str(path))
            in_file = source.read(6) == b"ARROW1"
            source.seek(0)
            reader = pyarrow.ipc.open_file(source) if in_file else pyarrow.ipc.open_stream(source)
            batches = map(reader.get_batch, range(reader.num_record_batches)) if in_file else reader
        yield from parts_of_table(batches, name)
    except (pyarrow.ArrowException, EOFError) as error:
        raise ValueError(f"{path}: is damaged ({error}); copy or download it again") from error


def _read_saved(folder: Path, split: str, key: str) -> Iterator[Part]:
    """The records of a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    import datasets

    try:
        table = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{key}={folder}: was saved by datasets and cannot be loaded ({error}); save it again"
        ) from error
    name = folder.name
    if isinstance(table, datasets.DatasetDict):
        if split not in table:
            raise ValueError(
                f"{key}={folder}: has the splits {', '.join(table)}, not {split}; choose one with "
                f"{key.removesuffix('path')}split=<name>"
            )
        table, name = table[split], f"{name}/{split}"
    if not len(table):
        raise ValueError(f"{key}={folder}: holds no records; give data with at least one conversation")
    yield from parts_of_dataset(table, name)
