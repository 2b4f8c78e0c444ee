"""Jobs of a sweep: each ends by itself, and one that fails is noted and leaves the others alone."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from recipes.terminal.command import explained

FAILED = "failed.txt"  # in the folder of a job: why


def sweeping() -> bool:
    """Whether this is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def searching() -> bool:
    """Whether this is a job of a search, which chooses the next settings by what the jobs before it returned."""
    return sweeping() and "direction" in HydraConfig.get().sweeper


def sweep_name() -> str:
    """The name of the sweep's folder."""
    return Path(HydraConfig.get().sweep.dir).name


def noted(job: Callable[[], float | None]) -> float | None:
    """What the job returns; None where it fails, which is printed, with a traceback of what nobody foresaw, and written
    down."""
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    try:
        return job()
    except Exception as error:
        message = explained(error)
        if message is None or os.environ.get("HYDRA_FULL_ERROR"):
            traceback.print_exc()
        message = message or f"{type(error).__name__}: {error}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FAILED).write_text(f"{message}\n", encoding="utf-8")
        print(f"job {hydra.job.num} ({hydra.job.override_dirname}) failed: {message}", file=sys.stderr, flush=True)
        return None
