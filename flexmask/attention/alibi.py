"""ALiBi: a bias on the scores that follows a key's position, for Bloom.

transformers (5.23) gives Bloom no AttentionInterface: the model makes a table of biases by index and its layers do
their own softmax. Here the model's own table is read at logical positions, and the layers attend through
`flexmask.attention.interface` whenever they are given a BlockMask. With any other mask they are as before.
"""

import types
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedModel

from flexmask.attention.interface import flexmask_attention
from flexmask.attention.masks import PackMaskMod


def has_alibi_route(model: PreTrainedModel) -> bool:
    """Whether this is a model that `route_alibi` is for."""
    return model.config.model_type == "bloom"


def is_routed(model: PreTrainedModel) -> bool:
    """Whether `route_alibi` has been called on the model."""
    return has_alibi_route(model) and "build_alibi_tensor" in vars(model.transformer)


def route_alibi(model: PreTrainedModel) -> None:
    """Let a Bloom model take a BlockMask as its attention mask; changes the model's methods, not its weights."""
    if is_routed(model):
        return
    transformer: Any = model.transformer
    for block in transformer.h:
        block.self_attention.original_forward = block.self_attention.forward
        block.self_attention.forward = types.MethodType(_attend, block.self_attention)
    transformer.original_alibi = transformer.build_alibi_tensor
    transformer.build_alibi_tensor = types.MethodType(_key_bias, transformer)


def _key_bias(model: Any, attention_mask: Tensor | BlockMask, num_heads: int, dtype: torch.dtype) -> Tensor:
    """[H, S] for a BlockMask: the bias of each key at its position, padding left out."""
    if not isinstance(attention_mask, BlockMask):
        return model.original_alibi(attention_mask, num_heads, dtype)
    mask_mod = cast(PackMaskMod, attention_mask.mask_mod)
    assert mask_mod.position_ids is not None  # `flexmask.model.support.inputs_of` gives them
    positions = mask_mod.position_ids[0, : mask_mod.tokens]
    table = model.original_alibi(positions.new_ones(1, int(positions.max()) + 1), num_heads, dtype)  # [H, 1, positions]
    return table[:, 0, positions]


def _attend(
    layer: Any, hidden_states: Tensor, residual: Tensor, alibi: Tensor, attention_mask: Any, **more: Any
) -> Any:
    """The attention of a Bloom layer; its projections, dropout and residual are the layer's own."""
    if not isinstance(attention_mask, BlockMask):
        return layer.original_forward(hidden_states, residual, alibi=alibi, attention_mask=attention_mask, **more)
    query, key, value = layer._reshape(layer.query_key_value(hidden_states))
    attended, _ = flexmask_attention(
        layer, query, key, value, attention_mask, scaling=layer.inv_norm_factor, key_bias=alibi
    )
    output = layer.dense(attended.flatten(2))
    return residual + nn.functional.dropout(output, p=layer.hidden_dropout, training=layer.training), None
