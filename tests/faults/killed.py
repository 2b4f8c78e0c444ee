"""A command that something befalls where it touches a file: `python -m faults.killed MODULE WORDS...`.

What counts are the openings for writing, renamings, makings and removals of files in the folders that TOUCHED names.
They are lines, as `open runs/one/config.yaml.partial`. KILL_AT is the number, from 1, of the one among those with a
word of KILL_IN in them that never happens: the process ends in front of it with SIGKILL. With TORN a file that was to
be written is there, and empty. With FULL it lives on, on a disk that is full: no file may be longer than so many bytes.
Without KILL_AT nobody is killed, and RECORD names a file that gets the lines.

PLAIN takes away what lets root write into folders that are read-only.
"""

import ctypes
import os
import resource
import runpy
import signal
import sys
from pathlib import Path

EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")
WRITES = os.O_WRONLY | os.O_RDWR

touched = [os.path.abspath(folder) for folder in os.environ["TOUCHED"].split(os.pathsep)]
kill_at, kill_in = int(os.environ.get("KILL_AT", "0")), os.environ.get("KILL_IN", "").split("|")
torn = bool(os.environ.get("TORN"))
record = os.open(os.environ.get("RECORD", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
number = 0


def touch(event, arguments):
    global number
    if event not in EVENTS or not isinstance(arguments[0], (str, Path)):
        return
    path = str(arguments[0])
    # A tree is removed name by name, below a folder that is open.
    within = event in ("os.remove", "os.rmdir") and os.sep not in path and arguments[-1] != -1
    if not within and not any(os.path.abspath(path).startswith(folder) for folder in touched):
        return
    if event == "open" and not arguments[2] & WRITES:
        return
    line = f"{event} {path}"
    os.write(record, f"{line}\n".encode())
    number += any(word in line for word in kill_in)
    if kill_at and number == kill_at:
        if torn and event == "open" and not arguments[2] & os.O_APPEND:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
        if "FULL" in os.environ:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["FULL"]),) * 2)
        else:
            os.kill(os.getpid(), signal.SIGKILL)


def drop_privileges():
    """CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (capabilities(7)); who has none is as before."""
    libc = ctypes.CDLL(None, use_errno=True)
    version, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(version, sets) == 0
    sets[0] &= ~0b110  # of those in effect
    assert libc.capset(version, sets) == 0


if "PLAIN" in os.environ:
    drop_privileges()
module = sys.argv.pop(1)
sys.addaudithook(touch)
runpy.run_module(module, run_name="__main__", alter_sys=True)
