"""Show what a run would train, before it costs GPU hours.

    make inspect                                                    the embedded default, its first conversation
    make inspect ARGS="3 data=jsonl data.path=my.jsonl"             the fourth conversation of a file (from 0)
    make inspect ARGS="my.jsonl:12 data=jsonl data.path=my.jsonl"   the conversation of line 12
    make inspect ARGS="--full model=hub model.name_or_path=<id>"    with all of its text
    make inspect ARGS="--rate 12000"                                with the hours, at so many tokens a second
    make inspect ARGS="--rate runs/<folder>"                        at those that a finished run has measured

Takes the overrides of `recipes.train` and reads model, template and data as that does; no weights are loaded. Prepares
all conversations, held out ones as well (training finds them in the cache), then prints: whether the model can be
trained exactly, in how much memory by formula (`recipes.models.memory`), the totals of the data, what the run will
compute and how long that takes (`recipes.run.estimate`), one conversation's segments with who sees whom (of calls of a
model, which call sees what, and what later ones see no longer), and every warning of the run, beginning with the
reasons why training would refuse to start.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flexmask import LaidOut, align_end_of_turn, prepare_conversation
from flexmask.model.support import check_context, check_model
from flexmask.tree.segments import pass_lengths
from recipes.configuration.compose import compose
from recipes.configuration.overrides import checked_overrides, names_and_overrides
from recipes.configuration.schema import Layout, TrainConfig
from recipes.evaluation.judges import load_judges
from recipes.models.load import adapter_for, branching_note, layers_of, load_tokenizer, weightless_model
from recipes.models.memory import in_gigabytes, memory
from recipes.preparation.rows import PreparedData, names_of_calls, prepare, prepare_heldout, settings_of
from recipes.run.arguments import check_answers, check_heldout, in_one_process, training_arguments
from recipes.run.estimate import Rate, Work, estimate_lines, rate_of
from recipes.run.summary import data_lines
from recipes.sources.load import choose, load_data
from recipes.terminal.command import command, in_settings
from recipes.terminal.rows import against_least, numbers, print_segments, table_of_calls

T = TypeVar("T")


@command
def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m recipes.inspector", description=__doc__.splitlines()[0])
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONVERSATION | key=value",
        help="index from 0 of a conversation among those trained, or its name (FILE:12); overrides of recipes.train",
    )
    parser.add_argument("--full", action="store_true", help="print all of the conversation's text")
    parser.add_argument(
        "--rate", help="tokens computed a second, or the folder of a finished run to take them from: tells the hours"
    )
    chosen = parser.parse_intermixed_args(arguments)
    named, overrides = names_and_overrides(chosen.words)
    if len(named) > 1:
        parser.error(f"one conversation at a time, not {' and '.join(named)}")
    # A terminal has colours and a width of its own; elsewhere lines are as long as they need to be.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "160")))
    config = compose(checked_overrides(overrides))
    rate = None if chosen.rate is None else rate_of(chosen.rate, config)
    inspect(config, named[0] if named else "0", chosen.full, console, rate)


def inspect(config: TrainConfig, conversation: str, full: bool, console: Console, rate: Rate | None = None) -> None:
    """Print model, data, an estimate and one conversation. Raises ValueError as preparing the data does."""
    refused: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tokenizer = load_tokenizer(config.model)
        data = load_data(config.data)
        chosen = choose(data, conversation)
        rows = prepare(data.train, tokenizer, config.data, config.duplication, config.context)
        model = _tried(refused, weightless_model, config.model, len(tokenizer))
        heldout = prepare_heldout(
            data.heldout, tokenizer, config.data, config.duplication, model, config.deployed_context
        )
        of_model = _model_lines(config, model, not rows.branching, refused)
        of_data, estimated = data_lines(config, data, rows, heldout), []
        work = _tried(refused, Work.of, config, rows)
        if not rows.items:
            refused.append("no turn of any conversation is trained")
        elif work is not None:
            of_data += _row_lines(config, rows, work)
            estimated = _tried(refused, estimate_lines, config, work, model, heldout, rate) or []
        if model is not None and (note := align_end_of_turn(model, tokenizer, rows.ends)):
            of_data.append(f"note        {note}")
        _tried(refused, load_judges, config.evaluation)
        _tried(refused, training_arguments, in_one_process(config), Path("unused"), True)
        _tried(refused, check_answers, config, rows, heldout)
        _tried(refused, check_heldout, config.trainer, len(heldout.items))
    invalid = rows.invalid | heldout.invalid
    left_out = data.dropped | invalid
    notes = [f"training is refused: {reason}" for reason in refused]
    notes += [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    notes += [f"invalid, left out: {reason}" for reason in left_out.values()]

    for heading, lines in (("model", of_model), ("data", map(escape, of_data)), ("estimate", map(escape, estimated))):
        console.rule(heading)
        for line in lines:
            console.print(line, soft_wrap=True)
    if chosen.name in invalid:
        console.rule(escape(chosen.name))
        console.print("[red]invalid, left out[/]: see the warnings")
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said above
            laid_out = prepare_conversation(
                chosen, tokenizer, **settings_of(config.data, config.duplication, config.context)
            )
            names = names_of_calls(chosen, tokenizer, config.data, config.duplication, config.context)
        title = chosen.name + (", held out" if chosen in data.heldout else "")
        _print_conversation(title, laid_out, names, tokenizer, full, console)
    console.rule("warnings" if notes else "no warnings", style="yellow" if notes else "green")
    for note in notes:
        console.print(f"[yellow]![/] {escape(in_settings(note))}", soft_wrap=True)


def _tried(refused: list[str], function: Callable[..., T], *arguments: Any) -> T | None:
    """What `function` returns; None where it raises ValueError, which is then one of `refused`."""
    try:
        return function(*arguments)
    except ValueError as error:
        refused.append(str(error))
        return None


def _model_lines(config: TrainConfig, model: PreTrainedModel | None, chains: bool, refused: list[str]) -> list[str]:
    """What the model is, and whether a run would take it; the reasons why not join `refused`."""
    lines, before = [], len(refused)
    if model is not None:
        name, size = type(model).__name__, model.num_parameters()
        lines.append(f"{name}, {size:,} parameters; layers by its config: {layers_of(model)}")
        branching = branching_note(model)
        _tried(refused, check_model, model, chains)
        if config.parallel.context_parallel:
            _tried(refused, check_context, model, config.attention.backend)
        _tried(refused, adapter_for, model, config.adapter, config.model)
        if len(refused) == before:
            taken = "[green]can be trained exactly[/], as far as its layers tell: training tries it before it starts"
            return [*lines, taken, *([branching] if branching else []), _memory_line(config, model)]
    return [*lines, "[red]refused[/]: see the warnings"]


def _memory_line(config: TrainConfig, model: PreTrainedModel) -> str:
    """What one process needs in memory, with each term that is a hundredth of it."""
    try:
        found = memory(model, config)
    except ValueError as error:
        return f"memory by formula: {error}"
    terms = {name: size for name, size in asdict(found).items() if size >= found.total / 100}
    told = ", ".join(f"{name} {in_gigabytes(size)}" for name, size in terms.items())
    return (
        f"memory by formula, of one process with packs of {config.duplication.pack_length:,} tokens: "
        f"{in_gigabytes(found.total)} ({told})"
    )


def _row_lines(config: TrainConfig, prepared: PreparedData, work: Work) -> list[str]:
    """How the conversations fill rows and packs: what only somebody who looks closely wants to know."""
    in_a_step = work.packs / -(-len(work.tokens) // config.trainer.conversations_per_step)
    lines = [
        f"rows        {work.rows:,}, the longest of {work.longest:,} tokens; a step is {in_a_step:.1f} packs of at "
        f"most {config.duplication.pack_length:,} tokens"
    ]
    if config.duplication.layout is Layout.one_pass:
        copies = prepared.tokens_copied
        lines.append(f"            {copies:,} tokens ({copies / prepared.tokens_computed:.1%}) are plain copies")
        if work.split:
            lines.append(
                f"            {work.split:,} conversations are longer than a pack and are split; the parts repeat what "
                f"they share: {against_least(prepared.tokens_computed, prepared.tokens_distinct)}"
            )
    return lines


def _print_conversation(
    title: str,
    laid_out: LaidOut,
    names: Sequence[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    full: bool,
    console: Console,
) -> None:
    """names: of its calls; None for the turns of a conversation, which have none."""
    console.rule(escape(title))
    if laid_out.dropped_turns:
        console.print(f"[red]left out, longer than a pack[/]: turns {', '.join(map(str, laid_out.dropped_turns))}")
    if not laid_out.rows:
        console.print("[red]nothing of it is trained[/]")
    for row in laid_out.rows:
        what, lengths = "turns" if names is None else "calls", ", ".join(f"{n:,}" for n in pass_lengths(row))
        console.print(
            f"{what} {numbers(row.turns)}: {len(row):,} tokens, {int((row.loss_weights > 0).sum()):,} trained; passes "
            f"of {lengths} tokens"
        )
        if names is not None:
            console.print(table_of_calls(row, names))
        print_segments(row, tokenizer, full, console, of_calls=names is not None)
    computed, least = sum(map(len, laid_out.rows)), laid_out.tokens_distinct
    if len(laid_out.rows) > 1:
        console.print(f"{len(laid_out.rows)} rows: {against_least(computed, least)}")


if __name__ == "__main__":
    main(sys.argv[1:])
