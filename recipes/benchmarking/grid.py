"""The grid: every arm on the same dialogues, for each mix and number of turns.

Times are in seconds, memory in bytes.
"""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from flexmask import prepare_model
from flexmask.training.layers import decoder_layers
from recipes.benchmarking.arms import Arm, ArmError, make_arms
from recipes.benchmarking.config import DATA_MIXES, REQUIRED_ARMS, ArmName, BenchmarkConfig, ShapeConfig
from recipes.benchmarking.measure import (
    Stopwatch,
    check_same_training,
    check_tokens,
    differences,
    graphs_compiled,
    peak_memory,
    seconds_of,
)
from recipes.benchmarking.work import Size, Work, card_peak, needed_flops, predicted_flops
from recipes.benchmarking.workloads import Dialogue, distinct_prefixes, draw_dialogues, sampler_of


def build_model(shape: ShapeConfig, dtype: torch.dtype, device: torch.device, seed: int) -> PreTrainedModel:
    config = Qwen3Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=1 << 20,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        model = Qwen3ForCausalLM(config)
    return prepare_model(model.to(dtype)).train()


def cells(config: BenchmarkConfig) -> Iterator[tuple[str, int | None]]:
    """Mix and turns of each cell; turns None where the mix is a data set."""
    for mix in config.grid.mixes:
        yield from [(mix, None)] if mix in DATA_MIXES else [(mix, turns) for turns in config.grid.turns]


def grid(config: BenchmarkConfig) -> Iterator[dict]:
    """Measure cell after cell; each comes as soon as it is done."""
    device = torch.device(config.device)
    model = build_model(config.shapes[config.shape], getattr(torch, config.dtype), device, config.seed)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    arms, _ = make_arms(config)
    for mix, turns in cells(config):
        dialogues = draw_dialogues(
            sampler_of(config, mix, turns),
            config.seed,
            config.shapes[config.shape].vocab_size,
            config.grid.conversation_tokens,
        )
        yield {"mix": mix, "turns": turns, **measure_cell(config, model, arms, dialogues)}


def measure_cell(
    config: BenchmarkConfig, model: PreTrainedModel, arms: Sequence[Arm], dialogues: Sequence[Dialogue]
) -> dict:
    """Figures of every arm on the same dialogues: first one run each that is checked and whose memory is measured, then
    timed runs, interleaved.

    Raises InexactError (see the class), and ValueError where one pass or packed per-turn does not fit the device.
    """
    prefixes = [distinct_prefixes(one) for one in dialogues]
    figures: dict[str, dict] = {}
    items: dict[str, list] = {}
    reference: tuple[float, dict[str, Tensor]] | None = None  # loss and gradients of the first arm
    for arm in arms:
        try:
            items[arm.name], first, loss, gradients = first_run(config, model, arm, dialogues)
        except Exception as error:
            if not (arm.foreign or isinstance(error, (ArmError, torch.OutOfMemoryError))):
                raise
            status = str(error).splitlines()[0]
            if arm.name in REQUIRED_ARMS:
                raise ValueError(
                    f"{arm.name}: {status}; lower pack_length, or choose a smaller shape or gradient_checkpointing=true"
                ) from error
            model.zero_grad(set_to_none=True)
            figures[arm.name] = {"status": status}
            continue
        if reference is None:  # kept on the CPU, out of the way of what the other arms need
            reference = (loss, {name: gradient.cpu() for name, gradient in gradients.items()})
        first |= differences(reference, (loss, gradients))
        del gradients
        if arm.exact:
            check_same_training(arm.name, model.dtype, first, reference[0])
        if arm.name == ArmName.one_pass:
            check_tokens(first["tokens_computed"], prefixes, config.pack_length)
        figures[arm.name] = {"status": "ok"} | first
    for arm, timed in time_arms(config, model, [arm for arm in arms if arm.name in items], items):
        figures[arm.name] |= timed
    peak = card_peak(torch.cuda.get_device_name(model.device)) if model.device.type == "cuda" else None
    add_predictions(figures, Size.of(model), config.gradient_checkpointing, peak)
    return {
        "dialogues": len(dialogues),
        "turns_mean": statistics.mean(len(dialogue.turns) for dialogue in dialogues),
        "distinct_prefixes": sum(prefixes),
        "arms": {str(name): values for name, values in figures.items()},
    }


def first_run(
    config: BenchmarkConfig, model: PreTrainedModel, arm: Arm, dialogues: Sequence[Dialogue]
) -> tuple[list, dict, float, dict[str, Tensor]]:
    """The arm's items on the device, what is known of them before any timing, and the loss and its gradients."""
    device = model.device
    preparation = []
    for _ in range(config.grid.repeats):
        start = time.perf_counter()
        items = arm.prepare(dialogues)
        preparation.append(time.perf_counter() - start)
    items = [arm.to(item) for item in items]
    works = [arm.work(item) for item in items]
    work = sum(works[1:], start=works[0])
    graphs = graphs_compiled()
    if device.type == "cuda" or arm.compiled:
        run(model, arm, items)  # compiles, and settles the allocator
    (loss, _), peak = peak_memory(lambda: run(model, arm, items), device)
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }
    model.zero_grad(set_to_none=True)  # which leaves those in `gradients` alive
    figures = asdict(work) | {
        "loss": loss,
        "peak_memory": peak,
        "graphs_compiled": graphs_compiled() - graphs,
        "preparation_seconds": statistics.median(preparation),
        "mask_seconds": statistics.median(
            seconds_of(lambda: [arm.mask(item) for item in items], device) for _ in range(config.grid.repeats)
        ),
    }
    return items, figures, loss, gradients


def run(model: PreTrainedModel, arm: Arm, items: Sequence) -> tuple[float, dict[str, float]]:
    """Forward and backward of every item: the total loss, and the seconds of the two stages. Gradients are left."""
    model.set_attn_implementation(arm.attention)
    for layer in decoder_layers(model):
        if arm.compiled:
            layer.compile()
        else:
            layer._compiled_call_impl = None
    model.zero_grad(set_to_none=True)
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    watch = Stopwatch(model.device)
    for item in items:
        loss = arm.loss(model, item)
        watch.mark("forward")
        loss.backward()
        watch.mark("backward")
        total += loss.detach()
    stages = watch.seconds()
    return total.item(), stages


def time_arms(
    config: BenchmarkConfig, model: PreTrainedModel, arms: Sequence[Arm], items: Mapping[str, list]
) -> Iterator[tuple[Arm, dict]]:
    """Rounds of one run an arm, until there are `grid.repeats` or `grid.cell_seconds` have passed; medians."""
    stages: dict[str, list[dict[str, float]]] = {arm.name: [] for arm in arms}
    graphs: dict[str, int] = dict.fromkeys(stages, 0)
    began = time.perf_counter()
    for round_ in range(config.grid.repeats):
        if round_ and time.perf_counter() - began > config.grid.cell_seconds:
            break
        for arm in arms:
            before = graphs_compiled()
            stages[arm.name].append(run(model, arm, items[arm.name])[1])
            graphs[arm.name] += graphs_compiled() - before
    model.zero_grad(set_to_none=True)
    for arm in arms:
        totals = [sum(stage.values()) for stage in stages[arm.name]]
        yield (
            arm,
            {
                "seconds": statistics.median(totals),
                "all_seconds": totals,
                "forward_seconds": statistics.median(stage["forward"] for stage in stages[arm.name]),
                "backward_seconds": statistics.median(stage["backward"] for stage in stages[arm.name]),
                "graphs_compiled_while_timed": graphs[arm.name],
            },
        )


def add_predictions(figures: dict[str, dict], size: Size, checkpointing: bool, peak: float | None) -> None:
    """To every arm that ran: its floating point operations; how many times one pass it takes, by the operations needed,
    by those computed, and measured; and model FLOPs utilisation where the card's peak is known."""
    names = Work.__dataclass_fields__
    ran = {name: values for name, values in figures.items() if values["status"] == "ok"}
    works = {name: Work(**{key: values[key] for key in names}) for name, values in ran.items()}
    for name, values in ran.items():
        values["flops"] = predicted_flops(size, works[name], checkpointing)
    ours = ran[ArmName.one_pass]
    for name, values in ran.items():
        values["needed_ratio"] = needed_flops(size, works[name]) / needed_flops(size, works[ArmName.one_pass])
        values["predicted_ratio"] = sum(values["flops"].values()) / sum(ours["flops"].values())
        values["measured_ratio"] = values["seconds"] / ours["seconds"]
        values["mfu"] = None if peak is None else needed_flops(size, works[name]) / values["seconds"] / peak
