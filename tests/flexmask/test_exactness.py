"""The check before training: what is not exact is found in every dtype, what is exact passes, the model is kept."""

import warnings

import peft
import pytest
import torch
import transformers as hf
from factories import TINY_MODELS, tiny_qwen3
from peft import LoraConfig, get_peft_model
from torch import nn

from flexmask import UnsupportedModelError, prepare_model
from flexmask.attention.masks import build_block_mask
from flexmask.model import exactness
from flexmask.model.exactness import check_exact

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

    monkeypatch.setattr("flexmask.model.support.build_block_mask", off_by_one)
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


# ---- What losses in evaluation mode do not show ----


def leaking(leak, dtype=torch.float32, family="qwen3", **more):
    """A model whose second layer runs on `leak(states)`, states [1, S, D]."""
    model = TINY_MODELS[family](60, dtype, **more)
    model.model.layers[1].register_module("leak", leak)
    model.model.layers[1].register_forward_pre_hook(lambda layer, states: (layer.leak(states[0]), *states[1:]))
    return prepare_model(model)


def refused(model, what="one pass is not exact for this model", pack_length=None):
    with pytest.raises(UnsupportedModelError, match=what):
        check_exact(model, 16, pack_length)


class Backward(nn.Module):
    """Tokens are what they were, but each gets a part of the gradient of all."""

    def forward(self, states):
        mean = 0.1 * states.mean(dim=1, keepdim=True)
        return states + (mean - mean.detach())


# Breaks if only losses are compared, or gradients in half precision: rounding there is as large.
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_that_leaks_where_no_loss_does(dtype):
    refused(leaking(Backward(), dtype), r"the gradient of model\.\S+ differs by .* of its size from that of the passes")


# With a base model in half precision the gradients of adapters alone must show it.
def test_a_gradient_that_leaks_beside_adapters():
    model = leaking(Backward(), torch.bfloat16)
    refused(get_peft_model(model, LoraConfig(target_modules=["q_proj", "down_proj"])), "the gradient of .*lora_")


class Statistics(nn.Module):
    """Batch normalization over tokens: exact in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(32)

    def forward(self, states):
        return self.norm(states[0])[None]


# Breaks if the model is tried in evaluation mode, or what it counts in training mode stays counted.
def test_statistics_over_the_tokens_of_a_batch():
    model = leaking(Statistics()).eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    refused(model)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert not model.training


class Gate(nn.Module):
    """Looks at the token in front as far as a gate is open that is closed in a new model."""

    def __init__(self, trained):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1), requires_grad=trained)

    def forward(self, states):
        return states + self.gate * nn.functional.pad(states, (0, 0, 1, -1))


# Breaks if zeros stay zeros: the loss then does not move, and of a frozen gate no gradient either.
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_leak_behind_a_gate_of_zero(dtype, trained):
    model = leaking(Gate(trained).to(dtype), dtype)
    gate = model.model.layers[1].leak.gate
    refused(model)
    assert model.model.layers[1].leak.gate is gate and gate.dtype == dtype and torch.equal(gate, torch.zeros_like(gate))


class Far(nn.Module):
    """Looks 100 tokens back in the row, whatever stands there."""

    def forward(self, states):
        return states + nn.functional.pad(states, (0, 0, 100, 0))[:, : states.shape[1]]


# Breaks if rows stay as short as they are without windows, where this is invisible.
def test_passes_are_longer_than_the_longest_window():
    check_exact(leaking(Far(), family="gemma3", window=12), 16)
    refused(leaking(Far(), family="gemma3", window=100))


def test_a_window_that_is_not_crossed_is_said(monkeypatch):
    monkeypatch.setitem(exactness._MOST_WORK, "cpu", 0)
    with pytest.warns(UserWarning, match=r"shorter than its windows of up to 100 positions: .* take long with"):
        check_exact(prepare_model(TINY_MODELS["gemma3"](60, torch.float32, window=100)), 16)


# Breaks if the check makes rows that training never has: longer than a pack, or than the model's positions allow.
def test_no_row_is_longer_than_those_that_are_trained():
    with warnings.catch_warnings(action="error"):
        check_exact(leaking(Far(), family="gemma3", window=100), 16, pack_length=120)
    refused(leaking(Far(), family="gemma3", window=100), pack_length=200)
    settings = dict(vocab_size=60, num_hidden_layers=4, num_local_experts=2, attention_chunk_size=128, floor_scale=128)
    sizes = dict(hidden_size=32, intermediate_size=32, intermediate_size_mlp=32, head_dim=8, moe_layers=[1])
    heads = dict(num_attention_heads=4, num_key_value_heads=2, no_rope_layers=[1, 1, 1, 0], max_position_embeddings=512)
    config = hf.Llama4TextConfig(**settings, **sizes, **heads)
    with pytest.warns(UserWarning, match=r"for longer ones, attn_temperature_tuning scales queries by their index"):
        check_exact(prepare_model(hf.Llama4ForCausalLM(config)), 16, pack_length=400)


# ---- What is exact, and must not be refused ----


class Functional(nn.Module):
    """Dropout that is no module of its own."""

    def forward(self, states):
        return nn.functional.dropout(states, 0.5, self.training)


# What is drawn differs from pass to pass; `flexmask.model.randomness` warns of it.
@pytest.mark.parametrize("dropout", [nn.Dropout(0.5), Functional()])
def test_dropout_is_not_taken_for_a_leak(dropout):
    check_exact(leaking(dropout), 16)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    model = prepare_model(TINY_MODELS["qwen3"](60, torch.bfloat16))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    check_exact(model, 16)
    refused_model = leaking(Backward(), torch.bfloat16)
    refused_model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    refused(refused_model)


def test_a_model_without_trained_parameters():
    check_exact(prepare_model(TINY_MODELS["qwen3"](60, torch.float32).requires_grad_(False)), 16)


TASK = dict(task_type="CAUSAL_LM")
OTHERS = {
    "IA3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **TASK),
    "tokens": peft.TrainableTokensConfig(token_indices=[1, 2], **TASK),
    "OFT": peft.OFTConfig(r=4, oft_block_size=0, target_modules=["q_proj"], **TASK),
    "VeRA": peft.VeraConfig(r=4, target_modules=["q_proj"], **TASK),
    # Reads the weight of the norm that it wraps and then runs it: breaks if that is put into float32 twice at once.
    "norms": peft.LNTuningConfig(target_modules=["input_layernorm"], **TASK),
}
# aLoRA is active behind the last invocation of the whole row; the others want to prepend to an ordinary mask.
UNSUITED = {
    "aLoRA": (LoraConfig(target_modules=["q_proj"], alora_invocation_tokens=[3, 4], **TASK), "one pass is not exact"),
    "prompt": (peft.PromptTuningConfig(num_virtual_tokens=4, **TASK), "fails over a few tokens of text"),
    "prefix": (peft.PrefixTuningConfig(num_virtual_tokens=4, **TASK), "fails over a few tokens of text"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OTHERS)
def test_adapters_of_other_kinds_pass(name, dtype):
    check_exact(prepare_model(get_peft_model(TINY_MODELS["qwen3"](60, dtype), OTHERS[name])), 16)


# Breaks for aLoRA if a new adapter's B stays zero, or the row is never invoked.
@pytest.mark.filterwarnings("ignore:Position ids are not supported")
@pytest.mark.parametrize("name", UNSUITED)
def test_adapters_that_go_by_the_whole_row_are_refused(name):
    config, message = UNSUITED[name]
    refused(prepare_model(get_peft_model(TINY_MODELS["qwen3"](60, torch.float32), config)), message)


# ---- Nothing is left behind ----


# A model in the middle of something: the check must neither add to its gradients nor run what runs when they arrive.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fails", [False, True])
def test_gradients_hooks_and_random_numbers_are_kept(dtype, fails):
    model = leaking(Backward() if fails else nn.Identity(), dtype)
    ran = []
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = torch.randn_like(parameter) if i % 2 else None
        parameter.register_post_accumulate_grad_hook(ran.append)
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    values = [grad.clone() if grad is not None else None for _, grad in before]
    weights, state = storage(model), torch.get_rng_state()
    refused(model) if fails else check_exact(model, 16)
    after = [(parameter, parameter.grad) for parameter in model.parameters()]
    assert all(a is b and ours is theirs for (a, ours), (b, theirs) in zip(before, after, strict=True))
    assert all(value is None or torch.equal(grad, value) for (_, grad), value in zip(after, values, strict=True))
    assert not ran and storage(model) == weights and torch.equal(torch.get_rng_state(), state)


# Breaks if the check runs DistributedDataParallel itself: it would then wait for gradients that never travel.
def test_a_distributed_model_trains_on_afterwards(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(prepare_model(TINY_MODELS["qwen3"](60, torch.float32)))
        check_exact(model, 16)
        for _ in range(2):
            model(input_ids=torch.arange(8)[None]).logits.sum().backward()
    finally:
        torch.distributed.destroy_process_group()


# Parameters that are elsewhere get no gradient here that could be read.
def test_sharded_parameters_are_tried_by_their_losses_and_that_is_said():
    model = leaking(Backward())
    model.lm_head.weight.ds_id = 0  # what DeepSpeed marks them with
    with pytest.warns(UserWarning, match="parameters are sharded, .* not by its gradients"):
        check_exact(model, 16)


# Breaks if the gradients of a whole model are kept: a large one has no room for them.
def test_no_more_than_one_gradient_is_there_at_a_time():
    model = prepare_model(TINY_MODELS["qwen3"](60, torch.float32))
    present = []

    def count(_):
        present.append(sum(parameter.grad is not None for parameter in model.parameters()))

    def watch(module, inputs, output):
        if output.requires_grad:
            output.register_hook(count)

    for layer in model.model.layers:
        layer.mlp.register_forward_hook(watch)
    check_exact(model, 16)
    assert present and max(present) <= 1
