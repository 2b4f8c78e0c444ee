"""The benchmark's pictures."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from recipes.benchmarking.tables import cell_name

COLORS = {
    "one_pass": "#009E73",
    "one_pass_flash": "#56B4E9",
    "one_pass_paths": "#999999",
    "one_pass_compiled": "#332288",
    "one_pass_liger": "#882255",
    "per_turn_packed": "#0072B2",
    "per_turn_varlen": "#F0E442",
    "per_turn_naive": "#E69F00",
    "paper_dense": "#CC79A7",
    "keep_thinking": "#D55E00",
}
STAGES = {"preparation": "#999999", "mask": "#E69F00", "forward": "#56B4E9", "backward": "#0072B2"}
MIX_COLORS = ("#009E73", "#0072B2", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9")


def save_plots(cells: Sequence[dict], folder: Path) -> None:
    """speedup.png, breakdown.png and memory.png of the grid."""
    for name, draw in (("speedup", plot_speedup), ("breakdown", plot_breakdown), ("memory", plot_memory)):
        figure = draw(cells)
        figure.savefig(folder / f"{name}.png", dpi=110)
        plt.close(figure)


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
