"""What is told of a run before it begins, against what the run then reports."""

import json

import pytest
from stateful_families import BRANCHING

from recipes.configuration.compose import compose
from recipes.models.load import load_tokenizer, weightless_model
from recipes.preparation.rows import prepare, prepare_heldout
from recipes.run.estimate import Work, estimate_lines, rate_of
from recipes.sources.load import load_data
from recipes.train import train

SMALL = [
    "model.tiny.layers=1",
    "model.tiny.hidden_size=16",
    "trainer.warmup_steps=0",
    "trainer.conversations_per_step=3",
    "trainer.save_every=0",
    "data.train_conversations=10",
    "data.heldout_conversations=2",
    "evaluation.conversations=0",
    "wandb=off",
]


def calls(number: int) -> dict:
    """A record of calls, whose second one is shown a summary of the first."""
    asked = [{"role": "user", "content": f"add {number} and {number + 1} and say it twice"}]
    summary = [{"role": "user", "content": f"So far: {2 * number + 1}. Add {number}."}]
    answers = [{"role": "assistant", "content": f"{2 * number + 1} " * (number % 4 + 1)}] * 2
    return {"calls": [{"prompt": p, "completion": a} for p, a in zip((asked, summary), answers, strict=True)]}


def conversation(number: int) -> dict:
    turns = []
    for turn in range(number % 4 + 1):
        turns.append({"role": "user", "content": f"add {number} to {turn}"})
        turns.append(
            {"role": "assistant", "content": f"{number + turn}", "reasoning_content": f"{number} + {turn} " * 3}
        )
    return {"messages": turns}


def file(path, record, count=10):
    path.write_text("".join(json.dumps(record(number)) + "\n" for number in range(count)))
    return ["data=jsonl", f"data.path={path}", "data.train_conversations=null"]


PARCELS = ["data=parcels", "context=parcels", "model.tiny.words=parcels"]
KINDS = {
    "a part of an epoch": lambda folder: ["trainer.steps=6"],
    "a fraction of epochs": lambda folder: ["trainer.epochs=1.5"],
    "whole epochs": lambda folder: ["trainer.epochs=2", "seed=3"],
    "per turn": lambda folder: ["duplication=per_turn", "trainer.steps=5"],
    "the last turn": lambda folder: ["duplication=last_turn", "trainer.steps=5"],
    "kept thinking": lambda folder: ["duplication=keep_thinking", "trainer.steps=5"],
    "some turns": lambda folder: ["duplication.turns='1:'", "trainer.steps=5"],
    "split": lambda folder: ["duplication.pack_length=256", "trainer.steps=5"],
    "calls": lambda folder: [*file(folder / "calls.jsonl", calls), "trainer.steps=4"],
    "calls under a rule": lambda folder: [*PARCELS, "trainer.steps=4"],
    "pairs": lambda folder: ["data=tutoring_pairs", "objective=dpo", "trainer.steps=5"],
    "a hybrid": lambda folder: [*hybrid(folder), *file(folder / "my.jsonl", conversation), "trainer.steps=5"],
    "a mix": lambda folder: [
        *file(folder / "my.jsonl", conversation)[2:],
        "data=mix",
        f"data.sources={{a:{{path:{folder}/my.jsonl,weight:1.7}},b:{{kind:tutoring,train_conversations:4}}}}",
        "trainer.steps=7",
    ],
}  # fmt: skip


def hybrid(folder) -> list[str]:
    config = BRANCHING["LFM2"].config()
    config.vocab_size = 1000
    config.save_pretrained(folder / "hybrid")
    load_tokenizer(compose().model).save_pretrained(folder / "hybrid")
    return ["model=hub", f"model.name_or_path={folder / 'hybrid'}", "model.from_scratch=true"]


def looked_at(config):
    """(work, weightless model, held-out rows) as the inspector has them."""
    tokenizer, data = load_tokenizer(config.model), load_data(config.data)
    model = weightless_model(config.model, len(tokenizer))
    rows = prepare(data.train, tokenizer, config.data, config.duplication, config.context)
    heldout = prepare_heldout(data.heldout, tokenizer, config.data, config.duplication, model)
    return Work.of(config, rows), model, heldout


# Breaks if the last part of the data is taken in another order than the Trainer's, if a step that is not full counts as
# one that is, or if copies, dropped turns or parts of a conversation that is split are counted otherwise.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_steps_and_tokens_are_those_that_the_run_reports(kind, tmp_path):
    words = [one for one in SMALL if not (one.startswith("model.tiny") and kind == "a hybrid")]
    config = compose([*words, *KINDS[kind](tmp_path)], tmp_path / "run")
    work, model, _ = looked_at(config)
    result = train(config)
    assert work.planned(config) == (result["steps"], result["tokens_computed"], result["tokens_trained"])
    assert len(set(work.tokens.tolist())) > 1  # or any order would do
    if config.duplication.layout == "per_turn":
        assert work.speed_up(model) == 1


# Breaks if pairs or passes are those of another layout: the two layouts train the same passes.
def test_the_speed_up_is_over_what_one_pass_a_turn_computes(tmp_path):
    one, _, _ = looked_at(compose(SMALL))
    per_turn, model, _ = looked_at(compose([*SMALL, "duplication=per_turn"]))
    assert one.pass_tokens == per_turn.tokens.sum() > one.tokens.sum()
    assert one.pass_pairs == per_turn.pairs > one.pairs
    assert one.trained.sum() == per_turn.trained.sum()
    assert 1 < one.speed_up(model) < per_turn.tokens.sum() / one.tokens.sum() * 1.5
    # Conversations that are split compute what they share again.
    split, _, _ = looked_at(compose([*SMALL, "duplication.pack_length=256"]))
    assert split.split and split.pass_tokens == one.pass_tokens
    assert split.speed_up(model) < one.speed_up(model)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rate") / "run"
    return folder, train(compose([*SMALL, "trainer.steps=40", "trainer.log_every=10"], folder))


# Breaks if the rate is that of an interval or of trained tokens.
def test_hours_at_the_rate_of_a_run_are_those_of_the_run(finished):
    folder, result = finished
    config = compose([*SMALL, "trainer.steps=40"])
    work, _, _ = looked_at(config)
    rate = rate_of(str(folder), config)
    assert work.planned(config)[1] / rate.tokens_per_second == pytest.approx(result["train_seconds"], rel=0.01)
    assert "another" not in rate.source
    unlike = rate_of(str(folder), compose([*SMALL, "duplication=per_turn", "model.tiny.layers=2", "trainer.steps=9"]))
    assert unlike.source.endswith("that run has another model.tiny.layers, duplication.layout")


def test_what_the_lines_say(finished):
    config = compose([*SMALL, "trainer.steps=20", "trainer.evaluate_every=6", "trainer.early_stopping=2"])
    work, model, heldout = looked_at(config)
    _, computed, trained = work.planned(config)
    text = "\n".join(estimate_lines(config, work, model, heldout, rate_of("1,000", config)))
    assert f"at most {computed:,} computed and {trained:,} trained in 20 steps" in text
    assert f"held-out losses: 4 times {heldout.tokens_computed:,} tokens" in text  # behind 6, 12, 18 and 20
    assert f"{work.speed_up(model):.2f} times over packed per-turn training" in text
    assert f"({computed / 1000:.0f} s) of training at 1,000 tokens/s, as given" in text
    without = "\n".join(estimate_lines(config, work, None, heldout, None))
    assert "time        unknown: --rate" in without and "speed-up" not in without


def test_a_rate_of_many_processes_tells_the_hours_of_one(finished, tmp_path):
    result = json.loads((finished[0] / "result.json").read_text())
    (tmp_path / "config.yaml").write_text((finished[0] / "config.yaml").read_text())
    said = result | {"processes": 8, "tokens_computed": 8_000, "train_seconds": 1.0}
    (tmp_path / "result.json").write_text(json.dumps(said))
    config = compose([*SMALL, "trainer.steps=20"])
    work, _, heldout = looked_at(config)
    lines = estimate_lines(config, work, None, heldout, rate_of(str(tmp_path), config))
    hours = work.planned(config)[1] / 8_000 / 3600
    assert lines[-1].startswith(f"time        {hours:,.2f} hours") and "with 8 processes" in lines[-1]
    assert lines[-1].endswith(f", {8 * hours:,.2f} hours of one")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("fast", "neither a number of tokens a second nor the folder of a run"),
        ("0", "tokens a second are a number above 0"),
        ("-3", "tokens a second are a number above 0"),
        ("nan", "tokens a second are a number above 0"),
        (".", "no run folder, it has no config.yaml"),
    ],
)
def test_a_rate_that_is_none(given, said):
    with pytest.raises(ValueError, match=said):
        rate_of(given, compose())


def test_a_run_without_a_result_has_no_rate(finished, tmp_path):
    (tmp_path / "config.yaml").write_text((finished[0] / "config.yaml").read_text())
    with pytest.raises(ValueError, match=r"has no result.json, so it has measured nothing yet"):
        rate_of(str(tmp_path), compose())
