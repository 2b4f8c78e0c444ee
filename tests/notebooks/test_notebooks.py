"""Every notebook runs from top to bottom, is stored without outputs, and reads the same as the text beside it."""

import os
import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PICTURES = {"01": 3, "02": 2, "03": 1, "04": 0, "05": 0}  # that each draws, at least
MINUTES = 3
named = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def test_each_notebook_is_known():
    assert [path.name[:2] for path in NOTEBOOKS] == list(PICTURES)


@named
def test_notebook_is_stored_without_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


# Breaks if one of the two was changed alone: `jupytext --sync notebooks/*.ipynb` brings the newer one over.
@named
def test_notebook_reads_as_its_text(path):
    cells, text = nbformat.read(path, as_version=4).cells, jupytext.read(path.with_suffix(".py")).cells
    assert [(cell.cell_type, cell.source) for cell in cells] == [(cell.cell_type, cell.source) for cell in text]


# Breaks if an API that a cell uses changes, or what a cell asserts. The cells must also draw what they promise, within
# the time that the page promises, and print nothing that a reader has to explain away: no warning, no place of this
# machine.
@named
def test_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=60 * MINUTES, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= PICTURES[path.name[:2]]
    said = "".join(output.get("text", "") + str(output.get("data", {}).get("text/plain", "")) for output in outputs)
    assert not re.search("warning", said, re.IGNORECASE)
    assert not any(place in said for place in (str(ROOT), os.path.expanduser("~"), "/tmp"))


# It is what a sceptic is sent: everything must stand on the page, and the page must stay one.
def test_the_method_is_a_hundred_lines_of_plain_torch():
    (path,) = (path for path in NOTEBOOKS if path.name.startswith("05"))
    code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    lines = [line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) <= 100
    assert {name.split(".")[0] for name in re.findall(r"^(?:from|import) (\S+)", code, re.MULTILINE)} == {
        "functools",
        "torch",
    }
