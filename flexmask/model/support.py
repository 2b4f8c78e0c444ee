"""Which models can be trained in one pass, and how they are called over a pack."""

import contextlib
import functools
import warnings
from collections.abc import Iterator
from typing import TypeVar

import torch
import transformers
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedConfig, PreTrainedModel

from flexmask.attention.alibi import has_alibi_route, is_routed, route_alibi
from flexmask.attention.interface import attention_name, backend_of, masks_given
from flexmask.attention.kernels import flash_blocks
from flexmask.attention.masks import build_block_mask, place_mask_mod
from flexmask.errors import UnsupportedModelError
from flexmask.model.randomness import random_settings, shared_draws, warn_of_shared_draws
from flexmask.model.state_layers import is_covered, moved, route_states
from flexmask.tree.layouts import Row
from flexmask.tree.packing import Pack

# What only a layer with a recurrence has, in transformers 5.23: decay rates, step sizes or a gate that forgets. With
# convolutions over tokens they tell every such layer of its models; names of classes tell no more.
_RECURRENCE = ("A_log", "dt_bias", "time_decay", "time_mix_key", "slope_rate", "fgate_preact", "ifgate_preact")

Model = TypeVar("Model", bound=nn.Module)


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The model of transformers inside whatever wraps it: peft, DistributedDataParallel, torch.compile.

    Raises UnsupportedModelError when there is none.
    """
    found = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if found is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} neither is nor holds a model of transformers; give one that "
            "AutoModelForCausalLM.from_pretrained loads"
        )
    return found


def prepare_model(model: Model, chains: bool = False, backend: str = "auto") -> Model:
    """Check that a model can be trained exactly and route its attention through `flexmask.attention`, and layers that
    carry state through `flexmask.model.state_layers`; returns it.

    model: a causal language model of transformers, or whatever wraps one (`unwrapped`).
    chains: every pack will be a single row that never branches, as layout "per_turn" makes them. Layers whose state
    does not branch are then exact too; such a model keeps its own attention.
    backend: which kernels compute attention on CUDA: "auto", "triton" or "flash" (`flexmask.attention.kernels`).

    The load-balancing loss of experts is switched off with a warning where the config asks for it
    (`output_router_logits`): it is no sum over passes, so no two layouts or packs would agree on it, and context
    tokens would count in it. Dropout outside of attention is left on with a warning that names its settings.

    Raises UnsupportedModelError naming the layers whose state does not branch (`branching_layers` has those whose state
    does), or attention that transformers does not route through its AttentionInterface; ValueError naming the setting
    for dropout on attention or noise on routers, and for a backend that the model's attention cannot have. What the
    model asks for when it runs is refused then: see `inputs_of`.
    """
    inner = unwrapped(model)
    check_model(model, chains)
    check_routes(inner, backend)
    text = inner.config.get_text_config()
    if getattr(text, "output_router_logits", False):
        text.output_router_logits = False
        warnings.warn(
            "output_router_logits is switched off: the load-balancing loss of the experts (router_aux_loss_coef="
            f"{getattr(text, 'router_aux_loss_coef', None)}) is no sum over passes and is not trained",
            stacklevel=2,
        )
    if unbranched_layers(inner):
        return model
    if random_settings(text):
        raise ValueError(
            f"{type(inner).__name__}: {', '.join(random_settings(text))}: attention and routing must not be random for "
            "one pass to be that of its turns; set it to 0 in the model's config"
        )
    warn_of_shared_draws(type(inner).__name__, shared_draws(inner), stacklevel=2)
    if has_alibi_route(inner):
        route_alibi(inner)
    else:
        inner.set_attn_implementation(attention_name(backend))
    if not takes_block_masks(inner):
        raise UnsupportedModelError(
            f"{type(inner).__name__} does not route its attention through transformers' AttentionInterface, so no "
            "block mask reaches it; train it elsewhere one pass at a time"
        )
    route_states(inner.get_submodule(path) for path in _stateful_paths(inner))
    return model


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without gradients, in evaluation mode; every module is in the mode it was in afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def takes_block_masks(model: nn.Module) -> bool:
    """Whether `prepare_model` has routed the model's attention through `flexmask.attention.interface`."""
    model = unwrapped(model)
    return backend_of(model.config) is not None or is_routed(model)


def check_routes(model: nn.Module, backend: str) -> None:
    """Raise ValueError for a backend that does not exist, or that the attention of a model cannot have."""
    attention_name(backend)
    inner = unwrapped(model)
    reason = None
    if backend != "auto" and (layers := unbranched_layers(inner)):
        reason = f"keeps its own attention, because {_few(layers)} carry state that does not branch"
    elif backend != "auto" and has_alibi_route(inner):
        reason = "attends by code of its own, which has no choice of kernels"
    elif backend == "flash" and any(hasattr(module, "sinks") for module in inner.modules()):
        reason = "has attention sinks, for which FlashAttention 4 has no gradient under a mask"
    if reason:
        raise ValueError(f"backend={backend}: {type(inner).__name__} {reason}; leave it out (auto)")


def blocks_of(model: nn.Module, device: torch.device, block_size: int) -> tuple[int, int]:
    """Queries and keys of a block of the model's masks on a device. Raises ValueError where its kernels have none for
    the head dim of the model."""
    config = unwrapped(model).config
    if backend_of(config) != "flash" or device.type != "cuda":
        return block_size, block_size
    text = config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return flash_blocks(torch.cuda.get_device_capability(device), (head_dim,))


def check_model(model: nn.Module, chains: bool = False) -> None:
    """Raise UnsupportedModelError if masking cannot hide one branch of a row from another (see `prepare_model`)."""
    model = unwrapped(model)
    if not chains and (layers := unbranched_layers(model)):
        raise UnsupportedModelError(
            f"{type(model).__name__}: {_few(layers)} carry state from token to token, so no attention mask keeps one "
            f"branch or packed row from leaking into the next, and the loss would be wrong{_why_unbranched(model)}. "
            'Train this model one pass a turn instead: layout="per_turn", one row a pack'
        )


def branching_layers(model: nn.Module) -> list[str]:
    """The layers that carry a state from token to token outside attention and whose state branches with the tree
    (`flexmask.model.state_branches`), each as "path (class)"."""
    return _stateful_layers(model, branching=True)


def unbranched_layers(model: nn.Module) -> list[str]:
    """Those whose state does not branch: such a model runs one row a pack, one pass a turn."""
    return _stateful_layers(model, branching=False)


def _stateful_layers(model: nn.Module, branching: bool) -> list[str]:
    model = unwrapped(model)
    layers = {path: model.get_submodule(path) for path in _stateful_paths(model)}
    return [
        f"{path} ({type(layer).__name__})"
        for path, layer in layers.items()
        if (is_covered(layer) and moved(layer) is None) == branching
    ]


def _why_unbranched(model: PreTrainedModel) -> str:
    """What of the installed transformers keeps the state of a covered layer from branching."""
    covered = [layer for layer in map(model.get_submodule, _stateful_paths(model)) if is_covered(layer)]
    changes = dict.fromkeys(found for found in map(moved, covered) if found)
    if not changes:
        return ""
    return f" (their state would branch, but not in the installed transformers {transformers.__version__}, where " + (
        "; ".join(changes) + ")"
    )


def _stateful_paths(model: PreTrainedModel) -> list[str]:
    """Found by what modules are: a convolution over tokens, or the parameters of a recurrence. What both miss,
    `flexmask.model.exactness.check_exact` finds by trying."""
    # Towers for images and sound have convolutions of their own, which tokens of text never enter.
    decoder = model.get_decoder()
    searched = set((decoder if isinstance(decoder, PreTrainedModel) else model).modules())
    found: list[str] = []
    for path, module in model.named_modules():
        convolution = isinstance(module, nn.Conv1d)
        if module in searched and (convolution or any(hasattr(module, name) for name in _RECURRENCE)):
            owner = path.rpartition(".")[0] if convolution else path
            if not any(owner == other or owner.startswith(f"{other}.") for other in found):
                found.append(owner)
    return found


def check_context(model: nn.Module, backend: str = "auto") -> None:
    """Raise UnsupportedModelError for layers that look from token to token outside of attention: several processes that
    compute a pack together (`flexmask.attention.context`) exchange keys and values, and nothing else. Raises ValueError
    for a backend that they cannot use."""
    inner = unwrapped(model)
    if backend == "flash":
        raise ValueError(
            "context_parallel with backend=flash: packs are divided in blocks of block_size, and this backend has "
            "blocks of its own; leave backend out (auto)"
        )
    if layers := unbranched_layers(inner) or _stateful_paths(inner):
        raise UnsupportedModelError(
            f"{type(inner).__name__}: {_few(layers)} carry state from token to token, which context_parallel would cut "
            "between processes; leave it out, and give a pack_length that one process can hold"
        )


def _few(layers: list[str]) -> str:
    return ", ".join(layers[:4]) + (f" and {len(layers) - 4} more" if len(layers) > 4 else "")


@contextlib.contextmanager
def inputs_of(model: PreTrainedModel, pack: Pack, block_size: int) -> Iterator[dict[str, Tensor | BlockMask]]:
    """The arguments for a call of the model over a pack; inside, its layers get the masks that its code asks for.

    Each mask is made once, whatever number of layers have it. Raises UnsupportedModelError as `check_positions`, for
    masks that one pass does not have, and for a model that has not asked for any.
    """
    host, device = pack.on_host, pack.input_ids.device
    check_positions(model.config, host)
    blocks = blocks_of(model, device, block_size)

    @functools.cache
    def masks(window: int | None = None, chunk: int | None = None) -> BlockMask:
        # Made on the CPU and moved: nothing is read back from the device.
        mask = build_block_mask(
            host.visible_until, blocks, host.position_ids, window, chunk, length=pack.pack_length, context=host.context
        )
        return mask if device.type == "cpu" else place_mask_mod(mask.to(device), device)

    own = slice(None) if pack.context is None else pack.context.tokens
    input_ids, position_ids = pack.input_ids[:, own], pack.position_ids[:, own]
    with masks_given(masks):
        # Without a mask of padding, transformers (5.23) would guess packed sequences where positions jump.
        mask = masks() if is_routed(model) else torch.ones_like(input_ids)
        yield dict(input_ids=input_ids, position_ids=position_ids, attention_mask=mask)
    if not masks.cache_info().currsize:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not ask transformers for its attention masks, so branches would see each "
            "other; train it elsewhere one pass at a time"
        )


# Models with a table of positions and nothing beyond it, by model_type (transformers 5.23). The table would raise an
# error by itself, but one that names neither model nor length, and on a GPU it ends the process.
_POSITION_TABLES = (
    "bert",
    "bert-generation",
    "biogpt",
    "ctrl",
    "electra",
    "ernie",
    "gpt2",
    "gpt_bigcode",
    "opt",
    "roc_bert",
)


def check_positions(config: PreTrainedConfig, tokens: Pack | Row) -> None:
    """Raise UnsupportedModelError for a pack or row in which a model would look at more than the positions of a token's
    own path, or past its table.

    transformers 5.23: rotary embeddings of type "longrope" and "dynamic" choose their frequencies for all tokens by the
    greatest position there is, and Llama 4 scales queries of layers without positions by their index in the pack.
    """
    text, greatest = config.get_text_config(), int(tokens.position_ids.max()) + 1
    rope = getattr(text, "rope_parameters", None) or {}
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        kind = parameters.get("rope_type")
        if kind == "longrope":
            limit = parameters.get("original_max_position_embeddings") or text.max_position_embeddings
        elif kind == "dynamic" and not (text.model_type.startswith("hunyuan") and parameters.get("alpha")):
            limit = text.max_position_embeddings  # whatever original_max_position_embeddings says
        else:  # also HunYuan's "dynamic" with an `alpha`, whose frequencies are fixed
            continue
        if greatest > limit:
            raise UnsupportedModelError(
                f"rotary embeddings of type {kind!r} change for all tokens of a pack once one stands beyond {limit:,} "
                f"positions, and there is one at {greatest:,}; give pack_length={limit} or less"
            )
    if text.model_type in _POSITION_TABLES and greatest > (limit := text.max_position_embeddings):
        raise UnsupportedModelError(
            f"{text.model_type} has max_position_embeddings={limit:,} learned positions, and there is a token at "
            f"{greatest:,}; give pack_length={limit} or less"
        )
    # Layers with an entry of 0 in no_rope_layers are those without positions.
    if text.model_type == "llama4_text" and text.attn_temperature_tuning and not all(text.no_rope_layers):
        if len(tokens) >= text.floor_scale:
            raise UnsupportedModelError(
                f"attn_temperature_tuning scales queries by their index in the pack from floor_scale="
                f"{text.floor_scale:,} tokens on, and there are {len(tokens):,}; give pack_length="
                f"{text.floor_scale - 1} or less, or set attn_temperature_tuning to false in the model's config"
            )
