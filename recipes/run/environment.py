"""What a result was measured on: device, versions, commit."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.configuration import FROM_WHEEL
from recipes.configuration.schema import TrainConfig
from recipes.distributed import ranks

if TYPE_CHECKING:
    import torch

LIBRARIES = ("flexmask", "torch", "transformers", "datasets", "accelerate", "hydra-core", "wandb")


def environment(config: TrainConfig, device: "torch.device") -> dict[str, Any]:
    """What a run runs on, as run.json and result.json have it."""
    return {
        "device": device_name(device),
        "processes": ranks.count(),
        "parallel": str(config.parallel.kind) if ranks.count() > 1 else None,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def device_name(device: "torch.device") -> str:
    import torch  # takes seconds, and commands name their errors before

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def git_commit() -> str | None:
    """Commit of the checkout the recipe runs from, "-dirty" behind it when files were changed; None outside git, and
    from a wheel, whose folder may lie in somebody else's checkout."""
    if FROM_WHEEL:
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
