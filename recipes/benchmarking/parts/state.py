"""Layers that carry state."""

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from flexmask import Pack, lay_out, pack, prepare_model, token_losses
from flexmask.model.state_branches import StateBranches
from recipes.benchmarking.config import BenchmarkConfig
from recipes.benchmarking.measure import check_same_training, check_tokens, differences, interleaved_seconds
from recipes.benchmarking.workloads import distinct_prefixes, draw_dialogues, passes_of, sampler_of

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


def measure(config: BenchmarkConfig) -> list[dict]:
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
        check_same_training(f"one_pass, {layers}", dtype, figures, expected[0])
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
