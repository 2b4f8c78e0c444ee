"""What the documentation tells a user to type is run: each command by its entry in the table."""

import re
import shutil

import pytest
from journeys.conftest import furnish
from journeys.table import IN_CI, TABLE, TINY
from journeys.told import of_comments, of_makefile, of_markdown, told
from journeys.workshop import ROOT, Workshop, kill, train, wait_for

TOLD = told()


@pytest.fixture
def workshop(tmp_path, models, server):
    """A fresh one for each command."""
    made = Workshop(tmp_path, server)
    furnish(tmp_path, models)
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory, models, server):
    """Folders of a finished run, of an interrupted one, and of one with an adapter."""
    made = Workshop(tmp_path_factory.mktemp("runs"), server)
    furnish(made.folder, models)
    settings = [*TINY.split(), "wandb=off"]
    made.train(*settings, "output_dir=runs/finished")
    made.train(
        *"model=hub model.name_or_path=models/dense adapter=lora trainer=lora".split(),
        *"data=jsonl data.path=my.jsonl trainer.steps=3 evaluation.conversations=0 wandb=off".split(),
        "output_dir=runs/adapted",
    )
    process = made.start(train(*settings, "trainer.steps=60", "output_dir=runs/interrupted"))
    wait_for(lambda: list(made.folder.glob("runs/interrupted/checkpoints/*/trainer_state.json")), process)
    kill(process)
    process.wait()
    return made.folder / "runs"


def test_every_command_of_the_documentation_is_in_the_table():
    missing = {command: where for command, where in TOLD.items() if command not in TABLE}
    assert not missing, "no journey runs: " + "; ".join(f"{where}: {command}" for command, where in missing.items())


def test_the_table_has_no_command_that_nobody_tells():
    assert not TABLE.keys() - TOLD.keys()


def test_what_runs_elsewhere_or_otherwise_does_and_says_why():
    for command, how in TABLE.items():
        if how.runs_in:
            path = ROOT / how.runs_in if how.runs_in == ".ci/run" else ROOT / "tests/journeys" / how.runs_in
            assert IN_CI.get(command, command) in path.read_text(encoding="utf-8"), command
        others = how.replace.keys() - {"<folder>"}
        assert how.why or not (how.runs_in or any(not name.startswith("Qwen/") for name in others)), command


def test_commands_are_found_where_people_read_them():
    page = """Run `make this ARGS="a=1
b=2"` and `not_a_command`.

```
make that        # a remark
  make indented
python -m recipes.train a=1   words
```

```python
make = 1
```
"""
    assert of_markdown(page) == ["make that", "python -m recipes.train a=1", 'make this ARGS="a=1 b=2"']
    assert of_comments("# make not\n#   make me ARGS='x'   words\nkey: 1 # make no\n") == ["make me ARGS='x'"]
    assert of_makefile('a-b: $(X) ## words\n#  make x ARGS="y z"\nc:\n') == ["make a-b", 'make x ARGS="y z"']


@pytest.mark.parametrize("command", [command for command, how in TABLE.items() if not how.runs_in])
def test_a_command_does_what_it_is_told_for(workshop, runs, command):
    how = TABLE[command]
    if how.needs:
        shutil.copytree(runs / how.needs, workshop.folder / "runs/one")
    line = command
    for there, here in how.replace.items():
        assert there in line
        line = line.replace(there, here)
    if how.args:
        own = re.search(r'ARGS="([^"]*)"', line)
        line = line.replace(own[0], f'ARGS="{own[1]} {how.args}"') if own else f'{line} ARGS="{how.args}"'
    done = workshop.run(line)
    for words in how.shows:
        assert words in done.out, done
    for pattern in how.leaves:
        assert any(path.stat().st_size for path in workshop.folder.glob(pattern)), f"no {pattern} after\n{done}"
    if re.search(r"\bmake train\b", command) and "--dry-run" not in line:
        assert (workshop.folder / done.last_line / "result.json").exists(), "the last line is not the run folder"
