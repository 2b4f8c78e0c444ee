"""Real weights through the recipe: they load as plain transformers loads them, and what is no model is named."""

import dataclasses
import json
import shutil

import pytest
import torch
import transformers as hf
from pretrained import NONE, config_of, train
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.quantizers.quantizer_mxfp4 import Mxfp4HfQuantizer

from flexmask import UnsupportedModelError
from recipes.configuration.schema import AdapterConfig, AdapterKind, Dtype, MixedPrecision
from recipes.models.load import load_model, load_tokenizer, load_trained, weightless_model
from recipes.models.precision import resolve_precision

KINDS = ["dense", "experts", "hybrid"]


@pytest.fixture
def copied(models, tmp_path):
    """A folder of the dense model to damage."""
    return shutil.copytree(models / "dense", tmp_path / "model")


def load(folder, **settings):
    config = config_of(folder, **settings)
    return load_model(config, len(load_tokenizer(config.model)))


def change(folder, file="config.json", **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# Breaks if any argument of the recipe collides with what it passes on: no model of a user would load.
@pytest.mark.parametrize("kind", KINDS)
def test_pretrained_weights_load_as_plain_transformers_loads_them(models, kind):
    plain = AutoModelForCausalLM.from_pretrained(models / kind).state_dict()
    loaded = load(models / kind).state_dict()
    assert plain.keys() == loaded.keys()
    assert all(torch.equal(plain[name], loaded[name]) for name in plain)
    assert load(models / kind, from_scratch=True).state_dict().keys() == plain.keys()


def test_a_folder_may_be_given_from_the_home_folder(models, monkeypatch):
    monkeypatch.setenv("HOME", str(models))
    assert load("~/dense").config.model_type == "qwen3"


# Breaks if the loss is computed, or the weights are updated, in another dtype than asked for.
@pytest.mark.parametrize("kind", KINDS)
def test_weights_in_bfloat16_train(models, kind, tmp_path):
    model = load(models / kind, dtype=Dtype.bfloat16)
    losses = train(model, load_tokenizer(config_of(models / kind).model), tmp_path)
    assert losses[-1] < losses[0] - 1
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


# ---- Precision ----

LORA, QLORA = AdapterConfig(kind=AdapterKind.lora), AdapterConfig(kind=AdapterKind.qlora)
AUTO, NO, BF16 = MixedPrecision.auto, MixedPrecision.none, MixedPrecision.bf16


@pytest.mark.parametrize(
    "gpu, adapter, dtype, mixed, expected",
    [
        (False, NONE, Dtype.auto, AUTO, (torch.float32, NO)),
        (False, LORA, Dtype.auto, AUTO, (torch.float32, NO)),
        (True, NONE, Dtype.auto, AUTO, (torch.float32, BF16)),
        (True, LORA, Dtype.auto, AUTO, (torch.bfloat16, BF16)),
        (True, QLORA, Dtype.auto, AUTO, (torch.bfloat16, BF16)),
        (True, LORA, Dtype.float32, NO, (torch.float32, NO)),
        (True, NONE, Dtype.bfloat16, AUTO, (torch.bfloat16, BF16)),
        (True, NONE, Dtype.float64, AUTO, (torch.float64, NO)),
        (False, NONE, Dtype.bfloat16, BF16, (torch.bfloat16, BF16)),
    ],
)
def test_what_auto_is_on_a_device(monkeypatch, gpu, adapter, dtype, mixed, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: gpu)
    found = resolve_precision(dtype, adapter.kind, mixed)
    assert (found.dtype, found.mixed_precision) == expected
    assert str(found.dtype).removeprefix("torch.") in found.description
    assert ("bf16 mixed" in found.description) == (found.mixed_precision is BF16)


# ---- What is no model, or no whole one ----


def without(*names):
    def remove(folder):
        for name in names:
            (folder / name).unlink()

    return remove


def cut(name, length):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length])


def gguf(folder):
    without("config.json", "model.safetensors")(folder)
    (folder / "model.Q8_0.gguf").write_bytes(b"GGUF" + bytes(100))


def adapter(folder):
    without("config.json", "model.safetensors")(folder)
    (folder / "adapter_config.json").write_text("{}")


def run_folder(folder):
    without("config.json", "model.safetensors")(folder)
    (folder / "model").mkdir()


def other_config(make):
    return lambda folder: make().save_pretrained(folder)


OWN_CODE = {"AutoConfig": "configuration_m.M", "AutoModelForCausalLM": "modeling_m.M"}
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
WRONG = {
    "no model folder": (without("config.json"), "it has no config.json"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json' is not a valid JSON file"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "model_type"),
    "a value of another type": (lambda folder: change(folder, num_attention_heads="x"), "num_attention_heads"),
    "no weights": (without("model.safetensors"), "no weights"),
    "truncated weights": (cut("model.safetensors", 3000), "damaged or cut off; fetch it again"),
    "empty weights": (cut("model.safetensors", 0), "damaged or cut off; fetch it again"),
    "Git LFS pointer": (lambda folder: (folder / "model.safetensors").write_text(LFS), "git lfs pull"),
    "other shapes": (lambda folder: change(folder, intermediate_size=96), "other shapes than its config.json says"),
    "a layer is missing": (
        lambda folder: change(folder, num_hidden_layers=3, layer_types=["full_attention"] * 3),
        r"lack 11 of the weights .*\(model.layers.2",
    ),
    "GGUF": (gguf, r"python -m recipes.convert_gguf .*model.Q8_0.gguf OUT_DIR"),
    "an adapter": (adapter, "is an adapter, not a model; .* python -m recipes.merge"),
    "a run": (run_folder, "is a run folder; its model is in it: model.name_or_path=.*model/model"),
    "a sentence encoder": (other_config(hf.BertConfig), "bert is an encoder"),
    "an encoder of no causal class": (other_config(hf.MPNetConfig), "is no causal language model"),
    "encoder and decoder": (other_config(hf.T5Config), "t5 is an encoder with a decoder behind it"),
    "speech": (other_config(hf.WhisperConfig), "whisper is an encoder with a decoder behind it"),
    "own code": (lambda folder: change(folder, model_type="m", auto_map=OWN_CODE), r"\(auto_map in its config.json\)"),
    "unknown type": (lambda folder: change(folder, model_type="m"), "model type `m`"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_model_is_named(copied, name):
    damage, message = WRONG[name]
    damage(copied)
    with pytest.raises(ValueError, match=f"^model.name_or_path={copied}: .*{message}"):
        load_model(config_of(copied), 300)


def test_a_file_in_place_of_a_folder_is_named(copied):
    with pytest.raises(ValueError, match="config.json: is a file; give the folder of the model"):
        load_model(config_of(copied / "config.json"), 300)
    with pytest.raises(ValueError, match=r"convert_gguf .*\.gguf OUT_DIR"):
        (copied / "m.gguf").write_bytes(b"GGUF" + bytes(100))
        load_model(config_of(copied / "m.gguf"), 300)


# The tests run with HF_HUB_OFFLINE, as behind a wall.
@pytest.mark.parametrize("load", [lambda config: load_tokenizer(config.model), lambda config: load_model(config, 300)])
def test_a_hub_that_cannot_be_reached_is_named(load):
    with pytest.raises(ValueError, match="model.name_or_path=Qwen/Qwen3-0.6B: .* without network give a local folder"):
        load(config_of("Qwen/Qwen3-0.6B"))
    with pytest.raises(ValueError, match="model.name_or_path=models/of/mine: no such folder"):
        load(config_of("models/of/mine"))


# Without files of a tokenizer, transformers makes an empty one: every text would be no tokens.
def test_a_missing_tokenizer_is_named(copied):
    without("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")(copied)
    with pytest.raises(ValueError, match="no tokenizer there; copy tokenizer.json"):
        load_tokenizer(config_of(copied).model)


def test_a_damaged_tokenizer_is_named(copied):
    cut("tokenizer.json", 100)(copied)
    with pytest.raises(ValueError, match=f"^model.name_or_path={copied}: "):
        load_tokenizer(config_of(copied).model)


def test_a_missing_chat_template_is_named_and_one_can_be_given(copied, tmp_path):
    without("chat_template.jinja")(copied)
    config = config_of(copied).model
    with pytest.raises(ValueError, match="no chat template.*model.chat_template=<file>"):
        load_tokenizer(config)
    (tmp_path / "my.jinja").write_text("{{ messages[0].content }}")
    config = dataclasses.replace(config, chat_template=str(tmp_path / "my.jinja"))
    assert load_tokenizer(config).chat_template == "{{ messages[0].content }}"


@pytest.mark.parametrize("from_scratch", [False, True])
def test_more_tokens_than_embeddings_are_refused_before_weights_are_read(copied, from_scratch):
    without("model.safetensors")(copied)
    with pytest.raises(ValueError, match="its tokenizer has 400 tokens, its embedding only 384"):
        load_model(config_of(copied, from_scratch=from_scratch), 400)


# Breaks if weights are read first: there are none in the folder.
def test_an_unsuitable_model_is_refused_before_its_weights_are_read(tmp_path):
    hf.MambaConfig(num_hidden_layers=1, hidden_size=32, vocab_size=300).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="carry state from token to token"):
        load_model(config_of(tmp_path), 300)


def test_quantized_weights_are_not_trained_in_full(copied):
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    AutoModelForCausalLM.from_pretrained(copied, quantization_config=four_bits).save_pretrained(copied)
    with pytest.raises(ValueError, match="weights are quantized .*bitsandbytes.* adapter=lora"):
        load_model(config_of(copied), 300)
    model = load_model(config_of(copied, adapter=LORA), 300)
    assert all("lora" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


# gpt-oss has its experts in 4 bits on the hub. Breaks if what kernels are installed decides whether they can be
# trained, or if they are saved under the names of those in 4 bits (transformers 5.23), where nobody finds them.
def test_experts_in_mxfp4_are_read_and_saved_as_plain_weights(models, tmp_path, monkeypatch):
    asked = []
    validate = Mxfp4HfQuantizer.validate_environment
    monkeypatch.setattr(
        Mxfp4HfQuantizer,
        "validate_environment",
        lambda self, **more: (asked.append(self.quantization_config.dequantize), validate(self, **more)),
    )
    assert "quantization_config" in json.loads((models / "gpt_oss/config.json").read_text())
    model = load(models / "gpt_oss", adapter=LORA).merge_and_unload()
    assert asked == [True]
    experts = model.model.layers[0].mlp.experts.down_proj
    assert experts.dtype == torch.float32 and 0.05 < experts.std() < 0.2  # as they were made, to 4 bits
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_experts_in_mxfp4_are_not_quantized_again(models):
    with pytest.raises(
        ValueError, match=r"adapter=qlora: .*gpt_oss has weights in 4 bits .*mxfp4.* choose adapter=lora"
    ):
        load(models / "gpt_oss", adapter=QLORA)
    with pytest.raises(ValueError, match="weights are quantized .*mxfp4.* adapter=lora"):
        load(models / "gpt_oss")


# Random weights are plain, and so is what is saved of them.
def test_from_scratch_nothing_is_quantized(models, tmp_path):
    load(models / "gpt_oss", from_scratch=True).save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def test_dropout_on_attention_is_set_to_0_and_said(copied):
    change(copied, attention_dropout=0.1)
    with pytest.warns(UserWarning, match="attention_dropout=0.1 is set to 0"):
        assert load(copied).config.attention_dropout == 0


# ---- What leaves a run ----


# Breaks if what transformers refuses to save ends a run at its last line, or if the settings of generation are lost.
def test_a_generation_config_that_cannot_be_saved_is_mended_before_training(copied, tmp_path):
    change(copied, "generation_config.json", temperature=0.6, top_p=0.9)
    with pytest.warns(UserWarning, match="the trained model gets do_sample=true"):
        model = load(copied)
    model.generation_config.eos_token_id = [1, 2]  # as aligning the end of turn does; else it is not looked at
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert (saved["temperature"], saved["top_p"], saved["do_sample"]) == (0.6, 0.9, True)


def test_a_generation_config_that_nothing_mends_is_refused_before_training(copied):
    change(copied, "generation_config.json", early_stopping=True, do_sample=True)
    with pytest.raises(ValueError, match="(?s)generation_config.json could not be saved again .*early_stopping"):
        load(copied)


# Settings of generation in config.json, where older models have them, move to generation_config.json.
def test_settings_of_generation_in_config_json_survive(copied, tmp_path):
    change(copied, temperature=0.6, do_sample=True)
    (copied / "generation_config.json").unlink()
    load(copied).save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text())["temperature"] == 0.6


def test_a_trained_model_loads_in_the_dtype_asked_for(models, tmp_path):
    assert load_trained(models / "dense").dtype is torch.float32
    assert load_trained(models / "dense", Dtype.bfloat16).dtype is torch.bfloat16
    assert not load_trained(models / "dense").training
    with pytest.raises(ValueError, match="no trained model, it has neither config.json nor adapter_config.json"):
        load_trained(tmp_path)


def test_a_model_without_weights_is_made_of_its_config_alone(copied):
    without("model.safetensors")(copied)
    change(copied, "generation_config.json", eos_token_id=[1, 2])
    model = weightless_model(config_of(copied).model, 300)
    # Broken by the generation config of config.json: what is said of the end of turn is then not what a run says.
    assert model.device.type == "meta" and model.generation_config.eos_token_id == [1, 2]
    (copied / "generation_config.json").unlink()
    assert weightless_model(config_of(copied).model, 300).generation_config.eos_token_id != [1, 2]


def test_the_tokenizer_is_the_folders_own(models):
    own = AutoTokenizer.from_pretrained(models / "dense")
    assert load_tokenizer(config_of(models / "dense").model).get_vocab() == own.get_vocab()
