"""The arms of the benchmark: ways to compute forward and backward of the same loss on the same dialogues.

An arm prepares items from dialogues, each one forward pass, and gives an item's summed loss. What it computes is
counted from the items, so that the floating point operations of any arm follow from one formula.
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import flash_attention_mask

from flexmask import Pack, Row, build_block_mask, lay_out, pack, token_losses
from flexmask.attention.interface import ATTENTION_NAME, attention_name
from flexmask.attention.kernels import check_backend, flash_blocks
from flexmask.model.head import widened
from flexmask.model.support import inputs_of
from flexmask.tree.packing import lay_end_to_end, pack_groups
from recipes.benchmarking.config import ArmName, BenchmarkConfig, Dtype
from recipes.benchmarking.paper import Plain, paper_mask, paper_row
from recipes.benchmarking.paths import Paths, varlen_kernel
from recipes.benchmarking.work import Work
from recipes.benchmarking.workloads import Dialogue, passes_of


class ArmError(Exception):
    """The arm cannot run on this cell; the message is what the report says instead of figures."""


@dataclass(frozen=True)
class Arm:
    """`prepare` lays dialogues out on the CPU, one item a forward pass; `to` moves an item to the device; `mask` builds
    what attention needs to know who sees whom, as `loss` does; `loss` is the item's weighted sum, with gradients.

    exact: the loss is that of per-turn training. attention: the implementation the model is set to. foreign: the kernel
    is optional and may refuse a card in its own way, which is then reported like an arm that is too large. compiled:
    the model's decoder layers are.
    """

    name: ArmName
    exact: bool
    attention: str
    prepare: Callable[[Sequence[Dialogue]], list]
    to: Callable
    mask: Callable
    loss: Callable[[PreTrainedModel, object], Tensor]
    work: Callable[[object], Work]
    foreign: bool = False
    compiled: bool = False


def make_arms(config: BenchmarkConfig) -> tuple[list[Arm], dict[str, str]]:
    """The arms of `config.arms` that this machine can run, exact ones first, and why each of the others cannot."""
    cuda = config.device == "cuda"
    device = torch.device(config.device)
    arms, left_out = [], {}
    for name in config.arms:
        match name:
            case ArmName.one_pass | ArmName.per_turn_packed | ArmName.keep_thinking:
                layout = "per_turn" if name is ArmName.per_turn_packed else str(name)
                arms.append(_packed(name, layout, ATTENTION_NAME, config, device))
            case ArmName.one_pass_flash if reason := _flash_missing(config, device):
                left_out[name] = reason
            case ArmName.one_pass_flash:
                arms.append(_packed(name, "one_pass", attention_name("flash"), config, device))
            case ArmName.one_pass_paths:
                arms.append(_varlen(name, "one_pass", config, device))
            case ArmName.one_pass_compiled if config.gradient_checkpointing and not cuda:
                left_out[name] = "attention on CPU is not compiled, so checkpointed layers cannot be either"
            case ArmName.one_pass_compiled:
                arms.append(_compiled(name, config, device))
            case ArmName.one_pass_liger if not cuda:
                left_out[name] = "Liger's kernels need CUDA"
            case ArmName.one_pass_liger if _missing("liger_kernel"):
                left_out[name] = "liger_kernel is not installed; pip install liger-kernel"
            case ArmName.one_pass_liger:
                arms.append(_liger(name, config, device))
            case ArmName.per_turn_varlen if not cuda:
                left_out[name] = "FlashAttention needs CUDA"
            case ArmName.per_turn_varlen:
                arms.append(_varlen(name, "per_turn", config, device))
            case ArmName.per_turn_naive:
                arms.append(_naive(name, device))
            case ArmName.paper_dense:
                arms.append(_paper(name, config, device))
    return sorted(arms, key=lambda arm: not arm.exact), {str(name): reason for name, reason in left_out.items()}


def _flash_missing(config: BenchmarkConfig, device: torch.device) -> str | None:
    """Why FlashAttention 4 cannot run here."""
    try:
        check_backend("flash", device, config.block_size, half=config.dtype is Dtype.bfloat16)
    except ValueError as error:
        return str(error)
    return None


def _missing(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:  # its parent package
        return True


def _loss_of(model: PreTrainedModel, item: Plain, **inputs: object) -> Tensor:
    """The weighted sum of a plain forward pass, with logits where tokens are trained."""
    logits = model(input_ids=item.input_ids, logits_to_keep=item.previous, use_cache=False, **inputs).logits[0]
    return (F.cross_entropy(widened(logits), item.targets, reduction="none") * item.weights).sum()


def _plain(one: Pack) -> Plain:
    trained = torch.nonzero(one.on_host.loss_weights[0] > 0).flatten().to(one.input_ids.device)
    return Plain(one.input_ids, one.previous[0, trained], one.input_ids[0, trained], one.loss_weights[0, trained])


def _rows(dialogues: Sequence[Dialogue], layout: str, config: BenchmarkConfig) -> list[Row]:
    return [row for one in dialogues for row in lay_out(passes_of(one), layout, config.pack_length).rows]


# Rows packed to one length under a block mask: `flexmask` itself for its own layouts, and for per-turn passes the
# same kernel with document masking.


def _packed(name: ArmName, layout: str, attention: str, config: BenchmarkConfig, device: torch.device) -> Arm:
    def prepare(dialogues: Sequence[Dialogue]) -> list[Pack]:
        return pack(_rows(dialogues, layout, config), config.pack_length)

    blocks = config.block_size
    if name is ArmName.one_pass_flash and device.type == "cuda":
        blocks = flash_blocks(torch.cuda.get_device_capability(device), (config.shapes[config.shape].head_dim,))

    def mask(one: Pack) -> BlockMask:
        return build_block_mask(one.visible_until, blocks, length=one.pack_length)

    def loss(model: PreTrainedModel, one: Pack) -> Tensor:
        return token_losses(model, one, config.block_size).total

    return Arm(
        name=name,
        exact=layout != "keep_thinking",
        attention=attention,
        prepare=prepare,
        to=lambda one: one.to(device),
        mask=mask,
        loss=loss,
        work=lambda one: _pack_work(one, build_block_mask(one.visible_until, blocks)),
        foreign=attention != ATTENTION_NAME,
    )


def _compiled(name: ArmName, config: BenchmarkConfig, device: torch.device) -> Arm:
    """One pass with each decoder layer compiled, as `trainer.torch_compile` does."""
    return replace(_packed(name, "one_pass", ATTENTION_NAME, config, device), compiled=True, foreign=True)


def _liger(name: ArmName, config: BenchmarkConfig, device: torch.device) -> Arm:
    """One pass with Liger's fused linear cross-entropy in place of the chunked loss."""
    packed = _packed(name, "one_pass", ATTENTION_NAME, config, device)

    def prepare(dialogues: Sequence[Dialogue]) -> list[Pack]:
        packs = packed.prepare(dialogues)
        if any(weight not in (0, 1) for one in packs for weight in one.loss_weights.unique()):
            raise ArmError("Liger's sum has no weights, and some tokens here have others than 1")
        return packs

    def loss(model: PreTrainedModel, one: Pack) -> Tensor:
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

        plain = _plain(one)
        with inputs_of(model, one, config.block_size) as inputs:
            states = model.base_model(**inputs, use_cache=False).last_hidden_state[0]
        fused = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        return fused(model.get_output_embeddings().weight, states[plain.previous], plain.targets)

    return replace(packed, prepare=prepare, loss=loss, foreign=True)


def _pack_work(one: Pack, block_mask: BlockMask | None) -> Work:
    """`block_mask` None: a kernel that computes visible pairs alone."""
    seen = one.visible_until[0].long() - torch.arange(len(one), device=one.visible_until.device)
    visible = computed = int(seen.sum())
    if block_mask is not None:
        blocks = int(block_mask.kv_num_blocks.sum() + block_mask.full_kv_num_blocks.sum())
        computed = blocks * block_mask.BLOCK_SIZE[0] * block_mask.BLOCK_SIZE[1]
    return Work(
        rows=len(one.rows),
        tokens_computed=len(one),
        tokens_trained=int((one.loss_weights > 0).sum()),
        visible_pairs=visible,
        computed_pairs=computed,
    )


# Attention node by node along its path. Per-turn passes are a node each, end to end without padding, which is
# FlashAttention's own way of packing; for one pass the keys are gathered.


VARLEN_ATTENTION = "benchmark_varlen"


def _varlen(name: ArmName, layout: str, config: BenchmarkConfig, device: torch.device) -> Arm:
    def prepare(dialogues: Sequence[Dialogue]) -> list[tuple[Pack, Paths]]:
        groups = pack_groups(_rows(dialogues, layout, config), config.pack_length)
        return [(lay_end_to_end(group, config.pack_length), Paths.of(group)) for group in groups]

    _, kernel = varlen_kernel(device)

    def loss(model: PreTrainedModel, item: tuple[Pack, Paths]) -> Tensor:
        one, paths = item
        attend = functools.partial(paths.attend, kernel)
        return _loss_of(model, _plain(one), position_ids=one.position_ids, attend_along_paths=attend)

    return Arm(
        name=name,
        exact=True,
        attention=VARLEN_ATTENTION,
        prepare=prepare,
        to=lambda item: tuple(part.to(device) for part in item),
        mask=lambda item: None,
        loss=loss,
        work=lambda item: _pack_work(item[0], None),
        foreign=device.type == "cuda",
    )


def _varlen_attention(module, query, key, value, attention_mask, scaling=None, attend_along_paths=None, **kwargs):
    """transformers' attention function: query [1, H, S, D], key and value [1, K, S, D] -> [1, S, H, D]."""
    return attend_along_paths(query, key, value, scaling), None


AttentionInterface.register(VARLEN_ATTENTION, _varlen_attention)
AttentionMaskInterface.register(VARLEN_ATTENTION, flash_attention_mask)


# One pass at a time under plain causal attention, as a training loop without packing runs it.


def _naive(name: ArmName, device: torch.device) -> Arm:
    def prepare(dialogues: Sequence[Dialogue]) -> list[Plain]:
        items = []
        for one in (one for dialogue in dialogues for one in passes_of(dialogue)):
            trained = np.flatnonzero(one.loss_weights > 0)
            arrays = (one.input_ids[None], trained - 1, one.input_ids[trained], one.loss_weights[trained])
            items.append(Plain(*map(torch.from_numpy, arrays)))
        return items

    def work(item: Plain) -> Work:
        tokens = item.input_ids.shape[1]
        pairs = tokens * (tokens + 1) // 2
        return Work(1, tokens, len(item.targets), pairs, pairs)

    to = functools.partial(Plain.to, device=device)
    return Arm(name, True, "sdpa", prepare, to, lambda item: None, _loss_of, work)


def _paper(name: ArmName, config: BenchmarkConfig, device: torch.device) -> Arm:
    itemsize = getattr(torch, config.dtype).itemsize

    def prepare(dialogues: Sequence[Dialogue]) -> list[Plain]:
        items = [paper_row(one) for one in dialogues]
        longest = max(item.input_ids.shape[1] for item in items)
        # The bool mask, and what scaled_dot_product_attention makes of it: an addend in the dtype of the queries.
        needed = longest**2 * (1 + itemsize) / 2**30
        if needed > config.dense_mask_gib:
            raise ArmError(
                f"too large: the mask of {longest:,} x {longest:,} tokens takes {needed:.1f} GiB, "
                f"dense_mask_gib={config.dense_mask_gib:g}"
            )
        return items

    def loss(model: PreTrainedModel, item: Plain) -> Tensor:
        return _loss_of(model, item, position_ids=item.position_ids, attention_mask=paper_mask(item))

    def work(item: Plain) -> Work:
        tokens = item.input_ids.shape[1]
        return Work(1, tokens, len(item.targets), int(paper_mask(item).sum()), tokens**2)

    return Arm(name, True, "sdpa", prepare, functools.partial(Plain.to, device=device), paper_mask, loss, work)
