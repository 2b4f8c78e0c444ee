"""Fine-tune a model on multi-turn reasoning conversations, then chat with it.

    make train                                        the embedded default
    make train ARGS="duplication=per_turn seed=1"     any override of conf/
    make train ARGS="resume=runs/<folder>"            go on where an interrupted run stopped
    make train ARGS="resume=auto ..."                 the same for the newest run of these settings; none: a new run

Leaves in the run folder: config.yaml, metrics.jsonl, model/ (what `from_pretrained` loads), checkpoints/,
block_mask.png, chats.jsonl, result.json. Prints the run folder on its last line.
"""

import sys
from dataclasses import replace
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from recipes.command import Interrupted, command
from recipes.config import CONF_DIR, save_run_config, to_dataclass
from recipes.overrides import checked_overrides
from recipes.run_folder import MODEL, RESULT, check_same_data, config_to_resume, last_checkpoint, new_folder, write_json
from recipes.schema import TrainConfig


@hydra.main(version_base="1.3", config_path=CONF_DIR, config_name="config")
@command
def main(composed: DictConfig) -> None:
    given = list(HydraConfig.get().overrides.task)
    config = to_dataclass(composed, given)
    if config.resume is not None:
        found = config_to_resume(config, [one for one in given if not one.startswith("resume=")])
        if found is None:
            print("resume=auto: no unfinished run of these settings, so this is a new one")
        config = found or replace(config, resume=None)
    train(config)


def train(config: TrainConfig) -> dict:
    """One run from data to `result.json`; returns what that file holds."""
    # torch and transformers take seconds to import: a wrong configuration has failed before.
    from transformers import PrinterCallback, set_seed

    from flexmask import OnePassCollator, OnePassTrainer, align_end_of_turn
    from flexmask.models import unbranched_layers
    from recipes.data import load_data
    from recipes.evaluate import evaluate_chats
    from recipes.interrupts import StopAfterStep
    from recipes.matchers import load_matcher
    from recipes.models import load_model, load_tokenizer
    from recipes.preparation import prepare
    from recipes.reporting import Reporter
    from recipes.summary import closing_lines, heldout_figures, opening_lines, training_result
    from recipes.trainer import (
        ReportingCallback,
        early_stopping,
        quiet,
        report_chats,
        report_mask,
        training_arguments,
        without_heldout,
    )

    resumed = config.resume is not None
    checkpoint, done = (last_checkpoint(Path(config.resume)) or (None, 0)) if resumed else (None, None)
    folder = Path(config.resume) if resumed else new_folder(config)
    config = replace(config, output_dir=str(folder))
    stop = StopAfterStep(f'Go on with: make train ARGS="resume={folder}"')
    with stop:
        print(f"run folder  {folder}" + (f", going on behind step {done}" if resumed else ""))
        load_matcher(config.evaluation.matcher)  # a wrong name fails here, not after training
        arguments = training_arguments(config, folder)
        save_run_config(config, folder)
        set_seed(config.seed)
        quiet()

        tokenizer = load_tokenizer(config.model)
        data = load_data(config.data)
        check_same_data(folder, data.fingerprint, resumed)
        rows = prepare(data.train, tokenizer, config, config.duplication.layout)
        if not rows.items:
            raise ValueError(
                f"nothing to train: of {len(data.train):,} conversations {len(rows.invalid):,} are invalid and "
                f"{rows.without_rows:,} have no turn that duplication.turns chooses and that fits into "
                "duplication.pack_length; make inspect shows why"
            )
        model = load_model(config, len(tokenizer), chains=not rows.branching)
        # Held-out loss is always measured on what inference shows, whatever the layout that was trained; as one pass a
        # turn it is the same sum, and right for layers whose state does not branch as well.
        heldout_layout = "per_turn" if unbranched_layers(model) else "one_pass"
        heldout = prepare(data.heldout, tokenizer, config, heldout_layout)
        valid = [one for one in data.heldout if one.name not in heldout.invalid]
        if not heldout.items:
            arguments = without_heldout(arguments, config)
        collator = OnePassCollator(config.duplication.pack_length, block_size=config.attention.block_size)
        notes = [align_end_of_turn(model, tokenizer, rows.ends)]
        print("\n".join(opening_lines(config, model, data, rows, heldout, arguments, notes)), flush=True)

        with Reporter(config, resumed_from=done) as reporter, ReportingCallback(reporter) as reporting:
            trainer = OnePassTrainer(
                model,
                arguments,
                collator,
                train_dataset=rows.items,
                eval_dataset=heldout.items or None,
                processing_class=tokenizer,
                callbacks=[reporting, *early_stopping(config), stop],
            )
            trainer.remove_callback(PrinterCallback)  # ReportingCallback prints
            report_mask(reporter, collator(rows.items[: config.trainer.conversations_per_step])["packs"][0], collator)
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
            if stop.received is not None:
                raise Interrupted(
                    stop.received,
                    f"stopped behind step {trainer.state.global_step} of {trainer.state.max_steps}, with a checkpoint. "
                    + stop.message,
                )
            trainer.save_model(folder / MODEL)
            measured = heldout_figures(trainer)
            figures, chats = evaluate_chats(model, tokenizer, valid, config)
            report_chats(reporter, chats, trainer.state.global_step)
            result = training_result(trainer, config, data, rows, heldout, measured) | figures
            reporter.summary(result)
            write_json(folder / RESULT, result)
        print("\n".join(closing_lines(result)))
        print(folder)
    return result


@command
def check_command_line() -> None:
    sys.argv[1:] = checked_overrides(sys.argv[1:])


if __name__ == "__main__":
    check_command_line()
    main()
