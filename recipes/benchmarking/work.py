"""What an arm computes, and the floating point operations of it."""

import re
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Work:
    """What an arm computes for one cell. `pairs`: of a query and a key, of one head and one layer."""

    rows: int  # forward passes for the naive arm, rows laid end to end for a packed one
    tokens_computed: int
    tokens_trained: int
    visible_pairs: int
    computed_pairs: int  # as far as the kernel's blocks reach; the visible ones where it has no blocks

    def __add__(self, other: "Work") -> "Work":
        return Work(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Size:
    """What the floating point operations of a model depend on."""

    linear_weights: int  # of all layers, without the output projection
    attention_width: int  # query heads times head dimension, over all layers
    output_weights: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Size":
        output = model.get_output_embeddings()
        linears = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not output]
        config = model.config
        return cls(
            linear_weights=sum(module.weight.numel() for module in linears),
            attention_width=config.num_hidden_layers * config.num_attention_heads * config.head_dim,
            output_weights=output.weight.numel(),
        )


# Products of an attention pair, each of 2 operations a head dimension: forward two (scores, values); backward five
# (scores again, and the gradients of values, probabilities, queries and keys), as every kernel here recomputes scores.
_FORWARD_PRODUCTS, _BACKWARD_PRODUCTS = 2, 5


def predicted_flops(size: Size, work: Work, checkpointing: bool = False) -> dict[str, float]:
    """Floating point operations of forward and backward, by part; element-wise work is not counted.

    A weight costs 2 a token forward and 4 backward, and logits only where a token is trained. With gradient
    checkpointing the layers' forward runs twice.
    """
    layers = 8 if checkpointing else 6
    products = _FORWARD_PRODUCTS * (2 if checkpointing else 1) + _BACKWARD_PRODUCTS
    return {
        "linear": layers * size.linear_weights * work.tokens_computed,
        "attention": 2 * products * size.attention_width * work.computed_pairs,
        "logits": 6 * size.output_weights * work.tokens_trained,
    }


def needed_flops(size: Size, work: Work) -> float:
    """Operations that the loss and its gradients need, for model FLOPs utilisation: no padding, no pair that is not
    visible, nothing computed twice."""
    return (
        6 * size.linear_weights * work.tokens_computed
        + 2 * 6 * size.attention_width * work.visible_pairs
        + 6 * size.output_weights * work.tokens_trained
    )


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


def card_peak(name: str) -> float | None:
    """Dense bfloat16 operations a second of a whole card that is known, else None."""
    if "MIG" in name:
        return None
    return next((peak for card, peak in PEAK_BF16.items() if re.search(rf"\b{card}\b", name)), None)
