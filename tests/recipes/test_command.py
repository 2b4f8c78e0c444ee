"""Errors, interruptions and progress as a user sees them."""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from torch._utils import ExceptionWrapper

from flexmask import NonFiniteLossError
from recipes.configuration.compose import compose
from recipes.configuration.overrides import override
from recipes.run.failures import told_how_to_go_on
from recipes.run.interrupts import StopAfterStep
from recipes.terminal import command as command_module
from recipes.terminal import progress as progress_module
from recipes.terminal.command import Interrupted, command, typed
from recipes.terminal.progress import duration, progress

ROOT = Path(__file__).parents[2]


def ending(error):
    """(exit code or message, the rest) of a command that raises."""

    @command
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("write all: turns=all"), "write all: duplication.turns=all"),
        (ValueError("see data.template_kwargs={a:1}"), "see data.template_kwargs={a:1}"),
        (ValueError("pack_length=8 is short"), "duplication.pack_length=8 is short"),
        (ValueError('or set too_long="drop" to'), "or set duplication.too_long=drop to"),
        (ValueError('write layout="per_turn", or'), "write duplication.layout=per_turn, or"),
        (PermissionError(13, "Permission denied", "/runs/x"), "/runs/x: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed. "), "lower trainer.loader_workers (Data"),
        (RuntimeError("DataLoader worker (pid(s) 5) exited unexpectedly"), "lower trainer.loader_workers (Data"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "lower it. model.gradient_checkpointing=true"),
    ],
)
def test_what_a_user_can_cause_is_one_message(error, message, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    assert message in ending(error) and ending(error).startswith("error: ")
    assert "data.data." not in ending(error)


# Broken by the words of Hydra alone, which say what it could not do and not why.
@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("trainer.steps=abc", "'abc' of type 'str' could not be converted to Integer"),
        ("data.filter=equations", "str is not a ListConfig, list or tuple"),
        ("data.filter=[", "no viable alternative at input '['"),
        ("data.flaws={missing:lots}", "'lots' of type 'str' could not be converted to Float"),
    ],
)
def test_a_value_of_a_wrong_type_is_one_message_with_the_reason(word, why, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(HydraException) as caught:
        compose([word])
    assert word in ending(caught.value) and why in ending(caught.value).splitlines()[0]


# Breaks if an error of a process that prepares packs is shown with its traceback.
def test_an_error_of_another_process_is_one_message(monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    for error in (OSError("/cache: it is gone\nstart again"), ValueError("/cache: it is gone\nstart again")):
        try:
            try:
                raise KeyError("what came before")
            except KeyError as before:
                raise error from before
        except Exception:
            wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
        with pytest.raises(type(error)) as raised:
            wrapped.reraise()
        assert ending(raised.value).startswith("error: /cache: it is gone\nstart again\n("), ending(raised.value)


# Breaks if a command that an error advises is taken apart by the shell, by make or by Hydra.
@pytest.mark.parametrize(
    "name", ["runs/a", "my runs/a", "a=1,b=2", "12", "null", "ü", "it's", 'the "best"', "a$b", "x\\y"]
)
@pytest.mark.parametrize("from_wheel", [False, True], ids=["make", "wheel"])
def test_a_command_that_is_advised_reaches_the_program_as_it_is_meant(tmp_path, monkeypatch, name, from_wheel):
    monkeypatch.setattr(command_module, "FROM_WHEEL", from_wheel)
    said = tmp_path / "said"
    program = f"#!{sys.executable}\nimport sys\nopen({str(said)!r}, 'w').write('\\n'.join(sys.argv[1:]))\n"
    for place in ("flexmask", "program"):
        (tmp_path / place).write_text(program)
        (tmp_path / place).chmod(0o755)
    (tmp_path / "Makefile").write_text("train replay:\n\t@./program $@ $(ARGS)\n")
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def told(line):
        subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, check=True)
        return said.read_text().split("\n")

    assert told(typed("replay", Path(name)))[-1] == name
    *_, word = told(typed("train", override("resume", name)))
    (read,) = OverridesParser.create().parse_overrides([word])
    assert read.key_or_group == "resume" and read.value() == name and not read.is_sweep_override()


# Breaks if a run whose packs could not be kept tells to replay them.
def test_packs_are_replayed_where_they_are(tmp_path):
    for file, advised in ((tmp_path / "step-1.pt", True), (None, False)):
        with pytest.raises(NonFiniteLossError, match="step 1") as error, told_how_to_go_on(tmp_path):
            raise NonFiniteLossError("step 1: the loss is nan", file)
        assert ("make replay" in str(error.value)) is advised


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch):
    @command
    def main():
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        main()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    @command
    def shown():
        raise ValueError("in full")

    with pytest.raises(ValueError, match="in full"):
        shown()


def test_interruptions_have_their_exit_codes(capsys):
    assert ending(KeyboardInterrupt()) == 130
    assert ending(Interrupted(signal.SIGTERM, "go on with resume=x")) == 143
    assert "go on with resume=x" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def as_before():
    formats = warnings.formatwarning
    yield
    warnings.formatwarning = formats


class Control:
    should_save = should_training_stop = False


# Breaks if a signal ends a step in its middle, or one outside of training waits for a step that never comes.
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_behind_the_step(number, capsys):
    before = signal.getsignal(number)
    with StopAfterStep("Go on with X") as stop:
        stop.on_train_begin(None, None, Control)
        control = Control()
        stop.on_step_end(None, None, control)
        assert not control.should_save
        os.kill(os.getpid(), number)
        assert stop.received == number and "a second signal stops at once" in capsys.readouterr().err
        stop.on_step_end(None, None, control)
        assert control.should_save and control.should_training_stop
        stop.on_train_end(None, None, control)
        stop.received = None
        with pytest.raises(Interrupted, match=f"stopped by {number.name}. Go on with X"):
            os.kill(os.getpid(), number)
            signal.sigtimedwait([], 0)  # the handler runs between two instructions
    assert signal.getsignal(number) is before


def test_progress_in_a_log_file_is_a_line_now_and_then(capsys, monkeypatch):
    clock = iter([0, 5, 25, 30, 50])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    with progress(1000, "rendering") as advance:
        for _ in range(4):
            advance(100, note="fast")
    assert capsys.readouterr().err.splitlines() == [
        "rendering: 200 of 1,000, 2 min left, fast",
        "rendering: 400 of 1,000, 75 s left, fast",
    ]
    with progress(0, "nothing") as advance:
        advance()
    assert capsys.readouterr().err == ""


def test_durations():
    assert [duration(s) for s in (4.4, 89, 95, 3600, 4 * 3600 + 300)] == [
        "4 s",
        "89 s",
        "2 min",
        "60 min",
        "4 h 05 min",
    ]


# What is imported first interrupts its own process, as Ctrl-C in the first tenths of a second would.
def test_an_interruption_while_modules_are_imported_shows_no_traceback(tmp_path):
    (tmp_path / "hydra.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT)))}
    command = [sys.executable, "-m", "recipes.train"]
    # A shell's job in the background starts with the signal ignored, and so would all that it starts.
    heeding = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    done = subprocess.run(command, cwd=tmp_path, env=paths, capture_output=True, text=True, timeout=60, **heeding)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
