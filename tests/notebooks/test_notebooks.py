"""Every notebook is stored without outputs and reads the same as the text beside it (tests/journeys runs them)."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
named = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def test_there_are_notebooks():
    assert NOTEBOOKS


@named
def test_notebook_is_stored_without_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


# Breaks if one of the two was changed alone: `jupytext --sync notebooks/*.ipynb` brings the newer one over.
@named
def test_notebook_reads_as_its_text(path):
    cells, text = nbformat.read(path, as_version=4).cells, jupytext.read(path.with_suffix(".py")).cells
    assert [(cell.cell_type, cell.source) for cell in cells] == [(cell.cell_type, cell.source) for cell in text]


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
