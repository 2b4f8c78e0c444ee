"""What a run says first and last: the words of a terminal, and the figures of result.json."""

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from flexmask.model.support import unbranched_layers, unwrapped
from recipes.configuration.schema import (
    GENERATED,
    AdapterConfig,
    AdapterKind,
    AttentionBackend,
    ContextConfig,
    DataKind,
    ObjectiveKind,
    TrainConfig,
    TrainerConfig,
)
from recipes.distributed import ranks
from recipes.evaluation.replies import Thinking
from recipes.models.load import branching_note
from recipes.models.precision import resolve_precision
from recipes.preparation.rows import PreparedData
from recipes.run.arguments import planned_steps
from recipes.run.environment import device_name, environment
from recipes.sources.invalid import kinds
from recipes.sources.invalid import lines as invalid_kinds
from recipes.sources.load import LoadedData
from recipes.terminal.command import typed

# What is measured on held-out data.
FIGURES = ("loss", "thinking_loss", "answer_loss", "preference_accuracy", "preference_margin")
# Going through the data more often than this is rarely meant: conversations are learned by heart.
MANY_EPOCHS = 10


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def opening_lines(
    config: TrainConfig,
    model: PreTrainedModel,
    data: LoadedData,
    rows: PreparedData,
    heldout: PreparedData,
    device: torch.device,
    note: str | None,
) -> list[str]:
    """Model, data and length of a run, a line or two each; `note` is a sentence behind them."""
    return [
        *_model_lines(config, model, device),
        *data_lines(config, data, rows, heldout),
        *([f"note        {note}"] if note else []),
    ]


def _model_lines(config: TrainConfig, model: PreTrainedModel, device: torch.device) -> list[str]:
    whole = unwrapped(model)  # counts weights that are stored in 4 bits as what they stand for
    total, trained = whole.num_parameters(), whole.num_parameters(only_trainable=True)
    weights = "random weights, trained from scratch" if config.model.from_scratch else config.model.name_or_path
    which = (
        "all trained"
        if trained == total
        else f"{trained:,} trained ({trained / total:.2%}, adapter={config.adapter.kind})"
    )
    precision = resolve_precision(config.model.dtype, config.adapter.kind, config.trainer.mixed_precision)
    return [
        f"model       {type(whole).__name__} ({weights}): {total:,} parameters, {which}",
        f"device      {device_name(device)}; {precision.description}{_processes(config)}",
        f"attention   {_attention(config, model, device.type)}",
    ]


def _processes(config: TrainConfig) -> str:
    if ranks.count() == 1:
        return ""
    packs = ", each pack divided over all" if config.parallel.context_parallel else ""
    return f"; {ranks.count()} processes ({config.parallel.kind}{packs})"


def _attention(config: TrainConfig, model: PreTrainedModel, device: str) -> str:
    if unbranched_layers(model):
        return "the model's own, one row a pack: its layers carry a state that does not branch with the tree"
    kernel = "block-sparse on CPU, where FlexAttention has no gradients"
    if device == "cuda":
        flash = config.attention.backend is AttentionBackend.flash
        kernel = "FlashAttention 4 through FlexAttention" if flash else "compiled FlexAttention"
    return "; ".join(part for part in (kernel, branching_note(model)) if part)


def data_lines(config: TrainConfig, data: LoadedData, rows: PreparedData, heldout: PreparedData) -> list[str]:
    """What is trained, what it costs against one pass a turn, what is left out, and how long the run is."""
    items = "conversation" if config.objective.kind is ObjectiveKind.sft else "pair"
    formats = ", ".join(name if len(data.formats) == 1 else f"{n:,} {name}" for name, n in data.formats.items())
    lines = [
        f"data        {counted(len(rows.items), items)}, {counted(rows.turns, 'trained turn')}, "
        f"{len(data.heldout):,} held out"
    ]
    if not len(data.heldout):
        lines.append(
            "            so no loss is measured on held-out conversations and the model does not chat; "
            "data.heldout_conversations=1 holds one out"
        )
    if config.data.kind not in GENERATED:
        lines.append(f"            read as {formats}")
    if config.data.kind is DataKind.mix:
        lines += [f"            {name}: {count}" for name, count in data.sources.items()]
    if config.context.rule is not None:
        lines.append(f"            history as {_rule(config.context)} shows it")
    if config.deployed_context != config.context:
        lines.append(f"            held-out losses and chats under {_rule(config.deployed_context)}")
    layout = config.duplication.layout
    computed = f"{rows.tokens_computed:,} tokens computed in layout {layout}, {rows.tokens_trained:,} trained"
    if rows.tokens_computed and rows.tokens_per_turn > rows.tokens_computed:
        ratio = rows.tokens_per_turn / rows.tokens_computed
        computed += f"; one pass a turn computes {ratio:.2f} times as many: about the speed-up to expect"
    lines.append(f"            {computed}")
    if not rows.branching:
        lines.append(
            "            no row branches, so nothing is duplicated: the template keeps thinking, or there is none"
        )
    if rows.retokenized_texts:
        lines.append(
            f"            {rows.retokenized_texts:,} texts tokenized anew from their beginning: slow, not wrong"
        )
    invalid = left_out(data, rows, heldout)
    counts = {
        "invalid conversations": len(invalid),
        "turns longer than a pack": rows.dropped_turns,
        "held-out turns longer than a pack": heldout.dropped_turns,
        "conversations with nothing to train": rows.without_rows,
    }
    said = [f"{count:,} {what}" for what, count in counts.items() if count]
    lines.append(f"left out    {', '.join(said) or 'nothing'}")
    lines += [f"            {line}" for line in invalid_kinds(invalid)]
    return [*lines, f"steps       {_steps(config.trainer, rows)}"] if rows.items else lines


def data_totals(data: LoadedData, rows: PreparedData, heldout: PreparedData) -> dict[str, Any]:
    """The same as numbers, for data.json."""
    invalid = left_out(data, rows, heldout)
    return {
        "sources": {name: asdict(counts) for name, counts in data.sources.items()},
        "formats": data.formats,
        "conversations": len(rows.items),
        "turns": rows.turns,
        "tokens_computed": rows.tokens_computed,
        "tokens_trained": rows.tokens_trained,
        "tokens_per_turn": rows.tokens_per_turn,
        "tokens_distinct": rows.tokens_distinct,
        "tokens_copied": rows.tokens_copied,
        "branching_conversations": rows.branching,
        "competing_conversations": rows.competing,
        "retokenized_texts": rows.retokenized_texts,
        "heldout_conversations": len(data.heldout),
        "heldout_turns": heldout.turns,
        "heldout_tokens": heldout.tokens_computed,
        "dropped_conversations": len(invalid),
        "dropped_turns": rows.dropped_turns,
        "dropped_heldout_turns": heldout.dropped_turns,
        "conversations_without_turns": rows.without_rows,
    }


def _rule(context: ContextConfig) -> str:
    if context.rule is None:
        return "the chat template alone"
    return f"{context.rule}({', '.join(f'{name}={value!r}' for name, value in context.arguments.items())})"


def left_out(data: LoadedData, rows: PreparedData, heldout: PreparedData) -> dict[str, str]:
    """Why each conversation that cannot be read or rendered is left out (`data.on_invalid=drop`), by name."""
    return data.dropped | rows.invalid | heldout.invalid


def _steps(trainer: TrainerConfig, rows: PreparedData) -> str:
    """How long the run is, as steps and as times through the data; warns of very many."""
    conversations = len(rows.items)
    steps, epochs = planned_steps(trainer, conversations)
    if epochs > MANY_EPOCHS and trainer.steps:
        warnings.warn(
            f"trainer.steps={trainer.steps:,} go {epochs:,.0f} times through {counted(conversations, 'conversation')}, "
            "which will be learned by heart; give trainer.epochs=3, or fewer steps",
            stacklevel=3,
        )
    a_step = min(trainer.conversations_per_step, conversations)
    tokens = rows.tokens_computed / conversations * a_step
    return (
        f"{counted(steps, 'step')} of {counted(a_step, 'conversation')}, about {tokens:,.0f} tokens each; "
        f"{epochs:,.3g} times through the data"
    )


def heldout_figures(trainer) -> dict[str, float]:
    """Held-out losses of the model as it is saved: measured now, unless that was done at its step."""
    keeps_best = trainer.args.load_best_model_at_end
    step = trainer.state.best_global_step if keeps_best else trainer.state.global_step
    for entry in reversed(trainer.state.log_history):
        if "eval_loss" in entry and entry["step"] == step:
            return entry
    return trainer.evaluate() if trainer.eval_dataset is not None else {}


def training_result(
    trainer,
    config: TrainConfig,
    data: LoadedData,
    rows: PreparedData,
    heldout: PreparedData,
    measured: dict[str, float],
) -> dict:
    """What `result.json` says of the training itself, and of what it ran on. `measured`: from `trainer.evaluate`."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    totals = trainer.run_totals
    best = trainer.state.best_model_checkpoint if config.trainer.keep_best else None
    return {
        "layout": str(config.duplication.layout),
        "seed": config.seed,
        "steps": trainer.state.global_step,
        "planned_steps": trainer.state.max_steps,
        "epochs": trainer.state.epoch,
        "train_seconds": round(totals.seconds, 2),
        "tokens_computed": totals.tokens_computed,
        "tokens_trained": totals.tokens_trained,
        "pack_fill": totals.tokens_computed / (totals.packs * config.duplication.pack_length),
        "loss_first": losses[0],
        "loss_last": losses[-1],
        **{f"heldout_{name}": measured.get(f"eval_{name}") for name in FIGURES},
        "best_step": int(best.rpartition("-")[2]) if best else None,
        "formats": data.formats,
        "dropped_conversations": len(left_out(data, rows, heldout)),
        "dropped_by_reason": dict(kinds(left_out(data, rows, heldout)).most_common()),
        "dropped_turns": rows.dropped_turns,
        "dropped_heldout_turns": heldout.dropped_turns,
        "conversations_without_turns": rows.without_rows,
        **environment(config, trainer.args.device),
    }


def closing_lines(result: dict) -> list[str]:
    lines = [
        f"trained {counted(result['steps'], 'step')} in {result['train_seconds']:.0f} s: loss "
        f"{result['loss_first']:.3f} -> {result['loss_last']:.3f}, {result['tokens_computed']:,} tokens computed, "
        f"{result['tokens_trained']:,} trained"
    ]
    if result["steps"] < result["planned_steps"]:
        lines[0] = lines[0].replace(" in ", f" of {result['planned_steps']:,} in ", 1)
        lines.append("stopped early: the held-out loss went down no more (trainer.early_stopping)")
    if result["best_step"]:
        lines.append(f"model/ is the checkpoint of step {result['best_step']}, which has the lowest held-out loss")
    if result["heldout_loss"] is not None:
        lines.append(
            "held out: "
            + ", ".join(
                f"{name.replace('_', ' ')} {result[f'heldout_{name}']:.3f}"
                for name in FIGURES
                if result[f"heldout_{name}"] is not None
            )
        )
    return lines + _chat_lines(result)


def adapter_lines(adapter: AdapterConfig, end_note: str | None, folder: Path) -> list[str]:
    """What somebody must know of model/ where it holds an adapter; `end_note` as `align_end_of_turn` gives it."""
    if adapter.kind is AdapterKind.none:
        return []
    lines = [f"model/ holds the adapter; {typed('merge', folder)} writes it and its base model as one plain model"]
    if end_note is not None:
        lines.append("merge it before it is used: loaded as an adapter, it stops where the base model does")
    if adapter.use_dora:
        lines.append("merge it before it is used without peft: transformers 5.23 does not read what DoRA adds")
    return lines


def _chat_lines(result: dict) -> list[str]:
    """How chatting went, by what was measured of it (`recipes.evaluation.replies.figures`)."""
    lines = []
    for prefix, history in (("", "with its own history"), ("teacher_", "with the data's history")):
        if result.get(f"{prefix}answer_accuracy") is not None:
            if (rate := result.get(f"{prefix}success_rate")) is not None:
                lines.append(f"acting {history}: {rate:.1%} of episodes succeeded")
            lines.append(
                f"chatting {history}: {result[f'{prefix}answer_accuracy']:.1%} of answers right, "
                f"{result[f'{prefix}conversation_accuracy']:.1%} of conversations all right"
            )
        if result.get(f"{prefix}replies_ended") is not None:
            shares = [(kind, result[f"{prefix}thinking_{kind}"]) for kind in reversed(Thinking)]
            lines.append(
                f"  {result[f'{prefix}replies_ended']:.1%} of replies ended by themselves; thinking "
                + ", ".join(f"{kind} {share:.1%}" for kind, share in shares if share)
            )
        if (right := result.get(f"{prefix}thinking_accuracy")) is not None:
            lines.append(f"  {right:.1%} of thinking right")
        if probed := result.get(f"{prefix}probed_replies"):
            follow = result[f"{prefix}answers_follow_thinking"]
            lines.append(f"  {follow:.1%} of {probed:,} answers follow when their thinking is changed")
    return lines
