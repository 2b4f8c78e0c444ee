"""The files of a run's folder, read back: whatever it has got to, and whatever it was."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipes.configuration.compose import RUN_CONFIG
from recipes.configuration.rules import ConfigError
from recipes.configuration.schema import TrainConfig
from recipes.run.folder import CHATS, DATA, MASK, METRICS, RESULT, SAID, newest_checkpoint
from recipes.sources.invalid import FILE as LEFT_OUT

Line = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """What a run has left. Files that are not there (yet) are empty.

    settings: config.yaml as it stands. config: the same as dataclasses; whether its paths exist is not looked at.
    data: what is trained, and its totals. said: see `recipes.run.said`. metrics: a line a log. chats: a line a turn.
    left_out: a line a conversation. result: None before the end. step: of the newest checkpoint.
    """

    folder: Path
    settings: Line
    config: TrainConfig
    data: Line
    said: Line
    metrics: list[Line]
    chats: list[Line]
    left_out: list[Line]
    result: Line | None
    mask: Path | None
    saved_step: int | None

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def curve(self, name: str) -> list[tuple[int, float | None]]:
        """(step, value) of a figure, in order."""
        return curve_of(self.metrics, name)


def read_run(folder: Path) -> Record:
    """Raises ConfigError where the folder has no run, or one whose settings this version does not know."""
    path = folder / RUN_CONFIG
    if not path.is_file():
        raise ConfigError(f"{folder}: no run folder, it has no {RUN_CONFIG}")
    try:
        settings = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        config = OmegaConf.to_object(OmegaConf.merge(TrainConfig, settings))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    saved = newest_checkpoint(folder)
    return Record(
        folder=folder,
        settings=settings,
        config=config,
        data=json_object(folder / DATA) or {},
        said=json_object(folder / SAID) or {},
        metrics=list(json_lines(folder / METRICS)),
        chats=list(json_lines(folder / CHATS)),
        left_out=list(json_lines(folder / LEFT_OUT)),
        result=json_object(folder / RESULT),
        mask=folder / MASK if (folder / MASK).is_file() else None,
        saved_step=saved[1] if saved else None,
    )


def curve_of(metrics: Iterable[Line], name: str) -> list[tuple[int, float | None]]:
    """(step, value) of a figure, in order, None where the value is not finite. A run that went on may log steps again:
    the last line of a step counts."""
    values = {line["step"]: line[name] for line in metrics if name in line}
    return [
        (step, None if value is None or not math.isfinite(value) else value) for step, value in sorted(values.items())
    ]


def json_lines(path: Path) -> Iterator[Line]:
    """The lines of a file; none where there is no file. A last line that a killed run has not ended is left out.

    Raises ValueError naming file and line for any other that is no object.
    """
    if not path.is_file():
        return
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        yield _parsed(line, f"{path}:{number}")


def json_object(path: Path) -> Line | None:
    """What a file holds; None where there is none. Raises ValueError, with its path, for what is no JSON object."""
    return _parsed(path.read_bytes(), str(path)) if path.is_file() else None


def _parsed(text: bytes, place: str) -> Line:
    try:
        found = json.loads(text.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{place}: is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{place}: is no JSON object but {text[:40]!r}")
    return found
