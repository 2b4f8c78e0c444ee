"""Refusal by name, and the mask that each layer type gets."""

import warnings

import pytest
import torch
import transformers as hf
from factories import chatml_tokenizer, random_passes, tiny_gemma3, tiny_qwen3
from families import FAMILIES
from peft import LoraConfig, get_peft_model
from stateful_families import BRANCHING
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from flexmask import UnsupportedModelError, lay_out, pack, prepare_model, token_losses
from flexmask.attention import ATTENTION_NAME
from flexmask.exactness import check_exact
from flexmask.models import attention_masks, branching_layers, check_model, stateful_layers, unwrapped
from flexmask.randomness import random_settings

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def test_a_layer_type_without_a_mask_rule_is_refused():
    with torch.device("meta"):
        model = hf.AutoModelForCausalLM.from_config(hf.DeepseekV32Config(num_hidden_layers=2))
    with pytest.raises(UnsupportedModelError, match=r"layer 0 \(indexed_attention\).*have no mask rule"):
        check_model(model)


# Layers of only a feed-forward network are listed among the layer types of Nemotron-H; they take no mask.
def test_layers_without_attention_need_no_mask_rule():
    sizes = dict(vocab_size=60, hidden_size=32, intermediate_size=48, head_dim=8)
    config = hf.NemotronHConfig(**sizes, **HEADS, layers_block_type=["attention", "mlp"])
    model = prepare_model(hf.NemotronHForCausalLM(config))
    assert not isinstance(attention_masks(model.config, one_pack(), 16), dict)
    check_exact(model, 16)


# The name of gpt-oss holds "ssm", and Kimi Linear's attention the words "linear attention".
def test_names_that_only_look_stateful():
    assert stateful_layers(FAMILIES["gpt-oss"].build(torch.float32)) == []
    layers = stateful_layers(BRANCHING["Kimi Linear"].build(torch.float32))
    assert layers == [f"model.layers.{i}.self_attn (KimiLinearDeltaAttention)" for i in (0, 2)]


# Voxtral's audio tower has convolutions, which text does not enter; the same layer in the decoder carries state.
def test_towers_are_not_searched_for_state():
    audio = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    with torch.device("meta"):
        text = hf.LlamaConfig(**{**SMALL, "num_hidden_layers": 1}, **HEADS)
        model = hf.VoxtralForConditionalGeneration(hf.VoxtralConfig(audio_config=audio, text_config=text))
        assert any(isinstance(module, nn.Conv1d) for module in model.modules())
        assert stateful_layers(model) == []
        model.get_decoder().layers[0].mixer = nn.Sequential(nn.Conv1d(32, 32, 4))
    assert stateful_layers(model) == ["model.language_model.layers.0.mixer (Sequential)"]


# ---- A window in the config that the model's own code does not have ----

FULL, SLIDING = ["full_attention"] * 4, ["sliding_attention"] * 4
UNREAD = {
    "left over": (
        hf.LlamaConfig,
        dict(sliding_window=40),
        "sliding_window=40, but .* no window .*remove sliding_window",
    ),
    "layer types": (
        hf.LlamaConfig,
        dict(layer_types=SLIDING, sliding_window=40),
        "sliding_window=40, but .* no window .*remove sliding_window and layer_types from",
    ),
    "mixed": (
        hf.LlamaConfig,
        dict(layer_types=SLIDING[:2] + FULL[:2], sliding_window=40),
        "'sliding_attention' have sliding_window=40",
    ),
    "chunk": (
        hf.LlamaConfig,
        dict(layer_types=["chunked_attention"] * 4, attention_chunk_size=40),
        "attention_chunk_size=40, but .* no window .*remove attention_chunk_size and layer_types from",
    ),
    "everywhere": (
        hf.MistralConfig,
        dict(layer_types=FULL, sliding_window=40),
        "'full_attention' have no window, but .* a window of 40 .*remove layer_types from",
    ),
    "ALiBi": (hf.BloomConfig, dict(sliding_window=40), "BloomForCausalLM: .* sliding_window=40, but .* no window"),
}


# Each would train with a window (or without one) that no other use of the model has; the windows are longer than the
# passes that check_exact tries.
@pytest.mark.parametrize("name", UNREAD)
def test_a_window_that_the_model_does_not_have_is_refused(name):
    config, settings, message = UNREAD[name]
    more = dict(n_layer=4, n_head=4, hidden_dropout=0.0) if config is hf.BloomConfig else HEADS
    model = hf.AutoModelForCausalLM.from_config(config(**{**SMALL, **more}, **settings))
    with pytest.raises(UnsupportedModelError, match=message):
        prepare_model(model)


# Breaks if asking the model for its windows changes a mode or the random state, or leaves its own mask function behind.
def test_a_model_in_training_is_left_as_it_was():
    model = tiny_qwen3(60, torch.float32).train()
    model.gradient_checkpointing_enable()
    model.model.layers[0].eval()
    modes, random = [module.training for module in model.modules()], torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_model(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert ALL_MASK_ATTENTION_FUNCTIONS[ATTENTION_NAME] is sdpa_mask


def fail(*_, **__):
    raise KeyError("boxes")


def test_a_model_that_cannot_run_over_text_is_refused_with_its_own_error():
    model = tiny_qwen3(60, torch.float32).train()
    model.model.layers[1].forward = fail
    with pytest.raises(UnsupportedModelError, match="Qwen3ForCausalLM fails .* KeyError: 'boxes'") as refusal:
        prepare_model(model)
    assert isinstance(refusal.value.__cause__, KeyError)
    assert model.training
    assert ALL_MASK_ATTENTION_FUNCTIONS[ATTENTION_NAME] is sdpa_mask


def test_a_model_without_weights_is_prepared_without_running_it():
    with torch.device("meta"):
        model = hf.Qwen3ForCausalLM(hf.Qwen3Config(**SMALL, **HEADS))
    model.forward = fail
    prepare_model(model)


@pytest.mark.parametrize("setting", ["attention_dropout", "attn_pdrop"])
def test_dropout_on_attention_is_refused_before_training(setting):
    model = tiny_qwen3(60, torch.float32)
    setattr(model.config, setting, 0.1)
    with pytest.raises(ValueError, match=f"{setting}=0.1: attention and routing must not be random"):
        prepare_model(model)


# DBRX keeps these settings in configs of its own for attention and experts.
@pytest.mark.parametrize("path", ["attn_config.attn_pdrop", "ffn_config.moe_jitter_eps"])
def test_random_settings_of_nested_configs_are_found(path):
    part, setting = path.split(".")
    model = hf.DbrxForCausalLM(
        hf.DbrxConfig(
            d_model=32,
            n_heads=4,
            n_layers=1,
            vocab_size=60,
            attn_config=dict(kv_n_heads=2, rope_theta=1e4),
            ffn_config=dict(hidden_size=32, ffn_hidden_size=48, moe_num_experts=2, moe_top_k=1),
        )
    )
    assert random_settings(model.config) == []
    setattr(getattr(model.config, part), setting, 0.1)
    with pytest.raises(ValueError, match=f"{path}=0.1: attention and routing must not be random"):
        prepare_model(model)


# Breaks if it is refused, passed over in silence, or if GPT-2's dropout of a head that is not there is named with it.
def test_dropout_outside_of_attention_is_named_once():
    config = hf.GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=4, attn_pdrop=0.0, resid_pdrop=0.2)
    with pytest.warns(UserWarning) as seen:
        prepare_model(hf.GPT2LMHeadModel(config))
    (message,) = [str(one.message) for one in seen]
    assert "GPT2LMHeadModel: resid_pdrop=0.2, embd_pdrop=0.1: turns of one pass share one draw" in message


def with_lora(model, **settings):
    return get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **settings))


# Found in the layers themselves: breaks if peft's dropout, which config.json does not have, is passed over in silence,
# or if that of an adapter that is not active is named.
def test_dropout_of_adapters_is_named_as_other_dropout_is():
    with pytest.warns(UserWarning) as seen:
        prepare_model(with_lora(tiny_qwen3(60, torch.float32), lora_dropout=0.25))
    (message,) = [str(one.message) for one in seen if "lora" in str(one.message)]
    assert "Qwen3ForCausalLM: lora_dropout=0.25: turns of one pass share one draw" in message
    model = with_lora(tiny_qwen3(60, torch.float32), lora_dropout=0.25)
    model.add_adapter("other", LoraConfig(target_modules=["q_proj"]))
    model.set_adapter("other")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_model(model)
    # As transformers' own add_adapter puts them: no wrapper around the model.
    model = tiny_qwen3(60, torch.float32)
    model.add_adapter(LoraConfig(target_modules=["q_proj"], lora_dropout=0.5))
    with pytest.warns(UserWarning, match="lora_dropout=0.5"):
        prepare_model(model)


# Whatever wraps a model, its layers are found, refused and named as without.
def test_a_model_is_found_in_its_wrappers():
    wrapped = with_lora(BRANCHING["Kimi Linear"].build(torch.float32))
    assert stateful_layers(wrapped) == branching_layers(wrapped) == stateful_layers(wrapped.get_base_model())
    assert unwrapped(torch.compile(wrapped)) is wrapped.get_base_model()
    assert prepare_model(wrapped) is wrapped
    stateful = get_peft_model(
        hf.MambaForCausalLM(hf.MambaConfig(num_hidden_layers=1, hidden_size=32, vocab_size=60)),
        LoraConfig(target_modules=["in_proj"]),
    )
    with pytest.raises(UnsupportedModelError, match=r"^MambaForCausalLM: backbone.layers.0.mixer \(MambaMixer\) carry"):
        prepare_model(stateful)
    with pytest.raises(UnsupportedModelError, match="Linear neither is nor holds a model of transformers"):
        prepare_model(nn.Linear(2, 2))


# The error of the table itself names neither the model nor the length; on a GPU it ends the process.
@pytest.mark.parametrize("config", [hf.GPT2Config(n_positions=16), hf.OPTConfig(max_position_embeddings=16)])
def test_positions_beyond_a_table_are_refused(config):
    longest = int(one_pack().position_ids.max()) + 1
    assert longest > 16
    with pytest.raises(
        UnsupportedModelError,
        match=f"max_position_embeddings=16 learned positions, .* at {longest}; give pack_length=16 or",
    ):
        attention_masks(config, one_pack(), 16)
    # Rotary positions have no end.
    attention_masks(hf.Qwen3Config(max_position_embeddings=16), one_pack(), 16)


# Breaks if the balancing loss enters the total: it would then depend on the layout and on how rows are packed.
def test_the_routers_balancing_loss_is_switched_off_with_a_message():
    model = FAMILIES["Qwen3-MoE"].build(torch.float64)
    without = token_losses(prepare_model(model), one_pack(), 16).total
    model.config.output_router_logits = True
    with pytest.warns(UserWarning, match=r"output_router_logits is switched off.*router_aux_loss_coef=0.001"):
        prepare_model(model)
    assert model.config.output_router_logits is False
    assert token_losses(model, one_pack(), 16).total == without


def one_pack():
    return pack(lay_out(random_passes(3), "one_pass").rows, 512)[0]


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
    config = hf.MistralConfig(**SMALL, **HEADS, sliding_window=7)
    assert attention_masks(config, one_pack(), 16).mask_mod.window == 7
    model = prepare_model(hf.MistralForCausalLM(config))
    assert token_losses(model, one_pack(), 16).losses.isfinite().all()


def test_a_prepared_model_still_generates():
    model = prepare_model(tiny_qwen3(len(chatml_tokenizer()), torch.float32))
    assert model.config._attn_implementation == ATTENTION_NAME
    ids = torch.tensor([[5, 6, 7], [0, 8, 9]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    new = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    model.set_attn_implementation("sdpa")
    assert torch.equal(new, model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False))
