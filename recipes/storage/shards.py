"""Arrow files that are kept for the next run: each written whole or not at all, and checked when it is found again.

A shard is a folder with `shard.arrow` and `shard.sha256`, its checksum, in the folder `flexmask` of the cache of
`datasets`. Its name is a hash of all that its records depend on, so whoever wants the same finds them, and a killed
preparation goes on behind the shards that it has written. Whenever others are stored, those that no run has found for
30 days are removed.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

_SHARD, _CHECKSUM = "shard.arrow", "shard.sha256"
_MAPPED = 8  # shards at a time: what is mapped counts as memory in use, and mapping one takes a fifth of a millisecond
_ABANDONED_SECONDS, _UNUSED_SECONDS = 24 * 3600, 30 * 24 * 3600


class DamagedError(ValueError):
    """What stands in a folder is not what was written there."""


@dataclass(frozen=True)
class Kept:
    """The file of a shard; whether it had to be written, and what was wrong with the one that was found."""

    file: Path
    is_new: bool
    damage: str | None = None


def cache() -> Path:
    """Where shards are kept: beside what `datasets` keeps, which is not imported (it takes seconds)."""
    home = os.environ.get("HF_HOME", os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    return Path(os.environ.get("HF_DATASETS_CACHE", os.path.join(os.path.expanduser(home), "datasets"))) / "flexmask"


@functools.cache
def digest_of_code(*places: Path) -> bytes:
    """A hash of Python files, and of those in folders."""
    digest = hashlib.sha256()
    for place in places:
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.digest()


def keep(name: str, schema: pyarrow.Schema, batches: Callable[[], Iterable[pyarrow.RecordBatch]]) -> Kept:
    """The shard of this name: found, or made of `batches`. One that was damaged since is made anew.

    Raises ValueError naming the cache when it cannot be written to.
    """
    folder, damage = cache() / name, None
    with naming_cache():
        try:
            file = find(folder)
        except DamagedError as error:
            file, damage = None, f"{folder}: what was prepared is damaged ({error}); it is prepared anew"
            shutil.rmtree(folder)
        if file is not None:
            return Kept(file, is_new=False)
        return Kept(store(folder, schema, batches()), True, damage)


@contextlib.contextmanager
def naming_cache() -> Iterator[None]:
    """Errors of files become a ValueError that names the cache and says what to do."""
    try:
        yield
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(
            f"{cache()}: prepared data cannot be kept there ({error}); make room, or name another folder: "
            "HF_DATASETS_CACHE=<folder> before the command"
        ) from error


def open_table(file: Path) -> pyarrow.Table:
    """The records, mapped into memory. Raises OSError and pyarrow.ArrowInvalid."""
    with pyarrow.memory_map(str(file)) as source:  # the table keeps the map, and no file open
        return pyarrow.ipc.open_file(source).read_all()


class Shards:
    """The records of several shards, counted through; mapped into memory when they are asked for, few shards at a time.

    files: of the shards. starts: the number of the first record of each, and of all behind the last.
    """

    def __init__(self, files: Sequence[Path], sizes: Sequence[int]) -> None:
        self.files, self.starts = files, np.cumsum([0, *sizes])
        self._tables: OrderedDict[int, pyarrow.Table] = OrderedDict()

    def record(self, number: int) -> tuple[pyarrow.Table, int]:
        """The table that holds a record, and where. Raises OSError where it is not there any more."""
        shard = int(self._shards_of(number))
        table = self._tables.pop(shard, None)
        if table is None:
            try:
                table = open_table(self.files[shard])
            except (OSError, pyarrow.ArrowException) as error:
                raise OSError(
                    f"{self.files[shard].parent}: what was prepared there has been removed or damaged since; it is "
                    f"prepared anew when the command is started again ({error})"
                ) from error
            _use(self.files[shard].parent)  # a run may be longer than shards are kept
        self._tables[shard] = table  # behind those that were used before
        if len(self._tables) > _MAPPED:
            self._tables.popitem(last=False)
        return table, int(number - self.starts[shard])

    def only(self, numbers: np.ndarray) -> tuple["Shards", np.ndarray]:
        """The shards that hold these records, and their numbers in them."""
        needed, which = np.unique(self._shards_of(numbers), return_inverse=True)
        some = Shards([self.files[i] for i in needed], np.diff(self.starts)[needed])
        return some, numbers - self.starts[needed][which] + some.starts[which]

    def _shards_of(self, numbers: Any) -> Any:
        return np.searchsorted(self.starts, numbers, side="right") - 1

    def __reduce__(self):  # another process maps the files itself
        return type(self), (self.files, np.diff(self.starts))


def find(folder: Path) -> Path | None:
    """The file in `folder`, which counts as used now; None where nothing was stored. Raises DamagedError unless it is
    what was written.
    """
    if not folder.exists():
        return None
    try:
        if _checksum(folder / _SHARD) != (folder / _CHECKSUM).read_text():
            raise DamagedError("its checksum is another one")
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(str(error)) from error
    _use(folder)
    return folder / _SHARD


def _use(folder: Path) -> None:
    with contextlib.suppress(OSError):  # a folder of somebody else's may be read, and not changed
        os.utime(folder)


def store(folder: Path, schema: pyarrow.Schema, batches: Iterable[pyarrow.RecordBatch]) -> Path:
    """Write `batches` to `folder`: whole or not at all. Returns the file in it.

    Raises OSError when the disk does not take it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=folder.parent) as partial:
        file = Path(partial, "folder", _SHARD)
        file.parent.mkdir()
        with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_file(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        (file.parent / _CHECKSUM).write_text(_checksum(file))
        try:
            file.parent.rename(folder)
        except OSError:
            if find(folder) is None:  # else another run has just stored the same
                raise
    return folder / _SHARD


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def remove_old() -> None:
    """Delete what killed runs have left half-written, and what was stored and not found for long."""
    stored = (file.parent for file in cache().glob(f"*/{_SHARD}"))
    for most, folders in ((_ABANDONED_SECONDS, cache().glob("partial-*")), (_UNUSED_SECONDS, stored)):
        for path in folders:
            with contextlib.suppress(FileNotFoundError):  # another run has just deleted it
                if time.time() - path.stat().st_mtime > most:
                    shutil.rmtree(path, ignore_errors=True)
