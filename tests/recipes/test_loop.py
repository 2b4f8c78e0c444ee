"""The loop that is the page to read first trains what recipes/train.py trains."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from flexmask.conversations.reading import read_conversation
from recipes import loop
from recipes.configuration.compose import compose
from recipes.models.tiny import build_model, build_tokenizer
from recipes.sources import tutoring
from recipes.train import train

SIZES = {"layers": 2, "hidden_size": 32}
# Twelve conversations in steps of two: ten steps go on into a second epoch, with another order. Some conversations are
# longer than a pack, and most steps have several packs.
CONVERSATIONS, STEPS, PACK_LENGTH = 12, 10, 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a run of recipes/train.py."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settings = {
            **{f"model.tiny.{name}": value for name, value in SIZES.items()},
            "data.train_conversations": CONVERSATIONS,
            "data.heldout_conversations": 0,
            "duplication.pack_length": PACK_LENGTH,
            "evaluation.conversations": 0,
            "trainer.steps": STEPS,
            "trainer.conversations_per_step": 2,
            "trainer.warmup_steps": 3,
            "trainer.log_every": 1,
            "trainer.save_every": 0,
            "seed": 5,
            "wandb": "off",
        }
        train(compose([f"{name}={value}" for name, value in settings.items()]))
    return folder / "runs/composed"


def test_losses_and_weights_are_those_of_train(folder):
    """Broken by another order of batches, a loss that is divided pack by pack, another schedule or weight decay."""
    tokenizer = build_tokenizer()
    model = build_model(seed=5, vocab_size=len(tokenizer), **SIZES)
    records = tutoring.generate(CONVERSATIONS, seed=0, split="train")
    conversations = [read_conversation(record, f"record {i}") for i, record in enumerate(records)]
    settings = dict(steps=STEPS, conversations_per_step=2, pack_length=PACK_LENGTH, warmup_steps=3, seed=5)
    losses = list(loop.train(model, tokenizer, conversations, **settings))

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = [line["loss"] for line in lines if "loss" in line]
    assert len(expected) == STEPS
    assert losses == pytest.approx(expected, rel=1e-6)
    trained = AutoModelForCausalLM.from_pretrained(folder / "model")
    for (name, ours), theirs in zip(model.named_parameters(), trained.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6), name


def test_a_run_may_be_as_short_as_its_warmup():
    assert loop.cosine(4, warmup_steps=4, steps=4) == 1


def test_it_runs_as_it_says_and_prints_losses(capsys):
    loop.main(6)
    printed = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [int(line[1]) for line in printed] == [1, 5]
    assert float(printed[1][3]) < float(printed[0][3])


def test_it_is_short_enough_to_be_read_first():
    assert len(Path(loop.__file__).read_text().splitlines()) <= 120


def test_data_without_a_turn_to_train_is_refused():
    record = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "train": False}]}
    tokenizer = build_tokenizer()
    model = build_model(seed=0, vocab_size=len(tokenizer), **SIZES)
    with pytest.raises(ValueError, match="none of the 1 conversations has a turn to train"):
        next(loop.train(model, tokenizer, [read_conversation(record, "untrained")], steps=1))
