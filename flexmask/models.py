"""Which models can be trained in one pass, and which BlockMask each of their layer types gets."""

import re

from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedConfig, PreTrainedModel

from flexmask.attention import ATTENTION_NAME
from flexmask.masks import build_block_mask
from flexmask.packing import Pack

# Class names of layers that carry a state from token to token outside attention, across transformers 5.23's models.
_STATEFUL = re.compile(
    r"mamba|lstm|deltanet|shortconv|linearattention|recurrent|rglru|rwkv|retention|lightningattention",
    re.IGNORECASE,
)
# How the mask of each layer type is restricted: the argument of build_block_mask, and the config's key for its value.
_RESTRICTIONS = {
    "full_attention": None,
    "sliding_attention": ("window", "sliding_window"),
    "chunked_attention": ("chunk", "attention_chunk_size"),
}


class UnsupportedModelError(ValueError):
    """The model has layers that an attention mask cannot make exact."""


def prepare_model(model: PreTrainedModel) -> PreTrainedModel:
    """Check that a model can be trained exactly and route its attention through `flexmask.attention`; returns it.

    Raises UnsupportedModelError naming the layers: stateful ones (linear attention, state space, convolution),
    attention that transformers does not route through its AttentionInterface, or a layer type without a mask rule.
    """
    check_model(model)
    model.set_attn_implementation(ATTENTION_NAME)
    if model.config._attn_implementation != ATTENTION_NAME:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not route its attention through transformers' AttentionInterface, so no "
            "block mask reaches it; train it elsewhere one pass at a time"
        )
    return model


def check_model(model: PreTrainedModel) -> None:
    """Raise UnsupportedModelError if masking cannot hide one branch of a row from another (see `prepare_model`)."""
    name = type(model).__name__
    stateful = [
        f"{path} ({type(module).__name__})"
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv1d) or _STATEFUL.search(type(module).__name__.removeprefix(name))
    ]
    types = layer_types(model.config)
    unknown = [f"layer {i} ({kind})" for i, kind in enumerate(types) if kind not in _RESTRICTIONS]
    if stateful or unknown:
        layers = stateful or unknown
        raise UnsupportedModelError(
            f"{name}: {', '.join(layers[:4])}{f' and {len(layers) - 4} more' if len(layers) > 4 else ''} "
            f"{'carry state from token to token' if stateful else 'have no mask rule'}, so no attention mask keeps one "
            "branch or packed row from leaking into the next, and the loss would be wrong; use a model whose layers "
            "are all full, sliding-window or chunked attention, or train this one elsewhere one unpacked pass at a time"
        )


def layer_types(config: PreTrainedConfig) -> list[str]:
    """The attention type of each layer; models that do not list them have one type throughout."""
    text = config.get_text_config()
    listed = getattr(text, "layer_types", None)
    if listed:
        return list(listed)
    if getattr(text, "num_hidden_layers", None) is None:
        raise UnsupportedModelError(
            f"{type(text).__name__} has neither layer_types nor num_hidden_layers, so what attention its layers have "
            "is not known; flexmask trains causal language models with one stack of layers"
        )
    kind = "full_attention" if getattr(text, "sliding_window", None) is None else "sliding_attention"
    return [kind] * text.num_hidden_layers


def attention_masks(config: PreTrainedConfig, pack: Pack, block_size: int) -> BlockMask | dict[str, BlockMask]:
    """The `attention_mask` argument for a model: one BlockMask, or one for each layer type where they differ.

    transformers passes a BlockMask through as it is (masking_utils, 5.23); models that mix layer types take a dict.
    """
    text = config.get_text_config()
    masks = {}
    for kind in sorted(set(layer_types(config))):
        restriction = {}
        if _RESTRICTIONS[kind] is not None:
            argument, key = _RESTRICTIONS[kind]
            restriction = {"position_ids": pack.position_ids, argument: getattr(text, key)}
        masks[kind] = build_block_mask(pack.visible_until, block_size, **restriction)
        masks[
            kind
        ].ndim = 4  # GPT-2 (transformers 5.23) takes a mask with fewer dimensions, or none, for one of padding
    return masks if len(masks) > 1 else next(iter(masks.values()))
