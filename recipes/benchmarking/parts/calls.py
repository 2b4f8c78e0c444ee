"""Episodes of an agent whose harness changes the history between calls, as token ids."""

import statistics
from dataclasses import dataclass

import numpy as np
import torch

from flexmask import Pass, lay_out, pack
from flexmask.conversations.model_calls import Call, Calls
from flexmask.text.rendering import Role
from recipes.benchmarking.config import BenchmarkConfig
from recipes.benchmarking.grid import build_model
from recipes.benchmarking.measure import check_same_training, check_tokens, differences, interleaved_seconds
from recipes.benchmarking.parts.state import train_packs
from recipes.benchmarking.workloads import prefixes_of

CALLS, COMPACTED, KEPT = 40, 20, 3  # calls; the one in front of which a summary replaces the history; results shown
PLACEHOLDER, SUMMARY, CUT = 8, 400, 0.5  # tokens; lengths vary by this share of their mean


@dataclass(frozen=True)
class Mix:
    """Mean tokens: of the system text with its tools and the task, of an answer's thinking (which later calls are not
    shown), of the answer with its call, and of a tool's result."""

    system: int
    thinking: int
    answer: int
    result: int


# The longest context is about 8,000 tokens in each. Assumed, not drawn from a data set.
MIXES = {
    "short results": Mix(system=5000, thinking=100, answer=60, result=400),
    "long results": Mix(system=3000, thinking=100, answer=60, result=1000),
}


def episode(mix: Mix, seed: int, vocabulary: int) -> Calls:
    """The calls: each is shown the answers since the last summary, and of their results the last ones."""
    rng = np.random.default_rng(seed)

    def tokens(mean: int) -> list[int]:
        return rng.integers(0, vocabulary, round(mean * rng.uniform(1 - CUT, 1 + CUT))).tolist()

    system = rng.integers(0, vocabulary, mix.system).tolist()
    placeholder = rng.integers(0, vocabulary, PLACEHOLDER).tolist()
    steps: list[tuple[list[int], list[int]]] = []
    summary: list[int] = []
    calls = []
    for number in range(CALLS):
        if number == COMPACTED:
            steps, summary = [], rng.integers(0, vocabulary, SUMMARY).tolist()
        shown = [
            [*answer, *(result if i >= len(steps) - KEPT else placeholder)] for i, (answer, result) in enumerate(steps)
        ]
        prompt = [*system, *summary, *(token for one in shown for token in one)]
        thinking, answer = tokens(mix.thinking), tokens(mix.answer)
        calls.append(Call(f"call {number}", None, tuple(prompt), (*thinking, *answer)))
        steps.append((answer, tokens(mix.result)))
    return Calls("episode", tuple(calls))


def passes_of(calls: Calls) -> list[Pass]:
    """The pass of each call, all of whose completion is trained."""
    passes = []
    for number, call in enumerate(calls.calls):
        assert call.prompt_ids is not None and call.completion_ids is not None
        sizes = [len(call.prompt_ids), len(call.completion_ids)]
        roles = np.repeat([Role.PROMPT, Role.ANSWER], sizes).astype(np.int8)
        ids = np.array([*call.prompt_ids, *call.completion_ids], dtype=np.int64)
        passes.append(Pass(calls.name, number, sizes[0], ids, roles, (roles == Role.ANSWER).astype(np.float32)))
    return passes


def measure(config: BenchmarkConfig) -> list[dict]:
    """One pass over an episode beside packed samples, one a call: forward and backward of the same loss. Raises
    InexactError where loss or gradients differ."""
    device, shape = torch.device(config.device), config.shapes[config.shape]
    model = build_model(shape, getattr(torch, config.dtype), device, config.seed)
    results = []
    for name, mix in MIXES.items():
        passes = passes_of(episode(mix, config.seed, shape.vocab_size))
        rows = {layout: lay_out(passes, layout, config.pack_length).rows for layout in ("one_pass", "per_turn")}
        packs = {
            layout: [one.to(device) for one in pack(some, config.pack_length)] for layout, some in rows.items()
        }  # fmt: skip
        tokens = {layout: sum(map(len, some)) for layout, some in rows.items()}
        prefixes = prefixes_of(passes)
        check_tokens(tokens["one_pass"], [prefixes], config.pack_length)
        train = {layout: lambda of=of: train_packs(model, of, config.block_size) for layout, of in packs.items()}
        expected, found = train["per_turn"](), train["one_pass"]()
        figures = {"loss": found[0]} | differences(expected, found)
        check_same_training(f"one_pass, {name}", model.dtype, figures, expected[0])
        del expected, found
        times = interleaved_seconds(train, config.grid.repeats, device, warm=True)
        seconds = {layout: statistics.median(values) for layout, values in times.items()}
        results.append(
            {
                "mix": name,
                "calls": len(passes),
                "longest": max(map(len, passes)),
                "distinct_prefixes": prefixes,
                "tokens": tokens,
                "packs": {layout: len(of) for layout, of in packs.items()},
                **figures,
                "seconds": seconds,
                "all_seconds": times,
                "ratio": seconds["per_turn"] / seconds["one_pass"],
            }
        )
    return results
