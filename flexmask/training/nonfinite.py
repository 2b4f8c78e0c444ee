"""The packs of a step whose loss or gradient was not finite, in a file: what went wrong can be looked at again."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from flexmask.tree.packing import Pack

FOLDER = "nonfinite"


@dataclass(frozen=True)
class SavedPacks:
    """step: the one that was not taken. said: of the error. packs: of one process."""

    step: int
    said: str
    packs: list[Pack]


def save_packs(output_dir: str | Path, step: int, process: int | None, said: str, packs: Sequence[Pack]) -> Path:
    """Write packs to `nonfinite/` in the folder of checkpoints; process: which of several had them.

    Raises OSError and RuntimeError where the disk does not take them.
    """
    name = f"step-{step}.pt" if process is None else f"step-{step}-process-{process}.pt"
    path = Path(output_dir, FOLDER, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = [{f.name: getattr(one.to("cpu"), f.name) for f in fields(Pack)} for one in packs]
    torch.save({"step": step, "said": said, "packs": plain}, path)
    return path


def load_packs(path: Path) -> SavedPacks:
    """What `save_packs` wrote; nothing in the file is run."""
    saved = torch.load(path, weights_only=True)
    return SavedPacks(saved["step"], saved["said"], [Pack(**one) for one in saved["packs"]])


def newest_packs(output_dir: str | Path) -> list[Path]:
    """The files of the last step that went wrong, of each process one; none where none did."""
    found: dict[int, list[Path]] = {}
    for path in sorted(Path(output_dir, FOLDER).glob("step-*.pt")):
        found.setdefault(int(path.stem.split("-")[1]), []).append(path)
    newest = max((paths for paths in found.values()), key=lambda paths: paths[-1].stat().st_mtime, default=[])
    return newest
