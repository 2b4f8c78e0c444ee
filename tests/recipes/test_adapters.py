"""Adapters: what gets one, what is named when it cannot, and what is saved of them, alone and merged."""

import copy
import importlib.util
import json
import re
import shutil

import pytest
import torch
from families import FAMILIES
from peft import AutoPeftModelForCausalLM
from pretrained import config_of, train
from stateful_families import BRANCHING
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from flexmask import OnePassCollator, OnePassTrainer
from recipes.configuration.schema import AdapterConfig, AdapterKind, Dtype
from recipes.merge import main, merge
from recipes.models.adapters import add_adapter, lora_config
from recipes.models.load import load_model, load_tokenizer, load_trained

ALL = FAMILIES | BRANCHING
IDS = torch.arange(3, 15)[None]


def lora(kind=AdapterKind.lora, **settings) -> AdapterConfig:
    return AdapterConfig(kind=kind, r=4, **settings)


def wrapped(name, **settings):
    model = ALL[name].build(torch.float32)
    return add_adapter(model, lora_config(copy.deepcopy(model), lora(**settings)))


def adapted(model) -> set[str]:
    """The matrices that have an adapter, by their names in the model without it."""
    return {
        f"{path.replace('.base_layer', '')}.{getattr(module, 'parameter_name', 'weight')}"
        for path, module in model.base_model.model.named_modules()
        if hasattr(module, "lora_A")
    }


def randomized(model):
    """Fresh adapters add nothing: random ones show what is lost."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.1)
    return model.eval()


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


# ---- What gets an adapter ----

# What `all-linear` is not: embeddings, the head, convolutions and decays of a state, biases of experts, and routers.
OTHER = re.compile(r"embed|wte|wpe|lm_head|conv|A_log|bias|(router|mlp\.gate|feed_forward\.gate)\.weight$")
# peft refuses it (fused kernels read the weight past its adapter), and the warning says so.
WITHOUT = {"Nemotron-H": "mixer.out_proj", "Falcon-H1": "mamba.out_proj"}


# Breaks if peft's conversion of names (0.21) loses shared experts and dense layers, as in DeepSeek-V3, GLM-4-MoE and
# Qwen3-Next; if fused experts have no adapter; or if a router that is a linear layer gets one (Llama 4).
@pytest.mark.filterwarnings("ignore:adapter.target_modules=all-linear")
@pytest.mark.parametrize("name", ALL)
def test_all_projections_have_an_adapter(name):
    matrices = {path for path, parameter in ALL[name].build(torch.float32).named_parameters() if parameter.ndim >= 2}
    model = wrapped(name)
    left = {path for path in matrices - adapted(model) if not OTHER.search(path)}
    assert {path for path in left if WITHOUT.get(name, "-") not in path} == set()
    trained = {path for path, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in path for path in trained)


@pytest.mark.parametrize("name", WITHOUT)
def test_what_peft_does_not_adapt_is_said(name):
    with pytest.warns(UserWarning, match=rf"all-linear: {WITHOUT[name]} have no adapter and stay as they are: peft"):
        wrapped(name)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_dropout": 0.1}])
def test_experts_without_an_adapter_are_said(settings):
    (setting,) = settings
    with pytest.warns(
        UserWarning, match=rf"mlp.experts.down_proj, .* have no adapter .* only without adapter.{setting}"
    ):
        model = wrapped("Qwen3-MoE", **settings)
    assert adapted(model) == {f"model.layers.{i}.self_attn.{one}_proj.weight" for i in (0, 1) for one in "qkvo"}


# Breaks if layers that are left out for one reason are reported with the reason of others.
def test_each_reason_is_said_of_its_own_layers():
    config = ALL["Nemotron-H"].config()
    config.layers_block_type = ["linear_attention", "full_attention", "moe", "linear_attention"]
    model = AutoModelForCausalLM.from_config(config)
    with pytest.warns(UserWarning) as seen:
        lora_config(model, lora(use_dora=True))
    mamba, experts = sorted((str(one.message) for one in seen), key=lambda text: "experts" in text)
    assert mamba.endswith("all-linear: mixer.out_proj have no adapter and stay as they are: peft does not adapt them")
    assert "mixer.experts.up_proj" in experts and "only without adapter.use_dora" in experts
    assert "out_proj" not in experts


@pytest.mark.parametrize(
    "name, targets, expected",
    [
        ("Qwen3", ["q_proj", "mlp.up_proj"], {"self_attn.q_proj.weight", "mlp.up_proj.weight"}),
        ("Qwen3", r".*\.[qv]_proj", {"self_attn.q_proj.weight", "self_attn.v_proj.weight"}),
        ("Qwen3", ["q_proj"], {"self_attn.q_proj.weight"}),
        # As before transformers 5: the projections that experts had.
        ("Qwen3-MoE", ["gate_proj", "up_proj"], {"mlp.experts.gate_up_proj"}),
        ("Qwen3-MoE", r".*experts\.(gate|up)_proj", {"mlp.experts.gate_up_proj"}),
        ("gpt-oss", ["q_proj", "experts.down_proj"], {"self_attn.q_proj.weight", "mlp.experts.down_proj"}),
        (
            "Qwen3-Next",
            ["down_proj"],
            {"mlp.experts.down_proj", "mlp.shared_expert.down_proj.weight"},
        ),
    ],
)
def test_modules_by_name(name, targets, expected):
    found = adapted(wrapped(name, target_modules=targets))
    assert {path.split(".", 3)[3] for path in found} == expected


WRONG = {
    "misspelt": (
        "Qwen3",
        dict(target_modules=["q_proj", "v_prj"]),
        r"adapter.target_modules=.*: no layer of Qwen3ForCausalLM is named v_prj; its linear layers are self_attn",
    ),
    "a text": (
        "Qwen3",
        dict(target_modules="q_proj"),
        r"adapter.target_modules=q_proj: .* is named q_proj, a pattern for whole paths \(names stand in a list\)",
    ),
    "no linear layer": (
        "Qwen3",
        dict(target_modules=["q_norm"]),
        r"adapter.target_modules=.*Target module Qwen3RMSNorm is not supported",
    ),
    "half of what is fused": (
        "Qwen3-MoE",
        dict(target_modules=["gate_proj"]),
        "adapter.target_modules=.*without also targeting up_proj",
    ),
    "experts with DoRA": (
        "Qwen3-MoE",
        dict(target_modules=["q_proj", "experts.down_proj"], use_dora=True),
        "adapter.target_modules=.*experts.down_proj cannot have an adapter: .*only without adapter.use_dora",
    ),
    "Mamba": ("Nemotron-H", dict(target_modules=["out_proj"]), "adapter.target_modules=.*'out_proj' is incompatible"),
    "a tied embedding": (
        "Gemma 3",
        dict(target_modules=["q_proj", "lm_head"]),
        "adapter.target_modules=.*one and the same weight .* adapter.modules_to_save or adapter.trainable_token",
    ),
    "modules to save": (
        "Qwen3",
        dict(modules_to_save=["lm_hed"]),
        r"adapter.modules_to_save=\['lm_hed'\]: no module of Qwen3ForCausalLM is named lm_hed; it has .*lm_head",
    ),
    "token": ("Qwen3", dict(trainable_token_indices=[3, 60]), "the model has the tokens 0 to 59, and no 60"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_adapted_is_named(case):
    name, settings, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        wrapped(name, **settings)


# Breaks if a misspelt name costs the time to read the weights first: there are none in the folder.
def test_names_are_checked_before_weights_are_read(models, tmp_path):
    folder = shutil.copytree(models / "dense", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="is named v_prj"):
        load_model(config_of(folder, lora(target_modules=["v_prj"])), 300)


@pytest.mark.parametrize(
    "kind, missing, install",
    [(AdapterKind.lora, "peft", "pip install peft "), (AdapterKind.qlora, "bitsandbytes", "pip install bitsandbytes ")],
)
def test_a_package_that_is_not_installed_is_named(models, monkeypatch, kind, missing, install):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == missing else find(name, *more))
    with pytest.raises(
        ValueError, match=rf"adapter={kind}: needs {missing}, not installed here: {install}.*'.\[{kind}\]'"
    ):
        load_model(config_of(models / "dense", lora(kind)), 300)


# ---- What is saved ----

SAVED = {
    name: (name, {}) for name in ("Qwen3", "Qwen3-MoE", "gpt-oss", "DeepSeek-V3", "Qwen3-Next", "LFM2-MoE", "GPT-2")
}
SAVED |= {
    "DoRA": ("Qwen3", dict(use_dora=True)),
    "rsLoRA": ("Qwen3", dict(use_rslora=True)),
    "modules to save": ("Qwen3", dict(modules_to_save=["embed_tokens", "lm_head"])),
    "tied modules to save": ("Gemma 3", dict(modules_to_save=["embed_tokens"])),
    "tokens": ("Qwen3", dict(trainable_token_indices=[3, 4])),
    "tied tokens": ("Gemma 3", dict(trainable_token_indices=[3, 4])),
}


def saved(name, folder, **settings):
    """The folder of an adapter with random A and B, as a run leaves it, and its logits."""
    ALL[name].build(torch.float32).save_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    model = randomized(add_adapter(base, lora_config(copy.deepcopy(base), lora(**settings))))
    model.save_pretrained(folder / "run" / "model")
    return folder / "run", logits(model)


def with_tokenizer(run, models):
    AutoTokenizer.from_pretrained(models / "dense").save_pretrained(run / "model")
    return run


# Breaks if a name in adapter_config.json means something else to whoever loads it, or if merging loses a part: peft
# (0.21) merges adapters on tied embeddings wrongly.
@pytest.mark.parametrize("case", SAVED)
def test_an_adapter_and_its_merged_model_give_the_trained_logits(case, models, tmp_path):
    name, settings = SAVED[case]
    run, expected = saved(name, tmp_path, **settings)
    assert not torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "base")), expected, atol=1e-2)
    loads = [load_trained, AutoPeftModelForCausalLM.from_pretrained]
    if case != "DoRA":  # transformers (5.23) itself loads adapters too, but leaves out DoRA's magnitudes
        loads.append(AutoModelForCausalLM.from_pretrained)
    for load in loads:
        assert torch.equal(logits(load(run / "model")), expected)
    assert merge(with_tokenizer(run, models)) == run / "merged"
    assert not list((run / "merged").glob("adapter*"))
    # Sums of weights are rounded to float32, in Qwen3-Next to 3e-5 of logits on some processors; a lost part is 1e-2.
    found = logits(AutoModelForCausalLM.from_pretrained(run / "merged"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


# A base model given by a relative path is named by its whole one.
def test_a_run_is_found_its_base_from_any_folder(models, tmp_path, monkeypatch):
    monkeypatch.chdir(models)
    model = load_model(config_of("dense", lora()), 300)
    model.save_pretrained(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    saved_config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved_config["base_model_name_or_path"] == str((models / "dense").resolve())
    load_trained(tmp_path / "adapter")


def test_a_base_model_that_has_gone_is_named(tmp_path):
    run, _ = saved("Qwen3", tmp_path)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(ValueError, match="adapter_config.json: base_model_name_or_path=.*base: no such folder"):
        load_trained(run / "model")


# The end of turn that was trained stands in the run's own generation_config.json, not in that of the base model.
def test_the_merged_model_generates_as_the_run_says(models, tmp_path):
    model = randomized(load_model(config_of(models / "base", lora()), 300))
    tokenizer = load_tokenizer(config_of(models / "base").model)
    tokenizer.eos_token = "<|im_end|>"
    model.generation_config.eos_token_id, model.generation_config.max_length = [2, 0], 77
    trainer = OnePassTrainer(
        model, TrainingArguments(str(tmp_path / "out"), report_to=[]), OnePassCollator(64), processing_class=tokenizer
    )
    run = tmp_path / "run"
    trainer.save_model(run / "model")
    assert load_trained(run / "model").generation_config.max_length == 77
    merge(run, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (merged.generation_config.eos_token_id, merged.generation_config.max_length) == ([2, 0], 77)
    assert merged.config.eos_token_id == 2
    own = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert own.eos_token == "<|im_end|>"
    assert (own.chat_template, own.get_vocab()) == (tokenizer.chat_template, tokenizer.get_vocab())


def test_merge_prints_the_folder_last(models, tmp_path, capsys):
    run, _ = saved("Qwen3", tmp_path)
    main([str(with_tokenizer(run, models))])
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "merged")


def test_merge_refuses_by_name(models, tmp_path, capsys):
    run, _ = saved("Qwen3", tmp_path)
    with_tokenizer(run, models)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model").symlink_to(models / "dense")
    with pytest.raises(
        ValueError, match="full: has no adapter: this run trained the whole model, which is in .*full/model"
    ):
        merge(tmp_path / "full")
    with pytest.raises(ValueError, match="none: no such folder"):
        merge(tmp_path / "none")
    merge(run)
    with pytest.raises(ValueError, match="merged: already exists; remove it, or choose another OUT_DIR"):
        merge(run)
    with pytest.raises(SystemExit, match="^error: .*already exists"):
        main([str(run)])


# Nobody else finds half a model.
def test_an_interrupted_merge_leaves_no_folder(models, tmp_path, monkeypatch):
    run, _ = saved("Qwen3", tmp_path)
    with_tokenizer(run, models)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", killed)
    with pytest.raises(KeyboardInterrupt):
        merge(run)
    assert not (run / "merged").exists()


# An adapter on embeddings that peft itself made, and merges wrongly (0.21).
def test_a_merged_model_that_would_differ_is_not_written(models, tmp_path):
    from peft import LoraConfig, get_peft_model

    ALL["Gemma 3"].build(torch.float32).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    made = get_peft_model(base, LoraConfig(target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM"))
    randomized(made).save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(models / "dense").save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="the merged model's logits would be off by"):
        merge(tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- Training ----


@pytest.mark.parametrize("kind", ["dense", "experts", "hybrid"])
@pytest.mark.parametrize("dtype", [Dtype.auto, Dtype.bfloat16])
def test_adapters_train_and_the_base_stays(models, tmp_path, kind, dtype):
    config = config_of(models / kind, lora(), dtype=dtype)
    model = load_model(config, 300)
    before = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    losses = train(model, load_tokenizer(config.model), tmp_path)
    assert losses[-1] < losses[0] - 0.5
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if not p.requires_grad)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


# Breaks if bitsandbytes (0.50) repacks the weights in the check before training, on CPUs that have a kernel for it: no
# gradients flow through that one, and training goes on with wrong ones.
def test_a_base_in_four_bits_trains_with_the_gradients_of_its_weights(models, tmp_path):
    from bitsandbytes.functional import dequantize_4bit

    config = config_of(models / "dense", lora(AdapterKind.qlora))
    model = load_model(config, 300)
    losses = train(model, load_tokenizer(config.model), tmp_path)
    assert losses[-1] < losses[0] - 0.5
    plain = load_model(config_of(models / "dense", lora()), 300)
    state = {name: p for name, p in model.named_parameters()}
    for name, parameter in plain.named_parameters():
        own = state[name]
        quantized = hasattr(own, "quant_state")
        parameter.data = dequantize_4bit(own.data, own.quant_state) if quantized else own.data.clone()
    for one in (model, plain):
        one.zero_grad()
        one.eval()(input_ids=IDS, labels=IDS).loss.backward()
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(state[name].grad, parameter.grad, rtol=1e-3, atol=1e-6)
