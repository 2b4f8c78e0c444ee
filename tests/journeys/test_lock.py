"""`make lock` on a copy of the project: what is locked stays locked as long as it fits."""

import shutil
import subprocess

import pytest
from forked import clean_environment
from journeys.workshop import ROOT

pytestmark = pytest.mark.journey


def test_nothing_changes_where_everything_fits(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "requirements.lock", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    done = subprocess.run(["make", "lock"], cwd=tmp_path, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "requirements.lock").read_text() == (ROOT / "requirements.lock").read_text()
