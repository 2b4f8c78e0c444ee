"""Pairs of a better and a worse answer from the command line: a model learns to prefer, and its run survives."""

import json

import numpy as np
import pytest
from journeys import assets
from journeys.workshop import kill, wait_for
from safetensors.torch import load_file

SETTINGS = [
    "model=hub", "model.name_or_path=models/dense", "trainer=finetune", "objective=dpo", "data=jsonl",
    "data.path=pairs.jsonl", "data.heldout_conversations=3", "evaluation.max_new_tokens=8", "wandb=off",
    "trainer.epochs=null", "trainer.conversations_per_step=4",
]  # fmt: skip
# As the page has them; what is behind them here makes them small.
EXPERIMENT = 'make train ARGS="experiment=tutoring_preferences model.name_or_path=runs/<folder>/model"'
OWN_PAIRS = 'make train ARGS="model=hub model.name_or_path=Qwen/Qwen3-1.7B trainer=finetune objective=dpo data=jsonl data.path=pairs.jsonl"'  # noqa: E501
EVALUATE = (
    'make evaluate ARGS="runs/<folder> data.kind=tutoring data.train_conversations=10 data.heldout_conversations=100"'  # noqa: E501
)
LEARNING = ["trainer.steps=12", "trainer.learning_rate=5e-3", "objective.beta=0.5"]


def pairs(count):
    """Turns of the conversations of other journeys, and the same with another answer."""
    found = []
    for number, record in enumerate(assets.conversations(count)):
        messages = record["messages"]
        at = [i for i, message in enumerate(messages) if message["role"] == "assistant"][number % 2]
        worse = messages[at] | {"content": "I do not know, and I will not look."}
        found.append({"prompt": messages[:at], "chosen": [messages[at]], "rejected": [worse], "score_chosen": 5})
    return found


@pytest.fixture(scope="module")
def preferring(workshop):
    assets.write_jsonl(workshop.folder / "pairs.jsonl", pairs(24))
    return workshop, workshop.train(*SETTINGS, *LEARNING, "trainer.evaluate_every=6")


def small_as(command, folder, words):
    """A command of the page, on a run folder, with settings behind it."""
    return command.replace("runs/<folder>", folder).removesuffix('"') + f' {words}"'


def weights_of(workshop, *folders):
    return (load_file(workshop.folder / folder / "model" / "model.safetensors") for folder in folders)


def result_of(workshop, done):
    return json.loads((workshop.folder / done.last_line / "result.json").read_text())


# Breaks if the worse answer is the one that is preferred, or the reference is not the model as it was.
def test_a_model_learns_to_prefer(preferring):
    workshop, done = preferring
    result = result_of(workshop, done)
    assert result["loss_first"] == pytest.approx(np.log(2), abs=1e-4), "the model is not its own reference at first"
    assert result["loss_last"] < 0.3 and result["heldout_preference_accuracy"] == 1
    assert result["heldout_preference_margin"] > 0.5
    assert all(word in done.command for word in OWN_PAIRS[len('make train ARGS="') : -1].split() if "Qwen" not in word)
    assert "21 pairs" in str(done) and "preferred 1.000" in str(done) and "preference accuracy 1.000" in str(done)
    assert "score_chosen" in str(done)  # which nothing reads
    first, *_, last = (json.loads(line) for line in (workshop.folder / done.last_line / "metrics.jsonl").open())
    assert {"preference_accuracy", "preference_margin"} <= first.keys()
    assert list((workshop.folder / done.last_line / "checkpoints").glob("reference-*.npz"))


def test_inspect_shows_both_answers(preferring):
    workshop, _ = preferring
    done = workshop.run(f'make inspect ARGS="pairs.jsonl:1 --full {" ".join([*SETTINGS, *LEARNING])}"')
    assert "training is refused" not in str(done)
    assert all(words in str(done) for words in ("chosen, mes", "rejected, mes", "will not look."))


# Breaks if fine-tuning trains the answers that are worse, without a word.
def test_fine_tuning_refuses_them_and_preferences_refuse_conversations(preferring):
    workshop, _ = preferring
    before = set((workshop.folder / "runs").iterdir())
    done = workshop.train(*[one for one in SETTINGS if one != "objective=dpo"], *LEARNING, code=1)
    assert "its answers compete" in str(done) and "objective=dpo" in str(done)
    others = [one.replace("pairs.jsonl", "my.jsonl") for one in SETTINGS]
    done = workshop.train(*others, *LEARNING, code=1)
    assert "a preference is a pair of a better and a worse answer, and this record has one answer" in str(done)
    assert set((workshop.folder / "runs").iterdir()) == before


# Breaks if a run that goes on takes the trained model for its reference.
def test_a_killed_run_goes_on_with_its_reference(preferring):
    workshop, done = preferring
    words = [*SETTINGS, *LEARNING, "trainer.evaluate_every=6", "trainer.save_every=4", "output_dir=runs/killed"]
    process = workshop.start(f'make train ARGS="{" ".join(words)}"')
    wait_for(lambda: list(workshop.folder.glob("runs/killed/checkpoints/checkpoint-4/trainer_state.json")), process)
    kill(process)
    workshop.train("resume=runs/killed")
    weights = [
        load_file(workshop.folder / folder / "model" / "model.safetensors")
        for folder in (done.last_line, "runs/killed")
    ]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_the_same_in_two_processes(preferring):
    workshop, done = preferring
    words = " ".join([*SETTINGS, *LEARNING, "output_dir=runs/two"])
    workshop.run(f'NPROC=2 make train ARGS="{words}"')
    one, two = weights_of(workshop, done.last_line, "runs/two")
    for name in one:
        np.testing.assert_allclose(one[name].numpy(), two[name].numpy(), atol=1e-4)


# The commands of docs/preferences.md, made small.
def test_the_experiment_of_the_page(workshop):
    tiny = "trainer.steps=2 trainer.warmup_steps=0 evaluation.max_new_tokens=8 data.heldout_conversations=2"
    small = f"{tiny} model.tiny.layers=1 data.train_conversations=8 trainer.save_every=0 output_dir=runs/careless"
    workshop.run(f'make train ARGS="data=careless_tutoring {small} wandb=off"')
    done = workshop.run(
        small_as(EXPERIMENT, "runs/careless", f"trainer.epochs=null {tiny} data.train_conversations=8 wandb=off")
    )
    assert result_of(workshop, done)["heldout_preference_accuracy"] is not None
    again = small_as(EVALUATE, done.last_line, "data.heldout_conversations=2")
    assert "answer_accuracy" in workshop.run(again).last_line
