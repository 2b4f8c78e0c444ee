"""One run at a time writes into a folder, and nothing of a run that has ended keeps the next one out."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys

import pytest

from recipes.run.claim import LOCK, claimed

# Claims the folder, starts a child that outlives it, and waits to be killed.
HOLDER = """
import multiprocessing, os, sys, time
from pathlib import Path
from recipes.run.claim import claimed
with claimed(Path(sys.argv[1])):
    if not (child := os.fork()):
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """(a process that has claimed the folder, its child)"""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    yield process, child
    for one in (process.pid, child):
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait()
    process.stdout.close()


# Breaks if two runs get a folder, if a run is not told who has it, or if a child of a killed run keeps it.
def test_a_folder_is_that_of_one_process_until_it_ends(tmp_path, holder):
    process, child = holder
    named = f"another run is writing there \\(process {process.pid} on {socket.gethostname()}\\)"
    with pytest.raises(ValueError, match=named), claimed(tmp_path):
        pass
    process.kill()
    process.wait()
    os.kill(child, 0)  # it lives
    with claimed(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_who_has_a_folder_takes_the_place_of_who_had_it(tmp_path):
    (tmp_path / LOCK).write_text("process 123456789 on a machine with a long name\n")
    with claimed(tmp_path):
        pass
    assert (tmp_path / LOCK).read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


# Breaks if a run needs locks, or does without them in silence.
def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.warns(UserWarning, match="no locks .No locks available"), claimed(tmp_path):
        pass
