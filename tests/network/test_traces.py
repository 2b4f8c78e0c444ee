"""The traces of tests/traces.py are what the software writes that they are named after: its own classes say so."""

import ast
import importlib
import sys

import pytest
import traces
from packages import ATIF, TRL, VERIFIERS, VERL, source

from flexmask.conversations.formats import atif, verifiers

pytestmark = pytest.mark.network


@pytest.fixture
def models(monkeypatch):
    """The package `atif`; of what it needs only pydantic, which is installed."""
    monkeypatch.syspath_prepend(str(source(ATIF)))
    yield importlib.import_module("atif")
    for name in [one for one in sys.modules if one.partition(".")[0] == "atif"]:
        del sys.modules[name]


# Breaks if a trajectory of the tests is none: what is read of it would say nothing of real ones.
@pytest.mark.parametrize("kind", traces.TRAJECTORIES)
def test_trajectories_are_valid(models, kind):
    assert models.Trajectory.model_validate(traces.TRAJECTORIES[kind]).steps


def test_every_field_of_a_trajectory_is_known(models):
    module = importlib.import_module
    for known, name in (
        (atif._TRAJECTORY, "trajectory.Trajectory"), (atif._STEP, "step.Step"), (atif._TOOL_CALL, "tool_call.ToolCall"),
        (atif._RESULT, "observation_result.ObservationResult"),
    ):  # fmt: skip
        file, _, of = name.partition(".")
        assert set(getattr(module(f"atif.{file}"), of).model_fields) == known


def fields(file, of):
    """The annotated fields of a class, which is not imported."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (found,) = [one for one in ast.walk(tree) if isinstance(one, ast.ClassDef) and one.name == of]
    return {one.target.id for one in found.body if isinstance(one, ast.AnnAssign) and not one.target.id.startswith("_")}


def test_rollouts_of_verl_have_its_fields():
    given = fields(source(VERL) / "verl/experimental/agent_loop/agent_loop.py", "AgentLoopOutput")
    assert traces.VERL.keys() <= given
    dumped = (source(VERL) / "verl/trainer/ppo/v1/trainer_base.py").read_text(encoding="utf-8")
    assert all(f'"{key}": ' in dumped for key in traces.VERL_DUMP)


def test_traces_of_verifiers_have_its_fields():
    folder = source(VERIFIERS) / "verifiers/v1"
    node, trace, episode = (
        fields(folder / f"{file}.py", of)
        for file, of in (("graph", "MessageNode"), ("trace", "Trace"), ("episode", "Episode"))
    )
    # The three are named as not read: `rewards` may be what a user wants to train on.
    assert verifiers._TRACE >= trace - {"model_config", "state", "rewards"} and verifiers._EPISODE >= episode
    assert verifiers._NODE <= node
    one = traces.episode_of_verifiers()
    assert one.keys() <= episode and all(each.keys() <= node for each in one["traces"][0]["nodes"])


def test_rollouts_of_trl_have_the_keys_that_it_takes():
    code = (source(TRL) / "trl/trainer/grpo_trainer.py").read_text(encoding="utf-8")
    assert all(f'"{key}"' in code for key in traces.TRL)
