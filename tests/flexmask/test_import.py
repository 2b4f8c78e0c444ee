"""`import flexmask` costs nothing, and all of its names are there when asked for."""

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from import_weight import FLEXMASK, ROOT, TORCH, WITHOUT_MODEL, weights

import flexmask

# Of `import torch`, in time and in memory.
MOST = 1.2


def test_importing_flexmask_costs_little_more_than_importing_torch():
    """Broken by an eager import of a module with transformers or its Trainer in `flexmask/__init__.py`."""
    measured = weights([TORCH, FLEXMASK], rounds=3)
    (seconds_of_torch, memory_of_torch), (seconds, memory) = measured[TORCH], measured[FLEXMASK]
    assert seconds <= MOST * seconds_of_torch and memory <= MOST * memory_of_torch, measured


@pytest.mark.parametrize(
    ("statement", "without"),
    [
        ("import flexmask", ["numpy", "torch", "transformers"]),
        # What the processes that prepare conversations need of the library.
        ("import flexmask.text.rendering, flexmask.tree.layouts", ["torch", "transformers"]),
        (WITHOUT_MODEL, ["transformers", "accelerate"]),
    ],
)
def test_a_stage_imports_only_what_it_needs(statement, without):
    """Broken by an import that only annotations need, outside of TYPE_CHECKING."""
    check = f"{statement}\nimport sys\nprint([name for name in {without} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there_and_listed_once_for_python_and_once_for_type_checkers():
    """Broken by a name that is added to one of the three lists of `flexmask/__init__.py` alone."""
    tree = ast.parse(Path(flexmask.__file__).read_text())
    (for_checkers,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {name.name: node.module.removeprefix("flexmask.") for node in for_checkers.body for name in node.names}
    assert imported == flexmask._HOME_OF
    assert sorted(imported) == sorted(flexmask.__all__)
    assert set(flexmask.__all__) <= set(dir(flexmask))
    for name, module in imported.items():
        assert getattr(flexmask, name) is getattr(sys.modules[f"flexmask.{module}"], name)


def test_import_star_and_pickles_find_what_is_loaded_when_asked_for():
    names = {}
    exec("from flexmask import *", names)
    assert names["OnePassTrainer"] is flexmask.OnePassTrainer and set(flexmask.__all__) <= set(names)
    assert pickle.loads(pickle.dumps(flexmask.OnePassTrainer)) is flexmask.OnePassTrainer


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'flexmask' has no attribute 'OnePassTrainr'"):
        _ = flexmask.OnePassTrainr
    assert not hasattr(flexmask, "__path_to_nothing__")
