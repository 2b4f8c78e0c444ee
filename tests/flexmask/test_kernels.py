"""Which kernels attention may have on CUDA, tried on a machine without it: cards are described, nothing runs there."""

import pytest
import torch
from factories import TINY_MODELS, random_passes
from random_trees import random_pack
from transformers import (
    AttentionInterface,
    BloomConfig,
    BloomForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    TrainingArguments,
)

from flexmask import OnePassCollator, OnePassConfig, OnePassTrainer, one_pass, prepare_model
from flexmask.attention import interface, kernels
from flexmask.attention.interface import backend_of
from flexmask.attention.kernels import BACKENDS, check_backend, flash_blocks, kernel_options
from flexmask.attention.masks import build_block_mask
from flexmask.model.support import blocks_of, inputs_of
from flexmask.tree.packing import lay_end_to_end

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def card(monkeypatch):
    """Call it with a capability: torch then says that such a card is there, with every package."""

    def describe(*capability):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a card")
        monkeypatch.setattr(kernels, "_missing", lambda module: False)

    return describe


def test_a_backend_that_cannot_run_is_refused_by_name(card, monkeypatch):
    with pytest.raises(ValueError, match="backend=fast: write one of auto, triton, flash"):
        check_backend("fast", CUDA, 128, True)
    check_backend("auto", CPU, 128, False)
    for backend in ("triton", "flash"):
        with pytest.raises(ValueError, match=f"backend={backend}: needs a CUDA device, and this run is on cpu; leave"):
            check_backend(backend, CPU, 128, True)
    for capability in ((8, 0), (8, 6), (12, 0)):
        card(*capability)
        check_backend("triton", CUDA, 64, False)
        with pytest.raises(ValueError, match="a card is sm_{}{}; leave it out".format(*capability)):
            check_backend("flash", CUDA, 128, True)
    card(9, 0)
    check_backend("flash", CUDA, 128, True)
    with pytest.raises(ValueError, match="computes in another dtype; train with bf16 mixed precision"):
        check_backend("flash", CUDA, 128, False)
    with pytest.raises(ValueError, match="block_size=64: backend=flash has blocks of its own"):
        check_backend("flash", CUDA, 64, True)
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (10, 0))
    with pytest.raises(ValueError, match=r'flash_attn.cute is not installed; pip install --pre "flash-attn-4\[cu13\]"'):
        check_backend("flash", CUDA, 128, True)


# The rules of flash-attn-4 4.0.0b36: on Blackwell a block has a multiple of 256 queries and of 128 keys, on Hopper the
# keys of one tile in forward (128, or a multiple of 16 below) and in backward (128, 96 or 64). Fails for square blocks.
def test_blocks_that_flash_attention_takes():
    assert [flash_blocks((9, 0), (d,)) for d in (64, 128, 192, 256)] == [(128, 128), (128, 128), (128, 96), (128, 64)]
    assert flash_blocks((10, 0), (128,)) == flash_blocks((10, 3), (64,)) == flash_blocks((11, 0), (96,)) == (256, 128)
    assert flash_blocks((9, 0), (64, 192)) == (128, 96)
    for capability, head_dim in (
        ((10, 0), 192),
        ((10, 0), 256),
        ((9, 0), 264),
        ((9, 0), 100),
        ((9, 0), 4),
        ((12, 0), 64),
    ):
        with pytest.raises(ValueError, match=rf"no kernel for head dim {head_dim} on sm_{capability[0]}.*leave it out"):
            flash_blocks(capability, (head_dim,))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_reaches_every_layer_and_changes_nothing_on_cpu(backend, monkeypatch):
    model, found = prepare_model(TINY_MODELS["qwen3"](60, torch.float64), backend=backend), []
    assert backend_of(model.config) == backend and blocks_of(model, CPU, 16) == (16, 16)
    query = torch.randn(1, 2, 32, 16)
    mask = build_block_mask(random_pack(0, 32)[0], 16)
    expected = interface.flexmask_attention(model, query, query, query, mask)[0]
    attend = AttentionInterface()[interface.attention_name(backend)]
    assert torch.equal(attend(model, query, query, query, mask)[0], expected)
    # On a device that is not a CPU, what computes is told which kernels to take.
    monkeypatch.setattr(interface, "_compiled_attention", lambda *args: found.append(args[-1]))
    monkeypatch.setattr(interface, "place_mask_mod", lambda mask, device: mask)
    attend(model, *(query.to("meta") for _ in range(3)), mask)
    assert found == [backend]
    assert prepare_model(model).config._attn_implementation == "flexmask"


# Fails if a pack's mask has square blocks where its kernels take none, or if a layer goes on under another mask.
def test_masks_have_the_blocks_of_the_backend(card, monkeypatch):
    card(10, 0)
    model = prepare_model(TINY_MODELS["qwen3"](60, torch.bfloat16), backend="flash")
    assert blocks_of(model, CUDA, 128) == (256, 128)
    monkeypatch.setattr("flexmask.model.support.blocks_of", lambda model, device, size: (256, 128))
    rows = one_pass(random_passes(0))
    one = lay_end_to_end(rows[:1], 300)
    with inputs_of(model, one, 128):
        mask = interface._masks.get()()
    assert mask.BLOCK_SIZE == (256, 128) and mask.seq_lengths == (512, 512)
    monkeypatch.setattr(kernels, "_capability", lambda device: (10, 0))
    assert kernel_options("flash", CUDA, torch.bfloat16, (16, 16), (256, 128)) == {"BACKEND": "FLASH"}
    with pytest.raises(ValueError, match=r"need blocks of \(256, 128\), and their mask has \(128, 128\)"):
        kernel_options("flash", CUDA, torch.bfloat16, (16, 16), (128, 128))
    with pytest.raises(ValueError, match="takes float16 and bfloat16, not torch.float32"):
        kernel_options("flash", CUDA, torch.float32, (16, 16), (256, 128))
    with pytest.raises(ValueError, match="no kernel for head dim 512 on sm_100"):
        kernel_options("flash", CUDA, torch.bfloat16, (512, 512), (256, 128))


@pytest.mark.parametrize("backend", ["triton", "flash"])
def test_models_without_a_choice_are_named(backend):
    bloom = BloomForCausalLM(BloomConfig(vocab_size=60, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match=f"backend={backend}: BloomForCausalLM attends by code of its own"):
        prepare_model(bloom, backend=backend)


def test_sinks_have_no_gradient_with_flash():
    config = GptOssConfig(
        vocab_size=60, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, num_local_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    model = GptOssForCausalLM(config)
    with pytest.raises(ValueError, match="backend=flash: GptOssForCausalLM has attention sinks"):
        prepare_model(model, backend="flash")
    assert backend_of(prepare_model(model, backend="triton").config) == "triton"


def test_a_trainer_refuses_before_it_trains(tmp_path):
    more, model = dict(max_steps=1, use_cpu=True), TINY_MODELS["qwen3"](60, torch.float32)
    given = [
        (OnePassConfig(str(tmp_path), backend="flash", pack_length=512, **more), None),
        (TrainingArguments(str(tmp_path), **more), OnePassCollator(512, backend="flash")),
    ]
    for arguments, collator in given:
        with pytest.raises(ValueError, match="backend=flash: needs a CUDA device, and this run is on cpu"):
            OnePassTrainer(model, arguments, collator, train_dataset=[one_pass(random_passes(0))])
    with pytest.raises(ValueError, match="backend is auto in data_collator and flash in args"):
        OnePassTrainer(model, given[0][0], OnePassCollator(512), train_dataset=[one_pass(random_passes(0))])


# What `python tests/gpu_kernels.py --fit` finds too large for 99 KB of shared memory, and nothing else. Fails if a card
# that has enough gets slower tiles, or if a tile does not divide a block of the mask.
def test_smaller_tiles_only_where_those_of_torch_do_not_fit():
    given = {
        (capability, head_dim, dtype): kernels.triton_options(capability, head_dim, dtype)
        for capability in ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
        for head_dim in (64, 80, 128, 160, 192, 256, 512)
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
    }
    changed = {key for key, options in given.items() if options}
    small = ((8, 6), (8, 9), (12, 0))
    half = {(c, d, t) for c in small for d in (160, 192, 256) for t in (torch.bfloat16, torch.float16)}
    assert changed == half | {(c, d, torch.float32) for c in small for d in (160, 192)}
    assert all(128 % size == 0 for options in given.values() for name, size in options.items() if "BLOCK" in name)
