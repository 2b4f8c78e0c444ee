"""A Python in which the libraries are imported already: most of a short run is importing them.

The server imports other people's packages and forks for each command; the project's own modules are imported anew in
every process. `bin/python` of a folder made by `install` is this file as a launcher: it hands `-m recipes.<command>`,
`-m ranks.<module>` and `-m faults.<module>` with its files to the server, passes signals on and ends as the command
does. Without FLEXMASK_SERVER, and for anything else, it becomes the real Python.
"""

import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

SERVER = "FLEXMASK_SERVER"  # the path of its socket
READY = (
    "torch", "torch._dynamo", "torch.nn.attention.flex_attention", "hydra", "rich.progress", "matplotlib.pyplot",
    "datasets", "accelerate", "peft", "transformers", "transformers.trainer", "transformers.pipelines",
    "transformers.models.qwen3.modeling_qwen3", "transformers.models.auto.modeling_auto",
)  # fmt: skip
MOST = 1 << 20  # bytes of a request


def install(folder: Path, real: Path) -> None:
    """Make `folder` a virtual environment that is `real` but for its Python."""
    (folder / "bin").mkdir(parents=True)
    for path in (real / "bin").iterdir():
        if not path.name.startswith("python"):
            (folder / "bin" / path.name).symlink_to(path)
    write_launcher(folder / "bin/python", real)
    # make finds it up to date.
    (folder / "constraints-used").write_text((real / "constraints-used").read_text())


def write_launcher(path: Path, real: Path) -> None:
    python = str(real / "bin/python")
    path.write_text(f"#!{python} -SE\nREAL = {python!r}\n{Path(__file__).read_text()}")
    path.chmod(0o755)


def launch(real: str) -> int:
    module = sys.argv[2] if sys.argv[1:2] == ["-m"] else ""
    if SERVER not in os.environ or not module.startswith(("recipes.", "ranks.", "faults.")):
        os.execv(real, [real, *sys.argv[1:]])
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[SERVER])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: connection.send(bytes([number])))
    request = {"argv": sys.argv[2:], "cwd": os.getcwd(), "env": dict(os.environ)}
    socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
    return int(connection.recv(16) or b"70")  # nothing: the server has gone


def clean_environment() -> dict[str, str]:
    """One thread, no hub, no account, nothing of the make that runs the tests."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MAKE", "MFLAGS", "ARGS"))
    }
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(path: Path, env: dict[str, str]) -> subprocess.Popen:
    """The server, which ends when its stdin does."""
    server = subprocess.Popen(
        [sys.executable, __file__, str(path)], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    server.stdout.readline()
    return server


class Python:
    """Runs modules as `python -m` does, with the repository and tests/ on their path, one thread and no hub."""

    def __init__(self, folder: Path, server: Path):
        self._launcher = folder / "python"
        write_launcher(self._launcher, Path(sys.prefix))
        tests = Path(__file__).parent
        paths = {"PYTHONPATH": os.pathsep.join(map(str, (tests.parent, tests, tests / "flexmask")))}
        self._environment = clean_environment() | paths | {SERVER: str(server)}

    def start(self, *words: str, cwd: Path, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [self._launcher, "-m", *words], cwd=cwd, env=self._environment | environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
        process = self.start(*words, cwd=cwd, **environment)
        try:
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def run_on_ranks(self, count: int, module: str, *words: str, cwd: Path) -> None:
        """A module in processes that are one group of torch.distributed, as torchrun starts them."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
        numbers = map(str, range(count))
        ranks = [self.start(module, *words, cwd=cwd, **group, RANK=rank, LOCAL_RANK=rank) for rank in numbers]
        try:
            for process in ranks:
                _, err = process.communicate(timeout=240)
                assert process.returncode == 0, err
        finally:
            for process in ranks:
                process.kill()


def serve(listening: socket.socket) -> tuple[dict, list[int]] | None:
    """The request to run and its files, in the process that was forked for it; None in the server at its end."""
    running: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([sys.stdin, listening, *running.values()], [], [], 0.02)
        if sys.stdin in ready:
            return None
        if listening in ready:
            connection, _ = listening.accept()
            text, files, _, _ = socket.recv_fds(connection, MOST, 3)
            if not text:  # whoever connected was killed before it asked
                connection.close()
                continue
            if (pid := os.fork()) == 0:
                return json.loads(text), files
            running[pid] = connection
            for file in files:
                os.close(file)
        for pid, connection in list(running.items()):
            if connection in ready:  # a signal for it; nothing: whoever started it was killed
                number = connection.recv(1)
                stop(pid, number[0] if number else signal.SIGKILL)
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                try:
                    connection.send(str(code if code >= 0 else 128 - code).encode())
                except BrokenPipeError:
                    pass  # whoever started it was killed
                running.pop(pid).close()


def stop(pid: int, number: int) -> None:
    """Send a signal to a command and its group, or to it alone while it has not made one yet."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        os.kill(pid, number)


def become(request: dict, files: list[int]) -> None:
    """As the shell would have started it, in a group of its own."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.path[:1] = [request["cwd"], *filter(None, request["env"].get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv[1:] = request["argv"][1:]


if __name__ == "__main__":
    if "REAL" in globals():
        sys.exit(launch(REAL))  # noqa: F821
    for name in READY:
        __import__(name)
    with socket.socket(socket.AF_UNIX) as at:
        at.bind(sys.argv[1])
        at.listen()
        gc.freeze()
        print("ready", flush=True)
        asked = serve(at)
    if asked is not None:
        become(*asked)
        runpy.run_module(asked[0]["argv"][0], run_name="__main__", alter_sys=True)
