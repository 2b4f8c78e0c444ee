"""A run leaves its report, whatever ends it."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recipes.distributed import ranks
from recipes.pages.report import write_report
from recipes.run.folder import RESULT
from recipes.run.said import Said
from recipes.terminal.command import Interrupted, explained, typed


@contextmanager
def reported(folder: Path, said: Said) -> Iterator[None]:
    """Leaves report.html in the folder, whatever ends the run.

    Where the page, or why the run stopped, cannot be written, a line says so and the run ends as it would have. A
    signal while it is written ends the run at once, behind a line that says how the run itself has ended.
    """
    ended = f"the run has finished, its result is in {folder / RESULT}"
    try:
        yield
    except BaseException as error:
        reason = explained(error) if isinstance(error, Exception) else str(error)
        reason = reason or f"{type(error).__name__}: {error}"
        ended = f"the run had ended already: {reason}"
        with _told(folder):
            said.stop(reason)
        raise
    finally:
        if ranks.rank() == 0:
            try:
                with _told(folder):
                    print(f"report      {write_report(folder)}", flush=True)
            except Interrupted as stopped:
                again = f"{typed('report', folder)} makes the report"
                signalled = signal.Signals(stopped.signal).name
                raise Interrupted(stopped.signal, f"stopped by {signalled}; {ended}\n{again}") from stopped


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # none is worth a run
        reason = explained(error) or f"{type(error).__name__}: {error}"
        print(f"no report: {reason}\n{typed('report', folder)} tries again", file=sys.stderr, flush=True)
