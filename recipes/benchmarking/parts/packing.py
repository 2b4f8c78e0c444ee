"""How well rows fill packs, and how many pairs blocks compute for one that is visible."""

import time

from flexmask import Pack, build_block_mask, lay_out, pack
from recipes.benchmarking.config import DATA_MIXES, BenchmarkConfig
from recipes.benchmarking.workloads import draw_dialogues, passes_of, sampler_of

PACKING_LENGTH, PACKING_TOKENS = 8192, 800_000
AREA_BLOCKS = (32, 64, 128)


def measure(config: BenchmarkConfig) -> list[dict]:
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
        visible = sum(row.visible_pairs for row in rows)
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
