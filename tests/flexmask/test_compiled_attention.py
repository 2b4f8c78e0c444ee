"""The function that CUDA uses, traced with its gradients on a machine without CUDA: right, and compiled once."""

import pytest
import torch
from random_trees import random_pack
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn.attention import flex_attention as flex_module

from flexmask.attention import interface
from flexmask.attention.cpu import block_sparse_attention
from flexmask.attention.masks import build_block_mask

LENGTH, BLOCK, SCALE = 128, 32, 0.4  # of the mask; packs have fewer tokens


def tokens_of(seed):
    return LENGTH - 37 * seed % 90


@pytest.fixture
def graphs(monkeypatch):
    """(forward, backward) graphs that were compiled so far.

    torch 2.13: AOTAutograd traces on CPU tensors, which only `_validate_device` refuses; the graphs run in eager mode.
    """
    found = ([], [])

    def into(collected):
        def compile_graph(graph, example_inputs):
            collected.append(graph)
            return graph.forward

        return compile_graph

    monkeypatch.setattr(flex_module, "_validate_device", lambda *tensors: None)
    torch.compiler.reset()
    with_settings(monkeypatch, backend=aot_autograd(fw_compiler=into(found[0]), bw_compiler=into(found[1])))
    yield found
    interface._compiled_flex_attention.cache_clear()


def with_settings(monkeypatch, **settings):
    """The library's own call of torch.compile, with some settings replaced."""
    compile_ = torch.compile

    def changed(function, **own):
        return compile_(function, **own | settings)

    monkeypatch.setattr(torch, "compile", changed)
    interface._compiled_flex_attention.cache_clear()


def inputs(seed, heads):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, n, tokens_of(seed), 16, dtype=torch.float64, generator=generator).requires_grad_() for n in heads
    ]


def compare(seed, softcap=None, sinks=False, bias=False, **restriction):
    """Output and all gradients of one pack against the CPU path."""
    visible_until, position_ids, _ = random_pack(seed, tokens_of(seed))
    block_mask = build_block_mask(visible_until, BLOCK, position_ids, **restriction, length=LENGTH)
    query, key, value = tensors = inputs(seed, (6, 6, 6) if bias else (6, 2, 2))
    generator = torch.Generator().manual_seed(seed)
    sinks = torch.randn(6, dtype=torch.float64, generator=generator).requires_grad_() if sinks else None
    bias = torch.randn(6, tokens_of(seed), dtype=torch.float64, generator=generator) if bias else None
    tensors += [] if sinks is None else [sinks]
    ours = interface._compiled_attention(query, key, value, block_mask, SCALE, softcap, sinks, bias)
    if bias is not None:
        query, key = interface._with_bias(query, key, bias / SCALE)
    theirs = block_sparse_attention(query, key, value, block_mask, SCALE, softcap, sinks)
    gradient = torch.randn(ours.shape, dtype=ours.dtype, generator=generator)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for mine, reference in zip(*(torch.autograd.grad(x, tensors, gradient) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-11)


# Breaks if scale, head groups, softcap, sinks or bias reach flex_attention wrongly, or if a new pack compiles again.
@pytest.mark.parametrize(
    "kinds, expected",
    [
        ([{}], 1),
        ([{}, {"window": 9}, {}, {"window": 9}], 2),  # layers that alternate, as in Gemma 3
        ([{"chunk": 9}, {}], 2),  # Llama 4
        ([{"softcap": 3.0}, {"softcap": 3.0, "window": 9}], 2),  # Gemma 2
        ([{"sinks": True}, {"sinks": True, "window": 9}], 2),  # gpt-oss
        ([{"bias": True}], 1),  # Bloom
        ([{"window": 9}, {"window": 10}, {"window": 11}], 1),  # a window is no constant of the kernel
        ([{"chunk": 9}, {"chunk": 10}], 1),
    ],
)
def test_forward_and_backward_are_right_and_compile_once_a_kind(graphs, kinds, expected):
    for seed in range(10):
        for kind in kinds:
            compare(seed, **kind)
    assert [len(found) for found in graphs] == [expected, expected]


# A whole run: packs of varied conversations and lengths under masks of one length. Breaks if a pack's own length
# reaches the compiled function.
def test_two_hundred_packs_compile_forward_and_backward_once(graphs):
    for seed in range(200):
        visible_until, position_ids, _ = random_pack(seed, tokens_of(seed))
        tensors = inputs(seed, (2, 1, 1))
        block_mask = build_block_mask(visible_until, BLOCK, position_ids, length=LENGTH)
        interface._compiled_attention(*tensors, block_mask, SCALE, None, None).sum().backward()
    assert [len(found) for found in graphs] == [1, 1]


# Past the limit a call would silently run without the kernel and make all scores.
def test_more_variants_than_the_limit_are_an_error(graphs, monkeypatch):
    with_settings(monkeypatch, recompile_limit=2)
    with pytest.raises(FailOnRecompileLimitHit):
        for length in (32, 64, 96, 128):
            visible_until, _, _ = random_pack(0, length)
            tensors = [x[:, :, :length].detach() for x in inputs(0, (2, 1, 1))]
            interface._compiled_attention(*tensors, build_block_mask(visible_until, BLOCK), SCALE, None, None)
