"""What a run says when it cannot go on, of what it has kept and of how to take it up again."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flexmask.errors import NonFiniteLossError
from recipes.configuration.overrides import override
from recipes.run.folder import incomplete_checkpoints, last_checkpoint
from recipes.terminal.command import explained, typed


def go_on(folder: Path) -> str:
    return f"Go on with: {typed('train', override('resume', folder))}"


@contextmanager
def told_how_to_go_on(folder: Path) -> Iterator[None]:
    """A file that cannot be written, or numbers that are not finite, end the run with what to do behind the reason.

    Raises ValueError and NonFiniteLossError.
    """
    try:
        yield
    except NonFiniteLossError as error:
        if error.file is None:
            raise
        advice = f"{typed('replay', folder)} runs these packs again and names the layer that it begins in"
        raise NonFiniteLossError(f"{error}\n{advice}", error.file) from error
    except Exception as error:
        if isinstance(error, ValueError) or (reason := explained(error)) is None:
            raise
        free = shutil.disk_usage(folder).free / 2**20 if folder.is_dir() else 0
        raise ValueError(f"{reason} ({free:,.0f} MiB are free there)\n{_kept(folder)}") from error


def _kept(folder: Path) -> str:
    """What there is to go on from."""
    saved = last_checkpoint(folder)
    kept = f"The checkpoint of step {saved[1]} is whole." if saved else f"{folder} has no checkpoint yet."
    torn = [path.name for path in incomplete_checkpoints(folder)]
    said = f" {', '.join(torn)} is not, and is removed when the run goes on." if torn else ""
    return f"{kept}{said} {go_on(folder)}"
