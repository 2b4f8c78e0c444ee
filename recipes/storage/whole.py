"""Files and folders that are there whole or not at all, whenever a run is killed or a disk is full."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path


def write_whole(path: Path, text: str, errors: str = "strict") -> None:
    """Write a file in place of the one that is there, which stays as it was until this one is complete.

    Raises OSError naming the file.
    """
    partial = partial_of(path)
    try:
        partial.write_text(text, encoding="utf-8", errors=errors)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)  # it would take what little room is left
        raise OSError(error.errno, error.strerror, str(path)) from error


def partial_of(path: Path) -> Path:
    """Where a file or folder stands while it is written."""
    return path.with_name(f"{path.name}.partial")


def take_place(partial: Path, folder: Path) -> None:
    """What was written to `partial` becomes `folder`, in place of what a killed run has left there."""
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


@contextlib.contextmanager
def appears_whole(folder: Path) -> Iterator[Path]:
    """Where to write what `folder` is to hold: <folder>.partial, which becomes `folder` when nothing has failed.

    Raises ValueError, before anything is done, where either has content.
    """
    partial = partial_of(folder)
    for target in (folder, partial):
        if target.is_file() or (target.is_dir() and any(target.iterdir())):
            raise ValueError(f"{target}: already exists; remove it, or choose another OUT_DIR")
    yield partial
    if folder.exists():  # empty, or it was refused
        folder.rmdir()
    partial.rename(folder)
