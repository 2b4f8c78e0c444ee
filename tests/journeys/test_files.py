"""Each command of recipes/ run as a file, as well as by its module's name."""

import subprocess
import sys

import pytest
from forked import clean_environment
from journeys.workshop import ROOT

COMMANDS = sorted(path.name for path in (ROOT / "recipes").glob("[!_]*.py"))


# Python then searches recipes/ itself before its own library: a file named inspect.py or a folder named code/ there
# would be what dataclasses or torch import, and no command would start.
def test_nothing_in_recipes_has_the_name_of_a_module_of_pythons_own():
    names = {path.stem for path in (ROOT / "recipes").iterdir()}
    assert len(names) > 10 and not names & sys.stdlib_module_names


@pytest.mark.journey
@pytest.mark.xdist_group("test_files")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_runs_as_a_file(name, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "recipes" / name, "--help"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # The loops take no settings, so they run.
    said = {"loop.py": ("step  40",), "on_policy.py": ("step  20",)}.get(name, ("usage:", "powered by Hydra"))
    assert any(words in done.stdout for words in said)
    assert not list(tmp_path.iterdir())  # it has only told what it is


# Breaks if only the way to an error works: here everything that a command needs is imported.
@pytest.mark.journey
@pytest.mark.xdist_group("test_files")
def test_a_whole_command_runs_as_a_file(tmp_path):
    command = [sys.executable, ROOT / "recipes/inspector.py", "data.train_conversations=8"]
    done = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0 and "trained answer" in done.stdout, done.stderr
