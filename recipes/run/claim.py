"""One run at a time writes into a folder."""

import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"
_HELD = (errno.EACCES, errno.EAGAIN)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The folder belongs to this process until the block ends.

    The claim is a lock of the file `.lock` that the system drops with the process, however that ends: the file stays,
    and means nothing by itself. It is one that a process's children do not inherit, so none of them can keep it.
    Raises ValueError naming the process that has it.
    """
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                file.seek(0)
                raise ValueError(
                    f"{folder}: another run is writing there ({file.read().strip() or 'which has just started'}); wait "
                    "until it has ended, or stop it; a run of its own needs another output_dir"
                ) from None
            warnings.warn(
                f"{folder}: its file system has no locks ({error.strerror}), so a second run in this folder would not "
                "be refused",
                stacklevel=3,
            )
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield
