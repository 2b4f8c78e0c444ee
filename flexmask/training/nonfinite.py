"""The packs of a step whose loss or gradient was not finite, in a file: what went wrong can be looked at again."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from flexmask.errors import NonFiniteLossError
from flexmask.tree.packing import Pack
from flexmask.tree.passes import PassTable

FOLDER = "nonfinite"


@dataclass(frozen=True)
class SavedPacks:
    """step: the one that was not taken. said: of the error. weight: the target weight of the step, by which its loss is
    divided. packs: of one process."""

    step: int
    said: str
    weight: float
    packs: list[Pack]


def not_finite(
    what: str, step: int, packs: Sequence[Pack], weight: float, output_dir: str | Path, process: int | None
) -> NonFiniteLossError:
    """The error of a step, whose packs are written to a file. what: is not finite, in words before names of rows.
    process: which of several this is. The rest: of `SavedPacks`, and `save_packs`."""
    rows = ", ".join(sorted({name for one in packs for name in one.rows}))
    said = f"step {step}: {what} {rows}; the optimizer has not stepped"
    file = None
    try:
        file = save_packs(SavedPacks(step, said, weight, [one.to("cpu") for one in packs]), output_dir, process)
        kept = f"Its packs are in {file}"
    except (OSError, RuntimeError) as error:  # torch's, on a full disk
        kept = f"Its packs could not be written to a file ({str(error).splitlines()[0]})"
    return NonFiniteLossError(f"{said}. {kept}. Look at these conversations, or lower the learning rate", file)


def save_packs(saved: SavedPacks, output_dir: str | Path, process: int | None) -> Path:
    """Write packs to `nonfinite/` in the folder of checkpoints. process: which of several had them.

    The file is there whole or not at all. Raises OSError and RuntimeError where the disk does not take them.
    """
    of_process = "" if process is None else f"-process-{process}"
    path = Path(output_dir, FOLDER, f"step-{saved.step}{of_process}.pt")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole, also where several processes compute them together: one can run them again alone.
    packs = [{f.name: getattr(one, f.name) for f in fields(Pack) if f.name != "context"} for one in saved.packs]
    for one in packs:
        one["passes"] = {f.name: torch.from_numpy(getattr(one["passes"], f.name)) for f in fields(PassTable)}
    partial = path.with_suffix(".partial")
    try:
        torch.save({**asdict(SavedPacks(saved.step, saved.said, saved.weight, [])), "packs": packs}, partial)
        return partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_packs(path: Path) -> SavedPacks:
    """What `save_packs` wrote; nothing in the file is run."""
    saved = torch.load(path, weights_only=True)
    for one in saved["packs"]:
        one["passes"] = PassTable(**{name: tensor.numpy() for name, tensor in one["passes"].items()})
    return SavedPacks(**(saved | {"packs": [Pack(**one) for one in saved["packs"]]}))


def newest_packs(output_dir: str | Path) -> list[Path]:
    """The files of the step that went wrong last, of each process one, in order; none where none did."""
    paths = sorted(Path(output_dir, FOLDER).glob("step-*.pt"), key=lambda path: path.stat().st_mtime)
    step = paths[-1].stem.split("-")[1] if paths else ""
    return sorted(path for path in paths if path.stem.split("-")[1] == step)
