"""The settings of a run as sentences: what is trained, on what, and how."""

from collections.abc import Mapping
from typing import Any

from recipes.configuration.schema import (
    AdapterKind,
    ContextConfig,
    DataKind,
    Layout,
    ModelKind,
    ObjectiveKind,
    ParallelKind,
    TrainConfig,
    TrainerConfig,
)

_LAYOUTS = {
    Layout.one_pass: "All turns of a conversation stand in one row, each behind what the model is shown when it is "
    "used (layout one_pass), with exactly the loss of one forward pass a turn.",
    Layout.per_turn: "Each turn is a row of its own, behind what the model is shown when it is used (layout per_turn).",
    Layout.keep_thinking: "The thinking of earlier turns stays in the history, unlike when the model is used (layout "
    "keep_thinking): a control.",
    Layout.last_turn: "Only the last turn of each conversation is trained (layout last_turn).",
}
_GENERATED = {
    DataKind.tutoring: "generated tutoring dialogues",
    DataKind.careless_tutoring: "generated tutoring dialogues of a tutor who mostly forgets to carry",
    DataKind.tutoring_pairs: "turns of generated tutoring dialogues, with a right answer and a careless one",
    DataKind.parcels: "generated episodes of a clerk who looks up parcels with a tool",
}


def sentences(config: TrainConfig, data: Mapping[str, Any]) -> list[str]:
    """Paragraphs: model and data, what is trained of it, how long, and how it is measured.

    data: the totals that data.json has; empty in the folder of a run that has not written any.
    """
    return [
        f"{_model(config)} {_data(config, data)}",
        " ".join(one for one in (_objective(config), _layout(config), _context(config)) if one),
        f"{_length(config)} {_optimizer(config.trainer)} {_packs(config)}",
        _evaluation(config, data),
    ]


def _model(config: TrainConfig) -> str:
    model, adapter = config.model, config.adapter
    if model.kind is ModelKind.tiny and model.tiny:
        which = f"A small Qwen3-architecture model ({model.tiny.layers} layers, {model.tiny.hidden_size} wide)"
        return f"{which} is trained from random weights."
    which = f"{model.name_or_path}{' from random weights' if model.from_scratch else ''}"
    if adapter.kind is AdapterKind.none:
        return f"All weights of {which} are trained."
    name = "DoRA" if adapter.use_dora else "LoRA"
    modules = adapter.target_modules
    where = modules if isinstance(modules, str) else ", ".join(modules)
    also = f", and {', '.join(adapter.modules_to_save)} in full" if adapter.modules_to_save else ""
    bits = ", whose weights are kept in 4 bits" if adapter.kind is AdapterKind.qlora else ""
    adapters = f"{name} adapters of rank {adapter.r} (alpha {adapter.lora_alpha}) on {where}{also}"
    return f"{adapters} are trained on {which}{bits}."


def _data(config: TrainConfig, data: Mapping[str, Any]) -> str:
    source, items = _source(config), f"{_item(config)}s"
    if "conversations" not in data:
        return f"The data is {source}."
    return (
        f"The data is {source}: {data['conversations']:,} {items} with {data['turns']:,} trained turns, and "
        f"{data['heldout_conversations']:,} more that are held out."
    )


def _item(config: TrainConfig) -> str:
    return "conversation" if config.objective.kind is ObjectiveKind.sft else "pair"


def _source(config: TrainConfig) -> str:
    data = config.data
    if data.kind is DataKind.mix:
        return f"a mix of {', '.join(data.sources)}"
    if data.kind in _GENERATED:
        return _GENERATED[data.kind]
    if data.path is not None:
        return str(data.path)
    if data.hub_id is not None:
        part = f", {data.hub_config}" if data.hub_config else ""
        return f"{data.hub_id} of the hub ({data.split}{part})"
    return "GSM8K in Socratic form, of the hub"


def _objective(config: TrainConfig) -> str:
    of, weights = config.objective, config.duplication
    if of.kind is ObjectiveKind.dpo:
        return (
            f"The model learns to prefer the better answer of each pair to the worse one (DPO, loss {of.loss}, beta "
            f"{of.beta:g}), against itself as it was before."
        )
    if weights.thinking_weight == weights.answer_weight == 1:
        return "It learns to generate the thinking and the answer of each trained turn (cross-entropy)."
    return (
        "It learns to generate the thinking and the answer of each trained turn (cross-entropy); a token of thinking "
        f"weighs {weights.thinking_weight:g}, one of an answer {weights.answer_weight:g}."
    )


def _layout(config: TrainConfig) -> str:
    said, turns = _LAYOUTS[config.duplication.layout], config.duplication.turns
    return said if turns == "all" else f"{said} Of the assistant turns, {turns} are trained (duplication.turns)."


def _context(config: TrainConfig) -> str:
    said = ""
    if config.context.rule is not None:
        said = f"A history is what {rule(config.context)} shows of it."
    if config.deployed_context != config.context:
        said += f" Losses and chats on held-out data are under {rule(config.deployed_context)}."
    return said.strip()


def rule(context: ContextConfig | Mapping[str, Any]) -> str:
    """A context rule and its arguments."""
    if isinstance(context, Mapping):  # as config.yaml has it
        context = ContextConfig(context.get("rule"), dict(context.get("arguments") or {}))
    if context.rule is None:
        return "the chat template alone"
    return f"{context.rule}({', '.join(f'{name}={value!r}' for name, value in context.arguments.items())})"


def _length(config: TrainConfig) -> str:
    trainer = config.trainer
    a_step = f"{trainer.conversations_per_step:,} {_item(config)}{'s' * (trainer.conversations_per_step != 1)}"
    if trainer.steps is not None:
        return f"It goes on for {trainer.steps:,} optimizer steps of {a_step} each."
    return f"It goes {trainer.epochs:g} times through the data, with {a_step} an optimizer step."


def _optimizer(trainer: TrainerConfig) -> str:
    name = "AdamW" if trainer.optimizer == "auto" else trainer.optimizer
    share = 0 < trainer.warmup_steps < 1
    warmup = (
        f"{trainer.warmup_steps:.3g} of the steps"
        if share
        else f"{trainer.warmup_steps:g} step{'s' * (trainer.warmup_steps != 1)}"
    )
    return (
        f"The optimizer is {name}, with a learning rate of up to {trainer.learning_rate:g} in a {trainer.schedule} "
        f"schedule behind a warm-up of {warmup}, and a weight decay of {trainer.weight_decay:g}; gradients are clipped "
        f"at a norm of {trainer.max_grad_norm:g}."
    )


def _packs(config: TrainConfig) -> str:
    said = f"A forward pass has at most {config.duplication.pack_length:,} tokens."
    if config.model.gradient_checkpointing:
        said += " Activations are computed again in backward (gradient checkpointing)."
    if config.parallel.kind is ParallelKind.fsdp:
        said += " Under several processes the model is divided over them (FSDP)."
    if config.parallel.context_parallel:
        said += " Each pack is divided over all processes."
    return said + f" The seed is {config.seed}."


def _evaluation(config: TrainConfig, data: Mapping[str, Any]) -> str:
    trainer, chats = config.trainer, config.evaluation
    if data.get("heldout_conversations") == 0:
        return "No conversation is held out, so there are no held-out losses and no chats."
    said = "Held-out losses are measured at the end"
    if trainer.evaluate_every:
        said = f"Held-out losses are measured every {trainer.evaluate_every:,} steps"
    if trainer.keep_best:
        said += ", and the checkpoint of the lowest one is the model"
    if trainer.early_stopping:
        said += f"; the run ends early after {trainer.early_stopping:,} of them without a lower one"
    if chats.conversations == 0:
        return f"{said}. No chats are evaluated."
    count = "all held-out conversations" if chats.conversations is None else f"{chats.conversations:,} held-out ones"
    histories = {"own": "its own earlier answers", "teacher": "the data's earlier answers"}
    history = histories.get(chats.history, "its own earlier answers, and then the data's,")
    up_to = "" if chats.conversations is None else "up to "
    return (
        f"{said}. Then the model chats through {up_to}{count} with {history} in the history; which answers are right "
        f"is judged by the matcher {chats.matcher}."
    )
