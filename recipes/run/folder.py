"""The folder of a run: made so that no other run has it, found again to resume, never written over.

config.yaml  data.json  run.json  metrics.jsonl  checkpoints/  model/  chats.jsonl  block_mask.png  result.json
report.html
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipes.configuration.compose import RUN_CONFIG, load_run_config
from recipes.configuration.overrides import given_keys, override
from recipes.configuration.rules import ConfigError
from recipes.configuration.schema import TrainConfig
from recipes.storage.whole import write_whole

RUNS = Path("runs")
_NOT_TRAINED = (
    "output_dir",
    "resume",
    "wandb",
    "data.date",
    "data.processes",
    "trainer.report_to",
    "trainer.loader_workers",
)
# How many processes help a run, which is another matter where it goes on: memory may have been short.
_MAY_CHANGE = {"data.processes", "trainer.loader_workers"}
RESULT, DATA, CHECKPOINTS, MODEL = "result.json", "data.json", "checkpoints", "model"
SAID, METRICS, CHATS, MASK = "run.json", "metrics.jsonl", "chats.jsonl", "block_mask.png"
REPORT = "report.html"


def new_folder(output_dir: str | None, layout: str) -> Path:
    """A folder that holds no run yet: `output_dir`, or a new one in runs/ that no other process gets.

    Raises ValueError as `refuse_taken` does.
    """
    refuse_taken(output_dir)
    if output_dir is not None:
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    RUNS.mkdir(exist_ok=True)
    stem = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{layout}"
    number = 1
    while True:  # runs that start in the same second
        folder = RUNS / (stem if number == 1 else f"{stem}_{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def refuse_taken(output_dir: str | None) -> None:
    """Raise ValueError where a run lies in the folder of a new one: it would be overwritten."""
    if output_dir is None:
        return
    folder = Path(output_dir)
    taken = [name for name in (METRICS, CHECKPOINTS, MODEL, RESULT) if (folder / name).exists()]
    if taken:
        go_on = "" if RESULT in taken else f", or go on with it: resume={folder}"
        raise ValueError(
            f"output_dir={folder}: holds a run already ({', '.join(taken)}), which would be overwritten; choose "
            f"another folder{go_on}"
        )


def config_to_resume(config: TrainConfig, given: list[str]) -> TrainConfig | None:
    """The configuration of the run that `resume` names, with `resume` set to its folder; None where resume=auto finds
    none. `given`: the other overrides of the command line, which only resume=auto takes; numbers of processes that
    help are taken from them in any case.

    Raises ValueError for other overrides beside a folder, and ConfigError for a folder without a run.
    """
    helpers = [word for word in given if given_keys([word]) <= _MAY_CHANGE]
    if config.resume == "auto":
        folder = newest_unfinished(config)
        return None if folder is None else load_run_config(folder, [override("resume", folder), *helpers])
    if others := [word for word in given if word not in helpers]:
        raise ValueError(
            f"resume={config.resume}: goes on with the configuration in that folder; remove {', '.join(others)}"
        )
    return load_run_config(Path(config.resume), [override("resume", config.resume), *helpers])


def newest_unfinished(config: TrainConfig) -> Path | None:
    """The newest run of this configuration without a result: in runs/, or in `output_dir` where one is given."""
    if config.output_dir is not None:
        folders = [Path(config.output_dir)]
    else:
        folders = list(RUNS.iterdir()) if RUNS.is_dir() else []
    candidates = [folder for folder in folders if _same_run(folder, config)]
    return max(candidates, key=lambda folder: (folder / RUN_CONFIG).stat().st_mtime, default=None)


def _same_run(folder: Path, config: TrainConfig) -> bool:
    if (folder / RESULT).exists() or not (folder / RUN_CONFIG).is_file():
        return False
    try:
        return _identity(load_run_config(folder)) == _identity(config)
    except ConfigError:  # of another version, whose settings this one does not know
        return False


def _identity(config: TrainConfig) -> dict[str, Any]:
    """What makes two runs the same training."""
    return settings_of_training(asdict(config))


def settings_of_training(settings: Mapping[str, Any], inside: str = "") -> dict[str, Any]:
    """The settings of a run by their dotted keys, without those that do not change what is trained: places, the day,
    processes and where metrics go."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{inside}{name}"
        if isinstance(value, Mapping) and value and key not in _NOT_TRAINED:
            found |= settings_of_training(value, f"{key}.")
        elif key not in _NOT_TRAINED:
            found[key] = value
    return found


def last_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """The newest complete checkpoint of an interrupted run and its step; None where it died before saving one.

    A checkpoint is complete when its trainer_state.json, which the Trainer (transformers 5.23) writes last, can be
    read: an interrupted write leaves an empty one. Raises ValueError when the run has finished.
    """
    if (folder / RESULT).exists():
        raise ValueError(f"resume={folder}: this run has finished; its result is in {folder / RESULT}")
    return newest_checkpoint(folder)


def newest_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """As `last_checkpoint`, also of a run that has finished."""
    complete = [(step, path) for path, step in _checkpoints(folder) if _state(path)]
    if not complete:
        return None
    step, newest = max(complete)
    return newest, step


def logged_lines(checkpoint: Path) -> int:
    """How many lines metrics.jsonl had when a checkpoint was saved; the run logs what followed once more."""
    return len(_state(checkpoint)["log_history"])


def remove_incomplete(folder: Path) -> None:
    """Delete what a killed run has left of checkpoints that it was writing, or deleting: the Trainer counts them among
    those that `trainer.keep_checkpoints` keeps, and writes into what is there."""
    for path in incomplete_checkpoints(folder):
        shutil.rmtree(path)


def incomplete_checkpoints(folder: Path) -> list[Path]:
    """Those without a trainer state, and those that lack what the newest complete one has."""
    found = sorted(_checkpoints(folder), key=lambda one: -one[1])
    newest = next((path for path, _ in found if _state(path)), None)
    return [path for path, _ in found if newest is None or not _state(path) or _files(newest) - _files(path)]


def _files(checkpoint: Path) -> set[str]:
    """What every checkpoint of a run has; of states of random numbers there are as many as processes."""
    return {path.name for path in checkpoint.iterdir() if not path.name.startswith("rng_state")}


def _checkpoints(folder: Path) -> Iterator[tuple[Path, int]]:
    for path in (folder / CHECKPOINTS).glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdecimal():
            yield path, int(number)


def _state(checkpoint: Path) -> dict:
    """What trainer_state.json says; nothing where it was not written to its end."""
    try:
        found = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember_data(
    folder: Path,
    fingerprint: str,
    sources: str = "the data",
    rule: str | None = None,
    totals: Mapping[str, Any] | None = None,
) -> None:
    """Write down what conversations a run trains, with their `totals`, and refuse to go on with others. sources: what
    they came from; rule: a hash of the user's own context rule, by which they are shown."""
    found = _data_of(folder)
    unlike = {key for key, value in (("fingerprint", fingerprint), ("rule", rule)) if found.get(key, value) != value}
    if unlike:
        what, changed, back = (
            ("conversations are not those that", sources, "the data")
            if "fingerprint" in unlike
            else ("code of context.rule is not what", "its file", "it")
        )
        raise ValueError(
            f"resume={folder}: the {what} this run began with (has {changed} changed?), so it would not be the "
            f"same training. Put {back} back, or start a new run; with {folder / DATA} deleted, the run goes on with "
            "what is there now"
        )
    of_rule = {} if rule is None else {"rule": rule}
    write_json(folder / DATA, {"fingerprint": fingerprint} | of_rule | dict(totals or {}))


def trained_fingerprint(folder: Path) -> str | None:
    """`LoadedData.fingerprint` of the conversations that a run was trained on; None where it left none."""
    return _data_of(folder).get("fingerprint")


def _data_of(folder: Path) -> dict:
    path = folder / DATA
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_json(path: Path, value: dict) -> None:
    """Whole or not at all: a reader never finds half a file."""
    write_whole(path, json.dumps(value, indent=2) + "\n")
