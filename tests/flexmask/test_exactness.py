"""The check before training: what is not exact is found in every dtype, what is exact passes, the model is kept."""

import warnings

import pytest
import torch
import transformers as hf
from factories import TINY_MODELS, tiny_qwen3
from peft import LoraConfig, get_peft_model
from torch import nn

from flexmask import UnsupportedModelError, prepare_model
from flexmask.exactness import check_exact
from flexmask.masks import build_block_mask

SMALL = dict(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4, pad_token_id=0
)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
INEXACT = {
    # Counts positions itself where it is given none, from its pad token on.
    "RoBERTa": lambda: hf.RobertaConfig(
        **SMALL, is_decoder=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    ),
    # Looks at the token in front.
    "Qwen 3 with a shift": lambda: hf.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
}
OWN_MASKS = {
    # Rewrites the mask inside its attention.
    "Doge": (
        lambda: hf.DogeConfig(**SMALL, num_key_value_heads=2, keep_window_size=4),
        r"layer 0 \(DogeAttention\) attends under a mask of its own \(Tensor\)",
    ),
    # Looks ahead.
    "Gemma 3 both ways": (
        lambda: hf.Gemma3TextConfig(**SMALL, num_key_value_heads=2, head_dim=8, use_bidirectional_attention=True),
        "Gemma3TextConfig asks for an attention mask .*or_masks.*Gemma3TextModel",
    ),
}


# Nothing about the layers says so, only the losses. With the weights that a new model has, a leak moves a loss by 0.1
# to 0.3: less than bfloat16's own rounding may, so this breaks if half precision is compared in half precision.
@pytest.mark.parametrize("name", INEXACT)
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_a_model_that_masking_does_not_make_exact_is_refused_by_trying(name, dtype):
    torch.manual_seed(0)
    model = prepare_model(hf.AutoModelForCausalLM.from_config(INEXACT[name](), dtype=dtype))
    if "shift" in name:
        shift = nn.ConstantPad1d((1, -1), 0.0)
        model.model.layers[1].register_forward_pre_hook(lambda _, states: states[0] + shift(states[0].mT).mT)
    with pytest.raises(UnsupportedModelError, match=f"{type(model).__name__}: one pass is not exact for this model"):
        check_exact(model, 16)


# Breaks if a layer may attend under another mask than that of the pack, or a model ask for one that looks ahead.
@pytest.mark.parametrize("name", OWN_MASKS)
def test_a_mask_that_is_not_the_packs_is_refused(name):
    config, message = OWN_MASKS[name]
    model = prepare_model(hf.AutoModelForCausalLM.from_config(config()))
    with pytest.raises(UnsupportedModelError, match=message):
        check_exact(model, 16)


@pytest.mark.parametrize("family", TINY_MODELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_models_pass_the_check(family, dtype):
    check_exact(prepare_model(TINY_MODELS[family](60, dtype)), 16)


# Breaks if the check's tolerance lets a leak through that is as small as one token.
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_check_sees_a_mask_that_is_one_token_off(dtype, monkeypatch):
    def off_by_one(visible_until, *arguments, **more):
        return build_block_mask((visible_until + 1).clamp_max(visible_until.shape[1]), *arguments, **more)

    monkeypatch.setattr("flexmask.models.build_block_mask", off_by_one)
    with pytest.raises(UnsupportedModelError, match="one pass is not exact"):
        check_exact(prepare_model(TINY_MODELS["qwen3"](60, dtype)), 16)


def storage(model):
    return {name: (tensor.dtype, tensor.data_ptr()) for name, tensor in model.state_dict().items()}


# Breaks if the float32 that the check computes in stays: the model would train in another dtype, or in twice the
# memory. Tied weights belong to two modules.
@pytest.mark.parametrize("fails", [False, True])
def test_a_model_in_half_precision_keeps_its_weights(fails):
    torch.manual_seed(0)
    config = hf.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True)
    model = prepare_model(hf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)).train()
    before, seen = storage(model), set()

    def watch(module, inputs, output):
        seen.update((module.weight.dtype, output.dtype))
        if fails:
            raise KeyError("boxes")

    model.model.layers[3].mlp.down_proj.register_forward_hook(watch)
    if fails:
        with pytest.raises(UnsupportedModelError, match="KeyError: 'boxes'"):
            check_exact(model, 16)
    else:
        check_exact(model, 16)
        assert seen == {torch.float32}
    assert storage(model) == before
    assert model.training


# A kernel for half precision alone: the check still runs, and says that it saw less.
def test_code_that_takes_no_float32_is_tried_as_it_is():
    model = prepare_model(tiny_qwen3(60, torch.float16))

    def half_only(module, inputs):
        if inputs[0].dtype == torch.float32:
            raise TypeError("expected Half")

    model.model.layers[0].mlp.up_proj.register_forward_pre_hook(half_only)
    with pytest.warns(UserWarning, match="tried in torch.float16 only, .* TypeError: expected Half"):
        check_exact(model, 16)


ADAPTERS = {
    "LoRA": dict(target_modules=["q_proj", "down_proj"]),
    "DoRA": dict(target_modules=["q_proj"], use_dora=True),
    "parameters": dict(target_modules=["q_proj"], target_parameters=["mlp.up_proj.weight"]),
    "tokens": dict(target_modules=["q_proj"], trainable_token_indices=[1, 2]),
    "modules to save": dict(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    "embedding and head": dict(target_modules=["q_proj", "embed_tokens", "lm_head"]),
}


# Layers of peft read the weights of the layer that they wrap without running it. Breaks if those stay in half precision
# while the check runs (a warning: it was not tried in float32), or in float32 afterwards.
@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("family", TINY_MODELS)
def test_a_model_with_adapters_is_tried_in_float32(name, family):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of tied embeddings and names that are to go
        model = get_peft_model(TINY_MODELS[family](60, torch.bfloat16), LoraConfig(**ADAPTERS[name]))
    before = storage(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_exact(prepare_model(model), 16)
    assert storage(model) == before


# Another machine would do: the model is not to blame.
def test_want_of_memory_is_not_blamed_on_the_model():
    model = prepare_model(tiny_qwen3(60, torch.float32))

    def full(*_):
        raise torch.OutOfMemoryError("80 GiB")

    model.lm_head.register_forward_hook(full)
    with pytest.raises(torch.OutOfMemoryError):
        check_exact(model, 16)


# Speech and image models have embeddings of tokens that they never predict: a loss of those would be an index error.
def test_tokens_without_a_logit_are_not_drawn():
    model = tiny_qwen3(60, torch.float32)
    model.lm_head = nn.Linear(32, 20, bias=False)
    check_exact(prepare_model(model), 16)
