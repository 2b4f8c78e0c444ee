"""Fine-tune a model on multi-turn reasoning conversations, then chat with it.

    make train                                        the embedded default
    make train ARGS="duplication=per_turn seed=1"     any override of conf/
    make train ARGS="resume=runs/<folder>"            go on where an interrupted run stopped

Leaves in the run folder: config.yaml, metrics.jsonl, model/ (what `from_pretrained` loads), checkpoints/,
block_mask.png, chats.jsonl, result.json. Prints the run folder on its last line.
"""

import json
import os
import platform
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from recipes.config import CONF_DIR, TrainConfig, load_run_config, save_run_config, to_dataclass

LIBRARIES = ("flexmask", "torch", "transformers", "datasets", "accelerate", "hydra-core", "wandb")


@hydra.main(version_base="1.3", config_path=CONF_DIR, config_name="config")
def main(composed: DictConfig) -> None:
    try:
        config = to_dataclass(composed)
        if config.resume is not None:
            others = [o for o in HydraConfig.get().overrides.task if not o.startswith("resume=")]
            if others:
                raise ValueError(
                    f"resume={config.resume}: goes on with the configuration in that folder; remove {', '.join(others)}"
                )
            config = load_run_config(Path(config.resume), [f"resume='{config.resume}'"])
        train(config)
    except (ValueError, FloatingPointError) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.exit(f"error: {error}\n(HYDRA_FULL_ERROR=1 shows where)")


def train(config: TrainConfig) -> dict:
    """One run from data to `result.json`; returns what that file holds."""
    # torch and transformers take seconds to import: a wrong configuration has failed before.
    from transformers import PrinterCallback, set_seed
    from transformers.utils.logging import disable_progress_bar

    from flexmask import OnePassCollator, OnePassTrainer
    from flexmask.models import unbranched_layers
    from recipes.evaluate import evaluate_chats
    from recipes.models import branching_note, load_model, load_tokenizer
    from recipes.preparation import load_data, prepare
    from recipes.reporting import Reporter
    from recipes.trainer import ReportingCallback, report_chats, report_mask, training_arguments

    folder = Path(config.output_dir)
    checkpoint, done = last_checkpoint(folder) if config.resume else (None, None)
    refuse_to_overwrite(config, folder)
    save_run_config(config, folder)
    set_seed(config.seed)
    disable_progress_bar()  # of the Trainer: a line a log is enough

    tokenizer = load_tokenizer(config.model)
    data = load_data(config.data)
    rows = prepare(data.train, tokenizer, config, config.duplication.layout)
    model = load_model(config.model, len(tokenizer), config.seed, chains=not rows.branching)
    # Held-out loss is always measured on what inference shows, whatever the layout that was trained; as one pass a turn
    # it is the same sum, and right for layers whose state does not branch as well.
    heldout_layout = "per_turn" if unbranched_layers(model) else "one_pass"
    heldout_rows = prepare(data.heldout, tokenizer, config, heldout_layout)
    collator = OnePassCollator(config.duplication.pack_length, block_size=config.attention.block_size)
    print(
        f"{len(rows.items):,} conversations in layout {config.duplication.layout}, "
        f"{model.num_parameters():,} parameters; left out: {len(data.dropped)} invalid conversations, "
        f"{rows.dropped_turns} turns longer than a pack, {rows.without_rows} conversations with nothing to train"
        + (f"; {rows.slow_turns} turns rendered the slow way" if rows.slow_turns else "")
        + ("; no row branches, so nothing is duplicated" if not rows.branching else "")
        + (f"; {note}" if (note := branching_note(model)) else "")
    )

    with Reporter(config, resumed_from=done) as reporter:
        trainer = OnePassTrainer(
            model,
            training_arguments(config, folder / "checkpoints"),
            collator,
            train_dataset=rows.items,
            callbacks=[ReportingCallback(reporter)],
        )
        trainer.remove_callback(PrinterCallback)  # ReportingCallback prints
        report_mask(reporter, collator(rows.items[: config.trainer.conversations_per_step])["packs"][0], collator)
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model(folder / "model")
        tokenizer.save_pretrained(folder / "model")

        heldout = trainer.evaluate(heldout_rows.items, metric_key_prefix="heldout") if heldout_rows.items else {}
        figures, chats = evaluate_chats(model, tokenizer, data.heldout, config)
        report_chats(reporter, chats, config.trainer.steps)
        result = {
            **training_result(trainer, config),
            "heldout_loss": heldout.get("heldout_loss"),
            **figures,
            "dropped_conversations": len(data.dropped),
            "dropped_turns": rows.dropped_turns,
        }
        reporter.summary(result)
        write_json(folder / "result.json", result)
    print_summary(result)
    print(folder)
    return result


def training_result(trainer, config: TrainConfig) -> dict:
    """What `result.json` says of the training itself, and of what it ran on."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    totals = trainer.run_totals
    return {
        "layout": str(config.duplication.layout),
        "seed": config.seed,
        "steps": trainer.state.global_step,
        "train_seconds": round(totals.seconds, 2),
        "tokens_computed": totals.tokens_computed,
        "tokens_trained": totals.tokens_trained,
        "pack_fill": totals.tokens_computed / totals.capacity,
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "device": device_name(trainer.args.device),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        "git_commit": git_commit(),
    }


def refuse_to_overwrite(config: TrainConfig, folder: Path) -> None:
    """Raise ValueError when a run that is not to be resumed would write into the folder of another."""
    taken = [name for name in ("metrics.jsonl", "checkpoints", "model") if (folder / name).exists()]
    if taken and not config.resume:
        raise ValueError(
            f"{folder}: holds a run already ({', '.join(taken)}), which would be overwritten; choose another folder, "
            f"or go on with it: resume={folder}"
        )


def last_checkpoint(folder: Path) -> tuple[str, int]:
    """The newest complete checkpoint of an interrupted run, and its step.

    A checkpoint is complete when it holds trainer_state.json, which the Trainer (transformers 5.23) writes last.
    Raises ValueError when the run has finished or never saved one.
    """
    if (folder / "result.json").exists():
        raise ValueError(f"resume={folder}: this run has finished; its result is in {folder / 'result.json'}")
    complete = [path.parent for path in folder.glob("checkpoints/checkpoint-*/trainer_state.json")]
    if not complete:
        raise ValueError(f"resume={folder}: no complete checkpoint in {folder / 'checkpoints'}; start the run again")
    step, newest = max((int(path.name.split("-")[1]), str(path)) for path in complete)
    return newest, step


def device_name(device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def git_commit() -> str | None:
    """Commit of the checkout the recipe runs from, "-dirty" behind it when files were changed; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write_json(path: Path, value: dict) -> None:
    """Whole or not at all: a reader never finds half a file."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def print_summary(result: dict) -> None:
    accuracy = result["answer_accuracy"]
    print(
        f"trained {result['steps']} steps in {result['train_seconds']:.0f} s: loss {result['loss_first']:.3f} -> "
        f"{result['loss_last']:.3f}, {result['tokens_computed']:,} tokens computed, "
        f"{result['tokens_trained']:,} trained"
    )
    if accuracy is not None:
        print(
            f"chatting on held-out conversations: {accuracy:.1%} of answers right, "
            f"{result['conversation_accuracy']:.1%} of conversations all right"
        )


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"  # for users: no source line
    main()
