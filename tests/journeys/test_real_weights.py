"""Real weights on real conversations: SmolLM2-135M-Instruct on problems of GSM8K-Socratic."""

import json

import packages
import pytest
from journeys.told import told
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

pytestmark = pytest.mark.network
CONVERT = "python -m recipes.convert_gguf SOURCE.gguf OUT_DIR"
TRAIN = 'make train ARGS="experiment=smollm2_gsm8k model.name_or_path=<folder> data.path=<file>"'
QUESTION = "A box holds 14 pens and a bag 16. How many pens are there in both?"


@pytest.fixture(scope="module")
def converted(workshop):
    assert CONVERT in told()
    (workshop.folder / "real.gguf").symlink_to(packages.smollm2())
    done = workshop.run(CONVERT.replace("SOURCE.gguf", "real.gguf").replace("OUT_DIR", "smollm2"))
    assert done.last_line == "smollm2" and "30 layers" in done.out
    return workshop.folder / "smollm2"


@pytest.fixture(scope="module")
def trained(workshop, converted):
    assert TRAIN in told()
    small = "trainer.steps=8 trainer.save_every=0 data.heldout_conversations=2 evaluation.max_new_tokens=48 wandb=off"
    line = TRAIN.replace("<folder>", "smollm2").replace('<file>"', f'gsm8k.jsonl {small}"')
    done = workshop.run(line, timeout=600)
    return workshop.folder / done.last_line


def test_the_converter_says_how_it_is_used(workshop):
    done = workshop.run("python -m recipes.convert_gguf", code=None)
    assert "usage: python -m recipes.convert_gguf" in done.err


def test_the_loss_falls(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 8
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3]), losses


# Breaks if what was saved is not SmolLM2 any more: other tokens, lost weights, no end of turn.
def test_the_saved_model_chats(trained):
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    model = AutoModelForCausalLM.from_pretrained(trained / "model")
    assert model.num_parameters() == 134_515_008
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ends = model.generation_config.eos_token_id
    assert end in (ends if isinstance(ends, list) else [ends])
    chat = pipeline("text-generation", model=model, tokenizer=tokenizer)
    said = chat([{"role": "user", "content": QUESTION}], max_new_tokens=96, do_sample=False)[0]["generated_text"]
    answer = said[-1]["content"]
    assert said[-1]["role"] == "assistant" and any(word in answer for word in ("14", "16", "30")), answer
    assert len(tokenizer(answer).input_ids) < 96, "it does not end its turn"


def test_the_chats_of_the_run_are_written(trained):
    chats = [json.loads(line) for line in (trained / "chats.jsonl").read_text().splitlines()]
    assert {chat["conversation"] for chat in chats} and all(chat["answer"] or chat["thinking"] for chat in chats)
    assert (trained / "result.json").exists()
