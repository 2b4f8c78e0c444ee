"""One implementation for each kind of layer, against the plain function of transformers run over every path alone."""

import importlib

import numpy as np
import pytest
import torch
from factories import in_double
from random_trees import random_parents

from flexmask.model.state_branches import CALL_IN_TOKENS, StateBranches, _of_like_length
from flexmask.model.state_layers import _SEAM, COVERED, is_covered, moved

# A model of each kind whose functions are called; the others have the same ones.
HOMES = {
    "causal_conv1d_fn": "lfm2",
    "torch_chunk_gated_delta_rule": "qwen3_5",
    "chunk_kimi_delta_attention": "kimi_linear",
    "mamba2_chunk_scan": "nemotron_h",
}
HEADS, GROUPS, SIZE, STATE, KERNEL, CHUNK = 4, 2, 5, 3, 4, 8


def plain(name):
    function = getattr(importlib.import_module(f"transformers.models.{HOMES[name]}.modeling_{HOMES[name]}"), name)
    return getattr(function, "behind", function)


def inputs(name, tokens):
    """What varies from token to token, float64 [1, T, ...] with gradients, and a call over it: [1, T, ...] -> same."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(1, tokens, *shape, generator=generator, dtype=torch.float64)

    if name == "causal_conv1d_fn":
        weight = torch.randn(HEADS, KERNEL, generator=generator, dtype=torch.float64)

        def call(function, x):
            return function(x.transpose(1, 2), weight, bias=weight[:, 0], activation="silu").transpose(1, 2)

        varying = [normal(HEADS)]
    elif name == "mamba2_chunk_scan":
        A, D, bias = -torch.tensor([0.1, 0.5, 1.0, 2.0]).double(), torch.arange(HEADS).double(), torch.zeros(HEADS)

        def call(function, x, dt, B, C):
            # A least step, as Nemotron-H has: padding must not take one.
            steps = dict(dt_bias=bias.double(), dt_softplus=True, dt_limit=(0.2, float("inf")))
            return function(x, dt, A, B, C, chunk_size=CHUNK, D=D, z=None, **steps)

        varying = [normal(HEADS, SIZE), normal(HEADS), normal(GROUPS, STATE), normal(GROUPS, STATE)]
    else:
        gate = (HEADS, STATE) if name == "chunk_kimi_delta_attention" else (HEADS,)
        keys = HEADS if name == "chunk_kimi_delta_attention" else GROUPS

        def call(function, query, key, value, g, beta):
            return function(query, key, value, g=g, beta=beta, use_qk_l2norm_in_kernel=True)[0]

        varying = [normal(keys, STATE), normal(keys, STATE), normal(HEADS, SIZE)]
        varying += [-normal(*gate).exp() * 0.1, normal(HEADS).sigmoid()]
    return [x.requires_grad_() for x in varying], call


def paths(parents):
    """Every path from a root to a leaf, as token indices."""
    for leaf in sorted(set(range(len(parents))) - set(parents)):
        path = [leaf]
        while parents[path[-1]] >= 0:
            path.append(parents[path[-1]])
        yield path[::-1]


def over_paths(name, varying, call, parents):
    output = {}
    for path in paths(parents):
        alone = call(plain(name), *(x[:, path] for x in varying))
        output |= {token: alone[0, i] for i, token in enumerate(path)}
    return torch.stack([output[token] for token in range(len(parents))])[None]


def over_tree(name, varying, call, branches):
    return call(lambda *args, **more: _SEAM[name](plain(name), branches, *args, **more), *varying)


# A trunk whose nodes outgrow a chunk of the functions, with branches and a second root behind.
def long_nodes():
    trunk = np.arange(-1, 199)
    return [*trunk, 69, *range(200, 270), 69, *range(271, 280), 199, 280, 281, -1, *range(283, 300)]


# Three rows whose roots, and the nodes behind them, are of three lengths, so that levels run in several batches; leaves
# and inner nodes hang on each.
def unlike_levels():
    parents = []
    for sizes in ((3, 150), (170, 4), (90, 100)):
        root = len(parents)
        parents += [-1, *range(root, root + sizes[0] - 1)]
        branch = len(parents)
        parents += [branch - 1, *range(branch, branch + sizes[1] - 1)]  # continued below
        end = len(parents) - 1
        parents += [end, end, end + 2, branch - 1]
    return parents


TREES = {f"random {seed}": random_parents(seed, 60) for seed in range(12)} | {
    "long nodes": long_nodes(),
    "unlike levels": unlike_levels(),
}


# What a call costs where either is the cheaper one.
PLANS = {"level by level": -(10**9), "path by path": 10**9}


# Breaks if a node starts from any state but its parent's last, if padding decays or adds to a state, if the zero state
# of a root is that of the row before, or if a convolution looks past the root or into the node in front.
@pytest.mark.parametrize("name", HOMES)
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("plan", PLANS)
def test_every_token_has_the_output_and_gradient_of_its_path_alone(name, tree, plan, monkeypatch):
    parents = TREES[tree]
    varying, call = inputs(name, len(parents))
    monkeypatch.setitem(CALL_IN_TOKENS, "cpu", PLANS[plan])
    branches = StateBranches(torch.tensor([parents]))
    assert branches.steps == 1 or plan == "level by level"
    with in_double():
        expected, ours = over_paths(name, varying, call, parents), over_tree(name, varying, call, branches)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for left, right in zip(*(torch.autograd.grad(x, varying, grad) for x in (ours, expected)), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


def test_the_trees_have_what_is_hard(monkeypatch):
    monkeypatch.setitem(CALL_IN_TOKENS, "cpu", PLANS["level by level"])
    lengths, depths = set(), set()
    for parents in TREES.values():
        branches = StateBranches(torch.tensor([parents]))
        lengths |= set(np.diff(branches._start, append=len(parents)).tolist())
        depths.add(branches.steps)
    assert {1, 2, 3} <= lengths and max(lengths) > 64 and max(depths) >= 8
    assert [len(level) for level in StateBranches(torch.tensor([unlike_levels()]))._plan.levels] == [3, 3]
    # A parent that is not the token in front, as depth-first order allows.
    assert any(0 <= p < i - 1 for parents in TREES.values() for i, p in enumerate(parents))


# Breaks if the number of calls that wait for each other grows with rows or branches: three turns are three deep.
def test_steps_are_the_depth_of_the_deepest_tree(monkeypatch):
    monkeypatch.setitem(CALL_IN_TOKENS, "cpu", PLANS["level by level"])
    conversation = [-1, 0, 0, 2, 2, 4]  # q | t | a q | t | a q: the last one is a leaf
    assert StateBranches(torch.tensor([conversation])).steps == 3
    rows = [p + 6 * row if p >= 0 else -1 for row in range(50) for p in conversation]
    assert StateBranches(torch.tensor([rows])).steps == 3
    chains = [-1, 0, 1, -1, 3, -1]
    assert StateBranches(torch.tensor([chains])).steps == 1


# Breaks if leaves are padded to the longest of all, or if each has a call of its own.
def test_leaves_of_like_length_share_a_batch():
    length = np.array([3, 1000, 40, 800, 799, 64, 65, 1])
    assert [group.tolist() for group in _of_like_length(length)] == [[1, 3], [4], [6, 5], [2, 0, 7]]


# Breaks if one long conversation pads the short ones that share its pack, at any depth: memory would be its square.
@pytest.mark.parametrize("call", [0, 32, 1024])
def test_padding_is_bounded_whatever_shares_a_pack(call, monkeypatch):
    monkeypatch.setitem(CALL_IN_TOKENS, "cpu", call)
    rng, parents = np.random.default_rng(0), []
    for row in range(60):
        for turn in range(3):
            longest = 3000 if row == 7 else 30
            last = len(parents) - 1 if turn else -1
            parents += [last, *range(len(parents), len(parents) + rng.integers(1, longest))]
            branch = len(parents)
            parents += [branch - 1, *range(branch, branch + rng.integers(0, longest))]
            parents += [branch - 1]
    branches = StateBranches(torch.tensor([parents]))
    assert len(branches._plan.levels) >= 3 and len(branches) <= len(branches._plan.tokens) < 3 * len(branches)


# Three turns of one conversation whose shared beginning is of `shared` tokens. Breaks if the rule forgets what is run
# again, or what a call costs.
@pytest.mark.parametrize(("shared", "steps"), [(1, 1), (20, 1), (200, 2)])
def test_a_short_beginning_runs_again_rather_than_in_a_call_of_its_own(shared, steps):
    parents = [*range(-1, shared - 1)]
    for _ in range(2):
        parents += [shared - 1, *range(len(parents), len(parents) + 29)]
    assert StateBranches(torch.tensor([parents])).steps == steps


def test_a_pack_of_another_length_is_named():
    with pytest.raises(ValueError, match=r"input has shape \[1, 7\], but state_branches is of a pack \[1, 3\]"):
        varying, call = inputs("causal_conv1d_fn", 7)
        over_tree("causal_conv1d_fn", varying, call, StateBranches(torch.tensor([[-1, 0, 0]])))
    varying, call = inputs("mamba2_chunk_scan", 7)
    with pytest.raises(ValueError, match=r"input has shape \[1, 7\], but state_branches is of a pack \[1, 3\]"):
        over_tree("mamba2_chunk_scan", varying, call, StateBranches(torch.tensor([[-1, 0, 0]])))
    with pytest.raises(ValueError, match="use_cache=False"):
        function = _SEAM["chunk_kimi_delta_attention"]
        function(None, None, *[torch.zeros(1, 1, 1, 1)] * 3, g=None, beta=None, output_final_state=True)
    with pytest.raises(ValueError, match="use_cache=False"):
        more = dict(chunk_size=1, dt_bias=None, dt_softplus=True, dt_limit=None, return_final_states=True)
        _SEAM["mamba2_chunk_scan"](None, None, *[torch.zeros(1, 1, 1, 1)] * 5, **more)


# Breaks if sharding, which puts a class of its own in front of a layer's (FSDP2), hides the layer.
def test_a_layer_under_another_class_is_covered():
    from stateful_families import BRANCHING

    modules = list(BRANCHING["LFM2"].build(torch.float32).modules())
    (layer,) = [module for module in modules if type(module).__name__ == "Lfm2ShortConv"][:1]
    layer.__class__ = type("FSDPLfm2ShortConv", (type(layer),), {})
    assert is_covered(layer) and moved(layer) is None


# Breaks if a class is renamed and its entry stays: its layers would be refused, and nobody would know why.
@pytest.mark.parametrize("name", COVERED)
def test_every_covered_class_exists(name):
    from stateful_families import BRANCHING

    assert any(
        type(module).__name__ == name
        for family in BRANCHING.values()
        for module in family.build(torch.float32).modules()
    )
