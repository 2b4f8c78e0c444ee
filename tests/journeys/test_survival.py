"""Runs that are killed, at any moment, and disks and hubs that fail them: what goes on is the same training.

    KILLS=30 KILL_SEED=1 .venv/bin/python -m pytest -n 2 -m journey tests/journeys/test_survival.py -k killed

kills a run at so many moments; the default are a few, of each kind one.
"""

import json
import os
import random
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest
from journeys.workshop import kill, wait_for

# Nothing divides: a checkpoint lies between two logs, and an epoch ends between two checkpoints. model/ is not what the
# last step left.
SETTINGS = [
    "model.tiny.layers=1", "model.tiny.hidden_size=32", "trainer.steps=12", "trainer.warmup_steps=2",
    "trainer.conversations_per_step=2", "trainer.log_every=3", "trainer.save_every=4", "trainer.evaluate_every=4",
    "trainer.keep_best=true", "trainer.keep_checkpoints=2", "trainer.learning_rate=2e-2", "data.train_conversations=14",
    "data.heldout_conversations=2", "evaluation.conversations=2", "evaluation.max_new_tokens=8", "wandb=off",
]  # fmt: skip
KILLS, SEED = int(os.environ.get("KILLS", "7")), int(os.environ.get("KILL_SEED", "0"))
# What may differ between two runs that are the same training.
TIMES = {
    "tokens_per_second", "trained_tokens_per_second", "train_runtime", "train_samples_per_second",
    "train_steps_per_second", "heldout_runtime", "heldout_samples_per_second", "train_seconds", "git_commit",
}  # fmt: skip
# Where a kill may come: words of what a run does to its files, in the order of the run.
PLACES = {
    "cache": "cache/",
    "start": "/data.json|/config.yaml|/.lock|/metrics.jsonl|/block_mask.png",
    "checkpoint": "/checkpoints/checkpoint-",
    "removal": "os.remove |os.rmdir ",
    "model": "/model",
    "end": "/chats.jsonl|/result.json",
}
ANY_TIME = "any time"


def train(name: str, *overrides: str, **environment: str) -> str:
    """The command line of a run in runs/`name` with a cache of its own, which ends as `environment` says."""
    environment |= {"PYTHONPATH": "tests", "TOUCHED": f"runs/{name}{os.pathsep}cache/{name}"}
    environment["HF_DATASETS_CACHE"] = f"cache/{name}"
    words = [*SETTINGS, f"output_dir=runs/{name}", *overrides]
    variables = " ".join(f"{key}={shlex.quote(value)}" for key, value in environment.items())
    return f"{variables} {shlex.join(['python', '-m', 'faults.killed', 'recipes.train', *words])}"


def metrics(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def result(folder: Path) -> dict:
    found = json.loads((folder / "result.json").read_text())
    return {key: value for key, value in found.items() if key not in TIMES}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "training_args.bin"}


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def assert_same_run(folder: Path, whole: Path) -> None:
    assert metrics(folder) == metrics(whole)
    assert result(folder) == result(whole)
    assert files(folder / "model") == files(whole / "model")
    assert (folder / "chats.jsonl").read_text() == (whole / "chats.jsonl").read_text()
    assert names(folder) == names(whole), "something is left over, or missing"


@pytest.fixture(scope="module")
def whole(workshop):
    """A run that nobody killed: its folder, its seconds, and what it did to files, in order."""
    for folder in ("runs", "cache"):  # which only the first run would make
        (workshop.folder / folder).mkdir()
    started = time.monotonic()
    workshop.run(train("whole", RECORD="touched"))
    touched = (workshop.folder / "touched").read_text().splitlines()
    return workshop.folder / "runs/whole", time.monotonic() - started, touched


def moments(touched: list[str]) -> list[tuple[str, int]]:
    """(place, number of the touch there) of KILLS kills, as many in each place as in any time, whose number is a
    thousandth of the run."""
    rng = random.Random(SEED)
    found = {
        place: sum(any(one in line for one in words.split("|")) for line in touched) for place, words in PLACES.items()
    }
    order = [*PLACES, ANY_TIME]
    places = [order[number % len(order)] for number in range(KILLS)]
    return [(place, rng.randrange(1000) if place == ANY_TIME else rng.randint(1, found[place])) for place in places]


# Breaks if any file that is written in parts counts as whole (config.yaml, a checkpoint, model/), if what was logged
# behind the checkpoint stays in metrics.jsonl, if the losses since the last log are forgotten (checkpoints lie between
# logs here), if a step is trained again behind the last one, or if what a killed run left over stays.
@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_goes_on_to_the_same_result(workshop, whole, number):
    unbroken, seconds, touched = whole
    place, at = moments(touched)[number]
    rng = random.Random(SEED * 1000 + number)
    name = f"killed{number}"
    folder = workshop.folder / "runs" / name
    print(f"KILL_SEED={SEED}, kill {number}: {place}, {at}")
    if place == ANY_TIME:
        process = workshop.start(train(name))
        time.sleep(seconds * at / 1000)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    else:
        torn = {"TORN": "1"} if rng.random() < 0.5 else {}
        workshop.run(train(name, KILL_AT=str(at), KILL_IN=PLACES[place], **torn), code=128 + signal.SIGKILL)
    if rng.random() < 0.3 and not (folder / "result.json").exists():  # and what goes on is killed as well
        workshop.start(train(name, "resume=auto", KILL_AT=str(rng.randint(1, len(touched))))).communicate()
    if not (folder / "result.json").exists():
        workshop.run(train(name, "resume=auto"))
    if not (folder / "report.html").exists():  # killed behind its result: the page is made of the other files
        workshop.run(f"python -m recipes.report runs/{name}")
    assert_same_run(folder, unbroken)


# ---- What is full, read-only, gone, changed or taken ----


def killed(workshop, name: str, *overrides: str, at: str = "/checkpoints/checkpoint-8/trainer_state.json") -> Path:
    """A run that died in front of a touch; the checkpoint before it is whole."""
    workshop.run(train(name, *overrides, KILL_AT="1", KILL_IN=at), code=128 + signal.SIGKILL)
    return workshop.folder / "runs" / name


def resume(workshop, name: str, code: int | None = 0):
    return workshop.run(train(name, "resume=auto"), code)


# Breaks if a disk that is full in one file costs another, or if the error says neither where nor how to go on.
@pytest.mark.parametrize(
    ("at", "size", "named", "step"),
    [
        ("/checkpoints/checkpoint-8", 4_096, "checkpoint-8 is not", 4),  # in the weights
        ("/checkpoints/checkpoint-8", 300_000, "checkpoint-8 is not", 4),  # in the optimizer's state
        (
            "os.remove trainer_state.json",
            100,
            "/metrics.jsonl: File too large",
            12,
        ),  # when an old checkpoint is removed
    ],
    ids=["weights", "optimizer", "metrics"],
)
def test_a_full_disk_costs_what_was_being_written(workshop, whole, request, at, size, named, step):
    name = f"full_{request.node.callspec.id}"
    done = workshop.run(train(name, KILL_AT="1", KILL_IN=at, FULL=str(size)), code=1)
    assert named in done.err and "MiB are free there" in done.err
    assert f"The checkpoint of step {step} is whole." in done.err and f"resume=runs/{name}" in done.err
    assert not (workshop.folder / f"runs/{name}/model").exists()
    resume(workshop, name)
    assert_same_run(workshop.folder / "runs" / name, whole[0])


# A best checkpoint is noted by its path. Breaks if a folder that has moved loses it or takes that of the old place, or
# if what cannot be written costs what was.
def test_a_folder_that_is_read_only_is_named_and_one_that_has_moved_goes_on(workshop, whole):
    folder = killed(workshop, "readonly", at="/model.partial")
    before = names(folder)
    folder.chmod(0o555)
    done = workshop.run(train("readonly", "resume=auto", PLAIN="1"), code=1)
    folder.chmod(0o755)
    assert "runs/readonly/data.json: Permission denied" in done.err
    assert names(folder) == before
    (workshop.folder / "runs/closed").mkdir(mode=0o555)
    done = workshop.run(train("closed", PLAIN="1"), code=1)
    assert "runs/closed/.lock: Permission denied" in done.err

    moved = folder.rename(folder.with_name("moved_away"))
    workshop.run('make train ARGS="resume=runs/moved_away"')
    assert_same_run(moved, whole[0])


# Breaks if a run goes on with other conversations than it began with, or cannot without rows that it can make again.
def test_data_that_is_gone_or_changed_is_refused_by_name_and_a_cache_is_made_again(workshop):
    data, own = workshop.folder / "moving.jsonl", ["data=jsonl", "data.path=moving.jsonl"]
    text = (workshop.folder / "my.jsonl").read_text()
    data.write_text(text)
    workshop.run(train("undisturbed", *own))
    folder = killed(workshop, "moved", *own)
    data.rename(workshop.folder / "elsewhere.jsonl")
    done = workshop.run(train("moved", *own, "resume=auto"), code=1)
    assert "data.path=moving.jsonl: no such file" in done.err
    data.write_text(text.replace("pens", "jars"))
    done = workshop.run(train("moved", *own, "resume=auto"), code=1)
    assert "the conversations are not those that this run began with (has moving.jsonl changed?)" in done.err
    assert "runs/moved" in done.err
    data.write_text(text)
    shutil.rmtree(workshop.folder / "cache/moved")
    workshop.run(train("moved", *own, "resume=auto"))
    assert_same_run(folder, workshop.folder / "runs/undisturbed")


# Breaks if metrics of two runs can stand in one file, or if the claim of a run outlives it.
def test_a_folder_belongs_to_one_run_at_a_time(workshop, whole):
    started = [workshop.start(train("both")) for _ in range(2)]
    ended = [process.communicate() for process in started]
    assert sorted(process.returncode for process in started) == [0, 1], ended
    refused = next(err for process, (_, err) in zip(started, ended, strict=True) if process.returncode)
    assert "runs/both: another run is writing there (process " in refused or "runs/both: holds a run" in refused
    assert_same_run(workshop.folder / "runs/both", whole[0])

    folder = workshop.folder / "runs/running"
    process = workshop.start(train("running", "trainer.steps=4000"))
    wait_for(lambda: list(folder.glob("checkpoints/checkpoint-4/trainer_state.json")), process)
    done = workshop.run(f"python -m recipes.train resume={folder.relative_to(workshop.folder)}", code=1)
    assert "runs/running: another run is writing there (process " in done.err
    assert process.poll() is None
    kill(process)
    process.communicate()
