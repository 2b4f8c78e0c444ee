"""Reporting: the files of a run, and wandb that never asks, never hangs and never ends a run."""

import json
import math
import os
import socket
import subprocess
import sys
import time
import types

import pytest

from recipes.configuration.compose import compose
from recipes.run import destinations
from recipes.run.destinations import Reporter

KEY = "a" * 40  # the length that wandb wants
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """No key from the environment or the home folder of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run_python(code, folder, **environment):
    """Run `code` with `folder` in a new process that has no terminal to ask; (stdout, stderr, seconds)."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr, time.monotonic() - start


# Fails when lines are held back until the end: a killed run would leave nothing.
def test_metrics_are_json_lines_and_there_at_once(tmp_path):
    with Reporter(compose(["wandb=off"], tmp_path)) as reporter:
        reporter.log(1, {"loss": 2.5, "tokens": 7})
        assert metrics(tmp_path) == [{"step": 1, "loss": 2.5, "tokens": 7}]
        reporter.log(2, {"loss": math.nan, "best": math.inf})
    assert metrics(tmp_path)[1:] == [{"step": 2, "loss": None, "best": None}]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_resumed_run_logs_each_step_once(tmp_path):
    config = compose(["wandb=off"], tmp_path)
    with Reporter(config) as reporter:
        for step in range(1, 6):
            reporter.log(step, {"run": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "ru')  # killed while it wrote
    with Reporter(config, kept=3) as reporter:
        for step in range(4, 8):
            reporter.log(step, {"run": 2})
    assert [(line["step"], line["run"]) for line in metrics(tmp_path)] == [
        *((step, 1) for step in (1, 2, 3)),
        *((step, 2) for step in (4, 5, 6, 7)),
    ]


def test_tables_are_files_too(tmp_path):
    with Reporter(compose(["wandb=off"], tmp_path)) as reporter:
        reporter.table("chats", ["question", "right"], [["1+1?", True], ["Ä?", False]], step=9)
    rows = [json.loads(line) for line in (tmp_path / "chats.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [
        {"step": 9, "question": "1+1?", "right": True},
        {"step": 9, "question": "Ä?", "right": False},
    ]


def test_wrong_arguments_are_refused_whether_wandb_is_on_or_off(tmp_path):
    with Reporter(compose(["wandb=off"], tmp_path)) as reporter:
        with pytest.raises(ValueError, match="table 'chats': row 1 has 1 values for 2 columns"):
            reporter.table("chats", ["a", "b"], [[1, 2], [3]], step=0)
        with pytest.raises(FileNotFoundError, match="image 'mask': no file"):
            reporter.image("mask", tmp_path / "mask.png", step=0)


# Fails when anything but the use of wandb imports it.
def test_off_never_imports_wandb(tmp_path):
    code = """if True:
        import sys
        from recipes.configuration.compose import compose
        from recipes.run.destinations import Reporter
        with Reporter(compose(["wandb=off"], sys.argv[1])) as reporter:
            reporter.log(1, {"loss": 1.0})
            reporter.table("chats", ["a"], [[1]], step=1)
            reporter.summary({"accuracy": 0.5})
        print([name for name in sys.modules if name.split(".")[0] == "wandb"])
    """
    stdout, stderr, _ = run_python(code, tmp_path)
    assert (stdout.strip(), stderr) == ("[]", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chats.jsonl", "metrics.jsonl"]


REPORT = """if True:
    import os
    import sys
    from pathlib import Path
    from recipes.run import destinations
    from recipes.configuration.compose import compose
    destinations.INIT_TIMEOUT = 1.0
    folder = Path(sys.argv[1])
    with destinations.Reporter(compose([os.environ.get("MORE", "seed=0")], folder)) as reporter:
        reporter.log(3, {"thinking_loss": 0.8125})
        reporter.log(1, {"thinking_loss": 0.4375})  # wandb's own step counter would drop this one
        if (folder / "mask.png").exists():
            reporter.image("mask_picture", folder / "mask.png", step=3)
        reporter.table("sample_chats", ["question"], [["why?"]], step=3)
        reporter.summary({"answer_accuracy": 0.9375})
    print("trained on")
"""


def offline_run(folder):
    """Bytes of the one offline run: protobuf that holds keys and values as plain text."""
    (run,) = folder.glob("wandb/offline-run-*")
    (history,) = run.glob("*.wandb")
    return run, history.read_bytes()


# wandb's offline mode for real. Fails when something is not sent, or the run lies outside the run folder.
def test_auto_without_a_key_is_offline_and_holds_everything(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "mask.png").write_bytes(PNG)
    stdout, stderr, _ = run_python(REPORT, folder, MORE="wandb.chats=true")
    assert stdout == "trained on\n"  # wandb itself keeps silent
    run, history = offline_run(folder)
    for text in (b"thinking_loss", b"0.8125", b"0.4375", b"answer_accuracy", b"0.9375", b"mask_picture"):
        assert text in history, text
    assert list(run.glob("files/media/images/mask_picture*.png"))
    assert list(run.glob("files/media/table/sample_chats*.json"))
    assert "no API key is configured" in stderr and f"wandb sync {run}" in stderr
    assert len(metrics(folder)) == 2


# Conversations are somebody's: they leave the machine when that is asked for, not because a key exists.
def test_text_stays_here_unless_it_is_asked_for(tmp_path):
    run_python(REPORT, tmp_path)
    run, history = offline_run(tmp_path)
    assert b"0.8125" in history
    assert b"why?" not in history and not list(run.glob("files/media/table/*"))
    assert "why?" in (tmp_path / "sample_chats.jsonl").read_text()


# A key, and a server that takes connections but never answers: the worst network. With INIT_TIMEOUT ignored
# wandb 0.31 waits for 90 seconds, and with its error reports on the process ends 14 seconds late.
def test_a_key_without_an_answer_goes_offline_in_bounded_time(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        stdout, stderr, seconds = run_python(REPORT, tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=url)
    assert stdout == "trained on\n"
    assert "wandb: offline (CommError: Timed out" in stderr
    assert b"0.8125" in offline_run(tmp_path)[1]
    assert seconds < 60


def test_a_malformed_key_goes_offline(tmp_path):
    stdout, stderr, _ = run_python(REPORT, tmp_path, WANDB_API_KEY="short")
    assert stdout == "trained on\n"
    assert "offline (AuthenticationError: WANDB_API_KEY invalid" in stderr
    assert b"0.8125" in offline_run(tmp_path)[1]


class FakeWandb(types.ModuleType):
    """Stands in for the module where only the choice of mode matters: records the modes of `init`."""

    errors = types.SimpleNamespace(Error=KeyError)
    Settings = staticmethod(dict)

    def __init__(self, has_key):
        super().__init__("wandb")
        self.has_key, self.modes = has_key, []

    def setup(self, settings):
        assert settings["silent"]

    def login(self, prompt, verify):
        assert not prompt and not verify  # neither asks nor needs the network
        return self.has_key

    def init(self, mode, settings, **_):
        assert settings["init_timeout"] and settings["finish_timeout"]  # 0 would wait for ever
        self.modes.append(mode)
        nothing = types.SimpleNamespace(url="", settings=types.SimpleNamespace(sync_dir=""))
        nothing.define_metric = nothing.log = nothing.finish = lambda *_, **__: None
        return nothing


@pytest.mark.parametrize(
    ("mode", "has_key", "variable", "modes"),
    [
        ("auto", True, None, ["online"]),
        ("auto", False, None, ["offline"]),
        ("auto", True, "offline", ["offline"]),
        ("auto", True, "disabled", []),
        ("online", True, "disabled", ["online"]),  # what the configuration says outright wins
        ("online", False, None, ["offline"]),
        ("offline", True, None, ["offline"]),
        ("off", True, "online", []),
    ],
)
def test_the_mode_that_is_chosen(mode, has_key, variable, modes, tmp_path, monkeypatch):
    wandb = FakeWandb(has_key)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    with Reporter(compose([f"wandb={mode}"], tmp_path)) as reporter:
        reporter.log(1, {"loss": 1.0})
    assert wandb.modes == modes


class BrokenRun:
    """A wandb run whose service has died."""

    def log(self, *_):
        raise BrokenPipeError("service is gone")

    finish = log


# Fails when an error of wandb's reaches the training loop, or is told at every step.
def test_a_failure_of_wandb_is_told_once_and_training_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(destinations, "_start_wandb", lambda *_: BrokenRun())
    with Reporter(compose([], tmp_path)) as reporter:
        for step in range(3):
            reporter.log(step, {"loss": 1.0})
    assert len(metrics(tmp_path)) == 3
    told = capsys.readouterr().err
    assert told.count("wandb: ") == 1 and "stopped after BrokenPipeError: service is gone" in told


def test_an_error_of_the_run_is_passed_on_and_marks_the_run_failed(tmp_path, monkeypatch):
    codes = []

    class Run:
        def finish(self, exit_code):
            codes.append(exit_code)

    monkeypatch.setattr(destinations, "_start_wandb", lambda *_: Run())
    with pytest.raises(KeyboardInterrupt), Reporter(compose([], tmp_path)):
        raise KeyboardInterrupt
    with Reporter(compose([], tmp_path)) as reporter:
        pass
    reporter.close()
    assert codes == [1, 0]
