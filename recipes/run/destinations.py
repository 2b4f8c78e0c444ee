"""Where a run's numbers go: JSON lines in the run folder always, wandb when it is on.

wandb never asks for a login, never needs the network and cannot end a run: whatever goes wrong in it is
printed once, and the run goes on with its files. Checked with wandb 0.31.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from recipes.configuration.schema import TrainConfig, WandbConfig, WandbMode
from recipes.run.folder import METRICS
from recipes.storage.whole import write_whole

ROWS_SENT = 200  # of a table to wandb; the file has all
# Seconds that wandb may take to reach its server at the start, and to send what is left at the end. Without
# an answer the start takes about 2 seconds more than that.
INIT_TIMEOUT = 15.0
FINISH_TIMEOUT = 60.0


class Reporter:
    """Context manager: writes into `config.output_dir`, and to wandb as `config.wandb` says.

    metrics.jsonl    one object a `log` call, `step` first; appended to, line by line
    <name>.jsonl     the rows of `table(name, ...)`, one object a row
    wandb/           wandb's own files; not there when wandb is off

    Steps are optimizer steps. wandb gets them as a value named `step` that its charts use as axis: its own
    step counter drops what is logged out of order.
    """

    def __init__(self, config: TrainConfig, kept: int | None = None) -> None:
        """`kept`: of a run that goes on, how many lines it had logged up to its checkpoint. What it logged after that
        comes again, so those lines, and a half-written last one, are removed."""
        self.folder = Path(config.output_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        metrics = self.folder / METRICS
        if kept is not None and metrics.exists():
            lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            write_whole(metrics, "".join(line for line in lines[:kept] if line.endswith("\n")))
        self._metrics = metrics.open("ab", buffering=0)  # so that closing it has nothing to write
        self._sends_text = config.wandb.chats
        self._run = _start_wandb(config.wandb, self.folder, asdict(config))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics. A value that is not finite is written as null: JSON has no NaN.

        Raises OSError naming the file when the disk does not take it.
        """
        line = {"step": step, **{key: _json_number(value) for key, value in values.items()}}
        left = f"{json.dumps(line, allow_nan=False)}\n".encode()
        try:
            while left:
                left = left[self._metrics.write(left) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._metrics.name) from error
        self._send(lambda run: run.log({**values, "step": step}))

    def image(self, name: str, path: str | Path, step: int) -> None:
        """Send a PNG file to wandb. Raises FileNotFoundError when there is none."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"image {name!r}: no file {path}")

        def send(run: Any) -> None:
            import wandb

            run.log({name: wandb.Image(str(path)), "step": step})

        self._send(send)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """A table such as sample chats; `<name>.jsonl` holds the latest one. wandb gets it only with `wandb.chats`.

        Raises ValueError when a row is not as long as `columns`.
        """
        for i, row in enumerate(rows):
            if len(row) != len(columns):
                raise ValueError(f"table {name!r}: row {i} has {len(row)} values for {len(columns)} columns")
        records = [{"step": step, **dict(zip(columns, row, strict=True))} for row in rows]
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_whole(self.folder / f"{name}.jsonl", text, errors="backslashreplace")  # half a pair in somebody's text

        def send(run: Any) -> None:
            import wandb

            data = [list(row) for row in rows[:ROWS_SENT]]
            run.log({name: wandb.Table(columns=list(columns), data=data), "step": step})

        if self._sends_text:
            self._send(send)

    def summary(self, values: Mapping[str, Any]) -> None:
        """The run's final numbers, for wandb's overview (the recipe writes them to result.json)."""
        self._send(lambda run: run.summary.update(dict(values)))

    def close(self, failed: bool = False) -> None:
        """Finish wandb's run, waiting at most FINISH_TIMEOUT for what is left to send. Safe to call twice."""
        self._send(lambda run: run.finish(exit_code=int(failed)))
        self._run = None
        self._metrics.close()

    def _send(self, action: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # wandb's errors share no base class; none of them is worth a training run
            self._run = None
            _say(f"stopped after {type(error).__name__}: {error}; metrics go on in {self._metrics.name}")


class Nowhere:
    """In place of a `Reporter` in the processes of a run that report nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def log(self, *_: object, **__: object) -> None:
        """Nothing."""

    image = table = summary = log


def _start_wandb(config: WandbConfig, folder: Path, values: dict[str, Any]) -> Any:
    """A wandb run, or None when wandb is off or cannot even write to the folder."""
    mode = _mode_from_environment() if config.mode is WandbMode.auto else config.mode
    if mode is WandbMode.off:
        return None
    # wandb's own error reports would hold up the end of the process (14 seconds measured with a server that
    # never answers), also in offline mode.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb  # takes a second or more, so only when it is used

    def init(mode: str) -> Any:
        settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT, finish_timeout=FINISH_TIMEOUT)
        run = wandb.init(
            project=config.project,
            name=config.name or folder.name,
            group=config.group,
            tags=config.tags,
            config=values,
            dir=folder,
            mode=mode,
            settings=settings,
            reinit="finish_previous",  # jobs of a sweep run in one process
        )
        run.define_metric("*", step_metric="step")
        return run

    try:
        wandb.setup(settings=wandb.Settings(silent=True, console="off"))
        if mode is not WandbMode.offline:
            try:
                if wandb.login(prompt=False, verify=False):  # false when no key is configured anywhere
                    run = init("online")
                    _say(f"{run.url}")
                    return run
                reason = "no API key is configured"
            except wandb.errors.Error as error:  # a malformed or refused key, no network, no answer
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
            _say(f"offline ({reason})")
        run = init("offline")
    except Exception as error:  # see `_send`
        _say(f"off after {type(error).__name__}: {error}; metrics are in {folder / METRICS}")
        return None
    _say(f"`wandb sync {Path(run.settings.sync_dir)}` sends this run later")
    return run


def _mode_from_environment() -> WandbMode:
    """auto: online when there is a key, unless wandb's own variable says otherwise."""
    chosen = os.environ.get("WANDB_MODE", "").lower()
    return {"disabled": WandbMode.off, "offline": WandbMode.offline}.get(chosen, WandbMode.online)


def _json_number(value: float) -> float | None:
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None


def _say(text: str) -> None:
    print(f"wandb: {text}", file=sys.stderr, flush=True)
