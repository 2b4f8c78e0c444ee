"""A check of the model at hand: does one pass over a small row give the losses and gradients of its passes?

Layers that cannot be masked are refused by what is known of them (`flexmask.model.support`). This catches the ones that
nobody has thought of: attention that ignores or rewrites the mask, positions taken from indices, state between tokens,
adapters that go by what else stands in the row, statistics over tokens, gradients that leak where losses do not.
"""

import contextlib
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import PreTrainedModel

from flexmask.attention.interface import masks_given
from flexmask.attention.masks import build_block_mask
from flexmask.errors import UnsupportedModelError
from flexmask.model.head import HALF, widened
from flexmask.model.loss import is_whole, token_losses
from flexmask.model.stand_ins import Gradients, in_float32, standing_in
from flexmask.model.support import check_positions, evaluating, takes_block_masks, unwrapped
from flexmask.text.rendering import Pass, Role
from flexmask.tree.layouts import one_pass, per_turn
from flexmask.tree.packing import Pack, pack

# Largest difference of a token's loss that rounding explains, by the dtype of the computation. Over 172 families that
# are exact (transformers 5.23, tiny, weights of std 0.02 to 0.25) float32 gives at most 2e-5; over 16 that are not, at
# least 0.1. bfloat16 gives up to 0.5 for exact ones: half precision is for models that cannot be computed in float32.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-2, torch.bfloat16: 0.5, torch.float16: 0.1}
# The same for the gradient of a parameter, relative to its norm and a thousandth of the whole gradient's: that of some
# parameters (a bias of keys) is nothing but rounding. Over the 40 families of tests/equivalence with weights of std
# 0.02 to 0.25, and over 135M parameters in 30 layers, float32 gives at most 6e-5 and float64 2e-13; a leak of
# a tenth of the mean over all tokens moves a gradient by at least 3e-2 if it is in backward alone, by 6e-2 if it is in
# the losses too. bfloat16 gives up to
# 0.6 for exact ones and float16 0.08, so there only gross mistakes show. Kernels on CUDA were not measured.
_GRADIENT_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-2, torch.bfloat16: 1.0, torch.float16: 0.3}
_NEGLIGIBLE = 1e-3
# The most work, as tokens times parameters, for which passes are made longer than the windows: on CPU about 25 seconds
# of one core.
_MOST_WORK = {"cpu": 3e11, "elsewhere": 3e13}


def check_exact(model: nn.Module, block_size: int = 128, pack_length: int | None = None) -> None:
    """Compare a packed row of two conversations of two turns with its passes, run alone under plain causal attention:
    the loss of every token, and the gradient of every trained parameter.

    `model` is a prepared model (`prepare_model`). It runs in training mode without dropout, or in evaluation mode where
    it draws at random all the same; parameters that are zero throughout, as in a new adapter, are random meanwhile. A
    model in half precision is computed in float32, with a warning where its code or the device cannot. Afterwards
    weights, gradients, buffers, modes and random numbers are what they were.

    Costs six forward passes over fewer than 100 tokens each, two backward passes (all again for a model that draws at
    random), and of gradients the memory of one parameter's; for parameters in half precision that are trained, a copy
    in float32. Where the model has windows or chunks, one conversation is longer than the longest, provided that packs
    in training are (`pack_length`; None: they may be). Where that would take long it is not, with a warning, and that
    the window is there in every layer is not tried. Gradients of sharded parameters are not compared, with a warning.

    A model with weights that are not finite is not tried, with a warning: its first step says more.

    Raises UnsupportedModelError with the largest difference, or with the error that the model itself raised.
    """
    model = _without_wrappers(model)
    inner = unwrapped(model)
    name = type(inner).__name__
    if not is_whole(model, list(model.parameters())):
        warnings.warn(
            f"{name}: its parameters are sharded, so that one pass is exact is tried by its losses and not by its "
            "gradients; call check_exact before sharding for both",
            stacklevel=2,
        )
    with _trying(model), _as_in_training(model):
        found = _difference(model, block_size, pack_length)
    if not math.isfinite(found.loss + found.gradient) and (broken := _not_finite(model)):
        warnings.warn(
            f"{name}: weights that are not finite ({', '.join(broken[:3])}{', ...' if len(broken) > 3 else ''}), so "
            "that one pass is exact could not be tried",
            stacklevel=2,
        )
        return
    if not found.loss <= _TOLERANCE[found.dtype]:
        what = f"a token's loss differs by {found.loss:.2g} from that of its own pass"
    elif not found.gradient <= _GRADIENT_TOLERANCE[found.dtype]:
        what = f"the gradient of {found.parameter} differs by {found.gradient:.2g} of its size from that of the passes"
    else:
        return
    raise UnsupportedModelError(
        f"{name}: one pass is not exact for this model: {what}, so something besides masked attention and positions "
        "connects its tokens; train it elsewhere one unpacked pass at a time"
    )


def _not_finite(model: nn.Module) -> list[str]:
    return [name for name, weight in unwrapped(model).named_parameters() if not torch.isfinite(weight).all()]


# ---- How the model runs ----


@contextlib.contextmanager
def _trying(model: nn.Module) -> Iterator[None]:
    """Every module is in its mode afterwards. What the model raises becomes UnsupportedModelError, but for want of
    memory."""
    try:
        with evaluating(model):
            yield
    except (UnsupportedModelError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(unwrapped(model)).__name__} fails over a few tokens of text: {type(error).__name__}: {error}; if "
            "no key of its config.json explains that, train it elsewhere one unpacked pass at a time"
        ) from error


def _without_wrappers(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile: these gradients must not reach other processes, and a
    small row is not worth compiling."""
    while True:
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        elif (compiled := getattr(model, "_orig_mod", None)) is not None:
            model = compiled
        else:
            return model


@contextlib.contextmanager
def _as_in_training(model: nn.Module) -> Iterator[None]:
    """In training mode but for dropout; buffers and random numbers are what they were afterwards."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    device = unwrapped(model).device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)


def _random_state(device: torch.device) -> Tensor:
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state


def _longest_window(model: nn.Module, block_size: int) -> int:
    """Of the windows and chunks of the masks that the model's code asks for over a short row; 0: it has none."""
    inner = unwrapped(model)
    (one,) = _packs(model, longer=0)
    one = one.to(inner.device)
    sizes = [0]

    def record(window: int | None = None, chunk: int | None = None) -> BlockMask:
        sizes.extend(size for size in (window, chunk) if size is not None)
        return build_block_mask(one.visible_until, block_size, one.position_ids, window, chunk)

    with masks_given(record):
        ones, none = torch.ones_like(one.input_ids), one.input_ids.new_empty(0)  # as indices: see `_alone`
        inputs = dict(input_ids=one.input_ids, position_ids=one.position_ids, attention_mask=ones)
        model(**inputs, use_cache=False, logits_to_keep=none)
    return max(sizes)


def _window_to_cross(model: nn.Module, block_size: int, pack_length: int | None) -> int:
    """By how many tokens a question is to be longer, so that its passes are longer than the longest window; 0 where
    the model has none, where no pack is longer than it, and, with a warning, where that cannot be tried."""
    inner = unwrapped(model)
    if not takes_block_masks(inner):
        return 0  # its rows are chains under the model's own masks
    if not (window := _longest_window(model, block_size)):
        return 0
    (one,) = _packs(model, longer=window)
    if pack_length is not None and len(one) > pack_length:
        return 0
    parameters, device = sum(p.numel() for p in model.parameters()), inner.device.type
    reason = f"longer ones would take long with {parameters:,} parameters on {device}"
    try:
        # A row and two passes are longer.
        if 3 * window * parameters <= _MOST_WORK["cpu" if device == "cpu" else "elsewhere"]:
            check_positions(inner.config, one)
            return window
    except UnsupportedModelError as error:
        reason = f"for longer ones, {error}"
    warnings.warn(
        f"{type(inner).__name__}: that one pass is exact was tried on passes shorter than its windows of up to "
        f"{window:,} positions: {reason}",
        stacklevel=5,
    )
    return 0


def _packs(model: nn.Module, longer: int) -> list[Pack]:
    """The rows of `_conversations`: in one pack, or each in its own for a model whose state does not branch, as it will
    be run."""
    conversations = _conversations(model, longer)
    if takes_block_masks(model):
        groups = [[row for passes in conversations for row in one_pass(passes)]]
    else:
        groups = [[row] for passes in conversations for row in per_turn(passes)]
    return [pack(rows, sum(map(len, rows)))[0] for rows in groups]


# ---- What is compared ----


@dataclass(frozen=True)
class _Difference:
    """Largest difference of a token's loss; that of a parameter's gradient, relative to it, and the parameter's name;
    the dtype that all were computed in."""

    loss: float
    gradient: float
    parameter: str
    dtype: torch.dtype


def _difference(model: nn.Module, block_size: int, pack_length: int | None) -> _Difference:
    inner = unwrapped(model)
    dtype, device = inner.dtype, inner.device.type
    # Quantized weights cannot be widened.
    if getattr(inner, "hf_quantizer", None) is not None:
        return _difference_in(dtype, model, block_size, pack_length)
    try:
        if dtype not in HALF:
            return _difference_in(dtype, model, block_size, pack_length)
        with in_float32(model):
            return _difference_in(torch.float32, model, block_size, pack_length)
    except (UnsupportedModelError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if dtype not in HALF and device == "cpu":
            raise
        # Some code takes half precision only, and FlexAttention's float32 kernels need twice the shared memory.
        half = dtype if dtype in HALF else torch.bfloat16
        with torch.autocast(device, half, enabled=half is not dtype):
            difference = _difference_in(half, model, block_size, pack_length)
        warnings.warn(
            f"{type(inner).__name__} was tried in {half} only, where rounding hides a small leak between turns, "
            f"because float32 fails with {type(error).__name__}: {error}",
            stacklevel=3,
        )
        return difference


def _difference_in(dtype: torch.dtype, model: nn.Module, block_size: int, pack_length: int | None) -> _Difference:
    inner = unwrapped(model)
    device = inner.device
    longer = _window_to_cross(model, block_size, pack_length)
    packs = [one.to(device) for one in _packs(model, longer)]
    order = -1 if takes_block_masks(model) else 1  # of a row's branches the latest comes first
    singles = [p for passes in _conversations(model, longer) for p in passes[::order]]
    whole = is_whole(model, list(model.parameters()))

    def compare() -> _Difference:
        collecting = standing_in(model, dtype is torch.float32) if whole else contextlib.nullcontext(Gradients())
        with collecting as gradients, torch.set_grad_enabled(whole):
            losses, found = _run(_packed(model, packs, block_size), gradients)
            alone, expected = _run(_alone(model, singles), gradients)
        return _Difference((losses - alone).abs().max().item(), *_largest(found, expected), dtype)

    before = _random_state(device)
    difference = compare()
    if not torch.equal(before, _random_state(device)):
        model.eval()  # what is drawn differs from pass to pass, whatever the model
        difference = compare()
    return difference


def _packed(model: nn.Module, packs: Iterable[Pack], block_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The losses of the trained tokens of each pack, and their weighted sum."""
    for one in packs:
        result = token_losses(model, one, block_size)
        yield result.losses, result.total


def _alone(model: nn.Module, passes: Iterable[Pass]) -> Iterator[tuple[Tensor, Tensor]]:
    """The same of each pass, with the masks and positions that transformers makes itself."""
    for p in passes:
        ids = torch.from_numpy(p.input_ids).to(unwrapped(model).device)
        weights = torch.from_numpy(p.loss_weights[p.prompt_length :]).to(ids.device)
        # As indices: given a count, Gemma 4 (transformers 5.23) drops all other tokens before its last layers.
        before = torch.arange(p.prompt_length - 1, len(p) - 1, device=ids.device)
        logits = widened(model(input_ids=ids[None], use_cache=False, logits_to_keep=before).logits[0])
        losses = F.cross_entropy(logits, ids[p.prompt_length :], reduction="none")
        yield losses.detach(), (losses * weights).sum()


def _run(parts: Iterable[tuple[Tensor, Tensor]], gradients: Gradients) -> tuple[Tensor, dict[str, Tensor]]:
    """All losses, and the gradients of all sums."""
    losses, totals = zip(*parts, strict=True)
    if (total := torch.stack(totals).sum()).requires_grad:
        total.backward()
    return torch.cat(losses), gradients.take()


def _largest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest difference of two gradients in a parameter, relative to the second, and the parameter's name."""
    if not found and not expected:
        return 0.0, ""
    names = sorted(found.keys() | expected.keys())
    zeros = {name: torch.zeros_like(one) for name, one in (found | expected).items()}
    pairs = [((zeros | found)[name], (zeros | expected)[name]) for name in names]
    sizes = torch.stack([b.double().norm() for _, b in pairs])
    differences = torch.stack([(a.double() - b).norm() for a, b in pairs])
    relative = differences / (sizes + _NEGLIGIBLE * sizes.norm() + torch.finfo(torch.float64).tiny)
    worst = relative.argmax()  # of a NaN where there is one
    return relative[worst].item(), names[worst]


# ---- The passes ----


def _vocabulary(model: PreTrainedModel) -> int:
    """How many tokens have both an embedding and a logit: some models (speech, images) have more of one."""
    embeddings: Any = model.get_input_embeddings()
    head = model.get_output_embeddings()
    # Adapters of peft wrap either.
    rows = next(module.num_embeddings for module in embeddings.modules() if hasattr(module, "num_embeddings"))
    return min(rows, getattr(head, "out_features", rows))


def _invocation(model: nn.Module) -> list[int]:
    """The tokens behind which adapters become active that wait for some (peft's aLoRA)."""
    configs = [config for module in model.modules() for config in getattr(module, "peft_config", {}).values()]
    return next((found for config in configs if (found := getattr(config, "alora_invocation_tokens", None))), [])


def _conversations(model: nn.Module, longer: int) -> list[list[Pass]]:
    """Two conversations of two turns, tokens from a seed: branches, a copy, and a border between packed rows.

    longer: by how many tokens the first question of the second conversation is longer than the other.
    """
    vocabulary, invocation = _vocabulary(unwrapped(model)), _invocation(model)
    rng = np.random.default_rng(0)
    conversations = []
    for name, first in (("check 0", 5), ("check 1", 5 + longer)):
        history, passes = np.empty(0, dtype=np.int64), []
        for turn, asked in enumerate((first, 5)):
            question, thinking, answer = (rng.integers(0, vocabulary, count) for count in (asked, 7, 4))
            thinking[0] = (answer[0] + 1) % vocabulary  # so that the row branches right behind the question
            prompt = np.concatenate([history, question, np.array(invocation, dtype=np.int64)])
            ids = np.concatenate([prompt, thinking, answer])
            roles = np.repeat([Role.PROMPT, Role.THINKING, Role.ANSWER], [len(prompt), 7, 4]).astype(np.int8)
            weights = (roles != Role.PROMPT).astype(np.float32)
            passes.append(Pass(name, turn, len(prompt), ids, roles, weights))
            history = np.concatenate([prompt, answer])
        conversations.append(passes)
    return conversations
