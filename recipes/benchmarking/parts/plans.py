"""Layers that carry state run level by level or path by path: which is faster, and whether the rule chooses that."""

import statistics
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from flexmask import lay_out, pack, prepare_model
from flexmask.model.state_branches import StateBranches
from flexmask.model.support import branching_layers
from recipes.benchmarking.config import BenchmarkConfig
from recipes.benchmarking.measure import interleaved_seconds
from recipes.benchmarking.parts.state import STATE_MODELS, STATE_SIZES
from recipes.benchmarking.workloads import draw_dialogues, passes_of

# (turns, question, thinking, answer) of a conversation, from many short turns to few long ones.
PLAN_LENGTHS = ((12, 2, 12, 1), (6, 8, 24, 4), (4, 30, 120, 20), (8, 30, 60, 60), (2, 200, 400, 100))
PLAN_REPEATS = 5
CLOSE = 1.05  # times that are closer count as the same


def measure(config: BenchmarkConfig) -> list[dict]:
    """Forward and backward of one layer over one conversation by either plan, for each layer with a recurrence.

    chosen: by the rule. right: whether that is the faster one, or as fast. call_in_tokens: what explains all times of
    the layer best, a time for each token that is run (padding included) and one for each call.
    """
    device = torch.device(config.device)
    results = []
    for layers in ("gated delta rule", "Mamba-2"):
        model_type, own_sizes = STATE_MODELS[layers]
        torch.manual_seed(config.seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **STATE_SIZES, **own_sizes))
        prepare_model(model.to(device)).train()
        layer = model.get_submodule(branching_layers(model)[0].partition(" ")[0])
        of_layer = [of_conversation(layer, lengths, config, device) for lengths in PLAN_LENGTHS]
        call = call_in_tokens(of_layer)
        results += [{"layers": layers, "call_in_tokens": call, **one} for one in of_layer]
    return results


def of_conversation(
    layer: nn.Module, lengths: tuple[int, int, int, int], config: BenchmarkConfig, device: torch.device
) -> dict:
    turns, *of_turn = lengths
    (dialogue,) = draw_dialogues(lambda rng: [tuple(of_turn)] * turns, config.seed, STATE_SIZES["vocab_size"], 1)
    (one,) = pack(lay_out(passes_of(dialogue), "one_pass").rows, 1 << 20)
    previous = one.previous.to(device)
    hidden = torch.randn(1, len(one), STATE_SIZES["hidden_size"], device=device, requires_grad=True)
    chosen = StateBranches(previous)
    costs = {"level by level": -1e9, "path by path": 1e9}  # of a call, where either is the cheaper one
    plans = {name: StateBranches(previous, call_in_tokens=cost) for name, cost in costs.items()}

    def action(branches: StateBranches) -> Callable[[], None]:
        return lambda: layer(hidden, state_branches=branches).square().sum().backward()

    times = interleaved_seconds({name: action(plan) for name, plan in plans.items()}, PLAN_REPEATS, device)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    name = "path by path" if chosen.tokens_run == plans["path by path"].tokens_run else "level by level"
    return {
        "turns": turns,
        "tokens": len(one),
        "tokens_run": {name: plan.tokens_run for name, plan in plans.items()},
        "calls": {name: plan.batches for name, plan in plans.items()},
        "seconds": seconds,
        "chosen": name,
        "right": seconds[name] <= CLOSE * min(seconds.values()),
    }


def call_in_tokens(measured: list[dict]) -> float:
    """Least squares, relative to each time: seconds = a * tokens of the pack + b * tokens run + c * calls; c / b."""
    lines, ones = [], []
    for one in measured:
        for plan, seconds in one["seconds"].items():
            line = np.array([one["tokens"], one["tokens_run"][plan], one["calls"][plan]])
            lines.append(line / seconds)
            ones.append(1.0)
    _, of_token, of_call = np.linalg.lstsq(np.array(lines), np.array(ones), rcond=None)[0]
    return float(of_call / of_token)
