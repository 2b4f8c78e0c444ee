"""A run leaves its report, whatever ends it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recipes.distributed import ranks
from recipes.pages.report import write_report
from recipes.run.said import Said
from recipes.terminal.command import explained, typed


@contextmanager
def reported(folder: Path, said: Said) -> Iterator[None]:
    """Leaves report.html in the folder, whatever ends the run.

    Where the page, or why the run stopped, cannot be written, a line says so and the run ends as it would have.
    """
    try:
        yield
    except BaseException as error:
        with _told(folder):
            reason = explained(error) if isinstance(error, Exception) else str(error)
            said.stop(reason or f"{type(error).__name__}: {error}")
        raise
    finally:
        if ranks.rank() == 0:
            with _told(folder):
                print(f"report      {write_report(folder)}", flush=True)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # none is worth a run
        reason = explained(error) or f"{type(error).__name__}: {error}"
        print(f"no report: {reason}\n{typed('report', folder)} tries again", file=sys.stderr, flush=True)
