"""The arms of the benchmark: ways to compute forward and backward of the same loss on the same dialogues.

An arm prepares items from dialogues, each one forward pass, and gives an item's summed loss. What it computes is
counted from the items, so that the floating point operations of any arm follow from one formula.
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import flash_attention_mask

from flexmask import Pack, build_block_mask, lay_out, pack, token_losses
from flexmask.attention.interface import ATTENTION_NAME, attention_name
from flexmask.attention.kernels import check_backend, flash_blocks
from flexmask.model.head import widened
from recipes.benchmarking.config import ArmName, BenchmarkConfig, Dtype
from recipes.benchmarking.paper import Plain, paper_mask, paper_row
from recipes.benchmarking.work import Work
from recipes.benchmarking.workloads import Dialogue, passes_of


class ArmError(Exception):
    """The arm cannot run on this cell; the message is what the report says instead of figures."""


@dataclass(frozen=True)
class Arm:
    """`prepare` lays dialogues out on the CPU, one item a forward pass; `to` moves an item to the device; `mask` builds
    what attention needs to know who sees whom, as `loss` does; `loss` is the item's weighted sum, with gradients.

    exact: the loss is that of per-turn training. attention: the implementation the model is set to. foreign: the kernel
    is optional and may refuse a card in its own way, which is then reported like an arm that is too large.
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


def make_arms(config: BenchmarkConfig) -> tuple[list[Arm], dict[str, str]]:
    """The arms of `config.arms` that this machine can run, exact ones first, and why each of the others cannot."""
    cuda = config.device == "cuda"
    device = torch.device(config.device)
    no_flash = _flash_missing(config, device)
    arms, left_out = [], {}
    for name in config.arms:
        match name:
            case ArmName.one_pass | ArmName.per_turn_packed | ArmName.keep_thinking:
                layout = "per_turn" if name is ArmName.per_turn_packed else str(name)
                arms.append(_packed(name, layout, ATTENTION_NAME, config, device))
            case ArmName.one_pass_flash if no_flash:
                left_out[name] = no_flash
            case ArmName.one_pass_flash:
                arms.append(_packed(name, "one_pass", attention_name("flash"), config, device))
            case ArmName.per_turn_varlen if not cuda:
                left_out[name] = "FlashAttention needs CUDA"
            case ArmName.per_turn_varlen:
                arms.append(_varlen(name, config, device))
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
    trained = torch.nonzero(one.loss_weights[0] > 0).flatten()
    return Plain(one.input_ids, one.previous[0, trained], one.input_ids[0, trained], one.loss_weights[0, trained])


# Rows packed to one length under a block mask: `flexmask` itself for its own layouts, and for per-turn passes the
# same kernel with document masking.


def _packed(name: ArmName, layout: str, attention: str, config: BenchmarkConfig, device: torch.device) -> Arm:
    def prepare(dialogues: Sequence[Dialogue]) -> list[Pack]:
        rows = [row for one in dialogues for row in lay_out(passes_of(one), layout, config.pack_length).rows]
        return pack(rows, config.pack_length)

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


def _pack_work(one: Pack, block_mask: BlockMask | None) -> Work:
    """`block_mask` None: a kernel without blocks, over documents that are chains."""
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


# Per-turn passes end to end without padding, each attending to itself: FlashAttention's own way of packing.


@dataclass(frozen=True, eq=False)
class Documents:
    pack: Pack
    borders: Tensor  # int32 [documents + 1]: where each begins, then the number of tokens
    longest: int


VARLEN_ATTENTION = "benchmark_varlen"


def _varlen(name: ArmName, config: BenchmarkConfig, device: torch.device) -> Arm:
    packed = _packed(name, "per_turn", VARLEN_ATTENTION, config, device)

    def documents(one: Pack) -> Documents:
        starts = torch.nonzero(one.previous[0] < 0).flatten()
        borders = torch.cat([starts, starts.new_tensor([len(one)])]).to(torch.int32)
        return Documents(one, borders, int(borders.diff().max()))

    def loss(model: PreTrainedModel, item: Documents) -> Tensor:
        documents = dict(position_ids=item.pack.position_ids, borders=item.borders, longest=item.longest)
        return _loss_of(model, _plain(item.pack), **documents)

    return Arm(
        name=name,
        exact=True,
        attention=VARLEN_ATTENTION,
        prepare=lambda dialogues: [documents(one) for one in packed.prepare(dialogues)],
        to=lambda item: Documents(item.pack.to(device), item.borders.to(device), item.longest),
        mask=lambda item: None,
        loss=loss,
        work=lambda item: _pack_work(item.pack, None),
        foreign=True,
    )


def varlen_kernel() -> tuple[str, Callable]:
    """FlashAttention over documents end to end: of the flash_attn package, or else torch's own copy (2.10 and newer).

    Called with query [S, H, D], key and value [S, K, D], borders, longest and scale.
    """
    if not _missing("flash_attn"):
        from flash_attn import flash_attn_varlen_func

        def attend(query, key, value, borders, longest, scale):
            return flash_attn_varlen_func(
                query, key, value, borders, borders, longest, longest, softmax_scale=scale, causal=True
            )

        return "flash_attn", attend
    from torch.nn.attention.varlen import varlen_attn

    def attend(query, key, value, borders, longest, scale):
        grouped = query.shape[1] != key.shape[1]
        window = (-1, 0)  # causal
        return varlen_attn(
            query, key, value, borders, borders, longest, longest, scale=scale, window_size=window, enable_gqa=grouped
        )

    return "torch.nn.attention.varlen", attend


def _varlen_attention(module, query, key, value, attention_mask, scaling=None, borders=None, longest=None, **kwargs):
    """transformers' attention function: query [1, H, S, D], key and value [1, K, S, D] -> [1, S, H, D]."""
    _, attend = varlen_kernel()
    output = attend(*(x[0].transpose(0, 1).contiguous() for x in (query, key, value)), borders, longest, scaling)
    return output[None], None


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
