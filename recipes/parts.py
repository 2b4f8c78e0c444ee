"""The parts of the library that the benchmark measures alone, a section of benchmark.json each.

Times are in seconds, memory in bytes.
"""

import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from flexmask import (
    Conversation,
    Pack,
    Pass,
    Role,
    Row,
    build_block_mask,
    dense_mask,
    lay_out,
    pack,
    prepare_model,
    render_passes,
    token_losses,
)
from flexmask.attention import flexmask_attention
from flexmask.state_branches import StateBranches
from recipes.benchmark_config import DATA_MIXES, BenchmarkConfig, ShapeConfig
from recipes.measure import (
    InexactError,
    build_model,
    check_exact,
    check_tokens,
    differences,
    graphs_compiled,
    interleaved_seconds,
    peak_memory,
    sampler_of,
)
from recipes.sources import tutoring
from recipes.tiny import build_tokenizer
from recipes.workloads import (
    MATHCHATSYNC,
    distinct_prefixes,
    draw_dialogues,
    passes_of,
    share_lengths,
    statistical_lengths,
)

# ---- packing and attention area of each mix ----

PACKING_LENGTH, PACKING_TOKENS = 8192, 800_000
AREA_BLOCKS = (32, 64, 128)


def packing(config: BenchmarkConfig) -> list[dict]:
    """How well dialogues in one pass fill packs of a fixed length, all of them together (about 100 packs), how much
    padding the model computes, and how many pairs blocks of each size compute for one that is visible.

    Mixes that have no number of turns of their own are taken at 8.
    """
    results = []
    for mix in config.grid.mixes:
        sampler = sampler_of(config, mix, None if mix in DATA_MIXES else 8)
        dialogues = draw_dialogues(sampler, config.seed, 10**9, PACKING_TOKENS)
        rows = [row for one in dialogues for row in lay_out(passes_of(one), "one_pass", PACKING_LENGTH).rows]
        start = time.perf_counter()
        packs = pack(rows, PACKING_LENGTH)
        seconds = time.perf_counter() - start
        visible = sum(int((row.position_ids + 1).sum()) for row in rows)
        results.append(
            {
                "mix": mix,
                "dialogues": len(dialogues),
                "tokens": sum(map(len, rows)),
                "packs": len(packs),
                "fewest_packs": -(-sum(map(len, rows)) // PACKING_LENGTH),
                "unfilled": 1 - sum(map(len, rows)) / sum(one.pack_length for one in packs),
                "padding": 1 - sum(map(len, rows)) / sum(one.input_ids.numel() for one in packs),
                "pack_seconds": seconds,
                "computed_over_visible": {
                    str(block): sum(block_pairs(one, block) for one in packs) / visible for block in AREA_BLOCKS
                },
            }
        )
    return results


def block_pairs(one: Pack, block_size: int) -> int:
    block_mask = build_block_mask(one.visible_until, block_size)
    return int(block_mask.kv_num_blocks.sum() + block_mask.full_kv_num_blocks.sum()) * block_size**2


# ---- attention alone ----

ATTENTION_TURNS, ATTENTION_LENGTHS = 8, (100, 400, 150)  # tokens of question, thinking and answer
ATTENTION_HEADS, ATTENTION_KV_HEADS, ATTENTION_HEAD_DIM = 8, 4, 64


def attention(config: BenchmarkConfig) -> dict:
    """Forward and backward of attention alone over 6,250 tokens, beside a dense mask and beside the visible area alone.

    ours: the block mask as one layer of a model finds it, its tiles made. dense: scaled_dot_product_attention over all
    pairs. per_node: the same operation for each tree node over its own path, which is the visible area and half of
    each node's square. same_area: causal, over a chain with as many visible pairs, with nothing to gather.
    """
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    (dialogue,) = draw_dialogues(lambda rng: [ATTENTION_LENGTHS] * ATTENTION_TURNS, config.seed, 10**9, tokens=0)
    (row,) = lay_out(passes_of(dialogue), "one_pass").rows
    (one,) = pack([row], len(row))
    visible_until = one.visible_until.to(device)
    block_mask, mask = build_block_mask(visible_until, config.block_size), dense_mask(visible_until)
    pairs = int((row.position_ids + 1).sum())
    chain = int((2 * pairs) ** 0.5)
    nodes = [
        (torch.from_numpy(path).to(device), size, path_mask(len(path), size).to(device))
        for path, size in node_paths(row)
    ]
    generator = torch.Generator(device).manual_seed(config.seed)
    inputs = [
        torch.randn(1, heads, len(one), ATTENTION_HEAD_DIM, generator=generator, device=device, dtype=dtype)
        for heads in (ATTENTION_HEADS, ATTENTION_KV_HEADS, ATTENTION_KV_HEADS, ATTENTION_HEADS)
    ]

    def sdpa(query: Tensor, key: Tensor, value: Tensor, **rule) -> Tensor:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        return F.scaled_dot_product_attention(query, key, value, **rule)

    def per_node(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        outputs = []
        for path, size, visible in nodes:
            own = query.index_select(2, path[-size:])
            outputs.append(sdpa(own, key.index_select(2, path), value.index_select(2, path), attn_mask=visible))
        return torch.cat(outputs, dim=2)

    layer = nn.Module()
    forwards: dict[str, tuple[int, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
        "ours": (len(one), lambda *qkv: flexmask_attention(layer, *qkv, block_mask)[0].transpose(1, 2)),
        "dense": (len(one), lambda *qkv: sdpa(*qkv, attn_mask=mask)),
        "per_node": (len(row), per_node),
        "same_area": (chain, lambda *qkv: sdpa(*qkv, is_causal=True)),
    }

    def run_one(name: str) -> list[Tensor]:
        length, forward = forwards[name]
        query, key, value = (x[:, :, :length].detach().requires_grad_() for x in inputs[:3])
        output = forward(query, key, value)
        output.backward(inputs[3][:, :, :length])
        return [x[:, :, : len(row)].detach() for x in (output, query.grad, key.grad, value.grad)]

    expected = run_one("dense")
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-3
    for name in ("ours", "per_node"):
        differences = [float((ours - theirs).abs().max()) for ours, theirs in zip(run_one(name), expected, strict=True)]
        if not max(differences) <= tolerance * max(float(x.abs().max()) for x in expected):
            raise InexactError(f"attention {name}: output or gradients differ from the dense ones by {differences}")
    times = interleaved_seconds({name: lambda n=name: run_one(n) for name in forwards}, config.grid.repeats, device)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {
        "tokens": len(row),
        "visible_pairs": pairs,
        "computed_pairs": block_pairs(one, config.block_size),
        "seconds": seconds,
        "all_seconds": times,
        "over_dense": seconds["dense"] / seconds["ours"],
        "over_per_node": seconds["ours"] / seconds["per_node"],
        "over_same_area": seconds["ours"] / seconds["same_area"],
    }


def node_paths(row: Row) -> Iterator[tuple[np.ndarray, int]]:
    """For each node the indices of its path from the root, its own tokens last, and how many are its own."""
    paths: list[np.ndarray] = []
    for start, end, parent in zip(row.node_start, row.node_end, row.node_parent, strict=True):
        own = np.arange(start, end)
        paths.append(own if parent < 0 else np.concatenate([paths[parent], own]))
        yield paths[-1], len(own)


def path_mask(path: int, own: int) -> Tensor:
    """bool [own, path]: the last `own` tokens of a path see it up to themselves."""
    return torch.ones(own, path, dtype=torch.bool).tril(path - own)


# ---- building the block mask ----

MASK_TOKENS = (32768, 131072)
# create_block_mask of torch 2.13 on CPU at 32,544 tokens: 11 GB, and it grows with the square.
CREATE_BLOCK_MASK_BYTES = 11e9 / 32544**2


def mask(config: BenchmarkConfig) -> dict:
    """Time and extra memory of `build_block_mask`, and of torch's `create_block_mask` at the smaller length.

    Extra memory on CPU is the peak of torch's allocator and that of Python's (which NumPy uses) added up.
    """
    device = torch.device(config.device)
    results: dict = {"built": []}
    for tokens in MASK_TOKENS:
        dialogues = draw_dialogues(statistical_lengths(MATHCHATSYNC), config.seed, 1000, tokens)
        rows = [row for one in dialogues for row in lay_out(passes_of(one), "one_pass").rows]
        visible_until = pack(rows, tokens)[0].visible_until.to(device)
        build = lambda: build_block_mask(visible_until, config.block_size, length=tokens)  # noqa: B023, E731
        times = interleaved_seconds({"build": build}, 5, device)["build"]
        tracemalloc.start()
        _, peak = peak_memory(build, device)
        peak += tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        figures = {"tokens": tokens, "seconds": statistics.median(times), "all_seconds": times, "peak_memory": peak}
        results["built"].append(figures)
        if tokens == MASK_TOKENS[0]:
            results["create_block_mask"] = compare_masks(config, build(), figures)
    return results


def compare_masks(config: BenchmarkConfig, ours: BlockMask, built: dict) -> dict:
    """torch's own way on the same mask_mod: time, memory, and whether the index lists are the same."""
    tokens, device = built["tokens"], torch.device(config.device)
    needed = CREATE_BLOCK_MASK_BYTES * tokens**2
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if not config.create_block_mask:
        return {"status": "left out: create_block_mask=false"}
    if free < 1.2 * needed:
        return {"status": f"too large: needs about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"}

    def create() -> tuple[BlockMask, float]:
        start = time.perf_counter()
        theirs = create_block_mask(
            ours.mask_mod, None, None, tokens, tokens, device=config.device, BLOCK_SIZE=config.block_size
        )
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return theirs, time.perf_counter() - start

    (theirs, seconds), peak = peak_memory(create, device)
    if not same_lists(ours, theirs):
        raise InexactError("build_block_mask: the index lists are not those of create_block_mask")
    return {
        "status": "ok",
        "seconds": seconds,
        "peak_memory": peak,
        "ratio": seconds / built["seconds"],
        "same_index_lists": True,
    }


def same_lists(ours: BlockMask, theirs: BlockMask) -> bool:
    """Whether two BlockMasks list the same blocks; what stands behind the counts means nothing."""
    for kind in ("kv", "full_kv", "q", "full_q"):
        counts = [getattr(one, f"{kind}_num_blocks").long().cpu() for one in (ours, theirs)]
        indices = [getattr(one, f"{kind}_indices").long().cpu() for one in (ours, theirs)]
        if not torch.equal(*counts):
            return False
        listed = torch.arange(indices[0].shape[-1]) < counts[0][..., None]
        if not torch.equal(*(x.masked_fill(~listed, -1) for x in indices)):
            return False
    return True


# ---- memory of the loss ----

LOSS_VOCABULARY = 151_936
LOSS_SHAPE = dict(hidden_size=128, intermediate_size=384, layers=1, heads=2, kv_heads=1, head_dim=64)
LOSS_ROWS, LOSS_TRAINED = (2048, 8192), (512, 2048)  # tokens


def loss(config: BenchmarkConfig) -> list[dict]:
    """Peak memory of loss and backward at a large vocabulary, by tokens of the row and tokens trained; and of the usual
    loss, which has logits everywhere, for the shorter row.

    The model is one small layer, and the gradients of its embedding and output weights, which are one tensor and cost
    the same whatever the loss, are left out: nearly all memory is the loss's own.
    """
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    model = build_model(ShapeConfig(vocab_size=LOSS_VOCABULARY, **LOSS_SHAPE), dtype, device, config.seed)
    model.get_output_embeddings().requires_grad_(False)
    results = []
    for tokens in LOSS_ROWS:
        for trained in LOSS_TRAINED:
            one = chain_pack(tokens, trained, config.seed).to(device)
            losses = {"ours": lambda p=one: token_losses(model, p, config.block_size).total}
            if (tokens, trained) == (LOSS_ROWS[0], LOSS_TRAINED[0]):
                losses["logits_everywhere"] = lambda p=one: usual_loss(model, p)
            for name, forward in losses.items():
                model.zero_grad(set_to_none=True)
                _, peak = peak_memory(lambda f=forward: f().backward(), device)
                results.append({"loss": name, "row_tokens": tokens, "trained_tokens": trained, "peak_memory": peak})
    return results


def chain_pack(tokens: int, trained: int, seed: int) -> Pack:
    """One pass that fills a pack, whose last tokens are trained."""
    ids = np.random.default_rng(seed).integers(0, LOSS_VOCABULARY, tokens)
    roles = np.repeat([Role.PROMPT, Role.ANSWER], [tokens - trained, trained]).astype(np.int8)
    one = Pass("chain", 0, tokens - trained, ids, roles, (roles == Role.ANSWER).astype(np.float32))
    return pack(lay_out([one], "one_pass").rows, tokens)[0]


def usual_loss(model: PreTrainedModel, one: Pack) -> Tensor:
    """Logits at every token, then the shifted cross-entropy over those with a label."""
    logits = model(input_ids=one.input_ids, attention_mask=build_block_mask(one.visible_until), use_cache=False).logits
    labels = one.input_ids.masked_fill(one.loss_weights == 0, -100)
    return F.cross_entropy(logits[0, :-1].float(), labels[0, 1:], ignore_index=-100, reduction="sum")


# ---- preparation of text ----

PREPARED_TURNS = (8, 64)


def preparation(config: BenchmarkConfig) -> list[dict]:
    """From messages to a row, beside rendering and tokenizing the conversation once, and beside doing so for every
    turn's own history, all with the embedded tokenizer."""
    tokenizer = build_tokenizer()
    results = []
    for turns in PREPARED_TURNS:
        conversation = long_conversation(turns)
        messages = list(conversation.messages)
        actions = {
            "ours": lambda c=conversation: lay_out(render_passes(c, tokenizer), "one_pass"),
            "plain": lambda m=messages: tokenizer.apply_chat_template(m, tokenize=True),
            "every_turn": lambda m=messages: [
                tokenizer.apply_chat_template(m[: end + 1], tokenize=True) for end in range(1, len(m), 2)
            ],
        }
        times = interleaved_seconds(actions, 5, torch.device("cpu"))
        seconds = {name: statistics.median(values) for name, values in times.items()}
        (row,) = actions["ours"]().rows
        results.append(
            {
                "turns": turns,
                "row_tokens": len(row),
                "seconds": seconds,
                "over_plain": seconds["ours"] / seconds["plain"],
                "all_seconds": times,
            }
        )
    return results


def long_conversation(turns: int) -> Conversation:
    """Turns of tutoring dialogues, one after another."""
    messages = (message for record in tutoring.generate(turns, seed=0, split="train") for message in record["messages"])
    spoken = [message for message in messages if message["role"] in ("user", "assistant")]
    return Conversation("long", tuple(spoken[: 2 * turns]))


# ---- recompiles ----

COMPILED_PACKS = 200
COMPILED_LENGTH_ON_CPU = 512


def recompiles(config: BenchmarkConfig) -> dict:
    """Graphs that torch.compile makes over many packs of varied dialogues, by torch's own counter.

    On CUDA flexmask's attention, forward and backward, at `pack_length`. FlexAttention has no backward on CPU (torch
    2.13): there its forward alone is traced, with the same masks, and not lowered to a kernel.
    """
    device, cuda = torch.device(config.device), config.device == "cuda"
    length = config.pack_length if cuda else COMPILED_LENGTH_ON_CPU
    turn_tokens = config.grid.turn_tokens if cuda else 32
    dtype = torch.bfloat16 if cuda else torch.float32
    rng = np.random.default_rng(config.seed)
    torch._dynamo.reset()
    counters.clear()
    traced = torch.compile(flex_attention, dynamic=False, backend="aot_eager")
    layer = nn.Module()
    for number in range(COMPILED_PACKS):
        sampler = share_lengths(rng.random(3) + 0.1, turn_tokens, int(rng.integers(1, 6)))
        dialogues = draw_dialogues(sampler, number, 1000, length)
        rows = [row for one in dialogues for row in lay_out(passes_of(one), "one_pass", length).rows]
        one = pack(rows, length)[0]
        block_mask = build_block_mask(one.visible_until.to(device), config.block_size, length=length)
        tokens = len(one) if cuda else length
        query, key, value = (
            torch.randn(1, heads, tokens, 64, device=device, dtype=dtype, requires_grad=cuda) for heads in (2, 1, 1)
        )
        if cuda:
            flexmask_attention(layer, query, key, value, block_mask)[0].sum().backward()
        else:
            traced(query, key, value, block_mask=block_mask, enable_gqa=True)
    return {"packs": COMPILED_PACKS, "pack_length": length, "graphs_compiled": graphs_compiled(), "backward": cuda}


# ---- layers that carry state ----

STATE_TURNS, STATE_MIX = 8, "thinking_heavy"
STATE_SHARE = 2 / 3  # of the tokens of a cell of the grid: the section takes under a minute on an idle core
STATE_SIZES = dict(
    vocab_size=4096,
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=3,
    num_key_value_heads=1,
    max_position_embeddings=1 << 20,
    # Large enough that state which leaks between branches moves a fifth of the gradients, and not a hundredth.
    initializer_range=0.1,
)
# One model of each kind of layer whose state branches: model_type of transformers, and what its config takes beside the
# sizes. Three layers carry state, the last has full attention.
STATE_MODELS: dict[str, tuple[str, dict]] = {
    "gated delta rule": (
        "qwen3_5_text",
        dict(
            layer_types=["linear_attention"] * 3 + ["full_attention"],
            head_dim=64,
            linear_num_key_heads=3,
            linear_num_value_heads=3,
            linear_key_head_dim=64,
            linear_value_head_dim=64,
        ),
    ),
    "Mamba-2": (
        "bamba",
        dict(attn_layer_indices=[3], mamba_n_heads=6, mamba_d_head=64, mamba_d_state=64, mamba_chunk_size=64),
    ),
    "short convolution": ("lfm2", dict(layer_types=["conv"] * 3 + ["full_attention"])),
}


def state(config: BenchmarkConfig) -> list[dict]:
    """Hybrid models in one pass beside packed per-turn training: forward and backward over the same dialogues.

    steps: calls of a layer's recurrence that wait for each other, over all packs; None where no layer has one. Their
    kernels are those that transformers finds installed, and its own PyTorch code elsewhere.
    """
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    sampler = sampler_of(config, STATE_MIX, STATE_TURNS)
    most = int(STATE_SHARE * config.grid.conversation_tokens)
    dialogues = draw_dialogues(sampler, config.seed, STATE_SIZES["vocab_size"], most)
    packs = {}
    for layout in ("one_pass", "per_turn"):
        rows = [row for one in dialogues for row in lay_out(passes_of(one), layout, config.pack_length).rows]
        packs[layout] = [one.to(device) for one in pack(rows, config.pack_length)]
    tokens = {layout: sum(map(len, of)) for layout, of in packs.items()}
    steps = {layout: sum(StateBranches(one.previous).steps for one in of) for layout, of in packs.items()}
    prefixes = [distinct_prefixes(one) for one in dialogues]
    check_tokens(tokens["one_pass"], prefixes, config.pack_length)

    results = []
    for layers, (model_type, own_sizes) in STATE_MODELS.items():
        torch.manual_seed(config.seed)
        model_config = AutoConfig.for_model(model_type, **STATE_SIZES, **own_sizes)
        model = AutoModelForCausalLM.from_config(model_config, dtype=dtype)
        model = prepare_model(model.to(device)).train()
        train = {layout: lambda m=model, of=of: train_packs(m, of, config.block_size) for layout, of in packs.items()}
        expected, found = train["per_turn"](), train["one_pass"]()
        figures = {"loss": found[0]} | differences(expected, found)
        check_exact(f"one_pass, {layers}", dtype, figures, expected[0])
        times = interleaved_seconds(train, config.grid.repeats, device)
        seconds = {layout: statistics.median(values) for layout, values in times.items()}
        has_recurrence = any(name.endswith("A_log") for name, _ in model.named_parameters())  # its decay
        results.append(
            {
                "layers": layers,
                "model": type(model).__name__,
                "dialogues": len(dialogues),
                "distinct_prefixes": sum(prefixes),
                "tokens": tokens,
                "steps": steps if has_recurrence else None,
                **figures,
                "seconds": seconds,
                "all_seconds": times,
                "ratio": seconds["per_turn"] / seconds["one_pass"],
            }
        )
    return results


def train_packs(model: PreTrainedModel, packs: Sequence[Pack], block_size: int) -> tuple[float, dict[str, Tensor]]:
    """Total loss of all packs and its gradients."""
    model.zero_grad(set_to_none=True)
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    for one in packs:
        loss = token_losses(model, one, block_size).total
        loss.backward()
        total += loss.detach()
    return total.item(), {name: parameter.grad for name, parameter in model.named_parameters()}
