"""The plot of a sweep over `data.flaws`: what each flaw of the thinking costs, by its share."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# One figure of result.json a column, one thinking weight a row.
FIGURES = (
    ("answer_accuracy", "answers right (%)"),
    ("thinking_accuracy", "thinking right (%)"),
    ("answers_follow_thinking", "answers that follow\nchanged thinking (%)"),
)
COLORS = {
    "wrong_step": "#D55E00",
    "irrelevant": "#0072B2",
    "shuffled": "#CC79A7",
    "truncated": "#E69F00",
    "missing": "#000000",
}


def plot_flaws(runs: Sequence[tuple[Mapping[str, float], float, Mapping[str, Any]]]) -> plt.Figure:
    """runs: (shares by flaw, loss weight of thinking, result) of each. A run without flaws is where every line begins;
    runs of several seeds are points of one line, which goes through their mean; those of several flaws are left out."""
    weights = sorted({weight for _, weight, _ in runs}, reverse=True)
    figure, axes = plt.subplots(
        len(weights), len(FIGURES), figsize=(12, 3.2 * len(weights)), layout="constrained", squeeze=False, sharex=True
    )
    for row, weight in zip(axes, weights, strict=True):
        for at, (key, label) in zip(row, FIGURES, strict=True):
            for flaw, color in COLORS.items():
                points: dict[float, list[float]] = {}
                for shares, of, result in runs:
                    if of == weight and not shares.keys() - {flaw} and result.get(key) is not None:
                        points.setdefault(shares.get(flaw, 0.0), []).append(100 * result[key])
                lines = sorted(points.items())
                at.plot([x for x, _ in lines], [sum(ys) / len(ys) for _, ys in lines], "o-", color=color, label=flaw)
            at.set_ylim(-2, 102)
            at.grid(alpha=0.3)
            at.set_title(f"thinking weight {weight:g}", fontsize=9)
            at.set_ylabel(label)
    for at in axes[-1]:
        at.set_xlabel("share of the thinking with the flaw")
    axes[0][0].legend(fontsize=8)
    return figure
