"""A folder as a user has it, and commands run in it as a user runs them."""

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import forked

ROOT = Path(__file__).parents[2]
COPIED = ("docs",)  # commands write there
LINKED = (
    "Makefile", "README.md", "LICENSE", "pyproject.toml", "constraints.txt", "requirements.lock",
    "conf", "flexmask", "recipes", "notebooks", "tests",
)  # fmt: skip


@dataclass(frozen=True)
class Done:
    """How a command ended. `out` and `err` are what it printed."""

    command: str
    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.out.rstrip().rpartition("\n")[2]

    def __str__(self) -> str:
        return f"$ {self.command}\n{self.out}\n--- stderr\n{self.err}\n--- exit {self.code}"


class Workshop:
    """The project's own files without its `runs/`, its virtual environment, and room for the user's files.

    `server`: the socket of tests/forked.py.
    """

    def __init__(self, folder: Path, server: Path):
        self.folder = folder
        self._server = server
        for name in LINKED:
            (folder / name).symlink_to(ROOT / name)
        for name in COPIED:
            shutil.copytree(ROOT / name, folder / name)
        forked.install(folder / ".venv", ROOT / ".venv")

    def run(self, command: str, code: int | None = 0, timeout: float = 300, real: bool = False) -> Done:
        """Run a line of a shell; the exit code must be `code` (None: any but 0), and nobody may see a traceback."""
        process = self.start(command, real)
        try:
            return self.end(process, code, timeout)
        finally:
            kill(process)

    def start(self, command: str, real: bool = False) -> subprocess.Popen:
        """In a session of its own, as from a terminal: a signal to its group reaches make and what make started.

        real: no library is imported before.
        """
        programs = self.folder / ".venv/bin"
        environment = forked.clean_environment() | {"PATH": f"{programs}:{os.environ['PATH']}"}
        forking = {forked.SERVER: str(self._server), "PYTHON_EXEC": str(programs / "python")}  # the second for torchrun
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.folder,
            env=environment if real else environment | forking,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def end(self, process: subprocess.Popen, code: int | None = 0, timeout: float = 300) -> Done:
        """Wait for what `start` began, and check it as `run` does."""
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            kill(process)
            out, err = process.communicate()
            raise AssertionError(f"not ended after {timeout} s: {Done(process.args[-1], -1, out, err)}") from None
        done = Done(process.args[-1], process.returncode, out, err)
        assert done.code != 0 if code is None else done.code == code, done
        assert "Traceback (most recent call last)" not in out + err, done
        return done

    def train(self, *overrides: str, code: int | None = 0, timeout: float = 300) -> Done:
        return self.run(train(*overrides), code, timeout)


def train(*overrides: str) -> str:
    """The command line of a training with these overrides, each an argument of its own."""
    return shlex.join(["python", "-m", "recipes.train", *overrides])


def kill(process: subprocess.Popen) -> None:
    """The process and all that it started, at once."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def wait_for(there: Callable[[], object], process: subprocess.Popen, timeout: float = 200) -> None:
    """Until `there()` is true; fails when the process has ended or the time is over."""
    deadline = time.monotonic() + timeout
    while not there():
        assert process.poll() is None, f"ended before: {process.communicate()}"
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.01)
