"""How the benchmark measures: time, memory, and the grid of arms over dialogues.

Times are in seconds, memory in bytes.
"""

import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from flexmask import prepare_model
from recipes.arms import Arm, ArmError, Size, Work, make_arms, needed_flops, predicted_flops
from recipes.benchmark_config import DATA_MIXES, REQUIRED_ARMS, ArmName, BenchmarkConfig, ShapeConfig
from recipes.workloads import (
    GSM8K_SOCRATIC,
    MATHCHATSYNC,
    Dialogue,
    Sampler,
    chosen_lengths,
    distinct_prefixes,
    draw_dialogues,
    file_lengths,
    share_lengths,
    statistical_lengths,
)

# Largest relative difference from the first arm that rounding explains, by dtype: of the total loss, and of all
# gradients as one vector (of which a wrong history moves a fifth and more: see keep_thinking's in benchmark.json).
# transformers (5.23) computes norms in float32 whatever the dtype.
_LOSS_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 1e-2}
_GRADIENT_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.1}

# Dense bfloat16 operations a second of a card, from NVIDIA's data sheets (half of their figures with sparsity). The
# words are looked for in the device's name, the first match counts.
PEAK_BF16 = {
    "B200": 2250e12,
    "H200 NVL": 835e12,
    "H200": 989e12,  # SXM
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,  # SXM
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}


class InexactError(Exception):
    """An arm that must compute the loss of per-turn training does not, so its time means nothing."""


# ---- time and memory ----


class Stopwatch:
    """Seconds by label, each from the mark before. On CUDA the marks are events, so that nothing waits for the device
    before `seconds`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str, torch.cuda.Event | float]] = []
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.mark("")

    def mark(self, label: str) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((label, event))
        else:
            self._marks.append((label, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        total: dict[str, float] = {}
        for (_, before), (label, now) in zip(self._marks, self._marks[1:], strict=False):
            spent = before.elapsed_time(now) / 1000 if self.device.type == "cuda" else now - before
            total[label] = total.get(label, 0.0) + spent
        return total


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    watch = Stopwatch(device)
    action()
    watch.mark("all")
    return watch.seconds()["all"]


def interleaved_seconds(
    actions: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Each action once to warm up, then `repeats` rounds of all of them."""
    for action in actions.values():
        action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            times[name].append(seconds_of(action, device))
    return times


def peak_memory(action: Callable[[], object], device: torch.device) -> tuple[object, int]:
    """What the action returns, and the most bytes it held at once beyond what was held before.

    On CUDA torch's allocator says so. On CPU torch's profiler reports every allocation of its CPU allocator, also those
    inside an operation; memory that NumPy or a BLAS library takes for itself is not in it.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = action()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = action()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return result, int(max(np.cumsum([event.nbytes() for event in events]), default=0))


def graphs_compiled() -> int:
    """Graphs that torch.compile has made in this process; each is compiled forward and, with gradients, backward."""
    return counters["stats"]["unique_graphs"]


# ---- the grid ----


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


def sampler_of(config: BenchmarkConfig, mix: str, turns: int | None) -> Sampler:
    """The lengths of a mix; `turns` None for a data set, which has its own."""
    if mix == "gsm8k_socratic":
        if config.gsm8k_path is not None:
            return chosen_lengths(file_lengths(config.gsm8k_path))
        return statistical_lengths(GSM8K_SOCRATIC)
    if mix == "mathchatsync":
        return statistical_lengths(MATHCHATSYNC)
    shares = config.mixes[mix]
    return share_lengths((shares.question, shares.thinking, shares.answer), config.grid.turn_tokens, turns)


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
            check_exact(arm.name, model.dtype, first, reference[0])
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
    if device.type == "cuda":
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


def differences(reference: tuple[float, dict[str, Tensor]], found: tuple[float, dict[str, Tensor]]) -> dict[str, float]:
    """Of the loss, relative; of all gradients as one vector, as a share of its norm."""
    distance = norm = 0.0
    for name, theirs in reference[1].items():
        theirs = theirs.to(found[1][name].device)
        distance += float(torch.linalg.vector_norm((found[1][name] - theirs).double())) ** 2
        norm += float(torch.linalg.vector_norm(theirs.double())) ** 2
    return {"loss_difference": abs(found[0] / reference[0] - 1), "gradient_difference": (distance / norm) ** 0.5}


def check_exact(name: str, dtype: torch.dtype, figures: dict, expected: float) -> None:
    """Raise InexactError where loss or gradients differ from the first arm's by more than rounding explains."""
    loss, gradient = figures["loss_difference"], figures["gradient_difference"]
    if not (loss <= _LOSS_TOLERANCE[dtype] and gradient <= _GRADIENT_TOLERANCE[dtype]):
        raise InexactError(
            f"{name}: loss {figures['loss']:.6f} where the first arm has {expected:.6f} (relative difference "
            f"{loss:.1e}, allowed {_LOSS_TOLERANCE[dtype]:.0e}), gradients differ by {gradient:.1e} of their norm "
            f"(allowed {_GRADIENT_TOLERANCE[dtype]:.0e}): the arms do not train the same, so their times do not compare"
        )


def check_tokens(computed: int, prefixes: Sequence[int], pack_length: int) -> None:
    """One pass computes every distinct prefix once, unless a dialogue is longer than a pack and had to be split."""
    if max(prefixes) <= pack_length and computed != sum(prefixes):
        raise InexactError(f"one_pass computes {computed:,} tokens where there are {sum(prefixes):,} distinct prefixes")


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


def card_peak(name: str) -> float | None:
    """Dense bfloat16 operations a second of a whole card that is known, else None."""
    if "MIG" in name:
        return None
    return next((peak for card, peak in PEAK_BF16.items() if re.search(rf"\b{card}\b", name)), None)
