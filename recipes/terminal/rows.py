"""A row on a terminal: its calls, its segments, and who sees whom."""

from collections.abc import Iterable, Sequence

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from flexmask import Row
from flexmask.tree.segments import (
    ROLE_COLORS,
    ROLE_LABELS,
    Segment,
    pass_lengths,
    seen_by_passes,
    segments,
    visible_segments,
)

MOST_SEGMENTS_IN_A_MATRIX = 40
SHOWN_CHARACTERS = 70
GONE = "\u00d7"


def print_segments(
    row: Row, tokenizer: PreTrainedTokenizerBase, full: bool, console: Console, of_calls: bool = False
) -> None:
    """The segments of a row as a table, who sees whom, and with `full` all of their text. of_calls: say which calls see
    each, in place of which segments do not."""
    parts = segments(row)
    visible = visible_segments(row, parts)
    texts = [_decoded(tokenizer, row, part) for part in parts]
    heading, beside = ("seen by", _seen_by_calls(row, parts)) if of_calls else ("hidden from", _hidden_from(visible))
    console.print(_table(parts, heading, beside, texts, row))
    if any(one.endswith(GONE) for one in beside):
        console.print(f"{GONE} later calls see it no longer")
    if len(parts) <= MOST_SEGMENTS_IN_A_MATRIX:
        console.print(_matrix(parts, visible), soft_wrap=True)
    if full:
        for i, (part, text) in enumerate(zip(parts, texts, strict=True)):
            name, color = ROLE_LABELS[part.role], ROLE_COLORS[part.role]
            console.print(Text(f"{i} {name}", style=f"bold {color}"))
            console.print(Text(text, style=color), soft_wrap=True)


def table_of_calls(row: Row, names: Sequence[str]) -> Table:
    """A line a call of a row: the tokens of its prompt, how many of them an earlier call of the row has computed, what
    it generates, and the tokens that it adds to the row. names: of all calls of the record, by number."""
    seen, prompts = seen_by_passes(row), row.passes.prompt_length[row.passes.is_here]
    first = np.where(seen.any(1), seen.argmax(1), -1)
    lines = []
    for i, (turn, length, prompt) in enumerate(
        zip(row.turns, pass_lengths(row).tolist(), prompts.tolist(), strict=True)
    ):
        new = int((first == i).sum())
        new_in_prompt = int(((first == i) & (row.position_ids < prompt)).sum())
        lines.append((names[turn], *(f"{one:,}" for one in (prompt, prompt - new_in_prompt, length - prompt, new))))
    table = _with_columns(("call", "prompt", "of it shared", "generates", "new tokens"), lines)
    for line in lines:
        table.add_row(*line)
    return table


def against_least(computed: int, least: int) -> str:
    """Tokens computed beside the lower bound: the distinct prefixes, of which no exact method computes fewer."""
    return f"{computed:,} tokens computed, {computed / least - 1:.1%} more than the lower bound of {least:,}"


def numbers(indices: Iterable[int]) -> str:
    """Ascending numbers, consecutive ones as a range."""
    runs: list[list[int]] = []
    for i in indices:
        if runs and runs[-1][1] == i - 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _hidden_from(visible: np.ndarray) -> list[str]:
    count = len(visible)
    return [numbers(j for j in range(i + 1, count) if not visible[j, i]) for i in range(count)]


def _seen_by_calls(row: Row, parts: Sequence[Segment]) -> list[str]:
    """Which calls see each segment, with GONE behind a context that later calls of the row see no longer."""
    seen, turns = seen_by_passes(row), np.array(row.turns)
    found = []
    for part in parts:
        calls = np.sort(turns[seen[part.start]])
        gone = part.turn is None and calls[-1] < turns.max()
        found.append(numbers(calls.tolist()) + (f" {GONE}" if gone else ""))
    return found


def _with_columns(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """A table without rows, with room for these: a narrow terminal cuts what stands behind them and nothing else."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading, *cells in zip(headings, *lines, strict=True):
        is_number = cells[0].replace(",", "").isdecimal()
        width = max(map(len, (heading, *cells)))
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=True, min_width=width)
    return table


def _table(parts: Sequence[Segment], heading: str, beside: Sequence[str], texts: Sequence[str], row: Row) -> Table:
    headings = ("", "segment", "turn", "tokens", "positions", "trained", heading)
    lines = [
        (
            str(i),
            ROLE_LABELS[part.role],
            "" if part.turn is None else str(part.turn),
            f"{len(part):,}",
            f"{part.position:,}-{part.position + len(part) - 1:,}",
            _trained(part, row),
            beside[i],
        )
        for i, part in enumerate(parts)
    ]
    table = _with_columns(headings, lines)
    table.add_column("text")
    for part, cells, text in zip(parts, lines, texts, strict=True):
        color = ROLE_COLORS[part.role]
        number, name, *more = cells
        style = f"{color} strike" if cells[-1].endswith(GONE) else color
        shown = Text(_shortened(text), style=style, no_wrap=True, overflow="ellipsis")
        table.add_row(number, Text(name, style=color), *more, shown)
    return table


def _trained(part: Segment, row: Row) -> str:
    """All, none or some of the tokens, and their weight where it is not 1."""
    if not part.trained:
        return "no"
    weights = row.loss_weights[part.start : part.end]
    values = sorted({f"{weight:g}" for weight in weights[weights > 0]})
    amount = "all" if part.trained == len(part) else f"{part.trained:,} tokens"
    return amount + (f" x {'/'.join(values)}" if values != ["1"] else "")


def _matrix(parts: Sequence[Segment], visible: np.ndarray) -> Text:
    """Who sees whom: a line a query segment, a column a key segment."""
    width = len(str(len(parts) - 1)) + 1
    text = Text(" " * 16 + "sees" + "".join(f"{i:>{width}}" for i in range(len(parts))) + "\n")
    for i, part in enumerate(parts):
        name, color = ROLE_LABELS[part.role], ROLE_COLORS[part.role]
        text.append(f"{name:>14} {i:>4} ", style=color)
        for j in range(len(parts)):
            text.append(" " * (width - 1))
            if visible[i, j]:
                text.append("\u25a0", style=ROLE_COLORS[parts[j].role])
            else:
                text.append("\u00b7" if j <= i else " ", style="dim")
        text.append("\n")
    return text


def _decoded(tokenizer: PreTrainedTokenizerBase, row: Row, part: Segment) -> str:
    ids = row.input_ids[part.start : part.end]
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _shortened(text: str) -> str:
    line = text.replace("\n", "\u21b5")
    half = SHOWN_CHARACTERS // 2
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:half]} \u2026 {line[-half:]}"
