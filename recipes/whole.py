"""Files and folders that are there whole or not at all, whenever a run is killed or a disk is full."""

import shutil
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
        raise OSError(error.errno, error.strerror, str(path)) from error


def partial_of(path: Path) -> Path:
    """Where a file or folder stands while it is written."""
    return path.with_name(f"{path.name}.partial")


def take_place(partial: Path, folder: Path) -> None:
    """What was written to `partial` becomes `folder`, in place of what a killed run has left there."""
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
