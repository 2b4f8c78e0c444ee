"""A run over its whole life: interrupted, resumed when it had ended, evaluated on the way, stopped by bad numbers."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from factories import in_double
from trainers import CONVERSATIONS, STEPS, KillAt, Killed, make_trainer, rows_in, trained
from transformers import EarlyStoppingCallback, TrainerCallback

from flexmask import NonFiniteLossError, OnePassCollator, OnePassTrainer
from flexmask.training.nonfinite import SavedPacks, load_packs, newest_packs, save_packs

HELDOUT = rows_in("one_pass")[:6]


class Steps(TrainerCallback):
    """The steps that were begun."""

    def __init__(self):
        self.begun = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun.append(state.global_step)


# Breaks if a run that was killed behind its last checkpoint trains "step 25 of 24".
@pytest.mark.parametrize(
    "length",
    [{"max_steps": 9}, {"max_steps": -1, "num_train_epochs": 2}, {"max_steps": -1, "num_train_epochs": 1.5}],
    ids=["steps", "epochs", "part of an epoch"],
)
def test_a_run_resumed_from_its_last_step_trains_nothing(tmp_path, length):
    settings = {"save_strategy": "steps", "save_steps": 3} | length
    whole = make_trainer(tmp_path, **settings)
    expected = whole.train()
    steps = Steps()
    resumed = make_trainer(tmp_path, callbacks=[steps], **settings)
    found = resumed.train(resume_from_checkpoint=True)
    assert steps.begun == []
    assert found.global_step == expected.global_step == resumed.state.max_steps
    assert found.training_loss == pytest.approx(expected.training_loss, rel=1e-12)
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(resumed.model.get_parameter(name), parameter)


# Breaks if the loss of the steps before the interruption, or those behind the last log, are not counted.
@pytest.mark.parametrize("logging_steps", [1, 4])
def test_the_loss_of_a_resumed_run_is_that_of_all_its_steps(tmp_path, logging_steps):
    settings = {"save_strategy": "steps", "save_steps": 2, "logging_steps": logging_steps}
    expected = make_trainer(tmp_path / "whole", **settings).train()
    with pytest.raises(Killed):
        make_trainer(tmp_path / "killed", callbacks=[KillAt(3)], **settings).train()
    resumed = make_trainer(tmp_path / "killed", **settings)
    found = resumed.train(resume_from_checkpoint=True)
    assert found.training_loss == pytest.approx(expected.training_loss, rel=1e-6)
    assert resumed.state.log_history[-1]["train_loss"] == found.metrics["train_loss"] == found.training_loss


def test_a_second_run_of_a_trainer_counts_anew(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    first = trainer.run_totals.tokens_computed
    trainer.train()
    assert trainer.run_totals.tokens_computed == first


class SeesSteps(TrainerCallback):
    """Fails when the optimizer moves."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        raise AssertionError("the optimizer steps")


# Breaks if the optimizer steps over a gradient that is not finite, and a checkpoint of ruined weights is written.
@pytest.mark.parametrize(("max_grad_norm", "value"), [(1.0, "nan"), (0.0, "inf")])
def test_a_gradient_that_is_not_finite_stops_before_the_step_and_names_the_rows(tmp_path, max_grad_norm, value):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_grad_norm": max_grad_norm}
    trainer = make_trainer(tmp_path, callbacks=[SeesSteps()], **settings)
    trainer.model.model.layers[0].mlp.up_proj.weight.register_hook(
        lambda gradient: torch.full_like(gradient, float(value))
    )
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    with pytest.raises(NonFiniteLossError, match=f"step 1: the norm of the gradient is {value} of the rows") as error:
        trainer.train()
    assert sum(f"{one.name}," in f"{error.value},".replace(";", ",") for one in CONVERSATIONS) == 4
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name])
    assert not list(tmp_path.glob("checkpoint-*"))
    (file,) = newest_packs(tmp_path)
    saved = load_packs(file)
    assert error.value.file == file
    assert str(file) in str(error.value) and f"{saved.said}. Its packs are in" in str(error.value)
    assert saved.step == 1 and sum(float(one.loss_weights.sum()) for one in saved.packs) == saved.weight
    assert len({name for one in saved.packs for name in one.rows}) == 4


# Breaks if processes write into one file, or a process writes what another has trained.
def test_each_process_keeps_its_own_packs(tmp_path, python):
    python.run_on_ranks(2, "ranks.notfinite", str(tmp_path), cwd=tmp_path)
    files = newest_packs(tmp_path)
    assert [file.name for file in files] == ["step-1-process-0.pt", "step-1-process-1.pt"]
    saved = [load_packs(file) for file in files]
    assert saved[0].weight == saved[1].weight
    assert sum(float(one.loss_weights.sum()) for both in saved for one in both.packs) == saved[0].weight


def test_the_packs_of_a_full_disk_do_not_hide_the_error(tmp_path):
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        trainer.model.lm_head.weight[5] = float("nan")
    (tmp_path / "nonfinite").write_text("in its place")
    with pytest.raises(NonFiniteLossError, match="the loss is nan .* could not be written to a file .*exists") as error:
        trainer.train()
    assert error.value.file is None


# Breaks if a disk that fills up leaves half a file of packs, which the command that replays them would find.
def test_packs_that_could_not_be_written_to_their_end_are_not_there(tmp_path, monkeypatch):
    def fills_up(value, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("inline_container.cc: unexpected pos 64 vs 0")

    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        trainer.model.lm_head.weight[5] = float("nan")
    monkeypatch.setattr(torch, "save", fills_up)
    with pytest.raises(NonFiniteLossError, match="could not be written to a file .*unexpected pos"):
        trainer.train()
    assert newest_packs(tmp_path) == [] == list((tmp_path / "nonfinite").iterdir())


# Breaks if what one of several processes computes of a pack is kept in place of it, or an older step is the newest.
def test_the_newest_packs_are_whole(tmp_path):
    (one,) = OnePassCollator(1024, block_size=16, context_parallel=True, processes=2)(HELDOUT[:1])["packs"]
    assert one.context is not None
    for age, step in ((20, 9), (10, 10)):
        for process in (0, 1):
            file = save_packs(SavedPacks(step, "said", 1.0, [one]), tmp_path, process)
            os.utime(file, (time.time() - age,) * 2)
    assert [file.name for file in newest_packs(tmp_path)] == ["step-10-process-0.pt", "step-10-process-1.pt"]
    (saved,) = load_packs(file).packs
    assert saved.context is None and torch.equal(saved.input_ids, one.input_ids)


def test_evaluation_leaves_every_module_in_the_mode_it_was_in(tmp_path):
    trainer = make_trainer(tmp_path, heldout=HELDOUT)
    trainer.model.train()
    trainer.model.lm_head.eval()
    modes = [module.training for module in trainer.model.modules()]
    trainer.evaluate()
    assert [module.training for module in trainer.model.modules()] == modes
    trainer.model.forward = None  # fails
    with pytest.raises(TypeError):
        trainer.evaluate()
    assert [module.training for module in trainer.model.modules()] == modes


# Breaks if evaluation on the way changes what is trained.
def test_evaluation_on_the_way_changes_nothing_and_the_best_checkpoint_is_kept(tmp_path):
    settings = dict(save_strategy="steps", save_steps=2, load_best_model_at_end=True, metric_for_best_model="loss")
    evaluated = make_trainer(tmp_path, heldout=HELDOUT, eval_strategy="steps", eval_steps=2, **settings)
    losses = trained(evaluated)[0]
    assert losses == pytest.approx(trained(make_trainer(tmp_path))[0], rel=1e-12)
    found = {e["step"]: e["eval_loss"] for e in evaluated.state.log_history if "eval_loss" in e}
    assert list(found) == [2, 4, 6]
    assert evaluated.state.best_global_step == min(found, key=found.get)
    assert evaluated.evaluate()["eval_loss"] == pytest.approx(min(found.values()), rel=1e-9)


def test_early_stopping_and_its_resumption(tmp_path):
    settings = dict(
        heldout=HELDOUT,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        learning_rate=1e3,  # so that it gets worse
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
    )
    stopped = make_trainer(tmp_path, callbacks=[EarlyStoppingCallback(2)], **settings)
    stopped.train()
    assert stopped.state.global_step < STEPS
    steps = Steps()
    resumed = make_trainer(tmp_path, callbacks=[EarlyStoppingCallback(2), steps], **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stopped.state.global_step}"))
    assert steps.begun == [] and resumed.run_totals.packs == stopped.run_totals.packs


def test_held_out_data_of_several_names(tmp_path):
    trainer = make_trainer(tmp_path, heldout={"a": HELDOUT[:2], "b": HELDOUT[2:]})
    metrics = trainer.evaluate()
    for name, rows in {"a": HELDOUT[:2], "b": HELDOUT[2:]}.items():
        alone = make_trainer(tmp_path, heldout=rows).evaluate()
        assert metrics[f"eval_{name}_loss"] == alone["eval_loss"] == trainer.evaluate(name)["eval_loss"]
    with pytest.raises(ValueError, match=r"evaluate\('c'\): eval_dataset has a, b"):
        trainer.evaluate("c")
    with pytest.raises(ValueError, match="metric_for_best_model='eval_loss': evaluation gives eval_a_loss, eval_a_th"):
        make_trainer(tmp_path, heldout={"a": HELDOUT}, metric_for_best_model="eval_loss")


def test_what_cannot_be_evaluated_is_refused_by_name(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match="evaluate: there is no data"):
        trainer.evaluate()
    with pytest.raises(ValueError, match="eval_dataset is empty"):
        trainer.evaluate([])
    with pytest.raises(ValueError, match=r"predict: logits are .*never kept; evaluate\(dataset\) gives the loss"):
        trainer.predict(HELDOUT)


# Breaks if the compiler takes the model's call as a whole, in which the loss stands, or a pack's length for a constant.
def test_compiled_layers_train_the_same_and_are_saved_under_their_own_names(tmp_path):
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()  # other tests of this process have compiled as well
    # float32: the compiler does not see that it means float64 here (`in_double`).
    settings = dict(max_steps=3, dtype=torch.float32, heldout=HELDOUT)
    compiled = make_trainer(tmp_path, torch_compile=True, torch_compile_backend="aot_eager", **settings)
    plain = make_trainer(tmp_path, **settings)
    left, right = trained(compiled), trained(plain)
    assert left[0] == pytest.approx(right[0], rel=1e-4)
    assert left[1].keys() == right[1].keys()
    assert compiled.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-3)
    calls = torch._dynamo.utils.counters["frames"]
    assert calls["ok"] == calls["total"] > 0


def test_noise_that_turns_share_is_warned_of_and_trained(tmp_path):
    with pytest.warns(UserWarning, match="Qwen3ForCausalLM: neftune_noise_alpha=5.0: turns of one pass share one draw"):
        noisy = make_trainer(tmp_path, neftune_noise_alpha=5.0)
    with in_double():
        losses = trained(noisy)[0]
        assert losses[1] != pytest.approx(trained(make_trainer(tmp_path))[0][1], rel=1e-6)
    assert not noisy.model.get_input_embeddings()._forward_hooks


def test_a_checkpoint_says_nothing_of_the_attention_that_trained_it(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    trainer.save_model()
    saved = json.loads((tmp_path / "config.json").read_text())
    assert not [key for key, value in saved.items() if "attn_implementation" in key or value == "flexmask"]
    assert saved["use_cache"] is True


# Breaks if a model is tried under the mixed precision that it was trained in before, whose rounding looks like a leak.
def test_a_model_that_was_trained_in_mixed_precision_gets_another_trainer(tmp_path):
    first = make_trainer(tmp_path, dtype=torch.float32, bf16=True, max_steps=1)
    first.train()
    second = OnePassTrainer(first.model, first.args, first.data_collator, train_dataset=HELDOUT)
    second.train()
    assert second.state.global_step == 1
