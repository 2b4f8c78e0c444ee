"""The recipe as a user runs it: what it leaves, what it refuses, what a kill costs, what a sweep ends in."""

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.compare import compare
from recipes.configuration.compose import compose, load_run_config
from recipes.train import train

ROOT = Path(__file__).parents[2]
SMALL = [
    "model.tiny.layers=1",
    "model.tiny.hidden_size=32",
    "trainer.steps=6",
    "trainer.warmup_steps=1",
    "trainer.conversations_per_step=2",
    "trainer.log_every=1",
    "trainer.save_every=2",
    "data.train_conversations=12",
    "data.heldout_conversations=2",
    "evaluation.conversations=2",
    "evaluation.max_new_tokens=8",
]


@pytest.fixture(scope="module")
def run(python):
    return lambda cwd, *overrides: python.run("recipes.train", *overrides, cwd=cwd)


def metrics_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, run):
    """One complete run with wandb offline: (its folder, what it printed)."""
    cwd = tmp_path_factory.mktemp("whole")
    done = run(cwd, *SMALL, "wandb=offline")
    assert done.returncode == 0, done.stderr
    return cwd / done.stdout.splitlines()[-1], done


def test_the_last_line_is_the_run_folder_and_it_holds_everything(whole):
    folder, _ = whole
    config = load_run_config(folder)
    assert config.trainer.steps == 6 and config.duplication.layout == "one_pass"
    result = json.loads((folder / "result.json").read_text())
    assert {
        "layout", "steps", "train_seconds", "tokens_computed", "tokens_trained", "loss_first", "loss_last",
        "answer_accuracy", "conversation_accuracy", "device", "versions", "git_commit",
    } <= result.keys()  # fmt: skip
    assert result["steps"] == 6 and result["layout"] == "one_pass" and result["versions"]["torch"]
    assert result["tokens_computed"] > result["tokens_trained"] > 0
    assert list(metrics_of(folder)) == [1, 2, 3, 4, 5, 6]
    assert result["loss_first"] == pytest.approx(metrics_of(folder)[1])
    assert (folder / "block_mask.png").stat().st_size > 10_000
    chats = [json.loads(line) for line in (folder / "chats.jsonl").read_text().splitlines()]
    assert {"conversation", "turn", "thinking", "answer", "expected", "correct"} <= chats[0].keys()
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))


def test_the_metrics_name_everything_worth_watching(whole):
    first = json.loads((whole[0] / "metrics.jsonl").read_text().splitlines()[0])
    assert {
        "step", "loss", "thinking_loss", "answer_loss", "tokens_per_second", "trained_tokens_per_second",
        "block_sparsity", "pack_fill", "learning_rate", "grad_norm",
    } <= first.keys()  # fmt: skip


# Breaks if the checkpoint needs anything of the project to load, or lost its tokenizer, template or trained weights.
def test_the_model_folder_loads_with_plain_transformers(whole):
    folder = whole[0] / "model"
    assert (folder / "model.safetensors").exists()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config._attn_implementation == "sdpa"
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Mia has 27 apples."}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    assert torch.isfinite(model(ids).logits).all()
    checkpoint = AutoModelForCausalLM.from_pretrained(whole[0] / "checkpoints" / "checkpoint-6")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), checkpoint.parameters(), strict=True))


def test_a_finished_run_can_be_evaluated_again(whole, tmp_path, python):
    done = python.run("recipes.evaluate", str(whole[0]), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures, result = json.loads(done.stdout), json.loads((whole[0] / "result.json").read_text())
    assert figures == {name: result[name] for name in figures}


# A kill at any moment, not a polite exception; resumed losses must be the unbroken run's to the last bit.
def test_a_killed_run_resumes_in_its_folder_to_the_same_losses(whole, tmp_path, python, run):
    killed = python.start("recipes.train", *SMALL, "wandb=off", "output_dir=killed", cwd=tmp_path)
    folder, deadline = tmp_path / "killed", time.monotonic() + 200
    while not list(folder.glob("checkpoints/checkpoint-2/trainer_state.json")):
        assert killed.poll() is None and time.monotonic() < deadline, "ended before it could be killed"
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (folder / "result.json").exists()
    resumed = run(tmp_path, "resume=killed")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.splitlines()[-1] == "killed"
    assert metrics_of(folder) == metrics_of(whole[0])
    results = [json.loads((path / "result.json").read_text()) for path in (folder, whole[0])]
    for key in ("steps", "tokens_computed", "tokens_trained", "loss_first", "loss_last", "heldout_loss"):
        assert results[0][key] == results[1][key]
    assert not (tmp_path / "runs").exists(), "resuming left an empty folder behind"

    again = run(tmp_path, "resume=killed")
    assert again.returncode != 0 and "this run has finished" in again.stderr


# Breaks if a second run writes into a folder that has one: its model and metrics would be lost.
def test_a_run_does_not_overwrite_another(whole):
    before = (whole[0] / "metrics.jsonl").read_text()
    config = replace(compose([*SMALL, "wandb=off", "seed=5"]), output_dir=str(whole[0]))
    with pytest.raises(ValueError, match=r"holds a run already \(metrics.jsonl, checkpoints, model, result.json\)"):
        train(config)
    assert (whole[0] / "metrics.jsonl").read_text() == before


def test_what_cannot_be_resumed_is_said(whole, tmp_path, run):
    other = run(tmp_path, f"resume={whole[0]}", "seed=3")
    assert other.returncode != 0 and "goes on with the configuration in that folder; remove seed=3" in other.stderr


@pytest.mark.parametrize(
    "override, message",
    [
        ("trainer.stepz=1", "stepz"),
        ("trainer.steps=many", "trainer.steps"),
        ("duplication=onepass", "onepass"),
        (
            "duplication.pack_length=0",
            "duplication.pack_length=0: must be at least 1",
        ),
    ],
)
def test_a_wrong_setting_fails_at_once_with_its_name(tmp_path, run, override, message):
    done = run(tmp_path, override)
    assert done.returncode != 0 and message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_pass_longer_than_the_pack_names_its_conversation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = compose([*SMALL, "wandb=off", "duplication.pack_length=128"])
    with pytest.raises(ValueError, match=r"conversations cannot be prepared:\ntutoring/train\[") as refused:
        train(config)
    assert "pack_length is 128" in str(refused.value)
    assert not list(tmp_path.iterdir()), "a run that cannot begin left a folder behind"


def test_a_sweep_ends_in_one_table_and_one_plot(tmp_path, run):
    sweep = ["sweep=layouts", "hydra.sweep.dir=sweep", "hydra.sweeper.params.seed='4'", *SMALL, "wandb=off"]
    done = run(tmp_path, *sweep)
    assert done.returncode == 0, done.stderr
    compare(tmp_path / "sweep")
    table = (tmp_path / "sweep" / "comparison.md").read_text()
    assert all(f"| {layout} | 4 |" in table for layout in ("one_pass", "per_turn", "keep_thinking"))
    assert (tmp_path / "sweep" / "comparison.png").stat().st_size > 10_000
    results = {
        result["layout"]: result
        for result in (json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/result.json"))
    }
    one_pass, per_turn = results["one_pass"], results["per_turn"]
    assert one_pass["loss_last"] == pytest.approx(per_turn["loss_last"], rel=1e-4)  # the same training,
    assert one_pass["tokens_computed"] < per_turn["tokens_computed"]  # for less
    assert one_pass["tokens_trained"] == per_turn["tokens_trained"]
    (tmp_path / "sweep" / "0_one_pass_seed4" / "result.json").unlink()
    with pytest.raises(
        ValueError, match="1 of 3 runs have no result:\n- no result in 0_one_pass_seed4: it was stopped; "
    ):
        compare(tmp_path / "sweep")
    assert "no result in 0_one_pass_seed4" in (tmp_path / "sweep" / "comparison.md").read_text()


def test_a_search_without_held_out_data_is_refused(tmp_path, run):
    own = ["sweep=search", "hydra.sweep.dir=sweep", "hydra.sweeper.n_trials=2", "data.heldout_conversations=0"]
    done = run(tmp_path, *own, *[one for one in SMALL if "heldout" not in one], "wandb=off")
    assert "a search goes by the held-out loss, and no conversation is held out" in done.stderr


# Breaks if a job that fails ends the sweep, is not named in the table, or the settings that differ are not its columns.
def test_a_job_that_fails_leaves_the_others_alone(tmp_path, run):
    lengths = ["duplication.pack_length=32,2048", "trainer.learning_rate=0.001,0.01", "duplication=one_pass", "seed=4"]
    done = run(tmp_path, "sweep=layouts", "hydra.sweep.dir=sweep", *lengths, *SMALL, "wandb=off")
    assert done.returncode == 0 and done.stderr.count("failed: ") == 2, done.stderr
    with pytest.raises(ValueError, match=r"2 of 4 runs have no result:(?s:.*)cannot be prepared"):
        compare(tmp_path / "sweep")
    table = (tmp_path / "sweep" / "comparison.md").read_text()
    assert table.startswith("| learning_rate | seed |") and "| 0.001 | 4 |" in table and "| 0.01 | 4 |" in table
    config = (tmp_path / "sweep" / "3_one_pass_seed4" / "config.yaml").read_text()
    assert "group: sweep" in config  # under which wandb shows them together
