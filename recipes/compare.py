"""Compare the runs of a sweep: one table, one plot.

    python -m recipes.compare SWEEP_FOLDER        (the last step of make sweep)

Reads the result.json and metrics.jsonl of every run in the folder; writes comparison.md and comparison.png there.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from recipes.terminal.command import command, typed

# Column, key in result.json, format. A column that no run has measured is left out.
COLUMNS = (
    ("answers right", "answer_accuracy", "{:.1%}"),
    ("conversations right", "conversation_accuracy", "{:.1%}"),
    ("answers right on the data's history", "teacher_answer_accuracy", "{:.1%}"),
    ("held-out loss", "heldout_loss", "{:.4f}"),
    ("last training loss", "loss_last", "{:.4f}"),
    ("training seconds", "train_seconds", "{:.0f}"),
    ("tokens computed", "tokens_computed", "{:,.0f}"),
    ("tokens trained", "tokens_trained", "{:,.0f}"),
)
COLORS = {"one_pass": "#009E73", "per_turn": "#0072B2", "keep_thinking": "#D55E00", "last_turn": "#CC79A7"}


def compare(folder: Path) -> None:
    """Write and print the comparison. Raises ValueError as `read_runs` does."""
    runs = read_runs(folder)
    table = markdown_table(runs)
    (folder / "comparison.md").write_text(table, encoding="utf-8")
    plot(runs).savefig(folder / "comparison.png", dpi=110)
    print(table)
    print(folder / "comparison.md")
    print(folder / "comparison.png")


def read_runs(folder: Path) -> dict[str, list[dict]]:
    """Results by layout, in order of seed, each with its loss curve as `curve`: [(step, loss), ...].

    Raises ValueError when a run of the sweep has no result, or the runs of one seed do not share their steps.
    """
    unfinished = [path.parent for path in folder.glob("*/config.yaml") if not (path.parent / "result.json").exists()]
    if unfinished:
        raise ValueError(
            f"{folder}: no result.json in {', '.join(path.name for path in sorted(unfinished))}; "
            f"finish it with {typed('train', f'resume={sorted(unfinished)[0]}')}"
        )
    runs: dict[str, list[dict]] = defaultdict(list)
    for path in sorted(folder.glob("*/result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        # A resumed run logs the steps after its checkpoint again: the last line of a step counts.
        lines = map(json.loads, (path.parent / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        result["curve"] = sorted({line["step"]: line["loss"] for line in lines if "loss" in line}.items())
        runs[result["layout"]].append(result)
    if not runs:
        raise ValueError(f"{folder}: no run with a result.json in it")
    steps = {result["steps"] for results in runs.values() for result in results}
    if len(steps) > 1:
        raise ValueError(f"{folder}: the runs have {sorted(steps)} optimizer steps; they compare only at equal steps")
    return {layout: sorted(runs[layout], key=lambda result: result["seed"]) for layout in COLORS if layout in runs}


def markdown_table(runs: dict[str, list[dict]]) -> str:
    """A line a run, and for several seeds a line with each layout's mean."""
    every = [result for results in runs.values() for result in results]
    columns = [one for one in COLUMNS if any(result.get(one[1]) is not None for result in every)]
    lines = [
        "| layout | seed | " + " | ".join(name for name, _, _ in columns) + " |",
        "|---|---|" + "---:|" * len(columns),
    ]
    for layout, results in runs.items():
        for result in results:
            lines.append(_line(layout, str(result["seed"]), result, columns))
        if len(results) > 1:
            means = {key: _mean([result.get(key) for result in results]) for _, key, _ in columns}
            lines.append(_line(f"**{layout}**", f"mean of {len(results)}", means, columns))
    return "\n".join(lines) + "\n"


def _line(layout: str, seed: str, values: dict, columns: Sequence[tuple[str, str, str]]) -> str:
    """A row of the table; what was not measured is a dash."""
    cells = ["-" if values.get(key) is None else form.format(values[key]) for _, key, form in columns]
    return f"| {layout} | {seed} | " + " | ".join(cells) + " |"


def _mean(values: list[float | None]) -> float | None:
    return None if None in values else statistics.mean(values)


def plot(runs: dict[str, list[dict]]) -> plt.Figure:
    """Answers right against tokens computed, and the loss curves."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for layout, results in runs.items():
        color = COLORS[layout]
        scored = [result for result in results if result.get("answer_accuracy") is not None]
        left.scatter(
            [result["tokens_computed"] / 1e6 for result in scored],
            [100 * result["answer_accuracy"] for result in scored],
            color=color,
            s=60,
            label=layout,
        )
        for i, result in enumerate(results):
            # Dashed: exact layouts draw over each other, and both must be seen.
            style = "--" if layout == "per_turn" else "-"
            right.plot(*zip(*result["curve"], strict=True), style, color=color, label=None if i else layout)
    left.set_xlabel("tokens computed in training (millions)")
    left.set_ylabel("held-out answers right when chatting (%)")
    left.set_xlim(left=0)
    left.set_ylim(0, 102)
    right.set_xlabel("optimizer step")
    right.set_ylabel("training loss")
    right.set_yscale("log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


@command
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.compare", description="Compare the runs of a sweep.")
    parser.add_argument("folder", type=Path, metavar="SWEEP_FOLDER")
    compare(parser.parse_args().folder)


if __name__ == "__main__":
    main()
