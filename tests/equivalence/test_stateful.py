"""Layers whose state does not branch: refused in one pass by name, exact as one pass a turn and one row a pack."""

import warnings

import pytest
import torch
from factories import chatml_tokenizer, random_conversation, random_passes
from reference import gradients, per_turn_loss, record_model, worst_gradient_difference
from stateful_families import UNBRANCHED
from transformers import TrainingArguments

from flexmask import (
    OnePassCollator,
    OnePassTrainer,
    UnsupportedModelError,
    lay_out,
    pack,
    prepare_conversation,
    prepare_model,
    token_losses,
)
from flexmask.model.exactness import check_exact
from flexmask.model.support import branching_layers, unbranched_layers

BLOCK = 16
LOSS, GRADIENT = 1e-12, 1e-11
PASSES = random_passes(10, turns=3, vocab=60)
ROWS = lay_out(PASSES, "per_turn").rows


def loss_of(model, packs):
    return sum(token_losses(model, one, BLOCK).total for one in packs)


# Breaks if one kind of stateful layer goes unseen: its model would train with branches leaking into each other.
@pytest.mark.parametrize("name", UNBRANCHED)
def test_refused_in_one_pass_by_name(name):
    model = UNBRANCHED[name].build(torch.float32)
    layers = unbranched_layers(model)
    assert branching_layers(model) == []
    with pytest.raises(UnsupportedModelError, match='carry state from token to token.*layout="per_turn"') as refusal:
        prepare_model(model)
    assert layers[0] in str(refusal.value)
    # Full attention, window and feed-forward layers are not among them.
    assert not any(word in layer for layer in layers for word in ("mlp", "Mlp", "MLP", "q_proj", "norm"))


@pytest.mark.parametrize("name", UNBRANCHED)
def test_exact_per_turn(name, record_property):
    model = UNBRANCHED[name].build(torch.float64)
    reference = per_turn_loss(model, PASSES)
    reference_gradients = gradients(model, reference)
    prepare_model(model, chains=True)
    mine = loss_of(model, OnePassCollator(512, block_size=BLOCK, one_row_per_pack=True)([ROWS])["packs"])
    loss_difference = abs(mine.item() / reference.item() - 1)
    gradient_difference = worst_gradient_difference(reference_gradients, gradients(model, mine))
    differences = (loss_difference, gradient_difference)
    record_model(record_property, name, UNBRANCHED[name], model, "per turn", differences, unbranched_layers(model)[0])
    assert loss_difference <= LOSS
    assert gradient_difference <= GRADIENT


# The reason for the refusal: without it, state leaks from row to row and the loss is another.
@pytest.mark.parametrize("name", UNBRANCHED)
def test_packing_would_leak(name):
    model = UNBRANCHED[name].build(torch.float64)
    exact = per_turn_loss(model, PASSES).item()
    (one,) = pack(ROWS, 512)
    indices = torch.nonzero(one.loss_weights[0] > 0).flatten()
    logits = model(input_ids=one.input_ids, use_cache=False).logits[0, one.previous[0, indices]]
    packed = torch.nn.functional.cross_entropy(logits, one.input_ids[0, indices], reduction="sum").item()
    assert abs(packed / exact - 1) > 1e-6
    with pytest.raises(UnsupportedModelError, match=r"would let branches and packed rows see each other .*random:10"):
        token_losses(prepare_model(model, chains=True), one, BLOCK)


@pytest.mark.parametrize("name", UNBRANCHED)
def test_the_check_before_training_passes(name):
    check_exact(prepare_model(UNBRANCHED[name].build(torch.float32), chains=True), BLOCK)


def conversations(layout):
    tokenizer = chatml_tokenizer()
    return [prepare_conversation(random_conversation(i, turns=3), tokenizer, layout=layout).rows for i in range(4)]


def trainer(tmp_path, dataset, **more):
    config = UNBRANCHED["MiniMax"].config()
    config.vocab_size = len(chatml_tokenizer())
    torch.manual_seed(0)
    from transformers import AutoModelForCausalLM

    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, logging_steps=1
    )
    model = AutoModelForCausalLM.from_config(config)
    return OnePassTrainer(model, arguments, OnePassCollator(1024, block_size=BLOCK), train_dataset=dataset, **more)


def test_the_trainer_refuses_a_row_that_branches_and_offers_per_turn(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"the row of random:\d branches; .*layout=\"per_turn\""):
        trainer(tmp_path, conversations("one_pass"))
    with pytest.warns(UserWarning, match="carry state"), pytest.raises(UnsupportedModelError, match="branches"):
        trainer(tmp_path, conversations("per_turn")).evaluate(conversations("one_pass"))


def test_the_trainer_runs_one_row_a_pack_and_says_so(tmp_path):
    rows = conversations("per_turn")
    with pytest.warns(
        UserWarning, match=r"1 layers carry state .*MiniMaxLightningAttention.*every row is a pack of its own"
    ):
        one = trainer(tmp_path, rows)
    one.train()
    assert one.run_totals.packs == sum(len(rows[i]) for i in range(4))
    assert one.evaluate(rows)["eval_loss"] > 0


# A template that keeps thinking makes chains in one pass; nothing branches, so nothing leaks.
def test_one_pass_rows_that_are_chains_are_allowed(tmp_path):
    rows = conversations("keep_thinking")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tmp_path, rows).train()
