"""Settings as the Trainer takes them: what it would refuse, or would not read, ends a run before it begins."""

from pathlib import Path

import pytest

from recipes.configuration.compose import compose
from recipes.run.arguments import check_heldout, planned_steps, training_arguments


def arguments(*overrides, evaluates=True):
    return training_arguments(compose(overrides), Path("unused"), evaluates)


# Each of these would come out of transformers behind the opening lines of a run, as an error of its own.
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["trainer.schedule=cosin"],
            "trainer.schedule=cosin: the installed transformers has no such name; it has linear",
        ),
        (["trainer.schedule=warmup_stable_decay"], "trainer.schedule=warmup_stable_decay, .*num_decay_steps"),
        (["trainer.schedule_args={min_lr:1e-4}"], "trainer.schedule=cosine, trainer.schedule_args=.*min_lr"),
        (["trainer.schedule=cosine_with_min_lr"], "through the .trainer.schedule_args"),
        (["trainer.schedule=reduce_lr_on_plateau"], "goes by the held-out loss during training; give trainer.evaluate"),
        (
            ["trainer.schedule=greedy"],
            "trainer.schedule=greedy: goes by the held-out loss during",
        ),
        (["trainer.optimizer=adam"], "trainer.optimizer=adam: the installed transformers has no such name"),
        (["trainer.optimizer=galore_adamw"], "trainer.optimizer=galore_adamw: "),
        (["trainer.optimizer=sgd", "trainer.optimizer_args={momentm:0.9}"], "sgd of transformers reads none of these"),
        (
            ["trainer.optimizer=sgd", "trainer.optimizer_args={momentum:abc}"],
            "trainer.optimizer=sgd, trainer.optimizer_args={'momentum': 'abc'}: ",
        ),
        (["trainer.report_to=[wandb]"], "choose wandb=online"),
        (
            ["attention.backend=flash"],
            "^attention.backend=flash: needs a CUDA device, and this run is on cpu; leave it",
        ),
        (["attention.backend=triton"], "^attention.backend=triton: needs a CUDA device"),
        (["trainer.report_to=[paper]"], "transformers has"),
    ],
)
def test_what_transformers_would_refuse_later_is_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        arguments(*overrides)


def test_names_of_transformers_arrive():
    made = arguments("trainer.schedule=cosine_with_min_lr", "trainer.schedule_args={min_lr:1e-4}")
    assert made.lr_scheduler_type == "cosine_with_min_lr" and made.lr_scheduler_kwargs == {"min_lr": 1e-4}
    made = arguments("trainer.optimizer=sgd", "trainer.optimizer_args={momentum:0.9}")
    assert made.optim == "sgd" and made.optim_args == "momentum=0.9"
    made = arguments("trainer.schedule=greedy", "trainer.evaluate_every=5")
    assert made.eval_steps == 5


def test_what_is_measured_during_training_needs_conversations_to_measure_on():
    words = ["trainer.evaluate_every=5", "trainer.save_every=5", "trainer.keep_best=true"]
    assert arguments(*words).load_best_model_at_end and arguments(*words).metric_for_best_model == "eval_loss"
    without = arguments(*words, evaluates=False)
    assert not without.load_best_model_at_end and without.eval_strategy == "no"
    with pytest.raises(ValueError, match="give data.heldout_conversations"):
        check_heldout(compose(words).trainer, heldout=0)
    check_heldout(compose(words).trainer, heldout=1)


def test_how_long_a_run_is():
    epochs = ["trainer=finetune", "trainer.epochs=3", "trainer.conversations_per_step=16"]
    assert planned_steps(compose(epochs).trainer, 8) == (3, 3.0)
    assert planned_steps(compose(epochs).trainer, 40) == (9, 3.0)
    assert planned_steps(compose(["trainer.steps=500", "trainer.conversations_per_step=16"]).trainer, 7) == (500, 500.0)
    with pytest.raises(
        ValueError, match="trainer.warmup_steps=10: is more than the 9 steps that trainer.epochs=3 makes"
    ):
        planned_steps(compose([*epochs, "trainer.warmup_steps=10"]).trainer, 40)


def test_a_model_is_not_divided_over_a_single_process():
    with pytest.raises(ValueError, match="parallel=fsdp: divides a model over processes, and this is a single one"):
        arguments("parallel=fsdp")
