"""Compare the runs of a sweep: one table, one plot, one page.

    python -m recipes.compare SWEEP_FOLDER        (the last step of make sweep)

Reads the config.yaml, result.json and metrics.jsonl of every run in the folder; writes comparison.md, comparison.png
and report.html there. Runs are told apart by the settings in which they differ; those that differ in the seed only
stand together.
"""

import argparse
import itertools
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from omegaconf import OmegaConf

from recipes.configuration.compose import RUN_CONFIG
from recipes.configuration.overrides import override
from recipes.pages.flaw_plot import plot_flaws
from recipes.run.folder import METRICS, RESULT, settings_of_training
from recipes.run.record import curve_of, json_lines, json_object
from recipes.run.sweeps import FAILED
from recipes.terminal.command import command, typed

# Column, key in result.json, format. A column that no run has measured is left out.
COLUMNS = (
    ("episodes succeeded", "success_rate", "{:.1%}"),
    ("answers right", "answer_accuracy", "{:.1%}"),
    ("conversations right", "conversation_accuracy", "{:.1%}"),
    ("answers right on the data's history", "teacher_answer_accuracy", "{:.1%}"),
    ("thinking right", "thinking_accuracy", "{:.1%}"),
    ("answers follow thinking", "answers_follow_thinking", "{:.1%}"),
    ("replies probed", "probed_replies", "{:,.0f}"),
    ("tokens of thinking", "thinking_tokens_mean", "{:.1f}"),
    ("held-out loss", "heldout_loss", "{:.4f}"),
    ("last training loss", "loss_last", "{:.4f}"),
    ("steps", "steps", "{:,.0f}"),
    ("training seconds", "train_seconds", "{:.0f}"),
    ("tokens computed", "tokens_computed", "{:,.0f}"),
    ("tokens trained", "tokens_trained", "{:,.0f}"),
)
PLOT = "comparison.png"
LAYOUT = "duplication.layout"
FLAWS, THINKING_WEIGHT = "data.flaws", "duplication.thinking_weight"
COLORS = {"one_pass": "#009E73", "per_turn": "#0072B2", "keep_thinking": "#D55E00", "last_turn": "#CC79A7"}


@dataclass(frozen=True)
class Sweep:
    """keys: settings in which the runs differ. follow: others, whose values follow from these. variants:
    by the values of the keys, the results of the runs in order of seed, each with the name of its `folder` and its loss
    curve as `curve`: [(step, loss), ...]. missing: runs without a result, and why."""

    keys: list[str]
    variants: dict[tuple[str, ...], list[dict[str, Any]]]
    missing: dict[str, str]
    follow: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """What the keys are called in a heading: without their groups where none is mistaken for another."""
        short = {key: key.rpartition(".")[2] for key in self.keys}
        return [name if list(short.values()).count(name) == 1 else key for key, name in short.items()]


def compare(folder: Path) -> None:
    """Write and print the comparison. Raises ValueError where a run has no result: at last, unless none has one."""
    from recipes.pages.sweep import write_sweep  # which shows what is read here

    sweep = read_sweep(folder)
    if not sweep.variants:
        if sweep.missing:
            print(write_sweep(folder))  # which says of each run why
        raise _without_results(folder, sweep)
    table = markdown_table(sweep)
    missing = _reasons(sweep.missing)
    (folder / "comparison.md").write_text(f"{table}{missing}\n" if missing else table, encoding="utf-8")
    over_flaws = FLAWS in sweep.keys and not set(sweep.keys) - {FLAWS, THINKING_WEIGHT}
    drawn = plot_flaws(_flawed(folder, sweep)) if over_flaws else plot(by_name(sweep))
    drawn.savefig(folder / PLOT, dpi=110)
    print(table)
    print(folder / "comparison.md")
    print(folder / PLOT)
    print(write_sweep(folder))
    if missing:
        total = len(sweep.missing) + sum(map(len, sweep.variants.values()))
        raise ValueError(f"{len(sweep.missing)} of {total} runs have no result:{missing}")


def _flawed(folder: Path, sweep: Sweep) -> list[tuple[dict[str, float], float, dict[str, Any]]]:
    """(shares by flaw, loss weight of thinking, result) of each run."""
    found = []
    for result in itertools.chain.from_iterable(sweep.variants.values()):
        config = OmegaConf.load(folder / result["folder"] / RUN_CONFIG)
        found.append((dict(config.data.flaws), config.duplication.thinking_weight, result))
    return found


def read_runs(folder: Path) -> Sweep:
    """The runs of a sweep. Raises ValueError when none has a result."""
    sweep = read_sweep(folder)
    if not sweep.variants:
        raise _without_results(folder, sweep)
    return sweep


def _without_results(folder: Path, sweep: Sweep) -> ValueError:
    return ValueError(f"{folder}: no run with a {RESULT} in it{_reasons(sweep.missing)}")


def read_sweep(folder: Path) -> Sweep:
    """The same of a sweep in which every run may have failed. Raises ValueError for a result that is damaged."""
    results = {path.parent: _result(path) for path in sorted(folder.glob(f"*/{RESULT}"))}
    settings = {path: _settings(path / RUN_CONFIG) for path in results}
    every = sorted({key for one in settings.values() for key in one})
    differ = [key for key in every if len({one.get(key) for one in settings.values()}) > 1]
    keys = _telling(differ, list(settings.values())) or [LAYOUT]
    variants: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for path, result in sorted(results.items(), key=lambda one: (one[1]["seed"], _in_order(one[0].name))):
        curve = curve_of(json_lines(path / METRICS), "loss")
        variant = tuple(settings[path].get(key, "") for key in keys)
        variants.setdefault(variant, []).append(result | {"curve": curve, "folder": path.name})
    if keys == [LAYOUT]:
        variants = {(name,): variants[name,] for name in COLORS if (name,) in variants}
    return Sweep(keys, variants, _missing(folder, set(results)), [key for key in differ if key not in keys])


def _result(path: Path) -> dict[str, Any]:
    result = json_object(path) or {}
    if lacks := [key for key in ("seed", "steps", "tokens_computed") if key not in result]:
        raise ValueError(f"{path}: has no {', '.join(lacks)}, so it is not the result of a training; move it away")
    return result


def _in_order(name: str) -> tuple[int, str]:
    """Jobs by the number that their folder begins with, 2 in front of 10; other folders behind them, by name."""
    number = re.match(r"[0-9]+", name)
    return (int(number[0]), name) if number else (sys.maxsize, name)


def _telling(keys: list[str], settings: list[dict[str, str]]) -> list[str]:
    """The keys without those that say nothing new: whose value follows from that of one before it, which several
    variants have in common, as the words of a model follow from its data."""
    variants = {tuple(one.get(key) for key in keys) for one in settings}
    telling: list[int] = []
    for this in range(len(keys)):
        pairs = {before: {(one[before], one[this]) for one in variants} for before in telling}
        counts = {before: Counter(one[before] for one in variants) for before in telling}
        if not any(
            len(pairs[before]) == len(counts[before]) and min(counts[before].values()) > 1 for before in telling
        ):
            telling.append(this)
    return [keys[this] for this in telling]


def _settings(path: Path) -> dict[str, str]:
    """The settings of a run that shape its training but for the seed, as text. Flaws of its data are one setting."""
    saved = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    found = {key: str(value) for key, value in settings_of_training(saved).items() if key != "seed"}
    flaws = {key: found.pop(key) for key in [*found] if key.startswith(f"{FLAWS}.")}
    if flaws:
        found[FLAWS] = " ".join(f"{key.removeprefix(f'{FLAWS}.')} {short(share)}" for key, share in flaws.items())
    elif found.get(FLAWS) == "{}":
        found[FLAWS] = "none"
    return found


def _missing(folder: Path, finished: set[Path]) -> dict[str, str]:
    """The runs that began or failed and have no result, by name, and what to do."""
    found = {}
    begun = {path.parent for name in (RUN_CONFIG, FAILED) for path in folder.glob(f"*/{name}")}
    for path in sorted(begun - finished, key=lambda one: _in_order(one.name)):
        failed = path / FAILED
        said = "it was stopped"
        if failed.exists():
            first, _, more = failed.read_text(encoding="utf-8").strip().partition("\n")
            said = f"{first} ... ({failed})" if more else first
        goes_on = (path / RUN_CONFIG).exists()
        found[path.name] = f"{said}; finish it with {typed('train', override('resume', path))}" if goes_on else said
    return found


def _reasons(missing: dict[str, str]) -> str:
    return "".join(f"\n- no result in {name}: {reason}" for name, reason in missing.items())


def markdown_table(sweep: Sweep) -> str:
    """A line a run, and for several seeds a line with each variant's mean."""
    columns = columns_of(sweep)
    lines = [
        f"| {' | '.join(sweep.names)} | seed | " + " | ".join(name for name, _, _ in columns) + " |",
        "|---" * (len(sweep.keys) + 1) + "|" + "---:|" * len(columns),
    ]
    for row in rows_of(sweep):
        named = row.variant if row.folder else [f"**{one}**" for one in row.variant]
        lines.append(f"| {' | '.join([*named, row.seed, *row.cells])} |")
    follow = f"\n{', '.join(sweep.follow)} differ too, and follow from these.\n" if sweep.follow else ""
    return "\n".join(lines) + "\n" + follow


@dataclass(frozen=True)
class TableRow:
    """variant: the values of the keys. cells: one a column of `columns_of`. folder: of the run; None for means."""

    variant: list[str]
    seed: str
    cells: list[str]
    folder: str | None


def columns_of(sweep: Sweep) -> list[tuple[str, str, str]]:
    """Those of COLUMNS that tell the runs apart."""
    every = [result for results in sweep.variants.values() for result in results]
    columns = [one for one in COLUMNS if any(result.get(one[1]) is not None for result in every)]
    if not any(result.get("probed_replies") for result in every):
        columns = [one for one in columns if one[1] != "probed_replies"]
    if len({result["steps"] for result in every}) == 1:
        columns = [one for one in columns if one[1] != "steps"]
    return columns


def rows_of(sweep: Sweep) -> list[TableRow]:
    """A row a run, and behind the several seeds of a variant one of their means, with the lowest and the highest where
    they differ; what was not measured is a dash."""
    columns, rows = columns_of(sweep), []

    def cells(values: dict) -> list[str]:
        return ["-" if values.get(key) is None else form.format(values[key]) for _, key, form in columns]

    def of_several(results: list[dict]) -> list[str]:
        found = []
        for mean, low, high in zip(
            *(cells({key: _of(how, results, key) for _, key, _ in columns}) for how in (statistics.mean, min, max)),
            strict=True,
        ):
            found.append(mean if low == high else f"{mean} ({low} to {high})")
        return found

    for variant, results in sweep.variants.items():
        named = [short(one) for one in variant]
        rows += [TableRow(named, str(one["seed"]), cells(one), one["folder"]) for one in results]
        if len(results) > 1:
            rows.append(TableRow(named, f"mean of {len(results)}", of_several(results), None))
    return rows


def _of(how: Callable[[list[Any]], float], results: list[dict], key: str) -> float | None:
    values = [result.get(key) for result in results]
    return None if None in values else how(values)


def short(value: str) -> str:
    """A setting as a reader wants it: of a number that a search has drawn, four digits."""
    try:
        return value if value.lstrip("-").isdecimal() else f"{float(value):.4g}"
    except ValueError:
        return value


def by_name(sweep: Sweep) -> dict[str, list[dict[str, Any]]]:
    """The results of the runs of each variant, by its name: what `plot` draws. Numbers that are alike in four digits
    have one name, and their runs stand together under it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for variant, results in sweep.variants.items():
        found.setdefault(", ".join(map(short, variant)), []).extend(results)
    return found


def plot(variants: dict[str, list[dict[str, Any]]]) -> plt.Figure:
    """Answers right against tokens computed, and the loss curves, of `by_name`."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for number, (name, runs) in enumerate(variants.items()):
        color = COLORS.get(name, f"C{number % 10}")
        scored = [run for run in runs if run.get("answer_accuracy") is not None]
        left.scatter(
            [result["tokens_computed"] / 1e6 for result in scored],
            [100 * result["answer_accuracy"] for result in scored],
            color=color,
            s=60,
            label=name,
        )
        for i, run in enumerate(runs):
            # Dashed: exact layouts draw over each other, and both must be seen.
            style = "--" if "per_turn" in name.split(", ") else "-"
            right.plot(*zip(*run["curve"], strict=True), style, color=color, label=None if i else name)
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
