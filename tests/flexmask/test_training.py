"""The Trainer: what it trains does not depend on layout, pack length, accumulation or an interruption."""

import json

import pytest
import torch
from factories import chatml_tokenizer, in_double, tiny_qwen3
from reference import gradients, per_turn_loss
from trainers import CONVERSATIONS, STEPS, VOCAB, KillAt, Killed, assert_same_run, make_trainer, rows_in, trained

from flexmask import NonFiniteLossError, OnePassCollator, OnePassTrainer, render_passes


# Breaks if a step's normalisation counts packs, rows or copies instead of the target weight of its conversations.
@pytest.mark.parametrize(
    ("model", "other"),
    [
        ("attention", {"layout": "per_turn"}),
        ("attention", {"pack_length": 512}),
        ("attention", {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}),
        ("hybrid", {"layout": "per_turn", "pack_length": 512}),
    ],
    ids=["per_turn", "pack_length", "accumulation", "hybrid"],
)
def test_the_same_run_whatever_the_layout_pack_length_or_accumulation(tmp_path, model, other):
    left, right = make_trainer(tmp_path, model=model), make_trainer(tmp_path, model=model, **other)
    assert_same_run(trained(left), trained(right))
    if "layout" in other:
        # Rows of a turn share packs as well, whether layers carry state or not.
        assert right.run_totals.packs < sum(len(rows) for rows in right.train_dataset) / 2


def test_another_layout_is_another_run(tmp_path):
    exact = trained(make_trainer(tmp_path))[0]
    kept = trained(make_trainer(tmp_path, layout="keep_thinking"))[0]
    assert abs(exact[STEPS] / kept[STEPS] - 1) > 1e-4


def names_of_first_batch(trainer):
    """The conversations of step 1; the trainer is used up, because looking moves its random order on."""
    return {name for p in next(iter(trainer.get_train_dataloader()))["packs"] for name in p.rows}


# The reference knows no Trainer: mean over the trained tokens of all passes of the first batch.
def test_the_first_loss_and_gradient_norm_are_those_of_per_turn_training(tmp_path):
    names = names_of_first_batch(make_trainer(tmp_path, max_steps=1))
    passes = [p for c in CONVERSATIONS if c.name in names for p in render_passes(c, chatml_tokenizer())]
    model = tiny_qwen3(VOCAB, torch.float64)
    loss = per_turn_loss(model, passes) / sum(p.loss_weights.sum() for p in passes)
    norm = torch.stack([g.norm() for g in gradients(model, loss).values()]).norm()
    trainer = make_trainer(tmp_path, max_steps=1, max_grad_norm=1e9)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert first["grad_norm"] == pytest.approx(norm.item(), rel=1e-6)


def test_logs_say_what_was_computed(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    entry = trainer.state.log_history[0]
    for name in ("thinking_loss", "answer_loss", "tokens_per_second", "trained_tokens_per_second"):
        assert entry[name] > 0
    assert 0 < entry["pack_fill"] <= 1 and 0 < entry["block_sparsity"] < 1
    assert trainer.run_totals.tokens_computed == sum(len(row) for rows in rows_in("one_pass") for row in rows)
    assert trainer.run_totals.tokens_trained == sum(
        (row.loss_weights > 0).sum() for rows in rows_in("one_pass") for row in rows
    )
    assert trainer.run_totals.seconds > 0


def test_thinking_and_answer_losses_average_to_the_loss(tmp_path):
    names, sums = names_of_first_batch(make_trainer(tmp_path)), {"thinking": 0, "answer": 0}
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    entry = trainer.state.log_history[0]
    for p in (p for c in CONVERSATIONS if c.name in names for p in render_passes(c, chatml_tokenizer())):
        for role, value in (("thinking", 1), ("answer", 2)):
            sums[role] += int(((p.roles == value) & (p.loss_weights > 0)).sum())
    mean = (entry["thinking_loss"] * sums["thinking"] + entry["answer_loss"] * sums["answer"]) / sum(sums.values())
    assert mean == pytest.approx(entry["loss"], rel=1e-6)


# Breaks if the data order, the scheduler, the optimizer or the totals start anew.
def test_a_run_killed_between_checkpoints_and_resumed_is_the_run_that_was_not(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(tmp_path / "whole", **settings)
    expected = trained(whole)
    with pytest.raises(Killed):
        make_trainer(tmp_path / "killed", callbacks=[KillAt(5)], **settings).train()
    resumed = make_trainer(tmp_path / "killed", **settings)
    assert_same_run(expected, trained(resumed, resume_from_checkpoint=True), tolerance=1e-12)
    state = json.loads((tmp_path / "killed" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    assert state["global_step"] == STEPS
    for name in ("tokens_computed", "tokens_trained", "packs"):
        assert getattr(resumed.run_totals, name) == getattr(whole.run_totals, name)


# Breaks if the check comes after the backward pass or the optimizer step.
def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_rows(tmp_path):
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        trainer.model.lm_head.weight[5] = float("nan")
    before = trainer.model.model.embed_tokens.weight.clone()
    with pytest.raises(NonFiniteLossError, match=r"step 1: the loss is nan in a pack with the rows random:\d+"):
        trainer.train()
    assert torch.equal(trainer.model.model.embed_tokens.weight, before)
    assert trainer.state.global_step == 0


def test_heldout_loss_is_the_exact_mean_over_all_tokens(tmp_path):
    trainer = make_trainer(tmp_path)
    passes = [p for c in CONVERSATIONS for p in render_passes(c, chatml_tokenizer())]
    model = tiny_qwen3(VOCAB, torch.float64)
    expected = per_turn_loss(model, passes).item() / sum(float(p.loss_weights.sum()) for p in passes)
    metrics = trainer.evaluate(rows_in("one_pass"))
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-9)
    assert metrics["eval_thinking_loss"] > 0 and metrics["eval_answer_loss"] > 0


def test_gradient_checkpointing_changes_nothing(tmp_path):
    kwargs = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}}
    with in_double():  # checkpointing computes the forward again, outside of it
        assert_same_run(trained(make_trainer(tmp_path)), trained(make_trainer(tmp_path, **kwargs)), tolerance=1e-12)


@pytest.mark.parametrize(
    "arguments, message", [({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1: is not part of the loss")]
)
def test_settings_that_would_be_ignored_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **arguments)


def test_a_conversation_without_rows_is_named_before_training(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match=r"1 conversations have no rows .*\(indices 1\)"):
        OnePassTrainer(trainer.model, trainer.args, trainer.data_collator, train_dataset=[rows_in("one_pass")[0], ()])


def test_a_pack_length_below_one_is_refused():
    with pytest.raises(ValueError, match="pack_length=0 must be positive"):
        OnePassCollator(0)
