"""With adapters of peft, one pass equals per-turn training: in loss and in the gradient of every adapter."""

import copy

import pytest
import torch
from factories import random_passes
from families import FAMILIES, VOCAB
from reference import per_turn_loss, worst_gradient_difference
from stateful_families import BRANCHING

from flexmask import lay_out, pack, prepare_model, token_losses
from flexmask.model import loss
from flexmask.model.exactness import check_exact
from recipes.configuration.schema import AdapterConfig, AdapterKind
from recipes.models.adapters import add_adapter, lora_config

BLOCK = 16
TOLERANCE = 1e-10
PASSES = [random_passes(10 + seed, vocab=VOCAB) for seed in range(3)]
(PACK,) = pack([row for passes in PASSES for row in lay_out(passes, "one_pass").rows], 512)
WAYS = {
    "LoRA": {},
    "DoRA": dict(use_dora=True),
    "rsLoRA": dict(use_rslora=True),
    "modules to save": dict(modules_to_save=["embed_tokens", "lm_head"]),
    "token indices": dict(trainable_token_indices=[1, 2, 3]),
    "embedding and head": dict(target_modules=["q_proj", "embed_tokens", "lm_head"]),
}
# Tied embeddings (Gemma 3), experts in fused weights with and without shared ones, state that branches.
MODELS = ["Qwen3", "Gemma 3", "Qwen3-MoE", "gpt-oss", "DeepSeek-V3", "Llama 4", "Qwen3.5", "LFM2-MoE", "Granite hybrid"]
CASES = [(name, "LoRA") for name in MODELS]
CASES += [("Qwen3", way) for way in WAYS if way != "LoRA"]
CASES += [("Gemma 3", way) for way in ("DoRA", "modules to save", "token indices")]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """The loss in chunks, so that what is trained in the head is trained chunk by chunk."""
    monkeypatch.setattr(loss, "LOGITS_BYTES", 9 * VOCAB * 4)


def adapted(name, **settings):
    """A model with random A and B: fresh adapters add nothing, so nothing would be seen of them."""
    model = (FAMILIES | BRANCHING)[name].build(torch.float64)
    config = lora_config(copy.deepcopy(model), AdapterConfig(kind=AdapterKind.lora, r=3, **settings))
    model = add_adapter(model, config).eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.1)
    return model


def gradients(model, value):
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


# Breaks if a wrapper of peft hides the model from its masks, or a trained part of embedding or head from the loss.
@pytest.mark.parametrize("name, way", CASES)
def test_one_pass_equals_per_turn_with_adapters(name, way):
    model = adapted(name, **WAYS[way])
    reference = per_turn_loss(model, [one for passes in PASSES for one in passes])
    expected = gradients(model, reference)
    check_exact(prepare_model(model), BLOCK)
    mine = token_losses(model, PACK, BLOCK).total
    assert abs(mine.item() / reference.item() - 1) <= TOLERANCE
    assert worst_gradient_difference(expected, gradients(model, mine)) <= TOLERANCE
    assert all(gradient.abs().max() > 0 for gradient in expected.values())


# If the adapters did nothing, the test above would compare base models.
def test_the_adapters_move_the_loss():
    model = prepare_model(adapted("Qwen3"))
    mine = token_losses(model, PACK, BLOCK).total.item()
    with model.disable_adapter():
        assert abs(token_losses(model, PACK, BLOCK).total.item() / mine - 1) > 1e-3
