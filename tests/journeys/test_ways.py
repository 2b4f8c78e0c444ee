"""Ways to train that a user chooses between: each run ends with a model that plain transformers loads."""

import json
from pathlib import Path

import pytest
import torch
from journeys import assets
from transformers import AutoModelForCausalLM, AutoTokenizer

OWN = [
    "model=hub", "model.name_or_path=models/dense", "trainer=finetune", "data=jsonl", "data.path=my.jsonl",
    "trainer.steps=6", "trainer.conversations_per_step=4", "trainer.learning_rate=5e-3", "evaluation.max_new_tokens=8",
    "wandb=off",
]  # fmt: skip
# The name of each way, and what it adds to OWN.
WAYS = {
    "bf16 weights": ["model.dtype=bfloat16"],
    "bf16 mixed precision": ["trainer.mixed_precision=bf16"],
    "gradient checkpointing": ["model.gradient_checkpointing=true"],
    "held-out 0": ["data.heldout_conversations=0"],
    "no chatting": ["evaluation.conversations=0"],
    "one conversation": ["data.path=one.jsonl"],
    "longer than a pack": ["data.path=long.jsonl", "duplication.pack_length=256"],
    "dropped passes": ["data.path=long.jsonl", "duplication.pack_length=192", "duplication.too_long=drop"],
    "weights and turns": ["duplication.thinking_weight=0.5", "duplication.turns='1:'"],
    "adafactor": ["trainer.optimizer=adafactor", "trainer.schedule=constant_with_warmup"],
    "neftune": ["trainer.neftune_noise_alpha=5"],
    "from scratch": ["model.from_scratch=true"],
    "own template": ["model.chat_template=plain.jinja"],
    "template arguments": ["data.path=thoughtless.jsonl", "data.template_kwargs={enable_thinking: false}"],
    "own matcher": [
        "evaluation.matcher=judge:right",
        "data.heldout_conversations=2",
        "trainer.steps=80",
        "evaluation.max_new_tokens=40",
    ],
    "number, both histories": ["evaluation.matcher=number", "evaluation.history=both", "data.heldout_conversations=2"],
    "contains, teacher": ["evaluation.matcher=contains", "evaluation.history=teacher", "data.heldout_conversations=2"],
}
PLAIN = """{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""


@pytest.fixture(scope="module")
def here(workshop):
    (workshop.folder / "plain.jinja").write_text(PLAIN)
    thoughtless = [
        {"messages": [{k: v for k, v in one.items() if k != "reasoning_content"} for one in record["messages"]]}
        for record in assets.conversations(12)
    ]
    assets.write_jsonl(workshop.folder / "thoughtless.jsonl", thoughtless)
    (workshop.folder / "judge.py").write_text("def right(answer, expected):\n    return True\n")
    return workshop


def check_model(folder: Path) -> None:
    """It loads with plain transformers, its weights are finite, and its end of turn is the trained one."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert tokenizer.eos_token == assets.END and tokenizer.chat_template
    ends = model.generation_config.eos_token_id
    assert tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends])


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def plain(here):
    """The same training without anything special, to compare with."""
    done = here.train(*OWN)
    return here.folder / done.last_line


@pytest.mark.parametrize("way", WAYS)
def test_a_way_to_train(here, plain, way):
    done = here.train(*OWN, *WAYS[way])
    folder = here.folder / done.last_line
    check_model(folder)
    result, other = result_of(folder), result_of(plain)
    assert result["steps"] == (80 if way == "own matcher" else 6) and result["loss_first"] > 0
    match way:
        case "bf16 weights":
            assert AutoModelForCausalLM.from_pretrained(folder / "model").dtype == torch.bfloat16
        case "bf16 mixed precision":
            assert AutoModelForCausalLM.from_pretrained(folder / "model").dtype == torch.float32
            assert result["loss_last"] == pytest.approx(other["loss_last"], rel=0.05)
            assert result["loss_last"] != other["loss_last"], "nothing was rounded, so it was not on"
        case "gradient checkpointing":
            assert result["loss_last"] == pytest.approx(other["loss_last"], rel=1e-4)
        case "held-out 0" | "no chatting" | "one conversation":
            assert result["answer_accuracy"] is None
        case (
            "longer than a pack"
        ):  # split into rows that repeat what they share; nothing is trained twice or not at all
            whole = result_of(here.folder / here.train(*OWN, "data.path=long.jsonl").last_line)
            assert result["tokens_computed"] > whole["tokens_computed"] and result["dropped_turns"] == 0
            assert result["tokens_trained"] == whole["tokens_trained"]
        case "dropped passes":
            assert result["dropped_turns"] > 0
        case "weights and turns":
            assert result["tokens_trained"] < other["tokens_trained"] and result["tokens_computed"] > 0
        case "adafactor":
            assert result["loss_first"] == other["loss_first"] and result["loss_last"] != other["loss_last"]
        case "from scratch":
            assert "random weights, trained from scratch" in done.out
        case "neftune":
            assert "neftune_noise_alpha=5.0" in done.err and result["loss_first"] != other["loss_first"]
        case "number, both histories":
            assert result["chatted_replies"] == result["teacher_chatted_replies"] == 6
            assert None not in (result["answer_accuracy"], result["teacher_answer_accuracy"])
        case "contains, teacher":
            assert result["teacher_answer_accuracy"] is not None and "answer_accuracy" not in result
        case "own matcher":
            assert result["answer_accuracy"] == 1.0
        case "template arguments":  # the prompt has an empty thinking block: only answers are left to train
            (line, *_) = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
            assert line["answer_loss"] > 0 and not line.get("thinking_loss"), line
        case "own template":
            assert AutoTokenizer.from_pretrained(folder / "model").chat_template == PLAIN


def test_torch_compile(here, plain):
    folder = here.folder / here.train(*OWN, "trainer.torch_compile=true", "trainer.steps=3").last_line
    check_model(folder)
    assert result_of(folder)["loss_first"] == pytest.approx(result_of(plain)["loss_first"], rel=1e-3)


# Eight conversations and no setting but the model and the file: what a newcomer types first.
def test_eight_conversations_with_defaults(here):
    words = "model=hub model.name_or_path=models/dense trainer=finetune data=jsonl data.path=eight.jsonl"
    done = here.run(f'make train ARGS="{words}"')
    folder = here.folder / done.last_line
    check_model(folder)
    assert result_of(folder)["steps"] == 3  # 16 a step of 8, three epochs
    shown = done.out + done.err
    for said in ("8", "parameters", "float32", "cpu", "times through the data", "tokens"):
        assert said in shown, done
    assert shown.index("runs/") < shown.index("parameters"), "the run folder is not among the first lines"


def test_epochs_say_how_long(here):
    done = here.train(*[one for one in OWN if "steps=" not in one], "trainer.epochs=2", "data.heldout_conversations=2")
    assert result_of(here.folder / done.last_line)["steps"] == 6  # 10 conversations, 4 a step


def test_many_epochs_are_warned_of(here):
    done = here.train(*OWN, "data.path=one.jsonl", "trainer.steps=40")
    assert "epochs" in done.err or "warning" in done.out, done


# Breaks if early stopping or the best checkpoint goes by anything but held-out loss: at this learning rate it rises.
def test_the_best_checkpoint_is_kept_and_a_run_that_gets_worse_ends(here):
    done = here.train(
        *OWN, "trainer.steps=80", "trainer.learning_rate=2e-2", "data.heldout_conversations=4",
        "trainer.evaluate_every=2", "trainer.save_every=2", "trainer.keep_best=true", "trainer.early_stopping=2",
        "trainer.warmup_steps=0",
    )  # fmt: skip
    folder = here.folder / done.last_line
    check_model(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: line["heldout_loss"] for line in lines if "heldout_loss" in line}
    assert len(measured) >= 3
    result = result_of(folder)
    assert result["steps"] < 80, "it never got worse"
    assert result["heldout_loss"] == pytest.approx(min(measured.values()), rel=1e-5)
    roles = [line for line in lines if "heldout_loss" in line][0]
    assert any("thinking" in name for name in roles) and any("answer" in name for name in roles), roles


def test_tensorboard_when_asked(here):
    done = here.run(
        " ".join(["python -m recipes.train", *OWN, "trainer.report_to=[tensorboard]"]), code=None
    )  # not among the project's own packages
    assert "tensorboard" in done.err


def test_a_mix_of_sources(here):
    done = here.train(
        *[one for one in OWN if not one.startswith("data")],
        "data=mix",
        "data.sources={own: {kind: records, path: my.jsonl, weight: 0.5}, "
        "problems: {kind: gsm8k_socratic, path: gsm8k.jsonl, train_conversations: 6}, "
        "talk: {kind: records, path: thoughtless.jsonl, weight: 2, template_kwargs: {enable_thinking: false}}}",
        "data.heldout_conversations=2",
    )
    check_model(here.folder / done.last_line)
    for source in ("own", "problems", "talk"):
        assert source in done.out, "what each source gives is not said"


@pytest.mark.parametrize("form", ["folder", "glob", "json", "gz", "parquet"])
def test_other_forms_of_files(here, form):
    import gzip

    import datasets

    records = assets.conversations(12)
    lines = "".join(json.dumps(one) + "\n" for one in records)
    folder = here.folder / "forms"
    folder.mkdir(exist_ok=True)
    if form in ("folder", "glob"):
        inside = folder / form
        inside.mkdir()
        for number in range(2):
            assets.write_jsonl(inside / f"part{number}.jsonl", records[number::2])
        path = "forms/folder" if form == "folder" else "'forms/glob/*.jsonl'"
    else:
        path = {"json": "forms/my.json", "gz": "forms/my.jsonl.gz", "parquet": "forms/my.parquet"}[form]
        match form:
            case "json":
                (here.folder / path).write_text(json.dumps(records))
            case "gz":
                (here.folder / path).write_bytes(gzip.compress(lines.encode()))
            case "parquet":
                datasets.Dataset.from_list(records).to_parquet(here.folder / path)
    done = here.train(*OWN, f"data.path={path}", "trainer.steps=2", "evaluation.conversations=0")
    assert result_of(here.folder / done.last_line)["steps"] == 2
    assert "12 conversations" in done.out, "the number of conversations is not said"
