"""Evaluate a finished run again, by chatting.

    python -m recipes.evaluate RUN [FILE] [key=value ...]
    make evaluate ARGS="runs/<folder>"                            on the conversations that the run held out
    make evaluate ARGS="runs/<folder> test.jsonl"                 on all conversations of a file
    make evaluate ARGS="runs/<folder> evaluation.history=both evaluation.matcher=number"

FILE is anything that `data.path` may name, of the format of the run's own data where that is GSM8K-Socratic, else of
records (`data.kind=...` says otherwise). Overrides change the run's own configuration: `data.path=...` says where the
run's data is now, and what is held out of it is chosen as before. Prints one JSON object on stdout (see
`recipes.evaluation.replies.figures`), everything else on stderr; writes nothing.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

from omegaconf import OmegaConf

from recipes.configuration.compose import RUN_CONFIG, load_run_config
from recipes.configuration.overrides import checked_overrides, given_keys, groups_of_conf, override
from recipes.configuration.rules import ConfigError
from recipes.configuration.schema import DataKind, TrainConfig
from recipes.distributed import ranks
from recipes.run.folder import MODEL, trained_fingerprint
from recipes.terminal.command import command, typed

# The settings that an evaluation reads.
READ = ("data.", "duplication.", "context.", "evaluation.", "model.dtype", "trainer.mixed_precision")


@command
def main(run: Path, file: str | None, overrides: Sequence[str]) -> None:
    checked_overrides(overrides)
    _refuse_what_changes_nothing(overrides, run)
    config = _configuration(run, file, overrides)

    from recipes.configuration.rules import rule_of
    from recipes.evaluation.judges import load_judges

    load_judges(config.evaluation)  # a wrong name fails before anything is loaded
    rule_of(config.deployed_context)
    # torch and transformers take seconds to import: a wrong configuration has failed before.
    from transformers import AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from recipes.evaluation.histories import evaluate_chats
    from recipes.models.load import load_trained
    from recipes.models.precision import chatting_precision
    from recipes.preparation.rows import prepare_heldout
    from recipes.sources.load import load_data

    disable_progress_bar()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*train_conversations=.* are left to train")  # as the training said
        data = load_data(config.data)
    conversations = data.train if file else data.heldout
    if not file and trained_fingerprint(run) not in (None, data.fingerprint):
        warnings.warn(
            f"{run}: its data is not what it was when the run was trained (a file has changed, or settings of data), "
            "so conversations may be held out now that were trained then",
            stacklevel=2,
        )
    if not conversations:
        raise ConfigError(
            f"{run}: holds no conversations out; name a file to chat on: RUN FILE, as in {run} test.jsonl"
        )
    tokenizer = AutoTokenizer.from_pretrained(run / MODEL)
    model = load_trained(run / MODEL, config.model.dtype).to(ranks.device())
    heldout = prepare_heldout(conversations, tokenizer, config.data, config.duplication, model, config.deployed_context)
    invalid = len(heldout.invalid) + (len(data.dropped) if file else 0)
    print(_chosen(config.evaluation.conversations, file, len(heldout.valid), invalid), file=sys.stderr)
    with chatting_precision(config, model.device):
        figures, _ = evaluate_chats(
            model, tokenizer, heldout.valid, config.evaluation, config.data, config.deployed_context
        )
    print(json.dumps(figures))


def _chosen(asked: int | None, file: str | None, valid: int, invalid: int) -> str:
    of = f"of {file}" if file else "that the run holds out"
    left_out = f"; {invalid:,} more are invalid" if invalid else ""
    shown = valid if asked is None else min(asked, valid)
    return f"chatting on {shown:,} conversations, of {valid:,} {of}{left_out}"


def _refuse_what_changes_nothing(overrides: Sequence[str], run: Path) -> None:
    groups = groups_of_conf() | {one.name for one in fields(TrainConfig) if is_dataclass(one.type)}
    if refused := [word for word in overrides if given_keys([word]) & groups]:
        raise ConfigError(
            f"{', '.join(refused)}: groups are chosen when a run starts. Change single settings, as in "
            f"data.path=my.jsonl or evaluation.matcher=number; a file to chat on stands behind the run: {run} my.jsonl"
        )
    if refused := [word for word in overrides if not all(key.startswith(READ) for key in given_keys([word]))]:
        raise ConfigError(
            f"{', '.join(refused)}: changes nothing of an evaluation, which reads data.*, duplication.*, context.*, "
            "evaluation.*, model.dtype and trainer.mixed_precision; the rest was settled by the training"
        )


def _configuration(run: Path, file: str | None, overrides: Sequence[str]) -> TrainConfig:
    """The run's configuration with the overrides, and with FILE as all of its data where there is one.

    Raises ConfigError naming the folder, the file or the key.
    """
    own = ["model.chat_template=null"]  # its text is saved with the model
    if file is not None:
        own += _all_of(file, run)
    try:
        config = load_run_config(run, [*own, *overrides])
    except ConfigError as error:
        if "no such file" not in str(error) or file is not None:
            raise
        raise ConfigError(
            f"{error}\nPaths in a run's settings are seen from the folder that it was started in. Say where its data "
            "is now with data.path=..., or name a file to chat on"
        ) from error
    if not (run / MODEL).is_dir():
        raise ConfigError(
            f"{run}: has no {MODEL}/, so its training has not ended; {typed('train', override('resume', run))}"
        )
    if config.evaluation.conversations == 0:
        raise ConfigError("evaluation.conversations=0: nothing to evaluate; say how many, or null for all")
    if config.evaluation.context is not None and any(key.startswith("context.") for key in given_keys(overrides)):
        raise ConfigError(
            "context.*: changes nothing of this run's evaluation, which is under evaluation.context; give "
            "'evaluation.context={rule: ..., arguments: {...}}'"
        )
    return config


def _all_of(file: str, run: Path) -> list[str]:
    """Overrides that make `file` the data of a run, all of it held out; the run's own need not be there any more."""
    saved = run / RUN_CONFIG
    kind = OmegaConf.select(OmegaConf.load(saved), "data.kind") if saved.is_file() else None
    quoted = file.replace("\\", "\\\\").replace("'", "\\'")
    return [
        f"data.kind={DataKind.gsm8k_socratic if kind == DataKind.gsm8k_socratic else DataKind.records}",
        f"data.path='{quoted}'",
        "data.hub_id=null",
        "data.sources={}",
        "data.flaws={}",
        "data.filter=[]",
        "data.train_conversations=null",
        "data.heldout_conversations=0",
        "duplication.too_long=drop",  # a turn too long to be trained can be asked
        "evaluation.conversations=null",
    ]


def arguments(words: Sequence[str] | None = None) -> tuple[Path, str | None, list[str]]:
    """(run, file, overrides) of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.evaluate", description="Evaluate a finished run by chatting."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of the run")
    parser.add_argument("rest", nargs="*", metavar="[FILE] [key=value ...]", help="a file to chat on, and overrides")
    given = parser.parse_args(words)
    files = [word for word in given.rest if "=" not in word or Path(word).exists()]
    if len(files) > 1:
        parser.error(f"one FILE, not {len(files)}: {', '.join(files)}")
    return given.run, files[0] if files else None, [word for word in given.rest if word not in files]


if __name__ == "__main__":
    main(*arguments())
