"""What a process of a training needs in memory, by a formula a term; nothing is measured here.

The formulas are those of decoder layers of Llama's kind (RMSNorm, rotary attention, gated MLP or fused experts), as
transformers 5.23 and peft 0.21 compute them, and of AdamW. What is not in them: the allocator's fragments, the CUDA
context (about 0.5 GB) and the kernels' own workspace.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import nn
from transformers import PreTrainedModel

from flexmask.model.loss import LOGITS_BYTES
from flexmask.model.support import unwrapped
from flexmask.training.layers import decoder_layers
from recipes.configuration.schema import AdapterKind, MixedPrecision, ParallelKind, TrainConfig
from recipes.models.precision import resolve_precision

# Whose layers are of that kind, by `model_type`.
FAMILIES = {"llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gpt_oss"}
# NF4 with quantized constants: four bits, one byte for 64 weights, and four for 64 * 256.
_FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Memory:
    """Bytes of one process.

    weights, gradients, optimizer: what it holds of them between and during passes; weights that are trained are their
    own master copy. gathered: weights of others under FSDP2 during a pass. copies: of weights during a pass, cast by
    mixed precision. experts: their weights with the adapters added to them. activations: kept for backward. logits: one
    chunk of the loss. mask: the index lists of its blocks.
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    copies: int
    experts: int
    activations: int
    logits: int
    mask: int

    @property
    def total(self) -> int:
        """All terms at once, which is a little more than there ever is."""
        return sum(getattr(self, field.name) for field in fields(self))


def memory(model: nn.Module, config: TrainConfig, processes: int = 1) -> Memory:
    """The memory of each of `processes` that train `model` as `config` says.

    model: with its adapters around it, and what is trained requiring gradients; it needs no weights (meta device), and
    their dtypes are those that `config` makes. A pack is full, and each of its tokens is trained.
    Raises ValueError for a model without a formula.
    """
    if (kind := unwrapped(model).config.model_type) not in FAMILIES:
        raise ValueError(f"no formula for layers of {kind}, only for those of {', '.join(sorted(FAMILIES))}")
    counts = _Counts.of(model, config)
    sharded = config.parallel.kind is ParallelKind.fsdp and processes > 1
    share = processes if sharded else 1
    # FSDP2 gathers weights in the dtype that is computed in, and casts what goes into a layer: nothing is cast later.
    within = replace(counts, weight=counts.compute, of_trained=counts.compute) if sharded else counts
    inner = unwrapped(model)
    shape = inner.config.get_text_config()
    tokens, block = config.duplication.pack_length, config.attention.block_size
    checkpointing = config.model.gradient_checkpointing
    layers = 1 if checkpointing else counts.layers
    inputs = counts.layers * within.weight * shape.hidden_size if checkpointing else 0
    # The last norm, the states that the loss is made from, and their gradients.
    last = _norm(shape.hidden_size, within) + 2 * within.weight * shape.hidden_size
    kept, backward = activations_of_a_layer(inner, within)
    blocks = -(-tokens // block)
    masks = len(set(getattr(shape, "layer_types", None) or ["full_attention"]))
    return Memory(
        weights=counts.frozen_bytes // share + counts.trained * counts.of_trained // share,
        gradients=counts.trained * counts.of_trained // share,
        optimizer=2 * counts.trained * counts.of_trained // share,
        gathered=_gathered(counts, config.parallel.reshard_after_forward) if sharded else 0,
        copies=counts.compute * counts.cast if within.casts else 0,
        # In backward a third of a layer's stand there once more, as the gradients of a product.
        experts=within.weight * (layers * counts.experts + counts.experts // 3),
        activations=tokens * (layers * kept + inputs + last + backward),
        logits=_logits(inner, within, tokens),
        mask=masks * 4 * 4 * blocks * (blocks + 1),
    )


@dataclass(frozen=True)
class _Counts:
    """Numbers of weights, and the bytes of one: `weight` of the model, `of_trained`, `compute` in matrix products."""

    trained: int
    cast: int  # of the trained, those that mixed precision casts: not of fused experts
    frozen: int
    frozen_bytes: int
    layers: int
    inside: int  # all layers
    largest: tuple[int, int]  # layer: weights, and those of them that are trained
    experts: int  # of a layer, that have adapters
    ranks: int  # of all adapters on linear layers of a layer
    adapters: bool
    weight: int
    of_trained: int
    compute: int

    @classmethod
    def of(cls, model: nn.Module, config: TrainConfig) -> "_Counts":
        adapters = config.adapter.kind is not AdapterKind.none
        precision = resolve_precision(config.model.dtype, config.adapter.kind, config.trainer.mixed_precision)
        weight = precision.dtype.itemsize
        trained, frozen = _numbers(model)
        four_bits = _in_four_bits(model) if config.adapter.kind is AdapterKind.qlora else 0
        layers = decoder_layers(model)
        adapted = [module for module in layers[0].modules() if hasattr(module, "lora_A")]
        fused = [module for module in adapted if hasattr(module, "parameter_name")]
        return cls(
            trained=trained,
            cast=trained - sum(p.numel() for p in model.parameters() if p.requires_grad and p.ndim == 3),
            frozen=frozen,
            frozen_bytes=round((frozen - four_bits) * weight + four_bits * _FOUR_BITS),
            layers=len(layers),
            inside=sum(sum(_numbers(layer)) for layer in layers),
            largest=max((sum(_numbers(layer)), _numbers(layer)[0]) for layer in layers),
            experts=sum(module.get_param().numel() for module in fused),
            ranks=sum(one.out_features for m in adapted if m not in fused for one in m.lora_A.values()),
            adapters=adapters,
            weight=weight,
            of_trained=max(weight, torch.float32.itemsize) if adapters else weight,
            compute=min(weight, 2) if precision.mixed_precision is MixedPrecision.bf16 else weight,
        )

    @property
    def casts(self) -> bool:
        """Whether a product's inputs are cast for it: each linear layer then keeps its own."""
        return self.compute < self.of_trained


def activations_of_a_layer(model: PreTrainedModel, counts: _Counts) -> tuple[int, int]:
    """Bytes a token that a layer keeps for backward, and of gradients while it runs backward."""
    shape, size = model.config.get_text_config(), counts.compute
    width, heads = shape.hidden_size, shape.num_attention_heads
    head = getattr(shape, "head_dim", None) or width // heads
    query, key = heads * head, (getattr(shape, "num_key_value_heads", None) or heads) * head
    trained = not counts.adapters  # and with them norms and routers
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    kept = 2 * _norm(width, counts)
    kept += size * width * (3 if counts.casts else 1)  # into q, k and v
    if "q_norm" in names:
        kept += (4 + size * trained) * (query + key) + 4 * 3 * heads // 2
    kept += size * 2 * (query + key) + 4 * heads  # q, k, v, what comes out, and its log-sum-exp
    kept += size * query * counts.casts  # into o
    kept += size * counts.ranks
    if "experts" not in names:
        # Into gate and up; then gate, its activation, up and their product.
        kept += size * width * (2 if counts.casts else 1) + size * 4 * shape.intermediate_size
        return kept, counts.weight * width + size * shape.intermediate_size
    chosen, size = shape.num_experts_per_tok, counts.weight  # mixed precision does not cast the products of experts
    inner = getattr(shape, "moe_intermediate_size", None) or shape.intermediate_size
    # A clamped activation keeps what it clamps apart (gpt-oss).
    products = 7 if getattr(shape, "swiglu_limit", None) else 4
    kept += size * width * trained + 4 * shape.num_experts  # the router
    kept += chosen * (size * (2 * width + products * inner) + 40)
    return kept, size * (width + chosen * (width + inner))


def _norm(width: int, counts: _Counts) -> int:
    """Bytes a token of an RMSNorm: its input in float32, and for its own weights the normalized one."""
    return 4 * width + (0 if counts.adapters else counts.weight * width) + 4


def _logits(model: PreTrainedModel, counts: _Counts, tokens: int) -> int:
    """A chunk of logits, its log-probabilities and gradients; of a head that is trained, those that earlier chunks have
    left."""
    head = model.get_output_embeddings().weight
    chunk = min(tokens, LOGITS_BYTES // (4 * head.shape[0]))
    of_head = head.numel() * counts.weight if head.requires_grad and chunk < tokens else 0
    return chunk * head.shape[0] * (12 + (counts.compute if counts.compute < 4 else 0)) + of_head


def _gathered(counts: _Counts, reshard: bool) -> int:
    """What lies outside the layers, and of these the one that runs and the next, or all that have run; with the whole
    gradients of one."""
    outside = counts.trained + counts.frozen - counts.inside
    largest, trained = counts.largest
    return counts.compute * (outside + (2 * largest if reshard else counts.inside) + trained)


def _numbers(model: nn.Module) -> tuple[int, int]:
    """How many weights are trained, and how many are not."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in model.parameters()) - trained


def _in_four_bits(model: nn.Module) -> int:
    """Weights that bitsandbytes quantizes: of linear layers without gradients, but for the head."""
    head = unwrapped(model).get_output_embeddings()
    layers = (module for module in model.modules() if isinstance(module, nn.Linear) and module is not head)
    return sum(layer.weight.numel() for layer in layers if not layer.weight.requires_grad)


def in_gigabytes(size: int) -> str:
    """A number of bytes as words, in units of 1,000."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
