"""report.html of a run: a page of its own files, and of nothing else, so that it can be made again at any time."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import escape
from omegaconf import OmegaConf

from recipes.configuration.command_line import Choices, choices_of, word
from recipes.configuration.compose import RUN_CONFIG
from recipes.configuration.overrides import override
from recipes.configuration.schema import ObjectiveKind
from recipes.evaluation.replies import Thinking
from recipes.pages.chats import Chats
from recipes.pages.curves import drawn, not_drawn, plots_of, write_page_of_plots
from recipes.pages.page import picture
from recipes.pages.sentences import sentences
from recipes.run.folder import CHATS, REPORT, SAID
from recipes.run.record import Record, read_run
from recipes.sources.invalid import FILE as LEFT_OUT
from recipes.sources.invalid import lines as kinds_of_reasons
from recipes.terminal.command import typed

LIMIT = 2_000_000  # bytes of a page
_LARGEST_PICTURE = 400_000
_LONGEST_TEXT = 100_000  # bytes, of one that stands there whole: settings, the command
_MOST_WARNINGS, _LONGEST_WARNING = 100, 2_000
_LONGEST_VALUE = 300

_STATES = {
    Thinking.valid: "one block that holds text, in front of the answer",
    Thinking.empty: "one block, with nothing in it",
    Thinking.missing: "no block where one would begin",
    Thinking.truncated: "a block that is not closed",
    Thinking.doubled: "more tags inside the block or behind it",
}
_REPLIES = (
    ("episodes that succeeded", "success_rate"),
    ("answers right", "answer_accuracy"),
    ("conversations with every answer right", "conversation_accuracy"),
    ("thinking right", "thinking_accuracy"),
    ("answers that follow from changed thinking", "answers_follow_thinking"),
    ("replies whose thinking was changed", "probed_replies"),
    ("replies that ended within the token limit", "replies_ended"),
    *((f"thinking {state}: {meaning}", f"thinking_{state}") for state, meaning in _STATES.items()),
    ("replies whose turn in the data thinks", "thinking_expected"),
    ("replies that think where the data does, and only there", "thinking_as_expected"),
    ("tokens of thinking, mean", "thinking_tokens_mean"),
    ("tokens of thinking, median", "thinking_tokens_median"),
    ("conversations", "chatted_conversations"),
    ("replies", "chatted_replies"),
    ("replies with nothing to compare with", "uncompared_replies"),
    ("turns that were not asked", "unasked_turns"),
)
_HISTORIES = {"": "own history", "teacher_": "the data's history"}


def write_report(folder: Path) -> Path:
    """Write the report of a run. Raises ValueError where its files are none of a run's."""
    record = read_run(folder)
    chats = Chats.of(record.chats)
    path = folder / REPORT
    write_page_of_plots(
        path,
        "report.html",
        _plots(record),
        {
            "title": f"{record.name}: report",
            "name": record.name,
            "finished": record.result is not None,
            "state": _state(record),
            "facts": _facts(record),
            "setting": sentences(record.config, record.data),
            **_settings(record),
            "totals": _totals(record.data),
            "sources": _sources(record.data),
            "lines": cut("\n".join(record.said.get("lines", ())), _LONGEST_TEXT, SAID),
            "left_out": _left_out(record),
            "not_drawn": not_drawn(record.metrics),
            **_mask(record),
            "replies": _replies(record.result or {}),
            "no_chats": _no_chats(record),
            "chats": chats.shown,
            "chosen": chats.chosen,
            "warnings": _warnings(record),
            "environment": _environment(record),
        },
    )
    return checked_size(path)


def checked_size(path: Path) -> Path:
    """The page, which is below the limit: what it shows was chosen so."""
    assert path.stat().st_size < LIMIT, f"{path}: {path.stat().st_size:,} bytes"
    return path


def cut(text: str, most: int, where: str) -> str:
    """At most so many bytes of a text, and where the rest of it is."""

    def fits(count: int) -> bool:
        return len(escape(text[:count]).encode("utf-8", "backslashreplace")) <= most

    if len(text) <= most and fits(len(text)):
        return text
    # Signs take one byte or more, and not all of a text take as many as its first ones.
    kept = text[: bisect_left(range(1, min(len(text), most) + 1), True, key=lambda count: not fits(count))]
    return f"{kept} … ({len(text) - len(kept):,} more characters in {where})"


def _state(record: Record) -> str:
    result = record.result
    if result is not None:
        steps = f"{result['steps']:,} steps in {result['train_seconds']:,.0f} s of training"
        planned = result.get("planned_steps", result["steps"])  # which the oldest results lack
        if result["steps"] < planned:
            return f"Ended early, after {steps}, of {planned:,}: the held-out loss went down no more."
        return f"Finished: {steps}."
    if stopped := record.said.get("stopped"):
        return f"Has no result. {cut(stopped, _LONGEST_WARNING, SAID)}"
    saved = f"a checkpoint of step {record.saved_step:,}" if record.saved_step else "no checkpoint"
    go_on = typed("train", override("resume", _place(record)))
    return f"Has no result, and {saved}: it was still running, or was killed. Go on with: {go_on}"


def _place(record: Record) -> str | Path:
    """The folder as the run was told it, from which its paths are seen; where it lies now, if somebody has moved it."""
    told = record.config.output_dir
    return told if told and Path(told).resolve() == record.folder.resolve() else record.folder


def _facts(record: Record) -> list[tuple[str, str]]:
    """What somebody looks for first: (value, what it is)."""
    result = record.result or {}
    losses = [value for _, value in record.curve("loss") if value is not None]
    speeds = [value for _, value in record.curve("tokens_per_second") if value is not None]
    steps = max((line["step"] for line in record.metrics), default=0)
    found = [
        (_share(result.get("success_rate")), "episodes succeeded"),
        (_share(result.get("answer_accuracy")), "answers right when chatting"),
        (_number(result.get("heldout_loss")), "held-out loss"),
        (_share(result.get("heldout_preference_accuracy")), "held-out pairs preferred rightly"),
        (f"{losses[0]:.3f} → {losses[-1]:.3f}" if losses else None, "training loss"),
        (f"{steps:,}", "steps logged"),
        (_count(result.get("tokens_computed")), "tokens computed"),
        (_count(result.get("tokens_trained")), "tokens trained"),
        (f"{sorted(speeds)[len(speeds) // 2]:,.0f}" if speeds else None, "tokens/s, median"),
    ]
    return [(value, what) for value, what in found if value is not None]


def _settings(record: Record) -> dict[str, Any]:
    """What was changed of the defaults, the command that says it, and all settings."""
    choices = choices_of(record.settings)
    command = choices and typed("train", *choices.words, processes=record.said.get("processes", 1))
    if command is not None and len(command) > _LONGEST_TEXT:
        command = None
    return {
        "changed": _changed(choices) if choices else [],
        "command": command,
        "config": cut(OmegaConf.to_yaml(OmegaConf.create(record.settings)), _LONGEST_TEXT, RUN_CONFIG),
    }


def _changed(choices: Choices) -> list[tuple[str, str, str]]:
    rows = [(group, name, "") for group, name in choices.groups.items()]
    for key, (value, default) in choices.changed.items():
        said = "the day of the run" if key == "data.date" else _said(key, default)
        rows.append((key, _said(key, value), said))
    return rows


def _said(key: str, value: Any) -> str:
    return cut(word(key, value).partition("=")[2] if value != "???" else "none", _LONGEST_VALUE, RUN_CONFIG)


def _totals(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "conversations" not in data:
        return []
    computed, per_turn = data["tokens_computed"], data["tokens_per_turn"]
    rows = [
        ("conversations to train", data["conversations"]),
        ("trained turns", data["turns"]),
        ("tokens computed, once through the data", computed),
        ("of them trained", data["tokens_trained"]),
        ("of them plain copies of answers", data["tokens_copied"]),
        ("fewest tokens of an exact method", data["tokens_distinct"]),
        ("tokens of one pass a turn", per_turn),
        ("conversations whose row branches", data["branching_conversations"]),
        ("conversations whose answers compete", data["competing_conversations"]),
        ("conversations held out", data["heldout_conversations"]),
        ("turns held out", data["heldout_turns"]),
        ("tokens of the held-out conversations", data["heldout_tokens"]),
        *((f"read as {name}", count) for name, count in data["formats"].items()),
    ]
    ratio = [("tokens of one pass a turn, over those computed", f"{per_turn / computed:.2f}")] if computed else []
    return [(what, f"{value:,}") for what, value in rows] + ratio


def _sources(data: Mapping[str, Any]) -> list[tuple[str, ...]]:
    of = data.get("sources", {})
    counts = ("read", "train", "heldout", "dropped")
    return [(name, *(f"{one[key]:,}" for key in counts)) for name, one in of.items()]


def _left_out(record: Record) -> list[str]:
    """What was not trained or not asked, and why."""
    data = record.data
    counted = (
        ("turns are longer than a pack (duplication.too_long=drop)", data.get("dropped_turns")),
        ("held-out turns are longer than a pack", data.get("dropped_heldout_turns")),
        ("conversations have no turn to train", data.get("conversations_without_turns")),
        (f"conversations are invalid; each is in {LEFT_OUT} with its reason", data.get("dropped_conversations")),
    )
    lines = [f"{count:,} {what}" for what, count in counted if count]
    lines += kinds_of_reasons({one["conversation"]: one["reason"] for one in record.left_out})
    unasked = Counter(line["unasked"] for line in record.chats if line.get("unasked"))
    lines += [f"{count:,} turns were not asked when chatting: {reason}" for reason, count in unasked.most_common()]
    return _few(lines, LEFT_OUT if record.left_out else CHATS)


def _plots(record: Record) -> list[dict[str, Any]]:
    found = []
    for plot in plots_of(pairs=record.config.objective.kind is ObjectiveKind.dpo):
        curves = {label: points for name, label in plot.figures.items() if (points := record.curve(name))}
        if curves:
            found.append(drawn(plot, curves))
    return found


def _mask(record: Record) -> dict[str, str | None]:
    if record.mask is None:
        return {"mask": None, "no_mask": "There is no picture of a mask: the run ended before it was drawn."}
    if record.mask.stat().st_size > _LARGEST_PICTURE:
        return {"mask": None, "no_mask": f"{record.mask.name} is too large for this page."}
    return {"mask": picture(record.mask), "no_mask": None}


def _replies(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """How replies ended and whether they think as they should, a column a history."""
    counted = ("chatted_replies", "unasked_turns")
    of = [prefix for prefix in _HISTORIES if any(result.get(prefix + key) for key in counted)]
    if not of:
        return None
    rows = []
    for what, key in _REPLIES:
        values = [result.get(prefix + key) for prefix in of]
        if any(value is not None for value in values):
            rows.append((what, *(_figure(key, value) for value in values)))
    return {"header": ["", *(_HISTORIES[prefix] for prefix in of)], "rows": rows}


def _figure(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    if key.endswith(("_mean", "_median")):
        return f"{value:,.1f}"
    return _count(value) if isinstance(value, int) else _share(value)


def _no_chats(record: Record) -> str:
    if record.config.evaluation.conversations == 0:
        return "None: evaluation.conversations=0."
    if record.result is None:
        return "None: the run has not come to its chats."
    return "None: no conversation is held out that could be chatted with."


def _warnings(record: Record) -> list[str]:
    notes = [line.removeprefix("note").strip() for line in record.said.get("lines", ()) if line.startswith("note")]
    return _few([*record.said.get("warnings", ()), *notes], SAID)


def _environment(record: Record) -> list[tuple[str, str]]:
    of = record.said or record.result or {}
    rows = [("device", of.get("device")), ("processes", of.get("processes")), ("parallel", of.get("parallel"))]
    rows += [(name, version) for name, version in of.get("versions", {}).items()]
    rows.append(("commit", of.get("git_commit")))
    return [(what, str(value)) for what, value in rows if value is not None]


def _few(texts: Iterable[str], where: str) -> list[str]:
    texts = list(texts)
    shown = [cut(text, _LONGEST_WARNING, where) for text in texts[:_MOST_WARNINGS]]
    more = len(texts) - len(shown)
    return [*shown, f"{more:,} more are in {where}"] if more else shown


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"


def _count(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"
