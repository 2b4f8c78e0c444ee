"""LoRA through the recipe: the adapter is saved as peft saves it, merged it is an ordinary model, and both chat."""

import json

import pytest
import torch
from journeys import assets
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

SETTINGS = [
    "model=hub", "model.name_or_path=tuned", "data=jsonl", "data.path=my.jsonl", "data.heldout_conversations=2",
    "trainer=lora", "trainer.conversations_per_step=5", "evaluation.max_new_tokens=40", "wandb=off",
]  # fmt: skip


def reply(model, tokenizer, question: dict) -> str:
    inputs = tokenizer.apply_chat_template(
        [question], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    made = model.generate(**inputs, max_new_tokens=60, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert made[-1] == tokenizer.convert_tokens_to_ids(assets.END), "it does not end its turn"
    return tokenizer.decode(made[:-1])


@pytest.fixture(autouse=True)
def in_the_workshop(workshop, monkeypatch):
    """An adapter names its base model by the path that the user gave."""
    monkeypatch.chdir(workshop.folder)


@pytest.fixture(scope="module")
def adapted(workshop):
    """A model that is trained in full first, and then adapted: its run folder."""
    first = workshop.train(
        "model=hub", "model.name_or_path=models/dense", "trainer=finetune", "data=jsonl", "data.path=my.jsonl",
        "trainer.steps=80", "trainer.conversations_per_step=5", "trainer.learning_rate=5e-3",
        "evaluation.conversations=0", "wandb=off",
    )  # fmt: skip
    (workshop.folder / "tuned").symlink_to(workshop.folder / first.last_line / "model")
    done = workshop.train(*SETTINGS, "adapter=lora", "trainer.steps=10", "output_dir=runs/adapted")
    return workshop.folder / "runs/adapted", done


def test_the_adapter_is_saved_as_peft_saves_it(workshop, adapted):
    folder, done = adapted
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in (folder / "model").iterdir()}
    assert not (folder / "model" / "model.safetensors").exists()
    result = json.loads((folder / "result.json").read_text())
    assert result["loss_last"] < result["loss_first"]
    model = AutoPeftModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    targets = {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert targets == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    question, expected = assets.conversations(12)[0]["messages"][:2]
    assert reply(model, tokenizer, question).endswith(expected["content"])


# Breaks if merging loses the adapter, or writes a folder that needs peft.
def test_merged_it_is_an_ordinary_model(workshop, adapted):
    workshop.run('make merge ARGS="runs/adapted"')
    (config,) = workshop.folder.glob("runs/adapted/*/config.json")
    merged = AutoModelForCausalLM.from_pretrained(config.parent)
    tokenizer = AutoTokenizer.from_pretrained(config.parent)
    adapter = AutoPeftModelForCausalLM.from_pretrained(adapted[0] / "model")
    ids = tokenizer("I have 3 cups.", return_tensors="pt").input_ids
    base = AutoModelForCausalLM.from_pretrained(workshop.folder / "tuned")
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapter(ids).logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(merged(ids).logits, base(ids).logits, rtol=1e-3, atol=1e-3)
    question, expected = assets.conversations(12)[0]["messages"][:2]
    assert reply(merged, tokenizer, question).endswith(expected["content"])


def test_an_adapter_is_evaluated_again(workshop, adapted):
    done = workshop.run('make evaluate ARGS="runs/adapted"')
    figures, result = json.loads(done.last_line), json.loads((adapted[0] / "result.json").read_text())
    assert figures and {name: result[name] for name in figures} == figures


@pytest.mark.parametrize(
    ("ways", "saved"),
    [
        (["adapter.use_dora=true"], {"use_dora": True}),
        (["adapter.use_rslora=true", "adapter.lora_dropout=0.1"], {"use_rslora": True, "lora_dropout": 0.1}),
        (["adapter.modules_to_save=[embed_tokens,lm_head]"], {"modules_to_save": ["embed_tokens", "lm_head"]}),
        (["adapter.trainable_token_indices=[1,2]"], {"trainable_token_indices": [1, 2]}),
        (
            ["adapter.target_modules=[q_proj,v_proj]", "adapter.r=4", "model.gradient_checkpointing=true"],
            {"target_modules": ["q_proj", "v_proj"], "r": 4},
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_ways_to_adapt(workshop, adapted, ways, saved):
    done = workshop.train(*SETTINGS, "adapter=lora", *ways, "trainer.steps=4", "evaluation.conversations=0")
    folder = workshop.folder / done.last_line
    AutoPeftModelForCausalLM.from_pretrained(folder / "model")
    written = json.loads((folder / "model/adapter_config.json").read_text())
    for key, value in saved.items():
        assert (sorted(written[key]) if isinstance(value, list) else written[key]) == value, written
    assert "make merge" in done.out and ("DoRA" in done.out) == ("adapter.use_dora=true" in ways)
    if "adapter.lora_dropout=0.1" in ways:
        assert "dropout" in done.err


def test_a_base_in_four_bits(workshop, adapted):
    done = workshop.train(*SETTINGS, "adapter=qlora", "trainer.steps=2")
    assert "4 bits" in done.out
    folder = workshop.folder / done.last_line
    assert json.loads((folder / "result.json").read_text())["answer_accuracy"] > 0.5, "quantizing broke the model"
    AutoPeftModelForCausalLM.from_pretrained(folder / "model")  # beside the base model in full
