"""Prepared conversations on disk: written once, checked when they are found again, read from a memory map.

A folder holds `rows.arrow`, one record a conversation (`SCHEMA`), and `rows.sha256`, its checksum. Whenever another is
stored beside it, a folder that nobody has found for 30 days is removed.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from flexmask import LaidOut, Role, Row
from flexmask.tree.segments import pass_lengths

_ROW_ARRAYS = {
    "input_ids": pyarrow.int32(),
    "roles": pyarrow.int8(),
    "loss_weights": pyarrow.float32(),
    "node_start": pyarrow.int32(),
    "node_end": pyarrow.int32(),
    "node_parent": pyarrow.int32(),
}
_BORDERS = ("row_tokens", "row_nodes", "row_turns")  # how much of the arrays each row of a conversation has
COUNTS = ("dropped_turns", "retokenized_texts", "tokens_trained", "tokens_per_turn", "tokens_copied")
SCHEMA = pyarrow.schema(
    {name: pyarrow.list_(dtype) for name, dtype in _ROW_ARRAYS.items()}
    | {name: pyarrow.list_(pyarrow.int32()) for name in (*_BORDERS, "turns", "ends")}
    | {name: pyarrow.int64() for name in COUNTS}
    | {"branches": pyarrow.bool_(), "warnings": pyarrow.list_(pyarrow.string()), "name": pyarrow.string()}
    # Why it has no rows (null: it is valid), and whether because of a turn that is longer than a pack.
    | {"invalid": pyarrow.string(), "too_long": pyarrow.bool_()}
)
_ROWS, _CHECKSUM = "rows.arrow", "rows.sha256"
_ABANDONED_SECONDS, _UNUSED_SECONDS = 24 * 3600, 30 * 24 * 3600


class DamagedError(ValueError):
    """What stands in a folder is not what was written there."""


class PreparedRows(Sequence):
    """The rows of each conversation, `tuple[Row, ...]`, read from the file when asked for.

    indices: of the records in the file, in the order of this sequence; one may stand there several times.
    """

    def __init__(self, file: Path, indices: np.ndarray) -> None:
        self._file, self._indices = file, indices
        self._table = open_table(file)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = int(self._indices[index])
        return _from_record({name: self._table.column(name)[at] for name in (*_ROW_ARRAYS, *_BORDERS, "turns", "name")})

    def __reduce__(self):  # a data loader's processes map the file themselves
        return type(self), (self._file, self._indices)


def to_record(name: str, laid_out: LaidOut, warnings: Sequence[str]) -> dict[str, Any]:
    """A conversation as the file has it."""
    rows = laid_out.rows
    return {
        "name": name,
        "invalid": None,
        "too_long": False,
        "warnings": list(warnings),
        "dropped_turns": len(laid_out.dropped_turns),
        "retokenized_texts": laid_out.retokenized_texts,
        "branches": not all(row.is_chain for row in rows),
        "ends": list(laid_out.ends),
        "tokens_trained": sum(int((row.loss_weights > 0).sum()) for row in rows),
        "tokens_per_turn": sum(int(pass_lengths(row).sum()) for row in rows),
        "tokens_copied": sum(int((row.roles == Role.COPY).sum()) for row in rows),
        "row_tokens": [len(row) for row in rows],
        "row_nodes": [len(row.node_start) for row in rows],
        "row_turns": [len(row.turns) for row in rows],
        "turns": [turn for row in rows for turn in row.turns],
    } | {
        key: np.concatenate([getattr(row, key) for row in rows] or [np.empty(0)]).astype(dtype.to_pandas_dtype())
        for key, dtype in _ROW_ARRAYS.items()
    }


def invalid_record(name: str, reason: str, too_long: bool) -> dict[str, Any]:
    """A conversation that has no rows, and why."""
    return to_record(name, LaidOut((), ()), ()) | {"invalid": reason, "too_long": too_long}


def _from_record(record: dict[str, Any]) -> tuple[Row, ...]:
    """The rows that `to_record` was given."""
    arrays = {key: record[key].values.to_numpy() for key in (*_ROW_ARRAYS, *_BORDERS, "turns")}
    borders = {key: np.cumsum([0, *arrays[key]]) for key in _BORDERS}
    rows = []
    for i in range(len(arrays["row_tokens"])):
        tokens, nodes, turns = (slice(*borders[key][i : i + 2]) for key in _BORDERS)
        rows.append(
            Row(
                name=record["name"].as_py(),
                turns=tuple(arrays["turns"][turns].tolist()),
                input_ids=arrays["input_ids"][tokens].astype(np.int64),
                roles=arrays["roles"][tokens].copy(),  # the file's memory cannot be written to
                loss_weights=arrays["loss_weights"][tokens].copy(),
                node_start=arrays["node_start"][nodes].copy(),
                node_end=arrays["node_end"][nodes].copy(),
                node_parent=arrays["node_parent"][nodes].copy(),
            )
        )
    return tuple(rows)


def open_table(file: Path) -> pyarrow.Table:
    """The records, mapped into memory. Raises OSError and pyarrow.ArrowInvalid."""
    return pyarrow.ipc.open_file(pyarrow.memory_map(str(file))).read_all()


def find(folder: Path) -> Path | None:
    """The file in `folder`, which counts as used now; None where nothing was stored. Raises DamagedError unless it is
    what was written.
    """
    if not folder.exists():
        return None
    try:
        with (folder / _ROWS).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != (folder / _CHECKSUM).read_text():
            raise DamagedError("its checksum is another one")
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(str(error)) from error
    with contextlib.suppress(OSError):  # a folder of somebody else's may be read, and not changed
        os.utime(folder)
    return folder / _ROWS


def store(folder: Path, records: Iterable[Sequence[dict[str, Any]]]) -> Path:
    """Write records, which come in lists, to `folder`: whole or not at all. Returns the file in it.

    Raises OSError when the disk does not take it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_old(folder.parent)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=folder.parent) as partial:
        file = Path(partial, "folder", _ROWS)
        file.parent.mkdir()
        with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_file(sink, SCHEMA) as writer:
            for some in records:
                writer.write_batch(pyarrow.RecordBatch.from_pylist(some, schema=SCHEMA))
        with file.open("rb") as written:
            checksum = hashlib.file_digest(written, "sha256").hexdigest()
        (file.parent / _CHECKSUM).write_text(checksum)
        try:
            file.parent.rename(folder)
        except OSError:
            if find(folder) is None:  # else another run has just stored the same
                raise
    return folder / _ROWS


def _remove_old(parent: Path) -> None:
    """Delete what killed runs have left half-written, and what was stored and not found for long."""
    stored = (file.parent for file in parent.glob(f"*/{_ROWS}"))
    for most, folders in ((_ABANDONED_SECONDS, parent.glob("partial-*")), (_UNUSED_SECONDS, stored)):
        for path in folders:
            with contextlib.suppress(FileNotFoundError):  # another run has just deleted it
                if time.time() - path.stat().st_mtime > most:
                    shutil.rmtree(path, ignore_errors=True)
