"""Building the block mask, beside torch's `create_block_mask`."""

import statistics
import time
import tracemalloc

import psutil
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from flexmask import build_block_mask, lay_out, pack
from recipes.benchmarking.config import BenchmarkConfig
from recipes.benchmarking.measure import InexactError, interleaved_seconds, peak_memory
from recipes.benchmarking.workloads import MATHCHATSYNC, draw_dialogues, passes_of, statistical_lengths

MASK_TOKENS = (32768, 131072)
# create_block_mask of torch 2.13 on CPU at 32,544 tokens: 11 GB, and it grows with the square.
CREATE_BLOCK_MASK_BYTES = 11e9 / 32544**2


def measure(config: BenchmarkConfig) -> dict:
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
