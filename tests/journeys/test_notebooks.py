"""The notebooks as a user runs them, with `make notebook`."""

import os
import re
from datetime import datetime

import nbformat
from journeys.workshop import ROOT

PICTURES = {"01": 3, "02": 2, "03": 1, "04": 0, "05": 0}  # that each draws, at least
MINUTES = 3  # that each may take


def seconds(notebook) -> float:
    """From the first cell that was run to the end of the last one."""
    times = [cell.metadata["execution"] for cell in notebook.cells if "execution" in cell.metadata]
    first, last = (datetime.fromisoformat(one.replace("Z", "+00:00")) for one in (
        times[0]["iopub.status.busy"], times[-1]["iopub.status.idle"]
    ))  # fmt: skip
    return (last - first).total_seconds()


# Breaks if an API that a cell uses changes, or what a cell asserts. The cells must also draw what they promise, in the
# time that CONTRIBUTING promises, and print nothing that a reader has to explain away: no warning, no place of this
# machine.
def test_every_notebook_runs_and_shows_what_it_promises(workshop):
    done = workshop.run("make notebook", timeout=60 * MINUTES * len(PICTURES))
    names = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert [name[:2] for name in names] == list(PICTURES)
    assert done.out.splitlines()[-len(names) :] == [f"runs/notebooks/{name}" for name in names]
    for name in names:
        notebook = nbformat.read(workshop.folder / "runs/notebooks" / name, as_version=4)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert sum("image/png" in output.get("data", {}) for output in outputs) >= PICTURES[name[:2]], name
        said = "".join(one.get("text", "") + str(one.get("data", {}).get("text/plain", "")) for one in outputs)
        assert not re.search("warning", said, re.IGNORECASE), (name, said)
        places = (str(ROOT), str(workshop.folder), os.path.expanduser("~"), "/tmp")
        assert not any(place in said for place in places), (name, said)
        assert seconds(notebook) <= 60 * MINUTES, name
