"""The attention "flexmask" for transformers models: masks of the pack at hand, and attention under them.

Importing this module registers both; choose them with `attn_implementation="flexmask"` or `set_attn_implementation`.
Each backend of `flexmask.attention.kernels` has a name of its own (`attention_name`).

    masks       a model's own code asks transformers for the masks of its layers. Within `masks_given`, the answer is a
                BlockMask of the pack with the window or chunks that the model asks for; otherwise it is that of sdpa.
    attention   under a BlockMask, on CPU (with gradients) and on CUDA, it computes only the blocks that the mask lists.
                Under anything else (generation) it computes what the sdpa and eager implementations compute.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import CodeType, FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    and_masks,
    blockwise_overlay,
    causal_mask_function,
    chunked_overlay,
    or_masks,
    sdpa_mask,
    sliding_window_overlay,
)

from flexmask.attention.cpu import block_sparse_attention
from flexmask.attention.kernels import BACKENDS, kernel_options
from flexmask.attention.masks import PackMaskMod, ScoreMod, place_mask_mod
from flexmask.errors import UnsupportedModelError

ATTENTION_NAME = "flexmask"
# transformers (5.23) looks for a package behind every name with "flash" in it.
_NAMES = {"auto": ATTENTION_NAME, "triton": f"{ATTENTION_NAME}_triton", "flash": f"{ATTENTION_NAME}_fa4"}

# Terms that some transformers 5.23 models add to the scores, which no path here computes.
_UNSUPPORTED = ("position_bias", "sinks", "head_mask")
_NOT_PASSED = object()


def attention_name(backend: str) -> str:
    """What transformers calls this attention with a backend of `flexmask.attention.kernels`."""
    if backend not in _NAMES:
        raise ValueError(f"backend={backend}: write one of {', '.join(BACKENDS)}")
    return _NAMES[backend]


def backend_of(config: PreTrainedConfig) -> str | None:
    """The backend of a model whose attention is this one; None of another."""
    return next((backend for backend, name in _NAMES.items() if name == config._attn_implementation), None)


# What gives the masks of the pack that a model is running over: called with nothing, window=n or chunk=n.
_masks: ContextVar[Callable[..., BlockMask] | None] = ContextVar("masks", default=None)


# ---- Masks ----


@contextlib.contextmanager
def masks_given(masks: Callable[..., BlockMask]) -> Iterator[None]:
    """Inside, models that ask for a mask get `masks()`, `masks(window=n)` or `masks(chunk=n)`, in positions, and their
    attention takes no other mask.

    A model must ask before its layers run, as all of transformers' do: what a layer asks for itself would be asked for
    again when gradient checkpointing runs it in backward, which is outside.
    """
    token = _masks.set(masks)
    try:
        yield
    finally:
        _masks.reset(token)


def flexmask_mask(
    *args: Any, mask_function: Callable = causal_mask_function, config: PreTrainedConfig | None = None, **more: Any
) -> Any:
    """transformers' mask function (5.23): the pack's BlockMask within `masks_given`, and else what `sdpa_mask` gives.

    Raises UnsupportedModelError for a mask function other than that of causal attention, sliding windows or chunks.
    """
    masks = _masks.get()
    if masks is None:
        return sdpa_mask(*args, **more | {"mask_function": mask_function})
    return _answer(masks, mask_function, type(config).__name__)


@torch.compiler.disable  # mask functions are told apart by their code, which a compiler does not show
def _answer(masks: Callable[..., BlockMask], mask_function: Callable, model: str) -> BlockMask | None:
    terms, causal = _terms(_content(mask_function)), _content(causal_mask_function)
    match [causal in terms, *(term for term in terms if term != causal)]:
        case [True]:
            mask = masks()
        case [True, (code, 0)] if code == _WINDOW:
            # Qwen2-MoE asks for a window of 0 where no layer has one. Attention refuses None, should a layer use it.
            return None
        case [True, (code, int(size))] if code == _WINDOW:
            mask = masks(window=size)
        case [True, (code, int(size), (0,))] if code == _CHUNK:
            mask = masks(chunk=size)
        case _:
            raise UnsupportedModelError(
                f"the model of {model} asks for an attention mask that is neither causal, a sliding window nor chunks "
                f"({', '.join(_names(terms)) or mask_function}), and one pass has no such mask"
            )
    cast(PackMaskMod, mask.mask_mod).asked_for = True
    return mask


_AND, _OR, _WINDOW = and_masks().__code__, or_masks().__code__, sliding_window_overlay(1).__code__
_CHUNK, _BLOCKS = chunked_overlay(1, torch.zeros(1)).__code__, blockwise_overlay(torch.zeros(1)).__code__


def _content(value: Any) -> Any:
    """What a function does, to compare: its code, and the same of what it closes over.

    Raises RecursionError or ValueError for one that closes over itself, or over what is not there yet.
    """
    if isinstance(value, FunctionType):
        return value.__code__, *(_content(cell.cell_contents) for cell in value.__closure__ or ())
    if isinstance(value, tuple):
        return tuple(map(_content, value))
    return tuple(value.flatten().tolist()) if isinstance(value, Tensor) else value


def _terms(content: Any) -> list:
    """The conditions that must all hold for a key to be seen."""
    match content:
        case (code, parts) if code == _AND:
            return [term for part in parts for term in _terms(part)]
        # Tokens of one image see each other both ways (Gemma 4). Text has no images: every id is negative.
        case (code, (part, (blocks, ids))) if code == _OR and blocks == _BLOCKS and max(ids) < 0:
            return _terms(part)
    return [content]


def _names(content: Any) -> list[str]:
    if isinstance(content, list | tuple):
        return [name for part in content for name in _names(part)]
    return [content.co_qualname] if isinstance(content, CodeType) else []


# ---- Attention ----


def flexmask_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    sliding_window: int | None | object = _NOT_PASSED,
    key_bias: Tensor | None = None,
    backend: str = "auto",
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function (5.23): query [B, H, S, D], key [B, K, S, D], value [B, K, S, E] with K key
    heads for H query heads; returns ([B, S, H, E], None). B is 1 for a BlockMask, which may be made for more tokens;
    if it is made for a `Context`, S are the tokens of this process, and keys and values of the others are gathered.

    `softcap` bounds the scores as `softcap * tanh(score / softcap)`; `s_aux` [H] are attention sinks, one score a head
    that takes probability and gives no value. Both are differentiable. `key_bias` [H, S], only with a BlockMask, is a
    constant added to the scores of a key (alibi.py). `backend` is one of `flexmask.attention.kernels`.
    Raises ValueError naming the layer for dropout, for terms that are not computed here, for a BlockMask passed by hand
    whose window or chunk is not the layer's, and within `masks_given` for any other mask.
    """
    layer = f"layer {getattr(module, 'layer_idx', '?')} ({type(module).__name__})"
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ValueError(f"{layer} passes {name!r}, which attention {ATTENTION_NAME!r} does not compute")
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    if not isinstance(attention_mask, BlockMask):
        if _masks.get() is not None:
            raise UnsupportedModelError(
                f"{layer} attends under a mask of its own ({type(attention_mask).__name__}) and not under the one that "
                "the model asked for, so tokens of one branch might see another"
            )
        if softcap is None and s_aux is None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
            )
        if dropout > 0:
            raise ValueError(f"{layer} asks for dropout {dropout} beside softcap or sinks; set it to 0")
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        return _dense_attention(query, key, value, attention_mask, scaling, softcap, s_aux, causal), None

    if dropout > 0:
        raise ValueError(
            f"{layer} asks for attention dropout {dropout}, which is not defined for a BlockMask; "
            "set attention_dropout to 0 in the model config"
        )
    if not getattr(attention_mask.mask_mod, "asked_for", False):
        if sliding_window is _NOT_PASSED:
            sliding_window = getattr(module, "sliding_window", _NOT_PASSED)
        _check_restriction(layer, "sliding_window", sliding_window, "window", attention_mask)
        _check_restriction(layer, "attention_chunk_size", _chunk_size(module), "chunk", attention_mask)
    place_mask_mod(attention_mask, query.device)
    if (context := getattr(attention_mask.mask_mod, "context", None)) is not None:
        key, value = context.gather(key), context.gather(value)
    _check_shapes(layer, query, key, attention_mask)
    if query.device.type == "cpu":
        if key_bias is not None:
            query, key = _with_bias(query, key, key_bias / scaling)
        return block_sparse_attention(query, key, value, attention_mask, scaling, softcap, s_aux), None
    return _compiled_attention(query, key, value, attention_mask, scaling, softcap, s_aux, key_bias, backend), None


for _backend, _name in _NAMES.items():
    AttentionInterface.register(_name, functools.partial(flexmask_attention, backend=_backend))
    AttentionMaskInterface.register(_name, flexmask_mask)


def _chunk_size(module: nn.Module) -> int | None | object:
    """The chunk length of a layer, which transformers (5.23, Llama 4) has in the config only."""
    config = getattr(module, "config", None)
    size = getattr(config, "attention_chunk_size", None)
    types = getattr(config, "layer_types", None)
    if size is None or types is None or not hasattr(module, "layer_idx"):
        return _NOT_PASSED
    return size if types[module.layer_idx] == "chunked_attention" else None


def _check_restriction(layer: str, setting: str, expected: int | None | object, name: str, mask: BlockMask) -> None:
    """A mask that was not asked for but passed by hand, one for all layers, would silently remove the window of some,
    or put one on the others."""
    found = getattr(mask.mask_mod, name, None)
    if expected is _NOT_PASSED or expected == found:
        return
    raise ValueError(
        f"{layer} has {setting}={expected}, its BlockMask has {name}={found}; give each layer type its own "
        f"mask: attention_mask={{'full_attention': ..., 'sliding_attention': build_block_mask(..., window=...)}} "
        f"(a mask_mod of your own declares it as mask_mod.{name})"
    )


def _check_shapes(layer: str, query: Tensor, key: Tensor, block_mask: BlockMask) -> None:
    lengths = (query.shape[2], key.shape[2])
    if query.shape[0] != 1 or tuple(block_mask.kv_indices.shape[:2]) != (1, 1):
        raise ValueError(
            f"{layer}: batch size {query.shape[0]}, BlockMask for batch and heads "
            f"{list(block_mask.kv_indices.shape[:2])}; both must be 1, a pack holds several rows end to end"
        )
    tokens, context = _tokens_of(block_mask), getattr(block_mask.mask_mod, "context", None)
    if lengths != (tokens if context is None else len(context.tokens), tokens):
        raise ValueError(
            f"{layer}: {lengths[0]} queries and {lengths[1]} keys, but the BlockMask was built for {tokens} tokens; "
            "build it for this pack and train with use_cache=False"
        )
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"{layer}: {query.shape[1]} query heads are not a multiple of {key.shape[1]} key heads")


def _tokens_of(block_mask: BlockMask) -> int:
    """How many tokens there are without the padding that a mask of `build_block_mask` may have."""
    return getattr(block_mask.mask_mod, "tokens", block_mask.seq_lengths[0])


def _with_bias(query: Tensor, key: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Query and key of one more dimension, whose product is that of before plus `bias` [H, S] of the key."""
    if query.shape[1] != key.shape[1]:
        raise ValueError(f"key_bias needs a key head for each of the {query.shape[1]} query heads, not {key.shape[1]}")
    query = torch.cat([query, torch.ones_like(query[..., :1])], dim=-1)
    return query, torch.cat([key, bias[None, :, :, None].to(key.dtype)], dim=-1)


def _dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
    is_causal: bool,
) -> Tensor:
    """Plain attention with soft-capped scores or sinks under an ordinary mask, which sdpa cannot compute."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None and is_causal and query.shape[2] > 1:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], dim=-1)
    accumulate = torch.promote_types(scores.dtype, torch.float32)
    probabilities = scores.softmax(dim=-1, dtype=accumulate).to(value.dtype)
    return (probabilities[..., : key.shape[2]] @ value).transpose(1, 2).contiguous()


# ---- CUDA (and other accelerators): compiled FlexAttention ----


@functools.cache
def _compiled_flex_attention() -> Callable:
    # dynamic=False: the mask has one length, so one compile for the run, and shapes stay constants in the kernel.
    # Each kind of mask, with and without gradients, and each other pack length compiles once more. Past the limit (8
    # unless raised, torch 2.13) a call would run without the kernel and make all S x S scores; fullgraph turns
    # that into an error. Of recompile_limit the overloads of torch 2.13 do not know.
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True, recompile_limit=64)  # type: ignore[call-overload]
    return compiled


def _softcap_score_mod(softcap: float) -> ScoreMod:
    """A new function with the same value does not compile again: torch 2.13 guards the code and the constant."""

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return score_mod


def _key_bias_score_mod(key_bias: Tensor) -> ScoreMod:
    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + key_bias[h, k]

    return score_mod


def _filled_up(x: Tensor, length: int) -> Tensor:
    """[1, H, S, D] -> [1, H, length, D]; itself where there is nothing to add, of which `pad` would make a copy."""
    return F.pad(x, (0, 0, 0, padding)) if (padding := length - x.shape[2]) else x


def _compiled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: BlockMask,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
    key_bias: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    if backend == "flash" and sinks is not None:
        raise ValueError("backend=flash: has no gradient for attention sinks; leave it out (auto)")
    # Under autocast torch (2.13) computes in its dtype, whatever the dtypes of queries, keys and values.
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    head_dims = query.shape[-1], value.shape[-1]
    options = kernel_options(backend, query.device, dtype, head_dims, block_mask.BLOCK_SIZE)
    queries, (length, keys) = query.shape[2], block_mask.seq_lengths
    query, key, value = _filled_up(query, length), _filled_up(key, keys), _filled_up(value, keys)
    score_mod = None if softcap is None else _softcap_score_mod(softcap)
    if key_bias is not None:
        if softcap is not None:
            raise ValueError("key_bias beside softcap: no model has both")
        score_mod = _key_bias_score_mod(F.pad(key_bias, (0, keys - key_bias.shape[1])))
    # Inside a compiled model the surrounding compilation takes flex_attention in.
    attend: Callable = flex_attention
    if not torch.compiler.is_compiling():
        attend = _compiled_flex_attention()
    result = attend(
        query,
        key,
        value,
        score_mod=score_mod,
        block_mask=block_mask,
        scale=scaling,
        # Any ratio of heads: torch 2.13 restricts it to powers of two only in its decoding kernel, and avoids that one.
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=None if sinks is None else AuxRequest(lse=True),
        kernel_options=options,
    )
    output, aux = (result, None) if sinks is None else result
    output = output[:, :, :queries]
    if sinks is not None and aux is not None:
        # A sink adds exp(sink) to the denominator: exp(lse) / (exp(lse) + exp(sink)) = sigmoid(lse - sink).
        share = torch.sigmoid(aux.lse[:, :, :queries] - sinks.to(aux.lse.dtype).view(1, -1, 1)).unsqueeze(-1)
        output = (output * share).to(value.dtype)
    return output.transpose(1, 2).contiguous()
