"""A hub that cannot be reached, or that says nothing to a question: an error in seconds that names what was asked."""

import socket
import time

import datasets
import huggingface_hub
import pytest

from recipes.configuration.compose import compose
from recipes.models.load import load_tokenizer
from recipes.sources import reach
from recipes.sources.load import load_data

MODEL = ["model=hub", "model.name_or_path=nobody/nothing", "trainer=finetune"]
DATA = ["data=hub", "data.hub_id=nobody/nowhere"]


@pytest.fixture
def asks(monkeypatch, tmp_path):
    """Libraries that are to ask the hub at an address."""

    def at(address: str) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
        monkeypatch.setattr(reach, "SECONDS_TO_ANSWER", 1)

    return at


CASES = {
    "model": (lambda: load_tokenizer(compose(MODEL).model), "model.name_or_path=nobody/nothing", "a local folder"),
    "data": (lambda: load_data(compose(DATA).data), "data.hub_id=nobody/nowhere", "data.path=<file or folder>"),
}


# Breaks if a library is left to try as often as it wants: with huggingface_hub 1.x a minute for each file of a model.
@pytest.mark.parametrize("what", CASES)
def test_a_hub_that_refuses(asks, what):
    ask, name, instead = CASES[what]
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    asks(f"http://127.0.0.1:{port}")
    started = time.monotonic()
    with pytest.raises(ValueError) as refused, pytest.warns(UserWarning, match=f"{name}: .*{port} cannot be reached"):
        ask()
    assert name in str(refused.value) and instead in str(refused.value)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("what", CASES)
def test_a_hub_that_says_nothing(asks, what):
    ask, name, instead = CASES[what]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asks(f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(
            ValueError, match=f"{name}: http://127.0.0.1:.* does not answer. HF_HUB_OFFLINE=1"
        ) as refused:
            ask()
    assert instead in str(refused.value)
    assert time.monotonic() - started < 10
