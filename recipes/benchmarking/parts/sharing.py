"""A step divided over processes, and a conversation over packs: how even, and how much is computed twice."""

import statistics
from collections.abc import Sequence

import numpy as np

from flexmask import OnePassCollator, lay_out
from flexmask.attention.context import divide
from flexmask.text.rendering import Pass
from flexmask.tree.layouts import Row
from flexmask.tree.sharing import even_groups, row_cost, spread, token_costs
from recipes.benchmarking.config import DATA_MIXES, BenchmarkConfig
from recipes.benchmarking.workloads import draw_dialogues, passes_of, sampler_of

PROCESSES = 8
CONVERSATIONS = (8, 16, 32, 64, 128)  # of a step
STEPS = 50
# What a pair costs in tokens in Qwen3-0.6B (`flexmask.model.cost.pair_cost`).
PAIR_COST = 2 * 28 * 16 * 128 / 440_467_456
# Tokens of one conversation, and of packs that it is divided into; its last pass alone has about 40,000.
LONG, PACK_LENGTHS = 131_072, (65_536, 49_152, 40_960)
LONG_TURNS = 64
TOKENS, VOCABULARY = 800_000, 10**9  # of the dialogues of a mix


def measure(config: BenchmarkConfig) -> dict:
    """spreads: of each mix and number of conversations in a step, what the process that has most to do costs over the
    mean of 8, median and worst of 50 steps: with rows shared out, with conversations dealt out in their order, and with
    each pack divided over all (context parallelism). splits: what one conversation of 131,072 tokens in 64 turns
    computes in packs of parts of that, over one pack. parts: the same conversation divided over processes, how many
    tokens each runs at most, and the spread.
    """
    spreads = []
    for mix in config.grid.mixes:
        sampler = sampler_of(config, mix, None if mix in DATA_MIXES else 8)
        dialogues = draw_dialogues(sampler, config.seed, VOCABULARY, TOKENS)
        rows = [list(lay_out(passes_of(one), "one_pass").rows) for one in dialogues]
        for count in (one for one in CONVERSATIONS if one <= len(rows)):
            rng = np.random.default_rng(config.seed)
            steps = [[rows[i] for i in rng.choice(len(rows), count, replace=False)] for _ in range(STEPS)]
            shared, dealt = [spread_of_shares(step) for step in steps], [spread_of_dealing(step) for step in steps]
            spreads.append(
                {
                    "mix": mix,
                    "conversations": count,
                    "shared": statistics.median(shared),
                    "shared_worst": max(shared),
                    "dealt": statistics.median(dealt),
                    "divided": statistics.median(spread_of_parts(step, config) for step in steps),
                }
            )
    whole = long_conversation(config)
    return {
        "processes": PROCESSES,
        "spreads": spreads,
        "splits": splits(*whole),
        "parts": parts(*whole, config.block_size),
    }


def spread_of_shares(step: Sequence[Sequence[Row]]) -> float:
    costs = [row_cost(row, PAIR_COST) for rows in step for row in rows]
    return spread([sum(costs[i] for i in group) for group in even_groups(costs, PROCESSES)])


def spread_of_dealing(step: Sequence[Sequence[Row]]) -> float:
    costs = [sum(row_cost(row, PAIR_COST) for row in rows) for rows in step]
    return spread([sum(costs[i::PROCESSES]) for i in range(PROCESSES)])


def spread_of_parts(step: Sequence[Sequence[Row]], config: BenchmarkConfig) -> float:
    longest = max(len(row) for rows in step for row in rows)
    collator = OnePassCollator(
        max(config.pack_length, longest), block_size=config.block_size, context_parallel=True, processes=PROCESSES,
        pair_cost=PAIR_COST,
    )  # fmt: skip
    return collator(step)["figures"].spread


def long_conversation(config: BenchmarkConfig) -> tuple[str, list[Pass], Row]:
    """(the mix that it is of, its passes, its row)."""
    name = next(iter(config.mixes))
    shares = vars(config.mixes[name])
    lengths = [max(1, round(LONG / LONG_TURNS * share / (1 + shares["answer"]))) for share in shares.values()]
    (dialogue,) = draw_dialogues(lambda rng: [tuple(lengths)] * LONG_TURNS, config.seed, VOCABULARY, 1)
    passes = passes_of(dialogue)
    (whole,) = lay_out(passes, "one_pass").rows
    return name, passes, whole


def splits(name: str, passes: list[Pass], whole: Row) -> list[dict]:
    found = []
    for pack_length in PACK_LENGTHS:
        rows = lay_out(passes, "one_pass", pack_length).rows
        found.append(
            {
                "mix": name,
                "tokens": len(whole),
                "pack_length": pack_length,
                "packs": len(rows),
                "tokens_ratio": sum(map(len, rows)) / len(whole),
                "cost_ratio": sum(row_cost(row, PAIR_COST) for row in rows) / row_cost(whole, PAIR_COST),
            }
        )
    return found


def parts(name: str, passes: list[Pass], whole: Row, block_size: int) -> list[dict]:
    costs = token_costs(whole.position_ids, PAIR_COST)
    found = []
    for processes in (2, 4, 8):
        contexts, sums = divide(costs, len(whole), block_size, processes)
        longest = contexts[0].longest
        found.append({"mix": name, "processes": processes, "tokens": longest, "spread": spread(sums)})
    return found
