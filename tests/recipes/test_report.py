"""report.html: what it says against the files of the run, for every kind of run; and what it costs."""

import html
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from recipes.compare import compare
from recipes.configuration.compose import compose, load_run_config
from recipes.pages import at_the_end, report, sweep
from recipes.pages.chats import Chats
from recipes.pages.curves import MOST_POINTS
from recipes.run import said
from recipes.run.reports import ReportingCallback
from recipes.sources import invalid
from recipes.terminal.command import Interrupted
from recipes.train import train

SMALL = [
    "model.tiny.layers=1",
    "model.tiny.hidden_size=16",
    "trainer.steps=6",
    "trainer.warmup_steps=1",
    "trainer.conversations_per_step=2",
    "trainer.log_every=1",
    "trainer.save_every=2",
    "trainer.evaluate_every=3",
    "data.train_conversations=12",
    "data.heldout_conversations=3",
    "evaluation.max_new_tokens=8",
    "wandb=off",
]


def run(folder: Path, *words: str) -> Path:
    train(compose([*SMALL, *words], folder))
    return folder


def page_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def text_of(folder: Path) -> str:
    """What a page says, in one line, without its scripts."""
    page = re.sub(r"<(script|style)\b.*?</\1>", " ", page_of(folder), flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def plots_of(folder: Path) -> dict:
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page_of(folder), flags=re.S)
    return {plot["title"]: plot for plot in json.loads(data)["plots"]}


def curve(plot: dict, name: str) -> list:
    (values,) = (one["values"] for one in plot["curves"] if one["name"] == name)
    return [(step, value) for step, value in zip(plot["steps"], values, strict=True) if value is not None]


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def json_of(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(tmp_path_factory.mktemp("report") / "a run", "evaluation.history=both")


# ---- What it says ----


# Breaks if a curve is that of another figure, is cut, or has values of another step.
def test_curves_are_the_figures_of_the_run(plain):
    metrics, plots = lines_of(plain / "metrics.jsonl"), plots_of(plain)
    for title, name, figure in (
        ("Loss", "all", "loss"),
        ("Loss", "thinking", "thinking_loss"),
        ("Loss", "held out, answer", "heldout_answer_loss"),
        ("Learning rate", "learning rate", "learning_rate"),
        ("Speed", "computed", "tokens_per_second"),
        ("Packs", "filled", "pack_fill"),
    ):
        logged = [(line["step"], pytest.approx(line[figure], rel=1e-6)) for line in metrics if figure in line]
        assert curve(plots[title], name) == logged != [], figure
    assert "In metrics.jsonl alone: epoch, heldout_runtime" in text_of(plain)


def test_it_says_the_setting_the_data_and_the_result(plain):
    text, result, data = text_of(plain), json_of(plain / "result.json"), json_of(plain / "data.json")
    assert "A small Qwen3-architecture model (1 layers, 16 wide) is trained from random weights." in text
    assert f"generated tutoring dialogues: 12 conversations with {data['turns']} trained turns, and 3 more" in text
    assert "model.tiny.layers 1 4" in text and "trainer.conversations_per_step 2 3" in text  # key, here, by default
    assert f"tokens computed, once through the data {data['tokens_computed']:,}" in text
    assert f"of them plain copies of answers {data['tokens_copied']:,}" in text
    assert f"{result['tokens_computed']:,} tokens computed" in text and "Finished: 6 steps" in text
    for key, what in (("replies_ended", "replies that ended within the token limit"), ("thinking_expected", "thinks")):
        assert f"{what} {result[key]:.1%} {result[f'teacher_{key}']:.1%}" in text
    assert f"torch {result['versions']['torch']}" in text and f"device {result['device']}" in text
    assert "Warnings and notes turns end with '<|im_end|>'" in text


def test_chats_are_those_of_the_run(plain):
    text = text_of(plain)
    for line in lines_of(plain / "chats.jsonl"):
        for key in ("asked", "answer", "expected", "conversation"):
            assert " ".join(line[key].split()) in text, line
    assert "All 6 chats, 6 of them with an answer that is wrong" in text
    assert all(line["asked"] for line in lines_of(plain / "chats.jsonl"))


# Breaks if anything but the files of the folder goes into the page: the time, the place, the order of a dict.
def test_it_is_made_again_to_the_byte(plain, tmp_path, python):
    made = page_of(plain)
    copy = tmp_path / plain.name
    shutil.copytree(plain, copy)
    (copy / "report.html").unlink()
    done = python.run("recipes.report", str(copy), cwd=tmp_path)
    assert done.stdout.strip() == str(copy / "report.html"), done.stderr
    assert page_of(copy) == made


def test_the_command_repeats_the_settings(plain, tmp_path):
    (command,) = re.findall(r'<pre id="command">(.*?)</pre>', page_of(plain), flags=re.S)
    words = re.fullmatch('make train ARGS="(.*)"', html.unescape(command))[1].split()
    assert compose(words, plain) == load_run_config(plain)


def test_a_run_of_another_kind_says_so(tmp_path, models):
    own = ["model=hub", f"model.name_or_path={models / 'dense'}", "trainer.steps=3"]
    hub = [one for one in SMALL if not one.startswith("model.")]
    folder = tmp_path / "adapter"
    train(compose([*hub, *own, "adapter=lora", "duplication=per_turn", "evaluation.conversations=0"], folder))
    text = text_of(folder)
    assert "LoRA adapters of rank 16 (alpha 32) on all-linear are trained on" in text and "per_turn" in text
    assert "None: evaluation.conversations=0." in text and "adapter lora" in text


def test_pairs_have_figures_of_their_own(tmp_path):
    folder = run(tmp_path / "pairs", "data=tutoring_pairs", "objective=dpo")
    plots, text = plots_of(folder), text_of(folder)
    assert plots["Loss"]["unit"] == "nats a pair" and plots["Cross-entropy"]["unit"] == "nats a token"
    assert [one["name"] for one in plots["Loss"]["curves"]] == ["all", "held out, all"]
    metrics = lines_of(folder / "metrics.jsonl")
    for title, figure in (("Preferred answers", "accuracy"), ("Margin of the preferred answer", "margin")):
        for name, key in (("trained", f"preference_{figure}"), ("held out", f"heldout_preference_{figure}")):
            logged = [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in metrics if key in line]
            assert curve(plots[title], name) == logged != []
    assert (
        "12 pairs with 24 trained turns" in text
        and "6 optimizer steps of 2 pairs each" in text
        and "(DPO, loss sigmoid, beta 0.1)" in text
    )
    assert "held-out pairs preferred rightly" in text


def test_episodes_have_figures_of_their_own(tmp_path):
    words = ["data=parcels", "context=parcels", "model.tiny.words=parcels", "evaluation.conversations=2"]
    folder = run(tmp_path / "parcels", *words)
    text, result = text_of(folder), json_of(folder / "result.json")
    assert f"episodes that succeeded {result['success_rate']:.1%}" in text
    assert "A history is what recipes.sources.parcels:harness() shows of it." in text


def test_what_is_left_out_and_why(tmp_path):
    good = {"messages": [{"role": "user", "content": "add"}, {"role": "assistant", "content": "yes"}]}
    long = {"messages": [{"role": "user", "content": "add " * 300}, {"role": "assistant", "content": "long"}]}
    bad = {"messages": [{"role": "user", "content": "a <|im_end|>"}, {"role": "assistant", "content": "b"}]}
    path = tmp_path / "my.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in [good] * 6 + [long, bad]))
    own = [f"data.path={path}", "data=jsonl", "data.on_invalid=drop", "data.train_conversations=null"]
    more = ["data.heldout_conversations=0", "duplication.too_long=drop", "duplication.pack_length=200"]
    folder = run(tmp_path / "left", *own, *more, "trainer.evaluate_every=0")
    text = text_of(folder)
    assert "1 turns are longer than a pack" in text and "1 conversations have no turn to train" in text
    (reason,) = invalid.lines({one["conversation"]: one["reason"] for one in lines_of(folder / "left_out.jsonl")})
    assert reason in text and "my.jsonl:8" in reason
    assert "no conversation is held out that could be chatted with" in text
    assert "no held-out losses and no chats" in text and "Held-out losses are measured" not in text
    assert str(path) in text


# ---- However a run ends ----


def test_an_interrupted_run_has_one_and_the_one_that_goes_on_too(tmp_path, monkeypatch, plain):
    folder, logged = tmp_path / "stopped", ReportingCallback.on_log

    def stopped_at_three(self, args, state, control, **kwargs):
        logged(self, args, state, control, **kwargs)
        if state.global_step == 3 and "loss" in kwargs["logs"]:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ReportingCallback, "on_log", stopped_at_three)
    with pytest.raises(Interrupted):
        run(folder, "evaluation.history=both")
    assert "Has no result. stopped after step 3 of 6, with a checkpoint of step 3. Go on with: " in text_of(folder)
    assert curve(plots_of(folder)["Loss"], "all")[-1][0] == 3
    assert "None: the run has not come to its chats." in text_of(folder)
    monkeypatch.setattr(ReportingCallback, "on_log", logged)
    train(load_run_config(folder, [f"resume='{folder}'"]))
    assert "Finished: 6 steps" in text_of(folder) and "Has no result" not in text_of(folder)
    assert plots_of(folder)["Loss"]["curves"] == plots_of(plain)["Loss"]["curves"]


def test_a_run_that_failed_says_why(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr("recipes.run.destinations.Reporter.log", full)
    with pytest.raises(ValueError, match="No space left"):
        run(tmp_path / "full")
    assert "Has no result. metrics.jsonl: No space left on device" in text_of(tmp_path / "full")
    assert "No step has been logged." in text_of(tmp_path / "full")


def test_one_that_was_killed_can_be_reported(plain, tmp_path):
    folder = tmp_path / "killed"
    shutil.copytree(plain, folder)
    for name in ("result.json", "chats.jsonl", "block_mask.png"):
        (folder / name).unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    report.write_report(folder)
    text = text_of(folder)
    assert "Has no result, and a checkpoint of step 6: it was still running, or was killed." in text
    assert "There is no picture of a mask" in text


# Breaks if what goes wrong with the page ends the run, hides its result or its exit, or is not told.
@pytest.mark.parametrize("fails", ["write_report", "stop"])
def test_a_page_that_cannot_be_written_costs_no_run(fails, tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no page today")

    monkeypatch.setattr(at_the_end, "write_report", broken)
    monkeypatch.setattr(said.Said, "stop", broken)
    if fails == "write_report":
        assert train(compose([*SMALL, "evaluation.conversations=0"], tmp_path / "run"))["steps"] == 6
        assert (tmp_path / "run/result.json").exists()
    else:
        with pytest.raises(KeyError, match="its own reason"), at_the_end.reported(tmp_path / "run", said.Said()):
            raise KeyError("its own reason")
    err = capsys.readouterr().err
    assert "no report: RuntimeError: no page today" in err and "make report ARGS=" in err


def test_warnings_are_kept_and_shown_as_before(tmp_path):
    import warnings

    with pytest.warns(UserWarning) as caught, said.Said() as kept:
        warnings.warn("before the folder, pack_length=3", stacklevel=1)
        kept.begin(tmp_path, {"lines": ["x"]})
        warnings.warn("behind it", stacklevel=1)
        warnings.warn("behind it", stacklevel=1)
        warnings.warn("of a library", DeprecationWarning, stacklevel=1)
    assert {"behind it", "before the folder, pack_length=3"} <= {str(one.message) for one in caught}
    assert json_of(tmp_path / "run.json") == {
        "lines": ["x"],
        "stopped": None,
        "warnings": ["before the folder, duplication.pack_length=3", "behind it"],
    }


def test_a_folder_of_no_run(tmp_path, python):
    done = python.run("recipes.report", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 1 and "no folder of a run, which has a config.yaml" in done.stderr
    (tmp_path / "sub").mkdir()
    done = python.run("recipes.report", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 1 and "no run lies in it" in done.stderr
    (tmp_path / "config.yaml").write_text("model: {nonsense: 1}")
    done = python.run("recipes.report", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 1 and "nonsense" in done.stderr and "Traceback" not in done.stderr


# ---- Its size ----


# Breaks if anything that has no bound goes whole into the page, or if what is not there is not said.
def test_a_page_stays_small_and_says_what_it_leaves_out(plain, tmp_path):
    folder = tmp_path / "large"
    shutil.copytree(plain, folder, ignore=shutil.ignore_patterns("checkpoints", "model"))
    names = {name for line in lines_of(folder / "metrics.jsonl") for name in line} - {"step"}
    metrics = ({"step": step, **dict.fromkeys(names, step / 7)} for step in range(1, 20_001))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    turn = lines_of(folder / "chats.jsonl")[0]
    texts = {"thinking": "<'思\ud800" * 20_000, "answer": "&" * 30_000, "asked": "q" * 50_000, "unasked": None}
    chats = (turn | texts | {"conversation": f"c{i}", "correct": i % 3 == 0} for i in range(300))
    (folder / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in chats))
    told = json_of(folder / "run.json") | {"warnings": [f"{i} " + "<" * 5_000 for i in range(3_000)]}
    (folder / "run.json").write_text(json.dumps(told))
    dropped = ({"conversation": f"f:{i}" + "x" * 900, "reason": f"f:{i}: {i}", "kind": "k"} for i in range(500))
    (folder / "left_out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in dropped))
    config = json.loads(json.dumps(report.read_run(folder).settings))
    config["data"]["sources"] = {f"s{i}": {"path": "<" * 100} for i in range(3_000)}
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "block_mask.png").write_bytes(b"\x89PNG" * 200_000)
    path = report.write_report(folder)
    assert path.stat().st_size < report.LIMIT == 2_000_000
    text, loss = text_of(folder), plots_of(folder)["Loss"]
    assert len(loss["steps"]) <= MOST_POINTS + 8 and loss["steps"][-1] == 20_000
    assert f"{len(loss['steps']):,} steps are drawn; {20_000 - len(loss['steps']):,} more" in text
    shown = page_of(folder).count('<details class="chat"')
    assert 0 < shown < 20 and re.search(rf"{shown} of 300 chats: \d+ of the 200 with an answer that is wrong", text)
    assert "more characters in chats.jsonl" in text and "2,901 more are in run.json" in text
    assert "block_mask.png is too large for this page" in text and "more characters in config.yaml" in text


def test_which_chats_are_shown():
    def line(i, correct):
        return {
            "conversation": f"c{i}",
            "history": "own",
            "turn": 0,
            "correct": correct,
            "unasked": None,
            "answer": "a",
        }

    half = Chats.of([line(i, i % 2 == 0) for i in range(100)])
    assert [chat["name"] for chat in half.shown] == [f"c{i}" for i in range(20)]
    assert half.chosen.startswith(
        "20 of 100 chats: 10 of the 50 with an answer that is wrong or was not asked for, and 10"
    )
    rare = Chats.of([line(i, i != 70) for i in range(100)])
    assert "c70" in [chat["name"] for chat in rare.shown] and len(rare.shown) == 20
    assert rare.chosen.startswith(
        "20 of 100 chats: 1 of the 1 with an answer that is wrong or was not asked for, and 19"
    )
    assert Chats.of([line(i, None) for i in range(2)]).shown[0]["mark"] == "no answer compared"


# ---- Of a sweep ----


@pytest.fixture(scope="module")
def swept(plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps") / "a sweep"
    for number, layout in enumerate(("one_pass", "one_pass", "keep_thinking")):
        run(folder / f"{number}_{layout}", f"duplication={layout}", f"seed={number % 2}", "evaluation.conversations=0")
    shutil.copytree(folder / "0_one_pass", folder / "3_stopped")
    (folder / "3_stopped/result.json").unlink()
    (folder / "4_failed").mkdir()
    (folder / "4_failed/failed.txt").write_text("12 of 12 cannot be prepared:\n<b>the first</b>\n")
    with pytest.raises(ValueError, match="2 of 5 runs have no result"):
        compare(folder)
    return folder


def test_a_sweep_has_table_curves_and_what_failed(swept):
    text, page = text_of(swept), page_of(swept)
    table = [line.strip("|").split("|") for line in (swept / "comparison.md").read_text().splitlines() if "|" in line]
    for row in table[2:]:
        assert " ".join(cell.strip(" *") for cell in row) in text
    assert "The runs differ in duplication.layout" in text and "3 of 5 runs are finished" in text
    for name in ("0_one_pass", "1_one_pass", "2_keep_thinking", "3_stopped"):
        assert f'href="{name}/report.html"' in page
        assert (swept / f"{name}/report.html").is_file()
    assert "4_failed: 12 of 12 cannot be prepared: ..." in text and "<b>the first" not in page
    losses = plots_of(swept)["Loss: all"]
    assert [one["name"] for one in losses["curves"]] == [
        "one_pass, seed 0",
        "one_pass, seed 1",
        "keep_thinking, seed 0",
        "3_stopped (no result)",
    ]
    metrics = lines_of(swept / "2_keep_thinking/metrics.jsonl")
    logged = [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in metrics if "loss" in line]
    assert curve(losses, "keep_thinking, seed 0") == logged
    assert "data:image/png;base64," in page


def test_a_sweep_of_which_nothing_is_left_says_why(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0/failed.txt").write_text("too long\n")
    with pytest.raises(ValueError, match="no run with a result.json"):
        compare(tmp_path)
    assert "No run has a result." in text_of(tmp_path) and "0: too long" in text_of(tmp_path)


def test_a_large_sweep_stays_small(swept, tmp_path):
    folder = tmp_path / "many"
    for number in range(120):
        shutil.copytree(
            swept / "0_one_pass", folder / f"{number}", ignore=shutil.ignore_patterns("checkpoints", "model")
        )
        line = {"loss": 1.5, "thinking_loss": 2.5, "answer_loss": 3.5, "tokens_per_second": 1e4}
        lines = "".join(json.dumps({"step": step, **line}) + "\n" for step in range(1, 500))
        (folder / f"{number}/metrics.jsonl").write_text(lines)
    path = sweep.write_sweep(folder)
    assert path.stat().st_size < report.LIMIT
    assert f"The first {sweep.MOST_CURVES} of 120 runs are drawn" in text_of(folder)
    names = [one["name"] for one in plots_of(folder)["Loss: all"]["curves"]]
    assert len(set(names)) == sweep.MOST_CURVES and "one_pass, seed 0, 17" in names  # they differ in nothing else
