"""Runs that are stopped, or that start beside each other: nothing is lost, and what resumes is the same training."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from journeys.workshop import train, wait_for

SETTINGS = [
    "model.tiny.layers=1", "model.tiny.hidden_size=32", "trainer.steps=40", "trainer.warmup_steps=4",
    "trainer.conversations_per_step=2", "trainer.log_every=1", "trainer.save_every=10", "data.train_conversations=40",
    "data.heldout_conversations=2", "evaluation.conversations=2", "evaluation.max_new_tokens=8", "wandb=off",
]  # fmt: skip


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def unbroken(workshop) -> Path:
    workshop.train(*SETTINGS, "output_dir=runs/unbroken")
    return workshop.folder / "runs/unbroken"


def stopped(workshop, name: str, number: int, step: int = 3):
    """A training that got a signal behind `step`, as did the processes that pack for it; what it printed, with the exit
    code that belongs to the signal."""
    process = workshop.start(train(*SETTINGS, f"output_dir=runs/{name}", "trainer.loader_workers=2"))
    metrics = workshop.folder / f"runs/{name}/metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count('"loss"') >= step, process)
    os.killpg(process.pid, number)
    return workshop.end(process, code=128 + number)


# Breaks if a signal ends a run in the middle of a step, or those that pack for it, without a checkpoint, or if what
# resumes is another training, or one whose packs are made ahead.
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_finishes_the_step_and_what_resumes_is_the_same_training(workshop, unbroken, number):
    name = number.name.lower()
    done = stopped(workshop, name, number)
    folder = workshop.folder / f"runs/{name}"
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert checkpoint.name == f"checkpoint-{max(losses(folder))}"
    assert max(losses(folder)) < 40 and not (folder / "result.json").exists()
    assert f"resume=runs/{name}" in done.out + done.err

    resumed = workshop.run(f'make train ARGS="resume=runs/{name}"')
    assert checkpoint.name.removeprefix("checkpoint-") in resumed.out + resumed.err, "from where is not said"
    assert losses(folder) == losses(unbroken)
    assert weights(folder) == weights(unbroken)


def test_ctrl_c_under_make_says_the_same(workshop):
    process = workshop.start(f'make train ARGS="{" ".join(SETTINGS)} output_dir=runs/make"')
    metrics = workshop.folder / "runs/make/metrics.jsonl"
    wait_for(lambda: metrics.exists() and '"loss"' in metrics.read_text(), process)
    os.killpg(process.pid, signal.SIGINT)
    done = workshop.end(process, code=None)
    assert "resume=runs/make" in done.out + done.err
    assert list(workshop.folder.glob("runs/make/checkpoints/checkpoint-*/model.safetensors"))


# Breaks if a second signal has to wait for the step, which takes many seconds here.
def test_a_second_signal_ends_at_once(workshop):
    long = ["trainer.conversations_per_step=400", "data.train_conversations=400"]
    process = workshop.start(train(*SETTINGS, *long, "output_dir=runs/twice"))
    metrics = workshop.folder / "runs/twice/metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text(), process)  # the second step has begun
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGTERM)
    done = workshop.end(process, code=143, timeout=5)
    assert "a second signal stops at once" in done.err
    assert not list(workshop.folder.glob("runs/twice/checkpoints/*"))


def test_a_run_that_died_before_its_first_checkpoint_starts_again_in_its_folder(workshop, unbroken):
    process = workshop.start(train(*SETTINGS, "trainer.save_every=39", "output_dir=runs/early"))
    folder = workshop.folder / "runs/early"
    wait_for(lambda: (folder / "metrics.jsonl").exists() and losses(folder), process)
    os.killpg(process.pid, signal.SIGKILL)
    workshop.end(process, code=None)
    assert not list(folder.glob("checkpoints/*"))
    assert workshop.run('make train ARGS="resume=runs/early"').last_line == "runs/early"
    assert losses(folder) == losses(unbroken)
    assert weights(folder) == weights(unbroken)


# Breaks if a run that died between its last step and its result trains on: step 41 of 40.
def test_a_run_that_died_before_its_result_only_ends(workshop, unbroken):
    folder = workshop.folder / "runs/died"
    os.system(f"cp -r {unbroken} {folder} && rm -r {folder}/result.json {folder}/model {folder}/chats.jsonl")
    workshop.run('make train ARGS="resume=runs/died"')
    results = [json.loads((one / "result.json").read_text()) for one in (folder, unbroken)]
    assert losses(folder) == losses(unbroken)
    assert weights(folder) == weights(unbroken)
    for key in ("steps", "tokens_computed", "tokens_trained", "loss_first", "loss_last", "heldout_loss"):
        assert results[0][key] == results[1][key], key


# Breaks if an interrupted write counts as a checkpoint: the intact one before it must be taken.
def test_a_half_written_checkpoint_is_passed_over(workshop, unbroken):
    folder = workshop.folder / "runs/half"
    stopped(workshop, "half", signal.SIGTERM, step=12)
    newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    os.system(f"cp -r {newest} {folder}/checkpoints/checkpoint-39")
    (folder / "checkpoints/checkpoint-39/trainer_state.json").write_text("")
    workshop.run('make train ARGS="resume=runs/half"')
    assert losses(folder) == losses(unbroken)
    assert weights(folder) == weights(unbroken)


def test_resume_auto_finds_the_newest_run_of_the_same_settings(workshop, unbroken):
    short = [*SETTINGS, "seed=7"]
    process = workshop.start(train(*short))
    wait_for(lambda: list(workshop.folder.glob("runs/*/checkpoints/checkpoint-10/trainer_state.json")), process)
    os.killpg(process.pid, signal.SIGTERM)
    stopped_run = workshop.end(process, code=143)
    (folder,) = [path.parent for path in workshop.folder.glob("runs/2*/config.yaml")]
    assert f"resume={folder.relative_to(workshop.folder)}" in stopped_run.out + stopped_run.err
    done = workshop.train(*short, "resume=auto")
    assert workshop.folder / done.last_line == folder
    assert (folder / "result.json").exists()
    other = workshop.train(*SETTINGS, "seed=8", "resume=auto")  # of other settings: a new run
    assert workshop.folder / other.last_line != folder


# Breaks if the name of a run folder is a moment only: metrics of one run would stand in the other's file.
def test_two_runs_of_the_same_second_have_a_folder_each(workshop):
    line = train(*SETTINGS, "trainer.steps=5", "seed=11", "evaluation.conversations=0")
    both = [workshop.start(line) for _ in range(2)]
    folders = [workshop.folder / workshop.end(process).last_line for process in both]
    assert len(set(folders)) == 2
    for folder in folders:
        assert list(losses(folder)) == [1, 2, 3, 4, 5]
    assert weights(folders[0]) == weights(folders[1])


def test_a_run_does_not_overwrite_another(workshop, unbroken):
    before = (unbroken / "metrics.jsonl").read_text()
    done = workshop.train(*SETTINGS, "seed=5", "output_dir=runs/unbroken", code=None)
    assert "runs/unbroken" in done.err and "choose another folder" in done.err
    assert "resume=" not in done.err, "there is nothing to go on with"
    assert (unbroken / "metrics.jsonl").read_text() == before
