"""report.html of what went wrong, of what is old and of what is in no order: files as no run of today leaves them."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from recipes.compare import by_name, read_runs
from recipes.configuration.compose import compose
from recipes.pages import at_the_end, report, sweep
from recipes.run.interrupts import StopAfterStep
from recipes.run.record import read_run
from recipes.run.said import Said
from recipes.terminal.command import Interrupted
from recipes.train import train

from .test_report import SMALL, json_of, lines_of, plots_of, text_of


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "run"
    train(compose([*SMALL, "trainer.steps=3"], folder))
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """Of a finished run, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "run", ignore=shutil.ignore_patterns("model")))


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


# Breaks if a figure that is not finite, which is null in metrics.jsonl and NaN in that of others, ends the page.
@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_figures_that_are_not_finite_are_gaps(folder, value):
    metrics = lines_of(folder / "metrics.jsonl")
    known = read_run(folder).curve("loss")
    write_lines(folder / "metrics.jsonl", [line | dict.fromkeys(set(line) - {"step"}, value) for line in metrics[:1]])
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in metrics[1:])
    report.write_report(folder)
    (values,) = (one["values"] for one in plots_of(folder)["Loss"]["curves"] if one["name"] == "all")
    assert values[0] is None and values[1:] == [pytest.approx(value, rel=1e-6) for _, value in known[1:]]


# Breaks if the first line of a step counts, or both: a run that goes on logs again what followed its checkpoint.
def test_a_step_that_was_logged_twice_is_one_point(folder):
    before = read_run(folder).curve("loss")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, "loss": 99.0}) + "\n")
    assert read_run(folder).curve("loss") == [before[0], (2, 99.0), *before[2:]]


# Breaks if the page needs what was written down later than the run.
def test_the_files_of_an_older_run(folder):
    result = json_of(folder / "result.json")
    del result["planned_steps"]
    (folder / "result.json").write_text(json.dumps(result))
    chats = lines_of(folder / "chats.jsonl")
    write_lines(
        folder / "chats.jsonl", [{k: v for k, v in one.items() if k not in ("unasked", "asked")} for one in chats]
    )
    (folder / "run.json").unlink()
    (folder / "data.json").write_text("{}")
    report.write_report(folder)
    text = text_of(folder)
    assert (
        "Finished: 3 steps" in text and f"All {json_of(folder / 'result.json')['chatted_conversations']} chats" in text
    )


def test_a_file_that_is_no_text_is_named(folder):
    (folder / "run.json").write_bytes(b'{"lines": ["\xff"]}')
    with pytest.raises(ValueError, match=r"run\.json: is no JSON"):
        report.write_report(folder)


# Breaks if the last line is read before it is left out: a kill may cut a letter in two.
def test_a_letter_that_was_cut_in_two(folder):
    with (folder / "chats.jsonl").open("ab") as file:
        file.write('{"conversation": "é'.encode()[:-1])
    report.write_report(folder)


def test_a_folder_that_was_moved_goes_on_where_it_is(folder):
    (folder / "result.json").unlink()
    report.write_report(folder)
    assert f"resume={folder}" in text_of(folder)


# Breaks if the length of a text is reckoned from its mean sign: '<' takes four bytes, and the first are not the mean.
@pytest.mark.parametrize("text", ["<" * 900 + "a" * 100_000, "a" * 900 + "<" * 100_000, "\ud800" * 5_000, "'" * 1_001])
def test_what_is_cut_is_as_long_as_it_may_be(text):
    from markupsafe import escape

    kept, _, rest = report.cut(text, 1_000, "there").partition(" … ")
    size = len(escape(kept).encode("utf-8", "backslashreplace"))
    assert 1_000 - 6 <= size <= 1_000 and text.startswith(kept)
    assert rest == f"({len(text) - len(kept):,} more characters in there)"
    assert report.cut("a" * 1_000, 1_000, "there") == "a" * 1_000


def test_a_long_reason_is_cut(folder):
    (folder / "result.json").unlink()
    (folder / "run.json").write_text(json.dumps({"stopped": "<" * 1_000_000}))
    assert report.write_report(folder).stat().st_size < report.LIMIT
    assert "more characters in run.json" in text_of(folder)


# Breaks if a signal while the page is written says to go on with a run that has finished, or hides why it failed.
@pytest.mark.parametrize("fails", [False, True])
def test_a_signal_while_the_page_is_written(fails, tmp_path, monkeypatch):
    def slow(_):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal was not heard")

    monkeypatch.setattr(at_the_end, "write_report", slow)
    with (
        pytest.raises(Interrupted) as stopped,
        StopAfterStep("Go on with: make train"),
        at_the_end.reported(tmp_path, Said()),
    ):
        if fails:
            raise ValueError("its own reason")
    assert stopped.value.signal == signal.SIGTERM
    assert ("its own reason" if fails else "the run has finished") in str(stopped.value)
    assert "make report" in str(stopped.value) and "Go on with" not in str(stopped.value)


# Breaks if runs are told apart by names that are alike: of two learning rates alike in four digits one was drawn.
def test_runs_of_a_sweep_that_are_called_alike_are_all_there(folder, tmp_path):
    swept = tmp_path / "sweep"
    for name, rate in (("0", "0.00100001"), ("1", "0.00100002")):
        shutil.copytree(folder, swept / name, ignore=shutil.ignore_patterns("checkpoints"))
        saved = (swept / name / "config.yaml").read_text()
        (swept / name / "config.yaml").write_text(saved.replace("learning_rate: 0.004", f"learning_rate: {rate}"))
    assert [len(runs) for runs in by_name(read_runs(swept)).values()] == [2]
    sweep.write_sweep(swept)
    assert [one["name"] for one in plots_of(swept)["Loss: all"]["curves"]] == ["0.001, seed 0, 0", "0.001, seed 0, 1"]


def test_a_sweep_of_one_run_differs_in_nothing(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "sweep/0", ignore=shutil.ignore_patterns("checkpoints"))
    sweep.write_sweep(tmp_path / "sweep")
    assert "differ in" not in text_of(tmp_path / "sweep")


# Breaks if what is measured on held-out data is told whether there is any or not.
def test_what_is_not_measured_is_not_told(folder):
    assert "Held-out losses are measured" in text_of(folder)
    data = json_of(folder / "data.json")
    (folder / "data.json").write_text(json.dumps(data | {"heldout_conversations": 0}))
    report.write_report(folder)
    text = text_of(folder)
    assert "No conversation is held out, so there are no held-out losses and no chats" in text
    assert "Held-out losses are measured" not in text and "the model chats" not in text


# Breaks if what could not be written whole is left, on a disk that has no room.
def test_nothing_is_left_of_a_page_that_could_not_be_written(folder, monkeypatch):
    kept = (folder / "report.html").read_bytes()

    def full(path, text, **_):
        with path.open("w") as file:
            file.write(text[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left on device"):
        report.write_report(folder)
    assert (folder / "report.html").read_bytes() == kept and not list(folder.glob("*.partial"))
