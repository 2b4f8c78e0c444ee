"""Refusal by name, and the mask that each layer type gets."""

import pytest
import torch
from factories import TINY_MODELS, chatml_tokenizer, random_passes, tiny_gemma3, tiny_qwen3
from families import FAMILIES
from stateful_families import STATEFUL
from transformers import (
    AutoModelForCausalLM,
    DeepseekV32Config,
    DogeConfig,
    DogeForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from flexmask import UnsupportedModelError, lay_out, pack, prepare_model, token_losses
from flexmask.attention import ATTENTION_NAME
from flexmask.exactness import check_exact
from flexmask.masks import build_block_mask
from flexmask.models import attention_masks, check_model, stateful_layers

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


# Doge rewrites the mask inside its attention: nothing about its layers says so, only its losses do.
def test_a_model_that_masking_does_not_make_exact_is_refused_by_trying():
    model = prepare_model(DogeForCausalLM(DogeConfig(**SMALL, **HEADS, keep_window_size=4)))
    with pytest.raises(UnsupportedModelError, match="DogeForCausalLM: one pass is not exact for this model"):
        check_exact(model, 16)


@pytest.mark.parametrize("family", TINY_MODELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_exact_models_pass_the_check(family, dtype):
    check_exact(prepare_model(TINY_MODELS[family](60, dtype)), 16)


# Breaks if the check's tolerance lets a leak through that is as small as one token.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_check_sees_a_mask_that_is_one_token_off(dtype, monkeypatch):
    def off_by_one(visible_until, *arguments, **more):
        return build_block_mask((visible_until + 1).clamp_max(visible_until.shape[1]), *arguments, **more)

    monkeypatch.setattr("flexmask.models.build_block_mask", off_by_one)
    with pytest.raises(UnsupportedModelError, match="one pass is not exact"):
        check_exact(prepare_model(TINY_MODELS["qwen3"](60, dtype)), 16)


def test_a_layer_type_without_a_mask_rule_is_refused():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(DeepseekV32Config(num_hidden_layers=2))
    with pytest.raises(UnsupportedModelError, match=r"layer 0 \(indexed_attention\).*have no mask rule"):
        check_model(model)


# The name of gpt-oss holds "ssm", and Kimi Linear's attention the words "linear attention".
def test_names_that_only_look_stateful():
    assert stateful_layers(FAMILIES["gpt-oss"].build(torch.float32)) == []
    layers = stateful_layers(STATEFUL["Kimi Linear"].build(torch.float32))
    assert layers == ["model.layers.0.self_attn (KimiLinearDeltaAttention)"]


@pytest.mark.parametrize("setting", ["attention_dropout", "attn_pdrop"])
def test_dropout_on_attention_is_refused_before_training(setting):
    model = tiny_qwen3(60, torch.float32)
    setattr(model.config, setting, 0.1)
    with pytest.raises(ValueError, match=f"{setting}=0.1: attention and routing must not be random"):
        prepare_model(model)


# Breaks if the balancing loss enters the total: it would then depend on the layout and on how rows are packed.
def test_the_routers_balancing_loss_is_switched_off_with_a_message():
    model = FAMILIES["Qwen3-MoE"].build(torch.float64)
    without = token_losses(prepare_model(model), one_pack(), 16).weighted_sum()
    model.config.output_router_logits = True
    with pytest.warns(UserWarning, match=r"output_router_logits is switched off.*router_aux_loss_coef=0.001"):
        prepare_model(model)
    assert model.config.output_router_logits is False
    assert token_losses(model, one_pack(), 16).weighted_sum() == without


def one_pack():
    return pack(lay_out(random_passes(3), "one_pass").rows, 512, pad_to_multiple_of=16)[0]


def test_layers_with_a_window_get_a_mask_with_that_window():
    masks = attention_masks(tiny_gemma3(60, torch.float32, window=12).config, one_pack(), 16)
    assert {kind: mask.mask_mod.window for kind, mask in masks.items()} == {
        "full_attention": None,
        "sliding_attention": 12,
    }


def test_a_model_of_one_layer_type_gets_one_mask():
    assert attention_masks(tiny_qwen3(60, torch.float32).config, one_pack(), 16).mask_mod.window is None


# Mistral has a window and no list of layer types.
def test_a_window_without_layer_types_is_not_forgotten():
    config = MistralConfig(**SMALL, **HEADS, sliding_window=7)
    assert attention_masks(config, one_pack(), 16).mask_mod.window == 7
    model = prepare_model(MistralForCausalLM(config))
    assert token_losses(model, one_pack(), 16).losses.isfinite().all()


def test_a_prepared_model_still_generates():
    model = prepare_model(tiny_qwen3(len(chatml_tokenizer()), torch.float32))
    assert model.config._attn_implementation == ATTENTION_NAME
    ids = torch.tensor([[5, 6, 7], [0, 8, 9]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    new = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    model.set_attn_implementation("sdpa")
    assert torch.equal(new, model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False))
