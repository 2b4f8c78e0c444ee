"""`python -m recipes.<command>` in a process of its own that need not import PyTorch first.

Nine tenths of a short run are imports of other people's packages. A server has them ready and forks for each command;
the project's own modules are imported anew in every one. Journeys of `make` start a whole Python, as a user does.

    python tests/journeys/forked.py     the server: a request a line on stdin, the process id of each on stdout
"""

import json
import os
import runpy
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

READY = (
    "torch", "torch._dynamo", "torch.nn.attention.flex_attention", "hydra", "rich.progress", "matplotlib.pyplot",
    "datasets", "accelerate", "peft", "transformers", "transformers.trainer", "transformers.pipelines",
    "transformers.models.qwen3.modeling_qwen3", "transformers.models.auto.modeling_auto",
)  # fmt: skip


class Forked:
    """A command that runs, with what the journeys use of `subprocess.Popen`. Its output goes to files."""

    def __init__(self, server: subprocess.Popen, line: str, argv: list[str], cwd: Path, env: dict, log: Path):
        self.args = line
        self._log = log
        request = {"argv": argv, "cwd": str(cwd), "env": env, "log": str(log)}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        self.pid = int(server.stdout.readline())

    @property
    def returncode(self) -> int | None:
        ended = self._log.with_suffix(".code")
        return int(ended.read_text()) if ended.exists() else None

    poll = returncode.fget

    def wait(self, timeout: float = 300) -> int:
        deadline = time.monotonic() + timeout
        while self.returncode is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.01)
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        self.wait(timeout)
        return self._log.with_suffix(".out").read_text(), self._log.with_suffix(".err").read_text()


def start_server(env: dict) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, __file__], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def serve() -> dict | None:
    """The request to run, in the process that was forked for it; None in the server when stdin has ended."""
    running: dict[int, Path] = {}
    while True:
        if select.select([sys.stdin], [], [], 0.01)[0]:
            if not (line := sys.stdin.readline()):
                return None
            request = json.loads(line)
            if (pid := os.fork()) == 0:
                return request
            running[pid] = Path(request["log"])
            print(pid, flush=True)
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                # Whole or not at all: a reader may look at any moment.
                log = running.pop(pid)
                log.with_suffix(".partial").write_text(str(os.waitstatus_to_exitcode(status)))
                log.with_suffix(".partial").rename(log.with_suffix(".code"))


def become(request: dict) -> None:
    """As the shell would have started it."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for number, suffix in ((1, ".out"), (2, ".err")):
        file = os.open(Path(request["log"]).with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[0] = request["cwd"]
    sys.argv[1:] = request["argv"][1:]


if __name__ == "__main__":
    for name in READY:
        __import__(name)
    asked = serve()
    if asked is not None:
        become(asked)
        runpy.run_module(asked["argv"][0], run_name="__main__", alter_sys=True)
