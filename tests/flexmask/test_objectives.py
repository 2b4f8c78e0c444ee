"""Objectives in a Trainer: what it refuses, what it logs, its reference, and records that are divided over packs."""

import math
import warnings

import numpy as np
import pytest
import torch
from factories import chatml_tokenizer, random_candidates, tiny_qwen3
from trainers import KillAt, Killed, Stream, assert_same_run, make_trainer, pairs_in, rows_in, trained

from flexmask import OnePassCollator, OnePassConfig, OnePassTrainer, lay_out, pack, prepare_model, token_losses
from flexmask.objectives.log_probs import pass_log_probs
from flexmask.objectives.policy import policy_loss
from flexmask.objectives.preference import KINDS, Preference
from flexmask.tree.passes import PassTable

TOKENIZER = chatml_tokenizer()
PAIR = {"prompt": "q", "chosen": "<think>\na\n</think>\n\nb", "rejected": "c"}


# Breaks if a pair that is divided over packs loses a part, counts twice, or meets itself in a pack.
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_run_whatever_the_packs(tmp_path, kind):
    whole, divided, apart = (
        trained(make_trainer(tmp_path, preferences=kind, **settings))
        for settings in ({"pack_length": 512}, {"pack_length": 96}, {"pack_length": 96, "layout": "per_turn"})
    )
    assert any(len(rows) > 1 for rows in pairs_in("one_pass", 96))
    assert_same_run(whole, divided)
    assert_same_run(whole, apart)


# Breaks if the first step does not know the model as its own reference: the loss of a pair is then log 2.
def test_the_reference_is_the_model_before_training(tmp_path):
    trainer = make_trainer(tmp_path, preferences="sigmoid", max_steps=3)
    losses, _ = trained(trainer)
    assert losses[1] == pytest.approx(math.log(2), abs=1e-7) and losses[2] != pytest.approx(math.log(2), abs=1e-4)
    logged = next(entry for entry in trainer.state.log_history if entry["step"] == 3)
    assert {"preference_accuracy", "preference_margin", "thinking_loss"} <= logged.keys()


# Breaks if a run that goes on asks the trained model for the reference.
def test_a_run_that_goes_on_has_the_same_reference(tmp_path):
    settings = {"preferences": "ipo", "save_strategy": "steps", "save_steps": 2, "pack_length": 96}
    alone = trained(make_trainer(tmp_path / "alone", **settings))
    with pytest.raises(Killed):
        make_trainer(tmp_path / "killed", callbacks=[KillAt(3)], **settings).train()
    again = make_trainer(tmp_path / "killed", **settings)
    _, parameters = trained(again, resume_from_checkpoint=True)
    assert all((parameters[name] == alone[1][name]).all() for name in parameters)
    (tmp_path / "killed" / "reference-train.npz").unlink()
    with pytest.raises(ValueError, match="reference-train.npz is not there: .*begin a new run"):
        make_trainer(tmp_path / "killed", **settings).train(resume_from_checkpoint=True)


def test_a_reference_of_other_data_is_refused(tmp_path):
    settings = {"preferences": "sigmoid", "save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, **settings, max_steps=2).train()
    path = tmp_path / "reference-train.npz"
    with np.load(path) as saved:
        lengths, values = saved["lengths"], saved["values"]
    np.savez(path, lengths=lengths[:-1], values=values)
    with pytest.raises(ValueError, match="is the reference of other data"):
        make_trainer(tmp_path, **settings).train(resume_from_checkpoint=True)


# Breaks if the reference of one turn stands at another, in a record whose passes are laid out in another order.
def test_each_pass_has_its_own_reference(tmp_path):
    trainer = make_trainer(tmp_path, preferences="sigmoid", pack_length=96, max_steps=1)
    trainer.train()
    model = prepare_model(tiny_qwen3(len(TOKENIZER), torch.float64))
    for rows, conversation in zip(trainer.train_dataset, pairs_in("one_pass", 96), strict=True):
        alone = {}
        for row in conversation:
            (one,) = pack([row], 96)
            with torch.no_grad():
                losses = token_losses(model, one, 16).losses
            one.passes.log_prob[~one.passes.is_here] = 0
            sums = pass_log_probs(-losses, one)
            alone |= {int(row.passes.turn[i]): sums[i].item() for i in np.flatnonzero(row.passes.is_here)}
        for row in rows:
            expected = [alone[turn] for turn in row.passes.turn.tolist()]
            np.testing.assert_allclose(row.passes.reference, expected, rtol=1e-9)


def test_held_out_pairs_are_measured_before_and_after(tmp_path):
    trainer = make_trainer(tmp_path, preferences="sigmoid", heldout=True)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(2), abs=1e-7)
    trainer.train()
    assert trainer.evaluate()["eval_preference_margin"] != 0
    with pytest.raises(ValueError, match="the reference is the model as it was before training.*as eval_dataset"):
        trainer.evaluate(pairs_in("one_pass", 1024)[5:8])


def test_records_are_prepared_as_others_are(tmp_path):
    trainer = OnePassTrainer(
        tiny_qwen3(len(TOKENIZER), torch.float32),
        OnePassConfig(str(tmp_path), max_steps=1, use_cpu=True, disable_tqdm=True, save_strategy="no", block_size=16),
        train_dataset=[PAIR, PAIR | {"chosen": "d"}],
        processing_class=TOKENIZER,
        objective=Preference("ipo", 0.5),
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(1.0, abs=1e-5)  # (0 - 1 / (2 beta))^2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": None, "data": pairs_in("one_pass", 1024)}, "its answers compete .*objective=Preference"),
        ({"data": rows_in("one_pass")}, "this record has one answer; give 'chosen' and 'rejected'"),
        (
            {"data": [lay_out(random_candidates(0, 3, (0, 1, 2)), "one_pass").rows]},
            "this record has answers of the rewards 0, 1, 2",
        ),
        (
            {"data": [lay_out(random_candidates(0, 2, (1, 1)), "one_pass").rows]},
            "this record has answers of the rewards 1, 1",
        ),
        ({"data": Stream(pairs_in("one_pass", 1024))}, "objective with a stream"),
        ({"objective": lambda log_probs, pack: 0}, r"objective is a function; give Preference\(kind, beta\)"),
        ({"context_parallel": True}, "objective with context_parallel"),
    ],
)
def test_what_an_objective_cannot_train_is_refused_before_training(settings, message, tmp_path):
    settings = {"objective": Preference(), "data": pairs_in("one_pass", 1024), "context_parallel": False} | settings
    with pytest.raises(ValueError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        OnePassTrainer(
            tiny_qwen3(len(TOKENIZER), torch.float32),
            OnePassConfig(str(tmp_path), pack_length=1024, use_cpu=True, context_parallel=settings["context_parallel"]),
            train_dataset=settings["data"],
            processing_class=TOKENIZER,
            objective=settings["objective"],
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Preference("hinge"), "kind='hinge': write one of sigmoid, sigmoid_norm, ipo"),
        (lambda: Preference(beta=0), "beta=0 must be positive"),
        (lambda: policy(torch.zeros(3)), "advantages has the shape"),
        (lambda: policy(torch.zeros(9), kl=0.1), "kl=0.1: it takes kl above 0 and reference_log_probs together"),
        (lambda: policy(torch.zeros(9), average="mean"), "average='mean': write"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def policy(advantages, **settings):
    (one,) = pack(lay_out(random_candidates(3, 3, (0, 1, 2)), "one_pass").rows, 512)
    return policy_loss(prepare_model(tiny_qwen3(len(TOKENIZER), torch.float64)), one, advantages, **settings)


# Without a Trainer nothing knows what the model gives passes of other packs.
def test_a_divided_pair_needs_the_trainer():
    rows = next(rows for rows in pairs_in("one_pass", 96) if len(rows) > 1)
    model = prepare_model(tiny_qwen3(len(TOKENIZER), torch.float64))
    with pytest.raises(ValueError, match="are divided over several packs, .*raise pack_length, or train with OnePass"):
        token_losses(model, pack(rows, 96)[0], 16, Preference())


# A process that has nothing to do in a batch runs a pack without passes: its part of the loss is 0, with a gradient.
def test_a_pack_without_pairs_is_nothing():
    batch = pairs_in("one_pass", 512)[:1]
    shares = [
        OnePassCollator(512, processes=2, process_index=i, objective=Preference())(batch)["packs"] for i in range(2)
    ]
    empty = next(one for packs in shares for one in packs if not len(one.passes))
    model = prepare_model(tiny_qwen3(len(TOKENIZER), torch.float64))
    result = token_losses(model, empty, 16, Preference())
    result.total.backward()
    assert result.total == 0 and result.figures["pairs"] == 0


def test_tables_of_rows_are_joined_each_pass_once():
    rows = next(rows for rows in pairs_in("one_pass", 96) if len(rows) > 1)
    both = PassTable.joined(row.passes for row in rows)
    assert sorted(both.turn) == sorted(set(both.turn)) and both.is_here.all()
