"""report.html of a sweep: its table and plot, the curves of all jobs together, and what did not come to an end."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.compare import PLOT, Sweep, columns_of, read_sweep, rows_of, short
from recipes.configuration.compose import RUN_CONFIG
from recipes.pages.curves import drawn, plots_of, write_page_of_plots
from recipes.pages.page import picture
from recipes.pages.report import checked_size, cut
from recipes.run.folder import METRICS, REPORT
from recipes.run.record import Line, curve_of, json_lines
from recipes.run.sweeps import FAILED

MOST_CURVES = 48  # of a plot: of more, the colours tell nothing
_VALUES = 60_000  # of all curves together
_FIGURES = ("loss", "thinking_loss", "answer_loss", "heldout_loss", "heldout_preference_accuracy", "tokens_per_second")
_LONGEST_REASON = 2_000
_MOST_MISSING = 200


def write_sweep(folder: Path) -> Path:
    """Write the report of a sweep. Raises ValueError where no run lies in the folder."""
    sweep = read_sweep(folder)
    if not sweep.variants and not sweep.missing:
        raise ValueError(f"{folder}: no run lies in it: none of its folders has a {RUN_CONFIG}")
    names = _names(sweep)
    missing = [_missing(folder, name, reason) for name, reason in list(sweep.missing.items())[:_MOST_MISSING]]
    path = folder / REPORT
    write_page_of_plots(
        path,
        "sweep.html",
        _plots(folder, names),
        {
            "title": f"{folder.resolve().name}: report of a sweep",
            "name": folder.resolve().name,
            "state": _state(sweep),
            "complete": not sweep.missing,
            "keys": sweep.keys if len(sweep.variants) > 1 else [],
            "follow": sweep.follow,
            "header": [*sweep.names, "seed"],
            "columns": [name for name, _, _ in columns_of(sweep)] if sweep.variants else [],
            "rows": [(row, _report(folder, row.folder)) for row in rows_of(sweep)] if sweep.variants else [],
            "picture": picture(folder / PLOT) if (folder / PLOT).is_file() else None,
            "curves": (min(len(names), MOST_CURVES), len(names)),
            "missing": missing,
            "more_missing": len(sweep.missing) - len(missing),
        },
    )
    return checked_size(path)


def _state(sweep: Sweep) -> str:
    finished = sum(map(len, sweep.variants.values()))
    total = finished + len(sweep.missing)
    if not sweep.missing:
        return f"All {total:,} runs are finished."
    return f"{finished:,} of {total:,} runs are finished; the others stand below."


def _missing(folder: Path, name: str, reason: str) -> dict[str, str | None]:
    path, whole = folder / name / FAILED, None
    if path.is_file() and len(lines := path.read_text(encoding="utf-8").strip().splitlines()) > 1:
        whole = cut("\n".join(lines), _LONGEST_REASON, f"{name}/{FAILED}")
    return {"name": name, "reason": cut(reason, _LONGEST_REASON, name), "whole": whole, "report": _report(folder, name)}


def _report(folder: Path, name: str | None) -> str | None:
    """The address of a run's own report, from here."""
    return f"{name}/{REPORT}" if name and (folder / name / REPORT).is_file() else None


def _names(sweep: Sweep) -> dict[str, str]:
    """What the curves of each run are called, by its folder: by the settings in which it differs."""
    found = {}
    for variant, results in sweep.variants.items():
        for one in results:
            found[one["folder"]] = ", ".join([*map(short, variant), f"seed {one['seed']}"])
    # Names are short, and runs may differ in nothing that is trained: those that are alike get their folder's.
    alike = Counter(found.values())
    found = {folder: f"{name}, {folder}" if alike[name] > 1 else name for folder, name in found.items()}
    return found | {name: f"{name} (no result)" for name in sweep.missing}


def _plots(folder: Path, names: dict[str, str]) -> list[dict[str, Any]]:
    metrics: dict[str, list[Line]] = {
        name: lines for name in list(names)[:MOST_CURVES] if (lines := list(json_lines(folder / name / METRICS)))
    }
    pairs = any("preference_margin" in line for lines in metrics.values() for line in lines)
    found = []
    most = max(50, _VALUES // (len(_FIGURES) * max(1, len(metrics))))
    for plot in plots_of(pairs):
        for figure, label in plot.figures.items():
            curves = {names[name]: points for name, lines in metrics.items() if (points := curve_of(lines, figure))}
            if figure in _FIGURES and curves:
                found.append(drawn(replace(plot, title=f"{plot.title}: {label}"), curves, most))
    return found
