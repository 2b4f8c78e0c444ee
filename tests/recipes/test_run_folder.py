"""The run folder: nobody else's, found again, and what an interrupted run left in it."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from recipes.configuration.compose import compose, save_run_config
from recipes.run.folder import (
    config_to_resume,
    last_checkpoint,
    logged_lines,
    new_folder,
    remember_data,
    remove_incomplete,
    trained_fingerprint,
)

DEFAULT = replace(compose(), output_dir=None)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def started(folder, overrides=(), age=0, **files):
    """A run folder as a started run leaves it, `age` seconds old."""
    save_run_config(replace(compose(overrides), output_dir=str(folder)), folder)
    for name, text in files.items():
        (folder / name.replace("_json", ".json")).write_text(text)
    time = (folder / "config.yaml").stat().st_mtime - age
    os.utime(folder / "config.yaml", (time, time))
    return folder


# Breaks if two runs of the same second share a folder: their metrics would be mixed and one config.yaml lost.
def test_runs_that_start_together_have_a_folder_each():
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_folder(None, "one_pass"), range(8)))
    assert len(set(folders)) == 8 and all(folder.is_dir() for folder in folders)
    assert all("_one_pass" in folder.name for folder in folders)


def test_a_chosen_folder_is_made_and_never_written_over(here):
    folder = "mine/run"
    assert new_folder(folder, "one_pass") == new_folder(folder, "one_pass")  # empty so far
    (here / "mine/run/metrics.jsonl").write_text("")
    with pytest.raises(
        ValueError, match=r"output_dir=mine/run: holds a run already \(metrics.jsonl\).*resume=mine/run"
    ):
        new_folder(folder, "one_pass")


def test_resume_auto_takes_the_newest_unfinished_run_of_the_same_settings(here):
    runs = here / "runs"
    wanted = ["seed=3", "data.date=2026-01-01"]
    started(runs / "older", wanted, age=20)
    started(runs / "newer", wanted, age=10)
    started(runs / "finished", wanted, result_json="{}")
    started(runs / "another", ["seed=4"])
    (runs / "unreadable").mkdir()
    (runs / "unreadable" / "config.yaml").write_text("seed: [many\n")
    # The day on which a run is resumed, and where its metrics go, are no part of what it trains.
    asked = replace(compose(["seed=3", "data.date=2026-01-02", "wandb=off"]), output_dir=None, resume="auto")
    found = config_to_resume(asked, ["seed=3"])
    assert found.resume == found.output_dir == "runs/newer"
    assert found.data.date == "2026-01-01"
    assert config_to_resume(replace(asked, seed=5), ["seed=5"]) is None


def test_a_folder_is_resumed_with_its_own_settings(here):
    started(here / "runs/one", ["seed=3"])
    assert config_to_resume(replace(DEFAULT, resume="runs/one"), []).seed == 3
    with pytest.raises(ValueError, match="resume=runs/one: goes on with .* remove seed=4"):
        config_to_resume(replace(DEFAULT, resume="runs/one"), ["seed=4"])


# A process that was killed for want of memory advises fewer of them. Breaks if a run that goes on cannot follow.
@pytest.mark.parametrize("resume", ["auto", "runs/one"])
def test_how_many_processes_help_may_change(here, resume):
    started(here / "runs/one", ["seed=3"])
    given = ["trainer.loader_workers=1", "data.processes=2"]
    asked = replace(compose(["seed=3", *given]), output_dir=None, resume=resume)
    found = config_to_resume(asked, [*given, *(["seed=3"] if resume == "auto" else [])])
    assert found.seed == 3 and found.trainer.loader_workers == 1 and found.data.processes == 2


# Breaks if a write that was interrupted counts as complete: the intact older checkpoint would be ignored.
def test_the_last_checkpoint_is_the_newest_that_is_whole(here):
    assert last_checkpoint(here) is None
    for step, text in ((9, '{"global_step": 9}'), (10, '{"global_step": 10}'), (11, ""), (12, None)):
        folder = here / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if text is not None:
            (folder / "trainer_state.json").write_text(text)
    assert last_checkpoint(here) == (here / "checkpoints" / "checkpoint-10", 10)
    (here / "result.json").write_text("{}")
    with pytest.raises(ValueError, match="this run has finished"):
        last_checkpoint(here)


# Breaks if what a killed run was deleting stays for a checkpoint: there would be one less that is whole.
def test_checkpoints_that_were_being_written_or_deleted_are_removed(here):
    for step, files in ((1, "state"), (2, "weights state"), (3, "weights state rng_state_0"), (4, "weights")):
        folder = here / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in files.split():
            (folder / {"state": "trainer_state.json"}.get(name, name)).write_text('{"log_history": [1, 2]}')
    (here / "checkpoints" / "nonfinite").mkdir()
    remove_incomplete(here)
    assert sorted(path.name for path in (here / "checkpoints").iterdir()) == [
        "checkpoint-2",
        "checkpoint-3",
        "nonfinite",
    ]
    assert logged_lines(here / "checkpoints" / "checkpoint-3") == 2


def test_a_run_goes_on_only_with_the_data_it_began_with(here):
    assert trained_fingerprint(here) is None
    remember_data(here, "abc")
    remember_data(here, "abc")
    with pytest.raises(ValueError, match="the conversations are not those that this run began with"):
        remember_data(here, "abd")
    assert trained_fingerprint(here) == "abc"
    (here / "data.json").unlink()  # what the error advises
    remember_data(here, "abd")
