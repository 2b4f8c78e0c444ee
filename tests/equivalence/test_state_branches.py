"""Layers that carry state, in one pass: equal to one pass a turn in loss and every gradient, packed or not."""

import functools
import sys
import warnings

import numpy as np
import pytest
import torch
from factories import random_passes, random_weights
from reference import gradients, per_turn_loss, record_model, worst_gradient_difference
from stateful_families import BRANCHING
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from flexmask import (
    Pass,
    Role,
    UnsupportedModelError,
    lay_out,
    pack,
    per_turn,
    prepare_model,
    token_losses,
)
from flexmask.model.exactness import check_exact
from flexmask.model.state_branches import StateBranches
from flexmask.model.state_layers import COVERED
from flexmask.model.support import branching_layers, unbranched_layers

BLOCK = 16
LOSS, GRADIENT = 1e-12, 1e-10
# One of each kind of layer, for what does not differ from family to family.
KINDS = ["Qwen3.5", "Kimi Linear", "Nemotron-H", "LFM2"]


def branching_passes(seed, count=8, vocab=60):
    """Passes that share prefixes of any length: deeper trees than a conversation makes, with nodes of few tokens."""
    rng = np.random.default_rng(seed)
    passes = []
    for turn in range(count):
        shared = passes[rng.integers(turn)].input_ids if turn else np.empty(0, dtype=np.int64)
        shared = shared[: rng.integers(1, len(shared) + 1)] if turn else shared
        ids = np.concatenate([shared, rng.integers(0, vocab, rng.integers(2, 9))])
        weights = (np.arange(len(ids)) >= len(shared)).astype(np.float32)
        weights[0] = 0  # nothing predicts a root
        roles = np.where(weights > 0, Role.ANSWER, Role.PROMPT).astype(np.int8)
        passes.append(Pass(f"tree:{seed}", turn, int((weights == 0).sum()), ids, roles, weights))
    return passes


# Two conversations, some turns without thinking, and a tree.
CONVERSATIONS = [random_passes(12, turns=4), random_passes(13, turns=3), branching_passes(0)]
PASSES = [p for passes in CONVERSATIONS for p in passes]
ROWS = [row for passes in CONVERSATIONS for row in lay_out(passes, "one_pass").rows]
LONGEST = max(map(len, PASSES))
SPLIT = [row for passes in CONVERSATIONS for row in lay_out(passes, "one_pass", LONGEST + 4).rows]
TURNS = [row for p in PASSES for row in per_turn([p])]


LAYOUTS = {
    "packed": pack(ROWS, 1024),
    "a row a pack": [one for row in ROWS for one in pack([row], 1024)],
    "split": pack(SPLIT, 1024),
    "split, a row a pack": [one for row in SPLIT for one in pack([row], 1024)],
    "per turn, packed": pack(TURNS, 1024),
}


def loss_of(model, packs, block_size=BLOCK):
    return sum(token_losses(model, one, block_size).total for one in packs)


@functools.cache
def per_turn_reference(name, dtype=torch.float64):
    """Loss and gradients of each pass alone, by transformers' own code."""
    model = BRANCHING[name].build(torch.float64)
    if dtype != torch.float64:
        weights = {key: value.to(dtype) for key, value in model.state_dict().items()}
        model = BRANCHING[name].build(dtype)
        model.load_state_dict(weights)
    loss = per_turn_loss(model, PASSES)
    return model, loss.item(), gradients(model, loss)


def test_the_passes_have_what_is_hard():
    branches = StateBranches(LAYOUTS["packed"][0].previous)
    assert len(LAYOUTS["packed"]) == 1 and branches.steps >= 5, "path by path there is nothing to branch"
    lengths = np.diff(branches._start)
    assert {1, 2} <= set(lengths.tolist())  # shorter than any kernel's reach
    assert any((p.roles != Role.THINKING).all() for p in PASSES[:7])
    assert len(SPLIT) > len(ROWS) and len(LAYOUTS["split"]) >= 1


# Breaks if a state or a convolution starts from anything but the parent's, in whatever pack; see the controls below.
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", BRANCHING)
def test_one_pass_equals_per_turn(name, layout, record_property):
    model, reference, reference_gradients = per_turn_reference(name)
    mine = loss_of(prepare_model(model), LAYOUTS[layout])
    loss_difference = abs(mine.item() / reference - 1)
    gradient_difference = worst_gradient_difference(reference_gradients, gradients(model, mine))
    if layout == "packed":
        differences = (loss_difference, gradient_difference)
        record_model(
            record_property, name, BRANCHING[name], model, "state branches", differences, branching_layers(model)[0]
        )
    assert loss_difference <= LOSS
    assert gradient_difference <= GRADIENT


# With all of transformers' own casts to float32. Rounding of the gradients is that of one pass a turn, not more.
@pytest.mark.parametrize("name", BRANCHING)
def test_in_float32_one_pass_is_as_exact_as_per_turn(name):
    _, exact, exact_gradients = per_turn_reference(name)
    model, reference, reference_gradients = per_turn_reference(name, torch.float32)
    mine = loss_of(prepare_model(model), LAYOUTS["packed"])
    assert abs(mine.item() / reference - 1) <= 1e-6 and abs(mine.item() / exact - 1) <= 1e-6
    own = worst_gradient_difference(exact_gradients, reference_gradients)
    assert worst_gradient_difference(exact_gradients, gradients(model, mine)) <= max(1e-5, 2 * own)


@pytest.mark.parametrize("name", BRANCHING)
def test_all_stateful_layers_branch_and_the_check_before_training_passes(name):
    model = BRANCHING[name].build(torch.bfloat16)
    assert branching_layers(model) != [] and unbranched_layers(model) == []
    prepare_model(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # that it could be tried in bfloat16 only
        check_exact(model, BLOCK)


# ---- What is not exact: without these, the tests above would show nothing ----


class OnlyMasked(StateBranches):
    """State runs through the pack from its first token to its last, as if there were no tree."""

    def __init__(self, previous, device=None):
        super().__init__(torch.arange(-1, previous.shape[1] - 1)[None])


class FromNodeInFront(StateBranches):
    """Rows are kept apart, but within a row a node starts from the node in front of it."""

    def __init__(self, previous, device=None):
        in_front = torch.arange(-1, previous.shape[1] - 1)[None]
        super().__init__(torch.where(previous < 0, -1, in_front))


class RootsOnly(StateBranches):
    """Every node starts from nothing."""

    def __init__(self, previous, device=None):
        in_front = torch.arange(-1, previous.shape[1] - 1)[None]
        super().__init__(torch.where(previous == in_front, in_front, -1))


@pytest.mark.parametrize("wrong", [OnlyMasked, FromNodeInFront, RootsOnly], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", BRANCHING)
def test_controls_are_not_exact(name, wrong, monkeypatch):
    model, reference, _ = per_turn_reference(name)
    monkeypatch.setattr("flexmask.model.loss.StateBranches", wrong)
    with torch.no_grad():
        assert abs(loss_of(prepare_model(model), LAYOUTS["packed"]).item() / reference - 1) > 1e-5
    with pytest.raises(UnsupportedModelError, match="one pass is not exact for this model"):
        check_exact(model, BLOCK)


# Breaks if branching only one of a layer's functions were enough: then a test of the other would show nothing.
@pytest.mark.parametrize("name", ["Qwen3.5", "Kimi Linear", "Nemotron-H"])
@pytest.mark.parametrize("part", [0, 1])
def test_convolution_and_recurrence_must_both_branch(name, part, monkeypatch):
    model, reference, _ = per_turn_reference(name)
    layer = prepare_model(model).get_submodule(branching_layers(model)[0].partition(" ")[0])
    home, function = sys.modules[type(layer).__module__], COVERED[type(layer).__name__][part]
    plain = getattr(home, function).behind

    def unbranched(*args, state_branches=None, **more):
        if state_branches is not None:
            state_branches.calls += 1
        return plain(*args, **more)

    monkeypatch.setattr(home, function, unbranched)
    with torch.no_grad():
        assert abs(loss_of(model, LAYOUTS["packed"]).item() / reference - 1) > 1e-5


# ---- What else a run does ----


def in_training(name, dtype=torch.float32, checkpointing=False):
    model = prepare_model(BRANCHING[name].build(dtype)).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    loss = loss_of(model, LAYOUTS["packed"])
    return loss.item(), gradients(model, loss)


# Layers run again in backward, when the forward pass is over. Breaks if they then have no tree, or another pack's.
@pytest.mark.parametrize("name", KINDS)
def test_gradient_checkpointing(name):
    loss, expected = in_training(name)
    other_loss, other = in_training(name, checkpointing=True)
    assert other_loss == loss
    for key, gradient in expected.items():
        assert torch.equal(gradient, other[key]), key


# Breaks if the plan of a pack is made where the compiler reads along.
def test_compiled_as_a_whole():
    model = prepare_model(BRANCHING["LFM2"].build(torch.float32))
    (one,) = LAYOUTS["packed"]
    expected = token_losses(model, one, BLOCK).losses
    torch.compiler.reset()
    found = token_losses(torch.compile(model, backend="aot_eager"), one, BLOCK)
    torch.testing.assert_close(found.losses, expected)
    found.total.backward()


@pytest.mark.parametrize("name", KINDS)
def test_bfloat16(name):
    loss, _ = in_training(name)
    half, half_gradients = in_training(name, torch.bfloat16)
    assert abs(half / loss - 1) < 0.05
    assert all(gradient.isfinite().all() for gradient in half_gradients.values())


# Breaks if preparing a model changes it, or another of its class, wherever no pack is given.
@pytest.mark.parametrize("name", KINDS)
def test_models_are_as_before_outside_of_packs(name, tmp_path):
    model, other = (BRANCHING[name].build(torch.float32) for _ in range(2))
    tokens = torch.arange(3, 14)[None]

    def seen(one):
        with torch.no_grad():
            generated = one.generate(tokens, max_new_tokens=5, do_sample=False, pad_token_id=0)
            padded = one(tokens.expand(2, -1), attention_mask=torch.tensor([[1] * 11, [0] * 4 + [1] * 7])).logits
        return generated, padded[1, 4:], one(tokens).logits

    before, keys = seen(model), list(model.state_dict())
    prepare_model(model)
    loss_of(model, LAYOUTS["packed"])
    for one in (model, other):
        assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(before, seen(one), strict=True))
    assert list(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert not hasattr(again, "state_branches") and torch.allclose(seen(again)[2], before[2], atol=1e-5)


# ---- A transformers that is not as expected ----


def renamed(x, weight, bias=None, activation=None, **kwargs):
    return x


def in_other_order(hidden_states, bias, weight, activation=None, **kwargs):
    return hidden_states


def without_gate(query, key, value, beta, chunk_size=64, initial_state=None, output_final_state=False, **kwargs):
    return value, None


CONVOLUTION, RECURRENCE = "causal_conv1d_fn", "torch_chunk_gated_delta_rule"
MOVED = {
    "gone": (RECURRENCE, None, "modeling_qwen3_5 has no torch_chunk_gated_delta_rule"),
    "renamed": (
        CONVOLUTION,
        renamed,
        "takes x, weight, bias, activation, kwargs, where hidden_states, weight, bias are",
    ),
    "in other order": (CONVOLUTION, in_other_order, "takes hidden_states, bias, weight, activation, kwargs, where"),
    "removed": (RECURRENCE, without_gate, "where query, key, value, g, beta, chunk_size, .* are needed"),
}


# Breaks if another transformers is taken for 5.23: what it then computed would be wrong without a word.
@pytest.mark.parametrize("what", MOVED)
def test_a_seam_that_has_moved_is_refused_with_the_version(what, monkeypatch):
    model = BRANCHING["Qwen3.5"].build(torch.float32)
    home = sys.modules[type(model).__module__]
    name, function, says = MOVED[what]
    monkeypatch.setattr("transformers.__version__", "5.99.1")
    with monkeypatch.context() as patch:
        patch.delattr(home, name) if function is None else patch.setattr(home, name, function)
        assert branching_layers(model) == []
        with pytest.raises(UnsupportedModelError, match=rf"transformers 5\.99\.1, where .*{says}.*per_turn"):
            prepare_model(model)
        assert prepare_model(model, chains=True).config._attn_implementation != "flexmask"  # still exact
    prepare_model(model)


# Breaks if a parameter more refuses a model that is as exact as before, or if one that differs from token to token is
# handed on in the order of the pack, where nodes stand in another.
def test_a_function_may_take_more_but_nothing_by_token(monkeypatch):
    model, reference, _ = per_turn_reference("Qwen3.5")
    home = sys.modules[type(model).__module__]
    monkeypatch.setattr(home, CONVOLUTION, getattr(getattr(home, CONVOLUTION), "behind", getattr(home, CONVOLUTION)))
    original = getattr(home, CONVOLUTION)

    def takes_more(hidden_states, weight, bias=None, scale=1.0, documents=None, **more):
        return original(hidden_states, weight, bias, **more) * scale

    monkeypatch.setattr(home, CONVOLUTION, takes_more)
    with torch.no_grad():
        assert abs(loss_of(prepare_model(model), LAYOUTS["packed"]).item() / reference - 1) < LOSS
        (one,) = LAYOUTS["packed"]
        routed = getattr(home, CONVOLUTION)
        for name in ("documents", "in_its_kwargs"):
            by_token = {name: one.input_ids}
            monkeypatch.setattr(home, CONVOLUTION, lambda *given, **more: routed(*given, **more, **by_token))  # noqa: B023
            with pytest.raises(ValueError, match=rf"takes_more takes {name} of shape \[1, \d+\], one for each token"):
                loss_of(model, [one])


# Breaks if a layer whose code was replaced as a whole (a hub kernel) ignores the tree and nobody notices.
def test_a_layer_that_ignores_the_tree_is_refused_when_it_runs():
    model = prepare_model(BRANCHING["Qwen3.5"].build(torch.float32))
    layer = model.model.layers[0].linear_attn
    layer.forward = lambda hidden_states, **more: hidden_states
    with pytest.raises(UnsupportedModelError, match=r"state branched in 2 of the 4 functions of its layers"):
        loss_of(model, LAYOUTS["packed"])


def test_a_model_that_was_not_prepared_is_refused(monkeypatch):
    model = BRANCHING["LFM2"].build(torch.float32)
    home = sys.modules[type(model).__module__]
    monkeypatch.setattr(home, "causal_conv1d_fn", getattr(home.causal_conv1d_fn, "behind", home.causal_conv1d_fn))
    model.set_attn_implementation("flexmask")
    with pytest.raises(UnsupportedModelError, match="call prepare_model first"):
        loss_of(model, LAYOUTS["packed"])


# ---- on a GPU ----


# FlexAttention and the fast kernels want heads of at least 16.
WIDE = {
    "Qwen3.5": dict(head_dim=32, linear_key_head_dim=32, linear_value_head_dim=32),
    "Kimi Linear": dict(
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=32,
        linear_head_dim=32,
        mlp_layer_types=["dense"] * 3,  # in bfloat16, rounding sends tokens to other experts
    ),
    "Nemotron-H": dict(head_dim=32, ssm_state_size=32, mamba_head_dim=32, chunk_size=64, expand=4),
    "LFM2": dict(hidden_size=128),
}


# In bfloat16, as the fast kernels need, and with them where their packages are installed (flash-linear-attention,
# mamba-ssm, causal-conv1d); with PyTorch's code otherwise. Breaks if a kernel takes no initial state, or gives none.
@pytest.mark.gpu
@pytest.mark.parametrize("name", KINDS)
def test_cuda_agrees_with_per_turn(name):
    torch.manual_seed(0)
    config = type(BRANCHING[name].config()).from_dict(BRANCHING[name].config().to_dict() | WIDE[name])
    model = random_weights(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)).to("cuda")
    exact = per_turn_loss(model, PASSES)
    exact_gradients = gradients(model, exact)
    loss = loss_of(prepare_model(model).train(), [one.to("cuda") for one in pack(ROWS, 1024)], 128)
    found = gradients(model, loss)
    assert abs(loss.item() / exact.item() - 1) < 0.01
    for key, expected in exact_gradients.items():
        cosine = F.cosine_similarity(expected.float().flatten(), found[key].float().flatten(), dim=0)
        assert cosine > 0.95, key
