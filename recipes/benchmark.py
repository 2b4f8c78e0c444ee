"""What one pass costs beside its baselines: the same dialogues, the same model, forward and backward of the same loss.

    make bench                                    on CPU, a few minutes
    make bench DEVICE=cuda                        Qwen3-0.6B's sizes with random weights, compiled FlexAttention
    make bench ARGS="sections=[attention,mask]"   any override of conf/benchmark.yaml

Leaves in the run folder: benchmark.json (every figure), benchmark.md (the tables it prints), speedup.png, breakdown.png
and memory.png. Stops with an error when an exact arm's loss or gradients are not those of the others, or when one pass
computes more tokens than there are distinct prefixes. Prints the run folder on its last line.
"""

import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import hydra
import matplotlib
from omegaconf import DictConfig

from recipes.benchmark_config import BenchmarkConfig, Section, to_benchmark
from recipes.command import command
from recipes.config import CONF_DIR
from recipes.environment import device_name, git_commit
from recipes.run_folder import write_json

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COLORS = {
    "one_pass": "#009E73",
    "one_pass_flash": "#56B4E9",
    "per_turn_packed": "#0072B2",
    "per_turn_varlen": "#F0E442",
    "per_turn_naive": "#E69F00",
    "paper_dense": "#CC79A7",
    "keep_thinking": "#D55E00",
}
STAGES = {"preparation": "#999999", "mask": "#E69F00", "forward": "#56B4E9", "backward": "#0072B2"}
MIX_COLORS = ("#009E73", "#0072B2", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9")


@hydra.main(version_base="1.3", config_path=CONF_DIR, config_name="benchmark")
@command
def main(composed: DictConfig) -> None:
    benchmark(to_benchmark(composed))


def benchmark(config: BenchmarkConfig) -> dict:
    """Run the sections, print their tables, and write everything to `config.output_dir`; returns benchmark.json."""
    # torch's profiler, which measures memory on CPU, prints its own progress below this level; read with torch.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    import torch

    from recipes import measure, parts
    from recipes.arms import make_arms, varlen_kernel

    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: torch sees no CUDA device; leave it out to run on CPU")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    arms, left_out = make_arms(config)
    result: dict = {
        "config": asdict(config),
        "environment": {
            "device": device_name(torch.device(config.device)),
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("flexmask", "torch", "transformers", "numpy")}
            | {"python": platform.python_version(), "cuda": torch.version.cuda},
            "git_commit": git_commit(),
        },
        "arms_left_out": left_out,
        "varlen_kernel": varlen_kernel()[0] if "per_turn_varlen" in {arm.name for arm in arms} else None,
    }
    text = [f"{result['environment']['device']}, {result['environment']['processor']}, torch {torch.__version__}"]
    text += [f"arm left out: {name}: {reason}" for name, reason in left_out.items()]
    print("\n".join(text), flush=True)

    for section in config.sections:
        if section is Section.grid:
            print(f"\n{GRID_HEADER}", flush=True)
            result["grid"] = []
            for cell in measure.grid(config):
                result["grid"].append(cell)
                write_json(folder / "benchmark.json", result)  # what is measured stays, whatever comes after it
                print(cell_lines(cell), flush=True)
        else:
            result[section] = getattr(parts, section)(config)
            write_json(folder / "benchmark.json", result)
        table = TABLES[section](result[section])
        text.append(f"## {section}\n\n{table}")
        print(f"\n{text[-1]}", flush=True)
    result["targets"] = [dict(zip(("target", "value", "met"), row, strict=True)) for row in targets(result)]
    text.append("## targets\n\n" + markdown(["target", "value", "met"], targets(result)))
    print(f"\n{text[-1]}")

    result["seconds"] = time.perf_counter() - started
    write_json(folder / "benchmark.json", result)
    (folder / "benchmark.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    if "grid" in result:
        for name, draw in (("speedup", plot_speedup), ("breakdown", plot_breakdown), ("memory", plot_memory)):
            figure = draw(result["grid"])
            figure.savefig(folder / f"{name}.png", dpi=110)
            plt.close(figure)
    print(f"\n{result['seconds']:.0f} s in all")
    print(folder)
    return result


def processor() -> str:
    """The processor's own name where /proc tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


# ---- tables ----


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that reads well in a terminal and in Markdown: the first column to the left, the others to the right."""
    lines = [list(map(str, line)) for line in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def joined(line: Sequence[str]) -> str:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        return f"| {' | '.join(cells)} |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([joined(lines[0]), joined(rule), *map(joined, lines[1:])])


def cell_name(cell: dict) -> str:
    turns = f"{cell['turns']} turns" if cell["turns"] else f"{cell['turns_mean']:.1f} turns on average"
    return f"{cell['mix']}, {turns}"


# Of one arm in one cell: heading, width, format, value. The last three say how many times one pass it takes: by the
# operations that are needed, by those that are computed, and by the clock.
ARM_COLUMNS = (
    ("seconds", 9, ".3f", lambda arm: arm["seconds"]),
    ("tokens", 9, ",", lambda arm: arm["tokens_computed"]),
    ("trained", 9, ",", lambda arm: arm["tokens_trained"]),
    ("visible", 13, ",", lambda arm: arm["visible_pairs"]),
    ("computed", 13, ",", lambda arm: arm["computed_pairs"]),
    ("GFLOP", 9, ",.0f", lambda arm: sum(arm["flops"].values()) / 1e9),
    ("MiB", 8, ",.0f", lambda arm: arm["peak_memory"] / 2**20),
    ("prep ms", 8, ".1f", lambda arm: arm["preparation_seconds"] * 1000),
    ("mask ms", 8, ".1f", lambda arm: arm["mask_seconds"] * 1000),
    ("graphs", 7, "", lambda arm: arm["graphs_compiled"]),
    ("needed", 7, ".2f", lambda arm: arm["needed_ratio"]),
    ("predicted", 10, ".2f", lambda arm: arm["predicted_ratio"]),
    ("measured", 9, ".2f", lambda arm: arm["measured_ratio"]),
)
GRID_HEADER = f"{'arm':<16}" + "".join(f"{heading:>{width}}" for heading, width, _, _ in ARM_COLUMNS)


def cell_lines(cell: dict) -> str:
    """The figures of one cell, an arm a line."""
    lines = [f"{cell_name(cell)}: {cell['dialogues']} dialogues, {cell['distinct_prefixes']:,} distinct prefixes"]
    for name, arm in cell["arms"].items():
        values = [f"  {arm['status']}"]
        if arm["status"] == "ok":
            values = [f"{value(arm):>{width}{form}}" for _, width, form, value in ARM_COLUMNS]
        lines.append(f"{name:<16}{''.join(values)}")
    return "\n".join(lines)


def grid_table(cells: Sequence[dict]) -> str:
    others = [name for name in cells[0]["arms"] if name not in ("one_pass", "per_turn_packed")]
    header = ["dialogues", "tokens, one pass", "per turn", "needed", "predicted", "measured", "measured / predicted"]
    rows = []
    for cell in cells:
        ours, packed = (cell["arms"][name] for name in ("one_pass", "per_turn_packed"))
        rows.append(
            [
                f"{cell_name(cell)}",
                f"{ours['tokens_computed']:,}",
                f"{packed['tokens_computed']:,}",
                f"{packed['needed_ratio']:.2f}x",
                f"{packed['predicted_ratio']:.2f}x",
                f"{packed['measured_ratio']:.2f}x",
                f"{packed['measured_ratio'] / packed['predicted_ratio']:.2f}",
                *(ratio_or_status(cell["arms"][name]) for name in others),
            ]
        )
    text = (
        "Speed-up of one pass over packed per-turn by the operations that are needed (tokens, visible pairs), by those "
        "that are computed (whole blocks), and measured; then how many times one pass each other arm takes."
    )
    return f"{text}\n\n{markdown([*header, *others], rows)}"


def ratio_or_status(arm: dict) -> str:
    return f"{arm['measured_ratio']:.2f}x" if arm["status"] == "ok" else arm["status"].split(":")[0]


def packing_table(results: Sequence[dict]) -> str:
    blocks = list(results[0]["computed_over_visible"])
    header = [
        "mix",
        "dialogues",
        "tokens",
        "packs",
        "fewest",
        "unfilled",
        "padding computed",
    ]
    rows = [
        [
            one["mix"],
            one["dialogues"],
            f"{one['tokens']:,}",
            one["packs"],
            one["fewest_packs"],
            f"{one['unfilled']:.2%}",
            f"{one['padding']:.2%}",
            *(f"{one['computed_over_visible'][block]:.2f}" for block in blocks),
        ]
        for one in results
    ]
    text = "One pass in packs of 8,192 tokens, and pairs computed in blocks of each size for one that is visible."
    return f"{text}\n\n{markdown([*header, *(f'blocks of {block}' for block in blocks)], rows)}"


def attention_table(result: dict) -> str:
    rows = [
        [name, f"{seconds:.3f} s", f"{seconds / result['seconds']['ours']:.2f}x"]
        for name, seconds in result["seconds"].items()
    ]
    return f"{result['tokens']:,} tokens, forward and backward:\n\n" + markdown(["attention", "time", "of ours"], rows)


def mask_table(result: dict) -> str:
    rows = [
        [
            f"build_block_mask, {one['tokens']:,} tokens",
            f"{one['seconds'] * 1000:.1f} ms",
            f"{one['peak_memory'] / 2**20:.1f} MiB",
        ]
        for one in result["built"]
    ]
    theirs, name = result["create_block_mask"], f"create_block_mask, {result['built'][0]['tokens']:,} tokens"
    if theirs["status"] == "ok":
        rows.append([name, f"{theirs['seconds'] * 1000:,.0f} ms", f"{theirs['peak_memory'] / 2**20:,.0f} MiB"])
    else:
        rows.append([name, theirs["status"], ""])
    return markdown(["mask", "time", "peak extra memory"], rows)


def loss_table(results: Sequence[dict]) -> str:
    rows = [
        [
            one["loss"],
            f"{one['row_tokens']:,}",
            f"{one['trained_tokens']:,}",
            f"{one['peak_memory'] / 2**20:,.0f} MiB",
        ]
        for one in results
    ]
    return markdown(["loss", "tokens of the row", "trained", "peak memory"], rows)


def preparation_table(results: Sequence[dict]) -> str:
    rows = [
        [
            f"{one['turns']} turns",
            f"{one['row_tokens']:,}",
            *(f"{one['seconds'][name] * 1000:.1f} ms" for name in ("ours", "plain", "every_turn")),
            f"{one['over_plain']:.2f}x",
        ]
        for one in results
    ]
    return markdown(
        ["conversation", "tokens of the row", "to a row", "rendered once", "each turn rendered", "of once"], rows
    )


def recompiles_table(result: dict) -> str:
    what = "forward and backward" if result["backward"] else "forward, traced only"
    return markdown(
        ["packs", "tokens of each", "graphs compiled", "of"],
        [[result["packs"], result["pack_length"], result["graphs_compiled"], what]],
    )


def state_table(results: Sequence[dict]) -> str:
    layouts = {"one_pass": "one pass", "per_turn": "per turn"}
    header = [
        "layers",
        *(f"{what}, {layout}" for what in ("tokens", "steps", "seconds") for layout in layouts.values()),
    ]
    rows = [
        [
            one["layers"],
            *(f"{one['tokens'][layout]:,}" for layout in layouts),
            *(one["steps"][layout] if one["steps"] else "none" for layout in layouts),
            *(f"{one['seconds'][layout]:.3f}" for layout in layouts),
            f"{one['ratio']:.2f}x",
        ]
        for one in results
    ]
    text = (
        "Models with three layers that carry state and one of full attention: tokens computed, calls of a layer's "
        "recurrence that wait for each other, forward and backward, and how many times one pass packed per-turn takes."
    )
    return f"{text}\n\n{markdown([*header, 'ratio'], rows)}"


TABLES = {
    Section.grid: grid_table,
    Section.packing: packing_table,
    Section.attention: attention_table,
    Section.mask: mask_table,
    Section.loss: loss_table,
    Section.preparation: preparation_table,
    Section.recompiles: recompiles_table,
    Section.state: state_table,
}


# ---- targets ----


def targets(result: dict) -> list[tuple[str, str, str]]:
    """Each target of the sections that ran, its value here, and whether it is met."""
    rows = [
        (f"{name} {sign} {limit:g}{unit}", f"{value:.4g}{unit}", met(value, sign, limit))
        for name, value, sign, limit, unit in _targets(result)
    ]
    return rows


def met(value: float, sign: str, limit: float) -> str:
    return "yes" if {"<=": value <= limit, ">=": value >= limit, "=": value == limit}[sign] else "NO"


def _targets(result: dict) -> Iterator[tuple[str, float, str, float, str]]:
    cells = result.get("grid", [])
    for cell in cells:
        packed = cell["arms"]["per_turn_packed"]
        if cell["turns"] in (8, 16):
            share = packed["measured_ratio"] / packed["predicted_ratio"]
            yield f"measured / predicted speed-up, {cell_name(cell)}", share, ">=", 0.85, ""
        yield f"speed-up over packed per-turn, {cell_name(cell)}", packed["measured_ratio"], ">=", 1, ""
    if cells:
        ratios = [cell["arms"]["one_pass"]["tokens_computed"] / cell["distinct_prefixes"] for cell in cells]
        yield "tokens computed over distinct prefixes, worst cell", max(ratios), "=", 1, ""
    for one in result.get("packing", []):
        if one["mix"] == "mathchatsync":
            yield "room unfilled in packs, mathchatsync at 8,192", 100 * one["unfilled"], "<=", 2, "%"
    if attention := result.get("attention"):
        yield "attention: dense-mask SDPA over ours", attention["over_dense"], ">=", 3, ""
        yield "attention: ours over SDPA for each node's path", attention["over_per_node"], "<=", 1.5, ""
        yield "attention: ours over causal SDPA of the same area", attention["over_same_area"], "<=", 1.5, ""
    if mask := result.get("mask"):
        small, large = mask["built"]
        yield f"mask at {small['tokens']:,} tokens", small["seconds"] * 1000, "<=", 20, " ms"
        yield f"mask at {large['tokens']:,} tokens", large["seconds"] * 1000, "<=", 150, " ms"
        yield f"mask memory at {large['tokens']:,} tokens", large["peak_memory"] / 1e6, "<=", 50, " MB"
        if mask["create_block_mask"]["status"] == "ok":
            yield "create_block_mask over build_block_mask", mask["create_block_mask"]["ratio"], ">=", 500, ""
    if recompiles := result.get("recompiles"):
        yield f"graphs compiled for {recompiles['packs']} packs", recompiles["graphs_compiled"], "=", 1, ""
    for one in result.get("state", []):
        yield f"state: one pass over packed per-turn, {one['layers']}", one["ratio"], ">=", 1, ""


# ---- plots ----


def plot_speedup(cells: Sequence[dict]) -> plt.Figure:
    """Speed-up of one pass over packed per-turn by turns: measured, and what the operations predict."""
    figure, axes = plt.subplots(figsize=(8, 5.2), layout="constrained")
    mixes = list(dict.fromkeys(cell["mix"] for cell in cells))
    for i, mix in enumerate(mixes):
        color = MIX_COLORS[i % len(MIX_COLORS)]
        mine = [cell for cell in cells if cell["mix"] == mix]
        turns = [cell["turns_mean"] for cell in mine]
        values = {
            ratio: [cell["arms"]["per_turn_packed"][f"{ratio}_ratio"] for cell in mine]
            for ratio in ("measured", "predicted", "needed")
        }
        axes.plot(turns, values["measured"], "o-", color=color, label=mix)
        axes.plot(turns, values["predicted"], "x--", color=color, alpha=0.7)
        if len(mine) > 1:
            axes.fill_between(turns, values["predicted"], values["needed"], color=color, alpha=0.12, linewidth=0)
        else:
            axes.vlines(turns, values["predicted"], values["needed"], color=color, alpha=0.3, linewidth=6)
    axes.plot([], [], "x--", color="gray", label="predicted: operations computed (whole blocks)")
    axes.fill_between([], [], [], color="gray", alpha=0.3, label="up to operations needed (visible pairs)")
    axes.axhline(1, color="black", linewidth=0.8)
    _log2(axes.xaxis, axes.set_xscale, sorted({cell["turns"] for cell in cells if cell["turns"]}))
    _log2(axes.yaxis, axes.set_yscale, [2**power for power in range(-3, 8)])
    axes.set_xlabel("turns")
    axes.set_ylabel("speed-up of one pass over packed per-turn")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    return figure


def _log2(axis, set_scale, ticks: Sequence[int]) -> None:
    set_scale("log", base=2)
    axis.set_major_locator(matplotlib.ticker.FixedLocator(ticks))
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))


def plot_breakdown(cells: Sequence[dict]) -> plt.Figure:
    """Where the time goes, an axes a cell. The mask is built in the forward pass, so its time is taken off that."""
    columns = min(len(cells), 5)
    lines = -(-len(cells) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(3.6 * columns, 2.2 * lines), layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(cells) :]:
        axes.set_axis_off()
    for cell, axes in zip(cells, grid.flat, strict=False):
        arms = {name: arm for name, arm in cell["arms"].items() if arm["status"] == "ok"}
        left = [0.0] * len(arms)
        for stage, color in STAGES.items():
            values = [arm[f"{stage}_seconds"] for arm in arms.values()]
            if stage == "forward":
                values = [max(0.0, v - arm["mask_seconds"]) for v, arm in zip(values, arms.values(), strict=True)]
            axes.barh(list(arms), values, left=left, color=color, label=stage)
            left = [a + b for a, b in zip(left, values, strict=True)]
        axes.invert_yaxis()
        axes.set_title(cell_name(cell), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.set_xlabel("seconds", fontsize=8)
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(STAGES))
    return figure


def plot_memory(cells: Sequence[dict]) -> plt.Figure:
    """Peak memory beyond the weights by turns, an axes a mix. A packed arm holds a pack at a time, the naive arm one
    pass, the paper's one conversation."""
    mixes = list(dict.fromkeys(cell["mix"] for cell in cells))
    figure, grid = plt.subplots(
        1, len(mixes), figsize=(3.4 * len(mixes) + 1, 3.8), layout="constrained", squeeze=False, sharey=True
    )
    for mix, axes in zip(mixes, grid.flat, strict=True):
        mine = [cell for cell in cells if cell["mix"] == mix]
        for name in mine[0]["arms"]:
            ran = [cell for cell in mine if cell["arms"][name]["status"] == "ok"]
            memory = [cell["arms"][name]["peak_memory"] / 2**20 for cell in ran]
            axes.plot([cell["turns_mean"] for cell in ran], memory, "o-", color=COLORS[name], label=name)
        axes.set_title(mix, fontsize=10)
        axes.set_xlabel("turns")
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        _log2(axes.xaxis, axes.set_xscale, sorted({round(cell["turns_mean"], 1) for cell in mine}))
    grid.flat[0].set_ylabel("peak memory beyond the weights (MiB)")
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(COLORS))
    return figure


if __name__ == "__main__":
    main()
