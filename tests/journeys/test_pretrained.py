"""The road: own weights and own conversations -> train, killed and resumed -> a model that others can use."""

import json

import pytest
from journeys import assets
from journeys.workshop import kill, train, wait_for
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

STEPS = 120
FILES = {"dense": "my.jsonl", "experts": "inline.jsonl", "hybrid": "sharegpt.jsonl", "base": "my.jsonl"}


@pytest.fixture(scope="module", params=list(FILES))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def settings(kind):
    """What this user types behind ARGS=."""
    return [
        "model=hub", f"model.name_or_path=models/{kind}", "trainer=finetune",
        "data=jsonl", f"data.path={FILES[kind]}", "data.heldout_conversations=2",
        f"trainer.steps={STEPS}", "trainer.conversations_per_step=5", "trainer.learning_rate=5e-3",
        "trainer.save_every=20", "evaluation.max_new_tokens=40", "wandb=off",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(workshop, kind, settings):
    """(run folder, what the end of training printed): the run was killed on the way, without warning, and resumed."""
    folder = workshop.folder / f"runs/{kind}"
    killed = workshop.start(train(*settings, f"output_dir=runs/{kind}"))
    wait_for(lambda: list(folder.glob("checkpoints/checkpoint-20/trainer_state.json")), killed)
    kill(killed)
    killed.wait()
    assert not (folder / "result.json").exists(), "killed too late"
    return folder, workshop.run(f'make train ARGS="resume=runs/{kind}"')


# Breaks if a resumed run repeats steps, leaves some out, or begins anew.
def test_a_killed_run_goes_on_to_its_end(trained, kind):
    folder, done = trained
    assert done.last_line == f"runs/{kind}"
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == STEPS
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, STEPS + 1))
    assert result["loss_last"] < 0.1 < result["loss_first"]
    assert {"answer_accuracy", "conversation_accuracy", "heldout_loss"} <= result.keys()
    assert (folder / "chats.jsonl").read_text().count("\n") >= 2


# Breaks if the saved configuration, generation_config or tokenizer names another end than the one that was trained:
# generation would then go on to its limit.
def test_the_saved_model_ends_its_turn_by_itself(trained):
    folder = trained[0] / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids(assets.END)
    assert tokenizer.eos_token_id == end
    for named in (model.config.eos_token_id, model.generation_config.eos_token_id):
        assert end in (named if isinstance(named, list) else [named])
    for record in assets.conversations(12)[:3]:
        question, reply = record["messages"][:2]
        inputs = tokenizer.apply_chat_template(
            [question], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        made = model.generate(**inputs, max_new_tokens=100, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert len(made) < 100 and made[-1] == end, tokenizer.decode(made)
        assert (made == end).sum() == 1
        expected = f"<think>\n{reply['reasoning_content']}\n</think>\n\n{reply['content']}"
        assert tokenizer.decode(made[:-1]) == expected


def test_a_pipeline_answers_a_chat(trained):
    chat = pipeline("text-generation", model=str(trained[0] / "model"))
    question, reply = assets.conversations(12)[1]["messages"][:2]
    answered = chat([question], max_new_tokens=60, do_sample=False)[0]["generated_text"]
    assert answered[-1]["role"] == "assistant"
    assert answered[-1]["content"].endswith(reply["content"]), answered


# Breaks if a checkpoint alone is not enough to chat with: the last one is what remains of a lost run.
def test_every_checkpoint_has_its_tokenizer_and_template(trained):
    checkpoints = sorted((trained[0] / "checkpoints").glob("checkpoint-*"))
    assert checkpoints
    for checkpoint in checkpoints:
        assert AutoTokenizer.from_pretrained(checkpoint).chat_template == assets.CHAT_TEMPLATE
        ends = AutoModelForCausalLM.from_pretrained(checkpoint).generation_config.eos_token_id
        end = AutoTokenizer.from_pretrained(checkpoint).convert_tokens_to_ids(assets.END)
        assert end in (ends if isinstance(ends, list) else [ends])


def test_evaluate_chats_again_with_the_same_figures(workshop, trained, kind):
    done = workshop.run(f'make evaluate ARGS="runs/{kind}"')
    figures, result = json.loads(done.last_line), json.loads((trained[0] / "result.json").read_text())
    assert figures and {name: result[name] for name in figures} == figures


def test_inspect_shows_what_was_trained(workshop, kind, settings):
    overrides = " ".join(settings)
    done = workshop.run(f'make inspect ARGS="{FILES[kind]}:2 {overrides}"')
    assert f"{FILES[kind]}:2" in done.out
    for shown in ("trained answer", "plain copy", "thinking", "hidden from", "tokens"):
        assert shown in done.out


def test_a_finished_run_is_not_resumed(workshop, kind, trained):
    done = workshop.run(f'make train ARGS="resume=runs/{kind}"', code=None)
    assert "this run has finished" in done.err and "result.json" in done.err
