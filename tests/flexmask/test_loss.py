"""The loss in chunks of the model's own head: the same sums whatever the chunk, and no more memory than a chunk's."""

import json

import pytest
import torch
from factories import TINY_MODELS, random_passes
from random_trees import LargestTensor
from reference import gradients, worst_gradient_difference

from flexmask import lay_out, pack, prepare_model, token_losses
from flexmask.model import loss

VOCAB, BLOCK = 60, 16


def one_pack(conversations=2):
    rows = [row for seed in range(conversations) for row in lay_out(random_passes(seed, turns=5), "one_pass").rows]
    return pack(rows, 1024)[0]


def in_chunks_of(monkeypatch, tokens):
    monkeypatch.setattr(loss, "LOGITS_BYTES", tokens * VOCAB * 4)


def tiny(dtype=torch.float64, family="qwen3"):
    return prepare_model(TINY_MODELS[family](VOCAB, dtype))


# Breaks if a chunk is left out, counted twice, or weighted with another's weights; or if the head's gradient is that of
# the last chunk alone.
@pytest.mark.parametrize("tokens", [1, 2, 7, 50, 10**6])
def test_any_chunk_gives_the_same_loss_and_gradients(tokens, monkeypatch):
    model, one = tiny(), one_pack()
    one.loss_weights.mul_(torch.rand(one.loss_weights.shape, generator=torch.Generator().manual_seed(0)) + 0.5)
    whole = token_losses(model, one, BLOCK)
    expected = gradients(model, whole.total)
    in_chunks_of(monkeypatch, tokens)
    found = token_losses(model, one, BLOCK)
    torch.testing.assert_close(found.losses, whole.losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.total, (whole.losses * whole.weights).sum(), rtol=1e-12, atol=1e-12)
    assert worst_gradient_difference(expected, gradients(model, found.total)) < 1e-12


# Breaks if the number of chunks is not that of the bytes, or if the last one is a rest of a few tokens.
def test_chunks_cover_the_tokens_evenly(monkeypatch):
    monkeypatch.setattr(loss, "LOGITS_BYTES", 10 * VOCAB * 4)
    for length in range(200):
        chunks = loss._chunks(length, torch.zeros(length, 4), lambda states: states.new_zeros(len(states), VOCAB))
        assert [token for start, end in chunks for token in range(start, end)] == list(range(length))
        sizes = {end - start for start, end in chunks}
        assert max(sizes) <= 10 and max(sizes) - min(sizes) <= 1 and len(chunks) == max(1, -(-length // 10))


# What comes from above scales every gradient: the division by the step's weight, and other packs of the step.
def test_gradients_follow_what_is_made_of_the_total():
    model, one = tiny(), one_pack()
    once = gradients(model, token_losses(model, one, BLOCK).total)
    model.zero_grad()
    for _ in range(3):
        (token_losses(model, one, BLOCK).total * 0.25).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 0.75 * once[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", TINY_MODELS)  # Gemma 3's head is its embedding
def test_no_tensor_is_larger_than_the_logits_of_a_chunk(family, monkeypatch):
    """Breaks if logits of all trained tokens, or of untrained ones, exist at any time in forward or backward."""
    vocabulary = 3000
    model, one = prepare_model(TINY_MODELS[family](vocabulary, torch.float32)), one_pack(8)
    monkeypatch.setattr(loss, "LOGITS_BYTES", 100 * vocabulary * 4)
    with LargestTensor() as largest:
        token_losses(model, one, BLOCK).total.backward()
    assert (one.loss_weights > 0).sum() > 300
    assert largest.elements <= 100 * vocabulary


def test_without_gradients(monkeypatch):
    model, one = tiny(), one_pack()
    expected = token_losses(model, one, BLOCK)
    monkeypatch.setattr(loss, "_gradients", lambda *_: pytest.fail("gradients that nobody wants"))
    with torch.no_grad():
        result = token_losses(model, one, BLOCK)
    with torch.inference_mode():
        torch.testing.assert_close(token_losses(model, one, BLOCK).losses, expected.losses)
    assert not result.total.requires_grad
    torch.testing.assert_close(result.total, expected.total)
    assert not expected.losses.requires_grad and not result.losses.requires_grad


# An adapter trains with a frozen head, a probe with a frozen body: each must get the gradients it gets otherwise.
@pytest.mark.parametrize("frozen", ["lm_head", "model", "model.layers"])
def test_frozen_parts_get_none_and_the_rest_the_same(frozen, monkeypatch):
    model, one = tiny(), one_pack()
    in_chunks_of(monkeypatch, 9)
    expected = gradients(model, token_losses(model, one, BLOCK).total)
    model.zero_grad()
    model.get_submodule(frozen).requires_grad_(False)
    token_losses(model, one, BLOCK).total.backward()
    for name, parameter in model.named_parameters():
        if name.startswith(frozen):
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, expected[name])


# Breaks if weights that autocast keeps, or its dtypes, get into the gradients: they must be float32 and close.
def test_autocast(monkeypatch):
    model, one = tiny(torch.float32), one_pack()
    expected = gradients(model, token_losses(model, one, BLOCK).total)
    in_chunks_of(monkeypatch, 20)
    with torch.autocast("cpu", torch.bfloat16):
        total = token_losses(model, one, BLOCK).total
    found = gradients(model, total)
    assert total.dtype == torch.float32 and all(gradient.dtype == torch.float32 for gradient in found.values())
    for name, gradient in expected.items():
        difference = torch.linalg.vector_norm(found[name] - gradient)
        assert difference < 0.05 * torch.linalg.vector_norm(gradient), name


def test_the_model_is_left_as_it_was():
    model, one = tiny(), one_pack()
    before = model.model.forward
    with torch.no_grad():
        plain = model(input_ids=one.input_ids, use_cache=False).logits
        token_losses(model, one, BLOCK)
        assert model.model.forward == before and "forward" not in vars(model.model)
        assert not model.model._forward_hooks
        torch.testing.assert_close(model(input_ids=one.input_ids, use_cache=False).logits, plain)


# Breaks if the head runs outside of the wrapper's call, where parameters are sharded and outputs are not followed: then
# its gradients are missing, or never leave the rank.
def test_under_wrappers_on_two_processes(tmp_path, python):
    python.run_on_ranks(2, "ranks.wrappers", str(tmp_path / "differences.json"), cwd=tmp_path)
    differences = json.loads((tmp_path / "differences.json").read_text())
    assert len(differences) == 11 and max(differences.values()) < 1e-11, differences


# A hook on a parameter sees its gradient once, and one on the decoder changes its states once, as without chunks.
def test_hooks_of_the_user_run_once(monkeypatch):
    model, one = tiny(), one_pack()
    in_chunks_of(monkeypatch, 9)
    expected = gradients(model, token_losses(model, one, BLOCK).total)
    seen = []
    hooks = [
        model.lm_head.weight.register_hook(lambda gradient: 2 * gradient),
        model.model.register_forward_pre_hook(lambda *_: seen.append(1)),
    ]
    found = gradients(model, token_losses(model, one, BLOCK).total)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 1
    torch.testing.assert_close(found["lm_head.weight"], 2 * expected["lm_head.weight"])
    torch.testing.assert_close(found["model.norm.weight"], expected["model.norm.weight"])
