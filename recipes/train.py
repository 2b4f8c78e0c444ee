"""Fine-tune a model on multi-turn reasoning conversations, then chat with it.

    make train                                        the embedded default
    make train ARGS="duplication=per_turn seed=1"     any override of conf/
    make train ARGS="resume=runs/<folder>"            go on where an interrupted run stopped
    make train ARGS="resume=auto ..."                 the same for the newest run of these settings; none: a new run
    NPROC=8 make train ARGS="..."                     on eight GPUs; parallel=fsdp divides the model over them

Leaves in the run folder: report.html and what it is made from (config.yaml, metrics.jsonl, chats.jsonl, result.json
and more: `recipes.run.folder`); model/, which `from_pretrained` loads; checkpoints/. Prints the run folder on its last
line.
"""

import os
import shutil
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from recipes.configuration import CONF_DIR
from recipes.configuration.compose import save_run_config, to_dataclass
from recipes.configuration.overrides import checked_overrides, given_keys
from recipes.configuration.schema import TrainConfig
from recipes.distributed import ranks
from recipes.run.claim import claimed
from recipes.run.environment import environment
from recipes.run.failures import go_on, told_how_to_go_on
from recipes.run.folder import (
    DATA,
    MODEL,
    RESULT,
    config_to_resume,
    last_checkpoint,
    logged_lines,
    new_folder,
    refuse_taken,
    remember_data,
    remove_incomplete,
    write_json,
)
from recipes.run.sweeps import noted, searching, sweep_name, sweeping
from recipes.storage.whole import partial_of, take_place
from recipes.terminal.command import command

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from flexmask import OnePassTrainer
    from recipes.preparation.rows import PreparedData
    from recipes.run.destinations import Nowhere, Reporter
    from recipes.sources.load import LoadedData


@hydra.main(version_base="1.3", config_path=CONF_DIR, config_name="config")
@command
def main(composed: DictConfig) -> float | None:
    """Trains; returns the held-out loss, which a sweep may search by."""

    def job() -> float | None:
        given = list(HydraConfig.get().overrides.task)
        config = to_dataclass(composed, given)
        if sweeping() and config.wandb.group is None:
            config = replace(config, wandb=replace(config.wandb, group=sweep_name()))
        return train(ranks.agreed(lambda: resumed_config(config, given)))["heldout_loss"]

    return noted(job) if sweeping() else job()


def resumed_config(config: TrainConfig, given: list[str]) -> TrainConfig:
    """The configuration that is trained: that of the run to go on with, where there is one."""
    if config.resume is None:
        return config
    found = config_to_resume(config, [word for word in given if given_keys([word]) - {"resume"}])
    if found is None:
        print("resume=auto: no unfinished run of these settings, so this is a new one")
    return found or replace(config, resume=None)


def train(config: TrainConfig) -> dict:
    """One run from data to `result.json`; returns what that file holds."""
    # torch and transformers take seconds to import: a wrong configuration has failed before.
    from recipes.pages.at_the_end import reported
    from recipes.run.interrupts import StopAfterStep
    from recipes.run.reports import ReportingCallback, report_mask
    from recipes.run.said import Said
    from recipes.run.summary import adapter_lines, closing_lines

    resumed = Path(config.resume) if config.resume else None
    with (
        ExitStack() as claims,
        StopAfterStep(go_on(resumed) if resumed else "Nothing has been trained yet") as stop,
        Said() as said,
    ):
        start = ranks.agreed(lambda: start_of(config, claims))
        run = prepare_run(config)
        config = ranks.agreed(lambda: with_folder(config, run, claims))
        folder = Path(config.output_dir)
        stop.message = go_on(folder)
        print(f"run folder  {folder}" + (f", going on after step {start.step}" if resumed else ""))
        print("\n".join(run.opening_lines), flush=True)
        said.begin(folder, {"lines": run.opening_lines, **environment(config, run.device)})
        with (
            reported(folder, said),
            told_how_to_go_on(folder),
            reporter_of(config, start.logged) as reporter,
            ReportingCallback(reporter) as reporting,
        ):
            trainer = make_trainer(config, run, folder, [reporting, stop])
            report_mask(reporter, trainer)
            trainer.train(resume_from_checkpoint=start.checkpoint)
            stop.check(trainer.state.global_step, trainer.state.max_steps, folder)
            save_model(trainer, folder / MODEL)
            result = evaluate_run(config, run, trainer, reporter)
            ranks.agreed(lambda: write_json(folder / RESULT, result))
            print("\n".join([*closing_lines(result), *adapter_lines(config.adapter, run.end_note, folder)]), flush=True)
        print(folder)
    return result


@dataclass(frozen=True)
class Start:
    """Where a run begins: at a checkpoint, its step, and how many lines of metrics it has. Nothing of a new one."""

    checkpoint: str | None = None
    step: int = 0
    logged: int | None = None


def start_of(config: TrainConfig, claims: ExitStack) -> Start:
    """Where the run begins. The folder of one that goes on is claimed, that of a new one must be free."""
    if config.resume is None:
        refuse_taken(config.output_dir)
        return Start()
    folder = Path(config.resume)
    claims.enter_context(claimed(folder))
    found = last_checkpoint(folder)
    remove_incomplete(folder)
    if found is None:
        return Start(logged=0)
    checkpoint, step = found
    return Start(str(checkpoint), step, logged_lines(checkpoint))


def with_folder(config: TrainConfig, run: "PreparedRun", claims: ExitStack) -> TrainConfig:
    """The configuration with the run's folder, which is made, and holds what is known before training."""
    from recipes.preparation.rows import digest_of_rule
    from recipes.run.summary import data_totals, left_out
    from recipes.sources import invalid

    if config.resume:
        folder = Path(config.resume)
    else:
        folder = new_folder(config.output_dir, config.duplication.layout)
        claims.enter_context(claimed(folder))
        refuse_taken(config.output_dir)  # now that no other run can begin there
        (folder / DATA).unlink(missing_ok=True)  # of a run that died before it was one
    config = replace(config, output_dir=str(folder))
    totals = data_totals(run.data, run.rows, run.heldout)
    remember_data(folder, run.data.fingerprint, ", ".join(run.data.sources), digest_of_rule(config.context), totals)
    save_run_config(config, folder)
    invalid.write(left_out(run.data, run.rows, run.heldout), folder)
    return config


def reporter_of(config: TrainConfig, logged: int | None) -> "Reporter | Nowhere":
    """Where this process reports to."""
    from recipes.run.destinations import Nowhere, Reporter

    return Reporter(config, logged) if ranks.rank() == 0 else Nowhere()


def save_model(trainer: "OnePassTrainer", folder: Path) -> None:
    """A folder that is there only with all of the model in it."""
    partial = partial_of(folder)
    ranks.agreed(lambda: shutil.rmtree(partial, ignore_errors=True))  # of a run that was killed here
    trainer.save_model(str(partial))
    ranks.agreed(lambda: take_place(partial, folder))


@dataclass(frozen=True)
class PreparedRun:
    """All that a training needs, and what is said of it before it starts; nothing of it is in a folder yet."""

    tokenizer: "PreTrainedTokenizerBase"
    data: "LoadedData"
    rows: "PreparedData"  # to train
    heldout: "PreparedData"
    model: "PreTrainedModel"
    device: "torch.device"
    end_note: str | None  # what had to change so that the model stops where it is trained to
    opening_lines: list[str]


def prepare_run(config: TrainConfig) -> PreparedRun:
    """Load, prepare and check everything; what is wrong with a run ends it here, before it has a folder."""
    from transformers import set_seed

    from flexmask import align_end_of_turn
    from recipes.configuration.rules import rule_of
    from recipes.evaluation.judges import load_judges
    from recipes.models.load import load_model, load_tokenizer
    from recipes.preparation.rows import prepare, prepare_heldout
    from recipes.run.arguments import check_answers, check_heldout, quiet, training_arguments
    from recipes.run.summary import opening_lines
    from recipes.sources.load import load_data

    quiet()
    set_seed(config.seed)
    load_judges(config.evaluation)
    rule_of(config.context)
    rule_of(config.deployed_context, "evaluation.context")
    # Made early for its checks: an optimizer, schedule or logger that transformers lacks ends the run here.
    device = training_arguments(config, folder=Path("unused"), evaluates=True).device
    tokenizer = load_tokenizer(config.model)
    data = load_data(config.data)
    rows = prepare(data.train, tokenizer, config.data, config.duplication, config.context)
    if not rows.items:
        raise ValueError(
            f"nothing to train: of {len(data.train):,} conversations {len(rows.invalid):,} are invalid and "
            f'{rows.without_rows:,} have no turn to train: each has "weight": 0, is not among duplication.turns, or '
            "is longer than duplication.pack_length with duplication.too_long=drop"
        )
    model = load_model(config, len(tokenizer), chains=not rows.branching)
    heldout = prepare_heldout(data.heldout, tokenizer, config.data, config.duplication, model, config.deployed_context)
    check_answers(config, rows, heldout)
    check_heldout(config.trainer, len(heldout.items), searching())
    note = align_end_of_turn(model, tokenizer, rows.ends)
    lines = opening_lines(config, model, data, rows, heldout, device, note)
    return PreparedRun(tokenizer, data, rows, heldout, model, device, note, lines)


def make_trainer(config: TrainConfig, run: PreparedRun, folder: Path, callbacks: list) -> "OnePassTrainer":
    """The Trainer of a run, which has tried the model on a small row."""
    from transformers import PrinterCallback

    from flexmask import OnePassTrainer
    from recipes.run.arguments import collator_of, early_stopping, training_arguments

    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")  # each run of a sweep has its own
    trainer = OnePassTrainer(
        run.model,
        training_arguments(config, folder, evaluates=bool(run.heldout.items)),
        collator_of(config),
        train_dataset=run.rows.items,
        eval_dataset=run.heldout.items or None,
        processing_class=run.tokenizer,
        callbacks=[*callbacks, *early_stopping(config.trainer)],
    )
    trainer.remove_callback(PrinterCallback)  # ReportingCallback prints
    return trainer


def evaluate_run(
    config: TrainConfig, run: PreparedRun, trainer: "OnePassTrainer", reporter: "Reporter | Nowhere"
) -> dict:
    """Held-out loss and chats of the trained model: what `result.json` holds."""
    from recipes.evaluation.histories import evaluate_chats
    from recipes.models.load import load_trained
    from recipes.models.precision import chatting_precision
    from recipes.run.reports import report_chats
    from recipes.run.summary import heldout_figures, training_result

    measured = heldout_figures(trainer)
    model = run.model
    if trainer.is_fsdp_enabled:  # each process holds a part of it; what was saved is whole
        model = load_trained(Path(config.output_dir, MODEL), config.model.dtype).to(ranks.device())
    with chatting_precision(config, ranks.device()):
        figures, chats = evaluate_chats(
            model, run.tokenizer, run.heldout.valid, config.evaluation, config.data, config.deployed_context
        )
    report_chats(reporter, chats, trainer.state.global_step)
    result = training_result(trainer, config, run.data, run.rows, run.heldout, measured) | figures
    reporter.summary(result)
    return result


@command
def check_command_line() -> None:
    sys.argv[1:] = checked_overrides(sys.argv[1:])


if __name__ == "__main__":
    check_command_line()
    main()
