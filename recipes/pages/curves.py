"""Figures of metrics.jsonl -> plots, as report.js draws them: a few curves each, over optimizer steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recipes.pages.page import ASSETS, write_page

Points = Sequence[tuple[int, float | None]]
MOST_POINTS = 1_500  # of all curves of a plot at most so many steps are drawn


@dataclass(frozen=True)
class Plot:
    """title, unit: of its values. figures: the names in metrics.jsonl of its curves, with what they are called. log:
    whether a wide range of values is drawn on a logarithmic axis."""

    title: str
    unit: str
    figures: dict[str, str]
    log: bool = False


PLOTS = (
    Plot(
        "Loss",
        "nats a token",
        {
            "loss": "all",
            "thinking_loss": "thinking",
            "answer_loss": "answer",
            "heldout_loss": "held out, all",
            "heldout_thinking_loss": "held out, thinking",
            "heldout_answer_loss": "held out, answer",
        },
        log=True,
    ),
    Plot(
        "Preferred answers",
        "share of pairs",
        {"preference_accuracy": "trained", "heldout_preference_accuracy": "held out"},
    ),
    Plot(
        "Margin of the preferred answer",
        "nats",
        {"preference_margin": "trained", "heldout_preference_margin": "held out"},
    ),
    Plot("Learning rate", "", {"learning_rate": "learning rate"}),
    Plot("Norm of the gradient", "", {"grad_norm": "norm"}, log=True),
    Plot("Speed", "tokens/s", {"tokens_per_second": "computed", "trained_tokens_per_second": "trained"}),
    Plot(
        "Packs",
        "share",
        {"pack_fill": "filled", "block_sparsity": "blocks of the mask that are skipped"},
    ),
    Plot("Spread over processes", "most over mean", {"rank_spread": "cost"}),
)
_DRAWN = {name for plot in PLOTS for name in plot.figures}


def write_page_of_plots(
    path: Path, template: str, plots: Sequence[Mapping[str, Any]], values: Mapping[str, Any]
) -> None:
    """Write a page of a template that draws plots, each as `drawn` gives it, with uPlot and its licence."""
    write_page(
        path,
        template,
        styles=("vendor/uPlot.min.css", "report.css"),
        scripts=("vendor/uPlot.iife.min.js", "report.js"),
        data={"plots": plots},
        values={**values, "plots": plots, "licence": (ASSETS / "vendor/uPlot.LICENSE").read_text(encoding="utf-8")},
    )


def plots_of(pairs: bool) -> tuple[Plot, ...]:
    """pairs: whether the loss is the mean over pairs; those of thinking and answers are over tokens all the same."""
    if not pairs:
        return PLOTS
    loss, *others = PLOTS
    of_pairs = {name: label for name, label in loss.figures.items() if name in ("loss", "heldout_loss")}
    of_tokens = {name: label for name, label in loss.figures.items() if name not in of_pairs}
    tokens = replace(loss, title="Cross-entropy", figures=of_tokens)
    return (replace(loss, unit="nats a pair", figures=of_pairs), tokens, *others)


def drawn(plot: Plot, curves: Mapping[str, Points], most: int = MOST_POINTS) -> dict[str, Any]:
    """A plot for report.js: one list of steps, and of each curve its value at each of them, null where it has none.

    Where there are more than `most` steps, every n-th is kept, and the last of each curve; `left_out` says how many
    are not shown.
    """
    steps = sorted({step for points in curves.values() for step, _ in points})
    kept = set(steps[:: math.ceil(len(steps) / most)] if steps else ())
    kept |= {points[-1][0] for points in curves.values() if points}
    shown = [step for step in steps if step in kept]
    of = {name: dict(points) for name, points in curves.items()}
    return {
        "title": plot.title,
        "unit": plot.unit,
        "log": plot.log,
        "steps": shown,
        "curves": [{"name": name, "values": [_short(known.get(step)) for step in shown]} for name, known in of.items()],
        "left_out": len(steps) - len(shown),
    }


def not_drawn(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of figures that no plot has."""
    return sorted({name for line in metrics for name in line} - _DRAWN - {"step"})


def _short(value: float | None) -> float | None:
    """Seven digits: a curve is read by eye."""
    return None if value is None else float(f"{value:.7g}")
