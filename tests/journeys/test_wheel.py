"""Without the repository: a wheel is built and installed, and its command trains, evaluates and inspects."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from forked import clean_environment
from journeys.conftest import furnish
from journeys.table import FINETUNE
from journeys.told import told
from journeys.workshop import ROOT

# No `workshop` makes these journeys; one process builds the wheel for all of them.
pytestmark = [pytest.mark.journey, pytest.mark.xdist_group("test_wheel")]
BUILD, INSTALL, HELP = "pip wheel --no-deps -w dist .", "pip install dist/*.whl", "flexmask --help"
TRAIN = "flexmask train model=hub model.name_or_path=Qwen/Qwen3-1.7B trainer=finetune data=jsonl data.path=my.jsonl"
SOURCES = ("flexmask", "recipes", "conf", "pyproject.toml", "README.md", "LICENSE")


class Installed:
    """A virtual environment with the wheel, and a folder with the user's files and nothing of the repository."""

    def __init__(self, environment: Path, folder: Path) -> None:
        self.environment, self.folder = environment, folder

    def run(self, *words: str, code: int = 0) -> subprocess.CompletedProcess:
        path = {"PATH": f"{self.environment / 'bin'}:{os.environ['PATH']}"}
        done = subprocess.run(words, cwd=self.folder, env=clean_environment() | path, capture_output=True, text=True)
        assert done.returncode == code and "Traceback" not in done.stderr, f"{words}\n{done.stdout}\n{done.stderr}"
        return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory, models) -> Installed:
    # A copy, because building leaves build/ behind, which the next wheel would be made of.
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    # With the setuptools that is there: an isolated build would fetch one.
    subprocess.run([*pip, *BUILD.split()[1:], "--no-build-isolation", "-q"], cwd=source, check=True)
    (wheel,) = (source / "dist").glob("*.whl")
    environment, folder = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("user")
    venv.create(environment)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    python = environment / "bin/python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "-q", str(wheel)], check=True)
    # The libraries are those that the tests run with. A folder that is named here comes behind the environment's own,
    # and its own .pth files are not read, so that the checkout, which one of them names, is not found through it.
    (own / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    furnish(folder, models)
    return Installed(environment, folder)


@pytest.fixture(scope="module")
def trained(installed) -> str:
    words = TRAIN.replace("Qwen/Qwen3-1.7B", "models/dense").split()
    *_, folder = installed.run(*words, *FINETUNE.split(), "wandb=off").stdout.splitlines()
    return folder


def test_the_documentation_tells_it():
    assert {BUILD, INSTALL, HELP, TRAIN} <= told().keys()


# Breaks if the checkout is what is tested, or if conf/ is not in the wheel.
def test_everything_comes_from_the_wheel(installed):
    where = "import flexmask, recipes; from recipes.configuration import CONF_DIR; print(flexmask.__file__, CONF_DIR)"
    library, conf = installed.run("python", "-c", where).stdout.split()
    assert Path(library).is_relative_to(installed.environment) and Path(conf).is_relative_to(installed.environment)
    packed, kept = ({str(path.relative_to(at)) for path in at.rglob("*.yaml")} for at in (Path(conf), ROOT / "conf"))
    assert packed == kept
    packed, kept = (
        {str(path.relative_to(at)) for name in ("flexmask", "recipes") for path in (at / name).rglob("*.py")}
        for at in (Path(library).parents[1], ROOT)
    )
    assert packed == kept


def test_a_run_and_what_comes_after_it(installed, trained):
    folder = installed.folder / trained
    assert (folder / "model/model.safetensors").is_file() and (folder / "block_mask.png").is_file()
    result = json.loads((folder / "result.json").read_text())
    # Breaks if a wheel says the commit of whatever checkout its environment lies in.
    assert result["steps"] == 4 and result["git_commit"] is None
    evaluated = json.loads(
        installed.run("flexmask", "evaluate", trained, "my.jsonl", "evaluation.conversations=1").stdout
    )
    assert evaluated["chatted_conversations"] == 1


def test_the_inspector(installed):
    assert "plain copy" in installed.run("flexmask", "inspect", "data.train_conversations=20").stdout


# Breaks if the templates, styles and scripts of the page are not in the wheel.
def test_the_explorer(installed):
    *_, page = installed.run(
        "flexmask", "explore", "my.jsonl:2", "data=jsonl", "data.path=my.jsonl"
    ).stdout.splitlines()
    text = (installed.folder / page).read_text()
    assert "class Row" in text and "::highlight(seen)" in text and "my.jsonl:2" in text


def test_what_is_wrong_is_named_with_the_command_at_hand(installed, trained):
    assert "trainer.stepz" in installed.run("flexmask", "train", "trainer.stepz=1", code=1).stderr
    done = installed.run("flexmask", "trian", code=1)
    assert "flexmask trian: no such command; there are train, evaluate" in done.stderr
    (installed.folder / "begun").mkdir()
    shutil.copy(installed.folder / trained / "config.yaml", installed.folder / "begun")
    # There is no Makefile where a wheel is used.
    assert "flexmask train resume=begun" in installed.run("flexmask", "evaluate", "begun", code=1).stderr


def test_help_lists_the_commands(installed):
    out = installed.run("flexmask", "--help").stdout
    assert "inspect" in out and "Show what a run would train" in out and "convert_gguf" in out
