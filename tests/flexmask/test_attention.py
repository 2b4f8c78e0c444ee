import functools
import gc
import types

import pytest
import torch
from factories import in_double, tiny_gemma3, tiny_qwen3
from random_trees import LargestTensor, ancestor_mask, random_pack
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import BloomConfig, BloomForCausalLM, Gemma2Config, Gemma2ForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss_eager

from flexmask.attention import cpu, interface
from flexmask.attention.alibi import route_alibi
from flexmask.attention.cpu import block_sparse_attention
from flexmask.attention.interface import ATTENTION_NAME, _compiled_attention, flexmask_attention
from flexmask.attention.masks import build_block_mask, dense_mask, place_mask_mod


def reference(query, key, value, visible, scaling, softcap=None, sinks=None):
    """Attention as the formula has it, in the dtype of its input: every head its own keys, all pairs, [1, S, H, E]."""
    group = query.shape[1] // key.shape[1]
    outputs = []
    for head in range(query.shape[1]):
        scores = query[0, head] @ key[0, head // group].T * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = torch.exp(scores) * visible
        total = weights.sum(dim=1, keepdim=True)
        if sinks is not None:
            total = total + torch.exp(sinks[head])
        outputs.append(weights / total @ value[0, head // group])
    return torch.stack(outputs, dim=1)[None]


def inputs(seed, length, heads, key_heads, size=8, value_size=8, dtype=torch.float64):
    """query, key, value as models make them: transposed views that require gradients."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((heads, size), (key_heads, size), (key_heads, value_size))
    tensors = (torch.randn(1, length, *shape, generator=generator, dtype=dtype) for shape in shapes)
    return tuple(x.transpose(1, 2).requires_grad_() for x in tensors)


def with_gradients(output, tensors, seed=0):
    generator = torch.Generator().manual_seed(seed)
    grad_output = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)
    return (output, *torch.autograd.grad(output, tensors, grad_output))


def assert_close(ours, expected, tolerance):
    for name, x, y in zip(("output", "query", "key", "value", "sinks"), ours, expected, strict=False):
        assert x.shape == y.shape, name
        difference = (x.double() - y.double()).abs().max().item()
        assert difference <= tolerance * y.abs().max().item(), (name, difference)


@pytest.mark.parametrize("window", [None, 11])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (9, 3), (8, 1)])
def test_outputs_and_gradients_equal_dense(heads, key_heads, window):
    """float64, random packs with padding. Fails if a visible key is lost, a hidden one counts, or a head is misread;
    also if a tile takes the queries of a block that is not square for its keys."""
    for seed in range(12):
        block_size = (16, 32, 48, (32, 16), (16, 48), (48, 32))[seed % 6]
        visible_until, position_ids, parents = random_pack(seed, 96)
        block_mask = build_block_mask(visible_until, block_size, *((position_ids, window) if window else ()))
        tensors = inputs(seed, 96, heads, key_heads, size=8, value_size=12)
        ours = block_sparse_attention(*tensors, block_mask, 0.4)
        expected = reference(*tensors, ancestor_mask(parents, window), 0.4)
        assert ours.shape == (1, 96, heads, 12) and ours.is_contiguous()
        assert_close(with_gradients(ours, tensors), with_gradients(expected, tensors), 1e-12)


def test_softcap_and_sinks_equal_dense():
    """Fails if either is ignored, or if its share of a gradient is."""
    for seed in range(4):
        visible_until, _, parents = random_pack(seed, 96)
        sinks = torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()
        for softcap, sink in ((1.5, None), (None, sinks), (1.5, sinks)):
            tensors = inputs(seed, 96, 6, 2)
            ours = block_sparse_attention(*tensors, build_block_mask(visible_until, 32), 0.4, softcap, sink)
            expected = reference(*tensors, ancestor_mask(parents), 0.4, softcap, sink)
            tensors += () if sink is None else (sink,)
            assert_close(with_gradients(ours, tensors), with_gradients(expected, tensors), 1e-12)


def test_gradcheck():
    visible_until, position_ids, _ = random_pack(8, 12)
    block_mask = build_block_mask(visible_until, 4, position_ids, 5)
    sinks = torch.randn(2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    tensors = inputs(0, 12, 2, 1, size=3, value_size=2)
    assert torch.autograd.gradcheck(lambda *x: block_sparse_attention(*x, block_mask, 0.5), tensors)
    assert torch.autograd.gradcheck(
        lambda *x: block_sparse_attention(*x[:3], block_mask, 0.5, 2.0, x[3]), (*tensors, sinks)
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 8e-3)])
def test_lower_precision_stays_near_float64(dtype, tolerance):
    """bfloat16 keeps 8 bits: one rounding of the result is 4e-3. Fails if sums over keys are kept in bfloat16."""
    visible_until, _, parents = random_pack(21, 512)
    tensors = inputs(1, 512, 4, 2, size=16, value_size=16, dtype=dtype)
    ours = block_sparse_attention(*tensors, build_block_mask(visible_until, 64), 0.25)
    exact = tuple(x.detach().double().requires_grad_() for x in tensors)
    expected = reference(*exact, ancestor_mask(parents), 0.25)
    ours, expected = with_gradients(ours, tensors), with_gradients(expected, exact)
    assert all(x.dtype == dtype for x in ours)
    assert_close(ours, expected, tolerance)


def test_large_scores_do_not_overflow():
    """Scores of several hundred, far apart. Fails without the running maximum, or where -inf meets a difference."""
    visible_until, _, parents = random_pack(5, 64)
    tensors = inputs(2, 64, 2, 2, dtype=torch.float32)
    ours = with_gradients(block_sparse_attention(*tensors, build_block_mask(visible_until, 32), 100.0), tensors)
    assert all(x.isfinite().all() for x in ours)
    query, key, value = (x.detach().double() for x in tensors)
    scores = (query @ key.transpose(2, 3) * 100).masked_fill(~ancestor_mask(parents), -torch.inf)
    assert_close(ours[:1], [(scores.softmax(-1) @ value).transpose(1, 2)], 1e-4)


def test_heads_one_by_one_or_together(monkeypatch):
    """How many key heads share a step depends on their size. Fails if the split misplaces one."""
    visible_until, _, _ = random_pack(4, 128)
    tensors = inputs(3, 128, 9, 3)
    results = []
    for scores_at_once in (1, 2 * 32 * 3 * 100, 1 << 30):
        monkeypatch.setattr(cpu, "_SCORES_AT_ONCE", scores_at_once)
        output = block_sparse_attention(*tensors, build_block_mask(visible_until, 32), 0.4)
        results.append(with_gradients(output, tensors))
    assert_close(results[0], results[2], 1e-13)
    assert_close(results[1], results[2], 1e-13)


def causal(b, h, q, k):
    return q >= k


def everything(b, h, q, k):
    return (q >= 0) & (k >= 0)


@pytest.mark.parametrize("mask_mod", [causal, everything])
@pytest.mark.parametrize(
    ("length", "options"),
    [
        (128, {"BLOCK_SIZE": (64, 32)}),
        (128, {"BLOCK_SIZE": (16, 64)}),
        (100, {"BLOCK_SIZE": 16}),
        (64, {"BLOCK_SIZE": 16, "separate_full_blocks": False}),
    ],
    ids=["wide", "tall", "ragged", "partial-only"],
)
def test_any_block_mask_of_torch(mask_mod, length, options):
    """Fails if block shapes, an incomplete last block or missing full lists are taken for granted."""
    block_mask = create_block_mask(mask_mod, None, None, length, length, device="cpu", **options)
    tensors = inputs(0, length, 4, 2)
    visible = torch.ones(length, length, dtype=torch.bool)
    expected = reference(*tensors, visible.tril() if mask_mod is causal else visible, 0.4)
    assert_close([block_sparse_attention(*tensors, block_mask, 0.4)], [expected], 1e-12)


def test_listed_blocks_decide_not_the_mask_mod_alone():
    """As in torch's kernels: an unlisted block is skipped and a full one is not masked, whatever the mask_mod says."""
    counts, indices = torch.tensor([[[1, 1]]]), torch.tensor([[[[0, 0], [1, 0]]]])
    block_mask = BlockMask.from_kv_blocks(
        counts.int(),
        indices.int(),
        torch.tensor([[[1, 0]]]).int(),
        torch.tensor([[[[1, 0], [0, 0]]]]).int(),
        BLOCK_SIZE=16,
        mask_mod=causal,
    )
    visible = torch.ones(32, 32, dtype=torch.bool).tril()
    visible[16:, :16], visible[:16, 16:] = False, True
    tensors = inputs(0, 32, 2, 2)
    ours = block_sparse_attention(*tensors, block_mask, 0.4)
    assert_close([ours], [reference(*tensors, visible, 0.4)], 1e-12)


def test_sinks_from_the_log_sum_exp(monkeypatch):
    """What the accelerator path makes of flex_attention's log-sum-exp, with flex_attention replaced by the formula."""

    def formula(query, key, value, scale, return_aux, **_):
        scores = query @ key.transpose(2, 3) * scale
        return scores.softmax(-1) @ value, types.SimpleNamespace(lse=scores.logsumexp(-1))

    monkeypatch.setattr(interface, "_compiled_flex_attention", lambda: formula)
    tensors, sinks = inputs(0, 16, 3, 3), torch.randn(3, dtype=torch.float64)
    ours = interface._compiled_attention(*tensors, build_block_mask(torch.full((1, 16), 16), 16), 0.4, None, sinks)
    assert_close([ours], [reference(*tensors, torch.ones(16, 16), 0.4, None, sinks)], 1e-12)


# Fails if the backend, the head dims, the dtype that autocast computes in, or the answer is lost.
def test_kernel_options_reach_flex_attention(monkeypatch):
    given = []

    def options(backend, device, dtype, head_dims, blocks):
        assert (backend, dtype, head_dims, blocks) == ("triton", torch.bfloat16, (8, 4), (16, 8))
        return {"BACKEND": "X"}

    def flex(query, key, value, kernel_options, **_):
        given.append(kernel_options)
        return value

    monkeypatch.setattr(interface, "_compiled_flex_attention", lambda: flex)
    monkeypatch.setattr(interface, "kernel_options", options)
    block_mask = build_block_mask(torch.full((1, 16), 16), (16, 8))
    with torch.autocast("cpu", torch.bfloat16):
        tensors = inputs(0, 16, 1, 1, size=8, value_size=4)
        interface._compiled_attention(*tensors, block_mask, 0.4, None, None, backend="triton")
    assert given == [{"BACKEND": "X"}]


def test_memory_is_linear_in_the_sequence():
    """8,192 tokens in forward and backward. Fails if any step makes a tensor as large as one head's S x S scores."""
    length = 8192
    visible_until, _, _ = random_pack(1, 512)
    visible_until = torch.cat([visible_until + start for start in range(0, length, 512)], dim=1)
    tensors = inputs(0, length, 2, 1, size=4, value_size=4, dtype=torch.float32)
    with LargestTensor() as largest:
        with_gradients(block_sparse_attention(*tensors, build_block_mask(visible_until), 0.5), tensors)
    assert 0 < largest.elements <= 2 * 128 * 512 * 2  # two buffers for one tile of both heads


def test_layers_share_tiles_and_masks_free_them():
    """Fails if every layer builds its own, or if a run keeps those of every batch."""
    visible_until, _, _ = random_pack(1, 64)
    block_mask = build_block_mask(visible_until, 16)
    tensors = inputs(0, 64, 2, 2)
    gc.collect()
    before = len(cpu._tiles_of)
    output = block_sparse_attention(*tensors, block_mask, 0.4)
    tiles = cpu._tiles_of[block_mask]
    block_sparse_attention(*tensors, block_mask, 0.4)
    assert cpu._tiles_of[block_mask] is tiles
    del block_mask, tiles
    gc.collect()
    assert len(cpu._tiles_of) == before
    with_gradients(output, tensors)  # backward has what it needs


def test_tiles_made_in_inference_mode_serve_training():
    visible_until, _, parents = random_pack(2, 64)
    block_mask, tensors = build_block_mask(visible_until, 16), inputs(0, 64, 2, 2)
    with torch.inference_mode():
        block_sparse_attention(*tensors, block_mask, 0.4)
    ours = with_gradients(block_sparse_attention(*tensors, block_mask, 0.4), tensors)
    assert_close(ours, with_gradients(reference(*tensors, ancestor_mask(parents), 0.4), tensors), 1e-12)


def test_autocast_does_not_reach_inside():
    """Fails if mixed precision computes scores in bfloat16."""
    visible_until, _, _ = random_pack(2, 64)
    block_mask, tensors = build_block_mask(visible_until, 16), inputs(0, 64, 2, 2, dtype=torch.float32)
    plain = with_gradients(block_sparse_attention(*tensors, block_mask, 0.4), tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = with_gradients(block_sparse_attention(*tensors, block_mask, 0.4), tensors)
    assert all(torch.equal(x, y) for x, y in zip(plain, mixed, strict=True))


# ---- in models ----


def masks_and_positions(seed, window=None, length=96):
    visible_until, position_ids, _ = random_pack(seed, length)
    masks = {"full_attention": build_block_mask(visible_until, 32)}
    dense = {"full_attention": dense_mask(visible_until)}
    if window is not None:
        masks["sliding_attention"] = build_block_mask(visible_until, 32, position_ids, window)
        dense["sliding_attention"] = dense_mask(visible_until, position_ids, window)
    return masks, dense, position_ids


@pytest.mark.parametrize("make_model", [tiny_qwen3, tiny_gemma3])
@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["stored", "reentrant", "non-reentrant"])
def test_models_train_as_with_a_dense_mask(make_model, checkpointing):
    """Logits and every gradient. Fails if the mask of a layer type is not its own, or recomputation loses it."""
    model = make_model(50, torch.float64)
    window = 12 if make_model is tiny_gemma3 else None
    masks, dense, position_ids = masks_and_positions(17, window)
    tokens = torch.randint(50, (1, 96), generator=torch.Generator().manual_seed(0))
    results = []
    for name, mask in (("sdpa", dense), (ATTENTION_NAME, masks)):
        model.set_attn_implementation(name)
        model.train()
        if checkpointing is not None:
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        mask = mask if window else mask["full_attention"]
        logits = model(input_ids=tokens, attention_mask=mask, position_ids=position_ids, use_cache=False).logits
        model.zero_grad()
        with in_double():  # checkpointing computes the forward again
            logits.square().mean().backward()
        results.append((logits, *(parameter.grad.clone() for parameter in model.parameters())))
    for ours, expected in zip(*reversed(results), strict=True):
        assert (ours - expected).abs().max() <= 1e-10 * max(1, expected.abs().max())


def test_ordinary_masks_and_generation_still_work():
    """Fails if a model routed here can no longer be evaluated by chatting with it."""
    model = tiny_qwen3(50, torch.float32)
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    results = []
    for name in ("sdpa", ATTENTION_NAME):
        model.set_attn_implementation(name)
        logits = model(input_ids=tokens, attention_mask=mask).logits
        generated = model.generate(tokens, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
        results.append((logits, generated, model(input_ids=tokens).logits))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_softcap_with_an_ordinary_mask_equals_eager():
    """sdpa refuses softcap; Gemma 2 must still generate. Padding, so the mask is a tensor; without, it is None."""
    config = Gemma2Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        sliding_window=5,
        attn_logit_softcapping=0.5,
    )
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    results = []
    for name in ("eager", ATTENTION_NAME):
        model.set_attn_implementation(name)
        results.append((model(input_ids=tokens, attention_mask=mask).logits[mask.bool()], model(tokens).logits))
    for ours, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_sinks_with_an_ordinary_mask_equal_eager():
    """sdpa ignores sinks without a word. Fails if this function does too."""
    query, key, value = inputs(0, 12, 4, 2, dtype=torch.float32)
    module = layer_stub(num_key_value_groups=2, sinks=torch.randn(4), training=False)
    mask = torch.zeros(1, 1, 12, 12).masked_fill(~torch.ones(12, 12, dtype=torch.bool).tril(), torch.finfo().min)
    expected, _ = gpt_oss_eager(module, query, key, value, mask, scaling=0.4)
    for given in (mask, None, mask == 0):
        ours, _ = flexmask_attention(module, query, key, value, given, scaling=0.4, s_aux=module.sinks)
        torch.testing.assert_close(ours, expected)


# ---- refusals ----


def layer_stub(**attributes):
    return types.SimpleNamespace(layer_idx=3, is_causal=True, **attributes)


def test_a_window_on_one_side_only_names_the_layer():
    """Trap: one BlockMask for a sliding-window model silently removes the window. Fails if any mismatch passes."""
    visible_until, position_ids, _ = random_pack(0, 32)
    tensors = inputs(0, 32, 2, 2)
    plain, windowed = build_block_mask(visible_until, 16), build_block_mask(visible_until, 16, position_ids, 8)
    foreign = create_block_mask(causal, None, None, 32, 32, device="cpu", BLOCK_SIZE=16)
    for mask, layer, own in ((plain, 8, None), (windowed, 9, 8), (windowed, None, 8), (foreign, 8, None)):
        message = rf"layer 3 .*sliding_window={layer}, its BlockMask has window={own}"
        with pytest.raises(ValueError, match=message):
            flexmask_attention(layer_stub(), *tensors, mask, sliding_window=layer)
        with pytest.raises(ValueError, match=message):  # a model that does not pass it on
            flexmask_attention(layer_stub(sliding_window=layer), *tensors, mask)
    for mask, layer in ((plain, None), (windowed, 8), (foreign, None)):
        flexmask_attention(layer_stub(), *tensors, mask, sliding_window=layer)
    model = tiny_gemma3(50, torch.float32)
    model.set_attn_implementation(ATTENTION_NAME)
    with pytest.raises(ValueError, match=r"layer 0 \(Gemma3Attention\) has sliding_window=12"):
        model(
            input_ids=torch.zeros(1, 32, dtype=torch.int64),
            attention_mask={"full_attention": plain, "sliding_attention": plain},
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout": 0.1}, r"layer 3 .*dropout 0.1"),
        ({"position_bias": torch.zeros(1)}, r"layer 3 .*'position_bias'"),
        ({"sinks": torch.zeros(1)}, r"layer 3 .*'sinks'"),
        ({"batch": 2}, r"batch size 2"),
        ({"length": 48}, r"48 queries and 48 keys, but the BlockMask was built for 32 tokens"),
        ({"heads": (4, 3)}, r"4 query heads are not a multiple of 3 key heads"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(change, message):
    visible_until, _, _ = random_pack(0, 32)
    block_mask = build_block_mask(visible_until, 16)
    tensors = inputs(0, change.pop("length", 32), *change.pop("heads", (2, 2)))
    batch = change.pop("batch", 1)
    with pytest.raises(ValueError, match=message):
        flexmask_attention(layer_stub(), *(x.expand(batch, -1, -1, -1) for x in tensors), block_mask, **change)


def test_a_query_that_sees_nothing_is_named():
    """Its softmax would be 0 / 0 and the loss NaN."""
    block_mask = create_block_mask(lambda b, h, q, k: q > k, None, None, 32, 32, device="cpu", BLOCK_SIZE=16)
    with pytest.raises(ValueError, match="query 0 sees no key"):
        block_sparse_attention(*inputs(0, 32, 2, 2), block_mask, 0.4)


# ---- on a GPU ----


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "key_heads"), [(8, 4), (9, 3)])
def test_cuda_agrees_with_cpu(heads, key_heads):
    """Compiled FlexAttention, output and gradients, from a BlockMask built on CPU and moved."""
    visible_until, position_ids, _ = random_pack(3, 512)
    sinks = torch.randn(heads, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for arguments in ((), (position_ids, 100)):
        block_mask = build_block_mask(visible_until, 128, *arguments)
        moved = place_mask_mod(block_mask.to("cuda"), "cuda")
        for softcap, sink in ((None, None), (5.0, None), (None, sinks)):
            tensors = inputs(0, 512, heads, key_heads, size=64, value_size=64, dtype=torch.float32)
            expected = block_sparse_attention(*tensors, block_mask, 0.125, softcap, sink)
            on_gpu = [x.detach().cuda().requires_grad_() for x in (*tensors, *(() if sink is None else (sink,)))]
            ours, _ = flexmask_attention(
                layer_stub(),
                *on_gpu[:3],
                moved,
                scaling=0.125,
                softcap=softcap,
                s_aux=None if sink is None else on_gpu[3],
                sliding_window=moved.mask_mod.window,
            )
            tensors += () if sink is None else (sink,)
            ours = [x.cpu() for x in with_gradients_on("cuda", ours, on_gpu)]
            assert_close(ours, with_gradients(expected, tensors), 2e-3)


def with_gradients_on(device, output, tensors):
    generator = torch.Generator().manual_seed(0)
    grad_output = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(device, output.dtype)
    return (output, *torch.autograd.grad(output, tensors, grad_output))


# Fails if the score_mod of compiled FlexAttention and the extra dimension of the CPU path differ in sign or scale.
def test_a_bias_of_the_keys_is_the_same_on_both_paths(monkeypatch):
    visible_until, _, _ = random_pack(5, 64)
    block_mask, dense = build_block_mask(visible_until, 32), dense_mask(visible_until)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 4, 64, 8, generator=generator) for _ in range(3))
    bias = torch.randn(4, 64, generator=generator)
    layer = torch.nn.Identity()
    ours, _ = flexmask_attention(layer, query, key, value, block_mask, scaling=0.3, key_bias=bias)
    # The graph as it is traced: what a compiler makes of it is the compiler's.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    interface._compiled_flex_attention.cache_clear()
    compiled = _compiled_attention(query, key, value, block_mask, 0.3, None, None, bias)
    interface._compiled_flex_attention.cache_clear()
    scores = (query @ key.transpose(2, 3) * 0.3 + bias[None, :, None]).masked_fill(~dense, -torch.inf)
    expected = (scores.softmax(-1) @ value).transpose(1, 2)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="key_bias needs a key head for each of the 4 query heads, not 2"):
        flexmask_attention(layer, query, key[:, :2], value[:, :2], block_mask, scaling=0.3, key_bias=bias)


def test_bloom_still_generates_once_it_takes_block_masks():
    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4)).eval()
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    before = model.generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
    route_alibi(model)
    after = model.generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(before, after)
