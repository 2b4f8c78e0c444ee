"""How far a stage of a run has come: a bar in a terminal, a line now and then in a log file. Both go to stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from recipes.distributed.ranks import rank

SECONDS_BETWEEN_LINES = 20.0


@contextmanager
def progress(total: int, label: str, lines: bool = True) -> Iterator[Callable[..., None]]:
    """Yields `advance(count=1, note="")`; `total` counts what `advance` counts. Nothing is shown of an empty stage, nor
    in any but the first process of a run.

    lines=False: a bar only, for a stage that prints lines of its own.
    """
    if total == 0 or rank() > 0 or not (lines or sys.stderr.isatty()):
        yield lambda count=1, note="": None
    elif sys.stderr.isatty():
        with _bar(total, label) as advance:
            yield advance
    else:
        yield _Lines(total, label)


@contextmanager
def _bar(total: int, label: str) -> Iterator[Callable[..., None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # What is printed meanwhile appears above the bar, which is gone when the stage ends.
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=total, note="")
        yield lambda count=1, note="": bars.update(task, advance=count, note=note)


class _Lines:
    """Prints a line when the last one is old, so that a stage of a few seconds prints none."""

    def __init__(self, total: int, label: str) -> None:
        self.total, self.label, self.done = total, label, 0
        self.started = self.printed = time.monotonic()

    def __call__(self, count: int = 1, note: str = "") -> None:
        self.done += count
        now = time.monotonic()
        if now - self.printed < SECONDS_BETWEEN_LINES:
            return
        self.printed = now
        left = duration((now - self.started) / self.done * (self.total - self.done)) if self.done else "?"
        parts = [f"{self.label}: {self.done:,} of {self.total:,}", f"{left} left", note]
        print(", ".join(part for part in parts if part), file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """ "45 s", "12 min", "3 h 05 min": as exact as somebody who waits needs it."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
