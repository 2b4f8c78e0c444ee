"""In what a run computes: the dtype of its weights, and whether it mixes precisions."""

from dataclasses import dataclass

import torch

from recipes.configuration.schema import AdapterKind, Dtype, MixedPrecision, TrainConfig


@dataclass(frozen=True)
class Precision:
    """In what a run computes: `dtype` of the weights in memory, `mixed_precision` none or bf16 (never auto).

    description: the same for a reader, with that of adapters.
    """

    dtype: torch.dtype
    mixed_precision: MixedPrecision
    description: str


def resolve_precision(dtype: Dtype, adapter: AdapterKind, mixed_precision: MixedPrecision) -> Precision:
    """What `model.dtype` and `trainer.mixed_precision` are on this machine, where they are `auto`.

    bfloat16 has too few digits for the small steps of training, so weights that are trained are in float32.
    """
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    frozen = adapter is not AdapterKind.none
    if dtype is Dtype.auto:
        weights_dtype = torch.bfloat16 if frozen and bf16 else torch.float32
    else:
        weights_dtype = getattr(torch, dtype)
    if mixed_precision is MixedPrecision.auto:
        mixed_precision = MixedPrecision.bf16 if bf16 and weights_dtype is not torch.float64 else MixedPrecision.none
    name = str(weights_dtype).removeprefix("torch.")
    if adapter is AdapterKind.qlora:
        weights = f"base weights in 4 bits, computed in {name}, adapters in float32"
    elif frozen:
        weights = f"base weights in {name}, adapters in {'float64' if weights_dtype is torch.float64 else 'float32'}"
    else:
        weights = f"weights in {name}"
    mixed = "bf16" if mixed_precision is MixedPrecision.bf16 else "no"
    return Precision(weights_dtype, mixed_precision, f"{weights}, {mixed} mixed precision")


def chatting_precision(config: TrainConfig, device: torch.device) -> torch.autocast:
    """The context in which the model of a run chats, at its end and when it is evaluated again: it computes as training
    did. In other digits other words are likeliest now and then, and the same model gets other figures."""
    precision = resolve_precision(config.model.dtype, config.adapter.kind, config.trainer.mixed_precision)
    return torch.autocast(device.type, torch.bfloat16, enabled=precision.mixed_precision is MixedPrecision.bf16)
