"""Every test that runs commands in a workshop is a journey: marked so, and out of the default run for its length."""

from pathlib import Path

import pytest
from journeys import assets
from journeys.workshop import Workshop

DATA = Path(__file__).parent / "data"


# While items are collected: `-m` and xdist's groups choose by the marks that are there right behind that.
def pytest_itemcollected(item):
    if "workshop" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.journey)
        if item.path.name != "test_commands.py":  # each command has a workshop of its own
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    assets.save_models(folder)
    return folder


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, models, server) -> Workshop:
    """A fresh checkout with a user's files in it: models/, my.jsonl and what else `furnish` makes."""
    made = Workshop(tmp_path_factory.mktemp("workshop"), server)
    furnish(made.folder, models)
    return made


def furnish(folder: Path, models: Path) -> None:
    (folder / "models").symlink_to(models)
    assets.write_jsonl(folder / "my.jsonl", assets.conversations(12))
    assets.write_jsonl(folder / "eight.jsonl", assets.conversations(8))
    assets.write_jsonl(folder / "one.jsonl", assets.conversations(1))
    assets.write_jsonl(folder / "long.jsonl", [*assets.conversations(6), *assets.conversations(1, turns=12)])
    assets.write_jsonl(folder / "inline.jsonl", [assets.inline(one) for one in assets.conversations(12)])
    assets.write_jsonl(folder / "sharegpt.jsonl", [assets.sharegpt(one) for one in assets.conversations(12)])
    rollout = {"prompt_ids": [1, 5], "response_ids": [7, 8, 30, 31, 9], "response_mask": [1, 1, 0, 0, 1]}
    assets.write_jsonl(folder / "rollouts.jsonl", [rollout])
    (folder / "gsm8k.jsonl").symlink_to(DATA / "gsm8k_socratic_sample.jsonl")
    (folder / "tau2.jsonl").symlink_to(DATA / "tau2_sample.jsonl")
