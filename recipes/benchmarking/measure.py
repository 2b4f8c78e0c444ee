"""How the benchmark measures: time, memory, and whether two ways of training give the same loss and gradients.

Times are in seconds, memory in bytes.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

# Largest relative difference from the first arm that rounding explains, by dtype: of the total loss, and of all
# gradients as one vector (of which a wrong history moves a fifth and more: see keep_thinking's in benchmark.json).
# transformers (5.23) computes norms in float32 whatever the dtype.
_LOSS_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 1e-2}
_GRADIENT_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.1}


class InexactError(Exception):
    """An arm that must compute the loss of per-turn training does not, so its time means nothing."""


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
    actions: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, warm: bool = False
) -> dict[str, list[float]]:
    """Each action once to warm up, unless all are `warm`, then `repeats` rounds of all of them."""
    for action in actions.values() if not warm else ():
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


def differences(reference: tuple[float, dict[str, Tensor]], found: tuple[float, dict[str, Tensor]]) -> dict[str, float]:
    """Of the loss, relative; of all gradients as one vector, as a share of its norm."""
    distance = norm = 0.0
    for name, theirs in reference[1].items():
        theirs = theirs.to(found[1][name].device)
        distance += float(torch.linalg.vector_norm((found[1][name] - theirs).double())) ** 2
        norm += float(torch.linalg.vector_norm(theirs.double())) ** 2
    return {"loss_difference": abs(found[0] / reference[0] - 1), "gradient_difference": (distance / norm) ** 0.5}


def check_same_training(name: str, dtype: torch.dtype, figures: dict, expected: float) -> None:
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
