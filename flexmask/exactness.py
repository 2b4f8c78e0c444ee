"""A check of the model at hand: does one pass over a small row give the losses of its passes?

Layers that cannot be masked are refused by what is known of them (`flexmask.models`). This catches the ones that
nobody has thought of: attention that ignores or rewrites the mask, positions taken from indices, state between tokens.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from flexmask.loss import token_losses
from flexmask.models import UnsupportedModelError, takes_block_masks, trying, unwrapped
from flexmask.packing import pack
from flexmask.rendering import Pass, Role
from flexmask.tree import one_pass, per_turn

_HALF = (torch.bfloat16, torch.float16)
# Largest difference of a token's loss that rounding explains, by the dtype of the computation. Over 172 families that
# are exact (transformers 5.23, tiny, weights of std 0.02 to 0.25) float32 gives at most 2e-5; over 16 that are not, at
# least 0.1. bfloat16 gives up to 0.5 for exact ones: half precision is for models that cannot be computed in float32.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-2, torch.bfloat16: 0.5, torch.float16: 0.1}


def check_exact(model: nn.Module, block_size: int = 128) -> None:
    """Compare token losses of a packed two-turn row with those of its passes, run alone under plain causal attention.

    `model` is a prepared model (`prepare_model`). Costs five forward passes over fewer than 100 tokens; a model in half
    precision is computed in float32, one module at a time, and keeps its weights.
    Raises UnsupportedModelError with the largest difference, or with the error that the model itself raised.
    """
    with trying(model):
        difference, dtype = _largest_difference(model, block_size)
    if not difference <= _TOLERANCE[dtype]:
        raise UnsupportedModelError(
            f"{type(unwrapped(model)).__name__}: one pass is not exact for this model: a token's loss differs by "
            f"{difference:.2g} from that of its own pass, so something besides masked attention and positions connects "
            "its tokens; train it elsewhere one unpacked pass at a time"
        )


def _largest_difference(model: nn.Module, block_size: int) -> tuple[float, torch.dtype]:
    """Between the losses of a token in its row and in its pass, and the dtype that both were computed in."""
    inner = unwrapped(model)
    # Quantized layers compute in half precision whatever they are given.
    if inner.dtype not in _HALF or getattr(inner, "hf_quantizer", None) is not None:
        return _difference(model, block_size), inner.dtype
    try:
        with _in_float32(model):
            return _difference(model, block_size), torch.float32
    except UnsupportedModelError:
        raise
    except Exception as error:
        # Some code takes half precision only, and FlexAttention's float32 kernels need twice the shared memory.
        difference = _difference(model, block_size)
        warnings.warn(
            f"{type(inner).__name__} was tried in {inner.dtype} only, where rounding hides a small leak between turns, "
            f"because float32 fails with {type(error).__name__}: {error}",
            stacklevel=3,
        )
        return difference, inner.dtype


@contextlib.contextmanager
def _in_float32(model: nn.Module) -> Iterator[None]:
    """Every module finds its own half-precision tensors in float32 while it runs, and gets the same ones back.

    A float32 copy of a large model might not fit beside it; that of its largest module does.
    """
    held = {}

    def widen(module: nn.Module, _: object) -> None:
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        inside: Any = module
        # Layers of peft read the weights of those that they wrap.
        while (inside := getattr(inside, "base_layer", None)) is not None:
            tensors += [*inside.parameters(recurse=False), *inside.buffers(recurse=False)]
        # Some code casts to the dtype of the norm that it calls next (Nemotron-H), or computes a convolution itself.
        for child in module.children():
            convolution = isinstance(child, nn.Conv1d)
            tensors += [p for p in child.parameters(recurse=False) if convolution or p.ndim == 1]
        held[module] = [(tensor, tensor.data) for tensor in tensors if tensor.dtype in _HALF]
        for tensor, data in held[module]:
            tensor.data = data.float()

    def restore(module: nn.Module, *_: object) -> None:
        for tensor, data in held.pop(module, ()):
            tensor.data = data

    handles = [module.register_forward_pre_hook(widen) for module in model.modules()]
    handles += [module.register_forward_hook(restore, always_call=True) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _difference(model: nn.Module, block_size: int) -> float:
    passes = _two_conversations(_vocabulary(unwrapped(model)))
    device = unwrapped(model).device
    if takes_block_masks(model):
        groups = [[row for conversation in passes for row in one_pass(conversation)]]
        passes = [conversation[::-1] for conversation in passes]  # the order of a row's branches
    else:  # state that does not branch: as it will be run, one pass a row and one row a pack
        groups = [[row] for conversation in passes for row in per_turn(conversation)]
    packs = [pack(rows, sum(map(len, rows)))[0] for rows in groups]
    ours = torch.cat([token_losses(model, one.to(device), block_size).losses for one in packs])
    alone = torch.cat([_alone(model, p, device) for conversation in passes for p in conversation])
    return (ours - alone).abs().max().item()


def _vocabulary(model: PreTrainedModel) -> int:
    """How many tokens have both an embedding and a logit: some models (speech, images) have more of one."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    # Adapters of peft wrap either.
    rows: Any = next(module.num_embeddings for module in embeddings.modules() if hasattr(module, "num_embeddings"))
    return min(rows, getattr(head, "out_features", rows))


def _alone(model: nn.Module, p: Pass, device: torch.device) -> torch.Tensor:
    """Losses of the trained tokens of one pass, with the masks and positions that transformers makes itself."""
    ids = torch.from_numpy(p.input_ids).to(device)
    logits = model(input_ids=ids[None], use_cache=False).logits[0]
    return F.cross_entropy(logits[p.prompt_length - 1 : -1].float(), ids[p.prompt_length :], reduction="none")


def _two_conversations(vocabulary: int) -> list[list[Pass]]:
    """Two conversations of two turns, tokens from a seed: branches, a copy, and a border between packed rows."""
    rng = np.random.default_rng(0)
    conversations = []
    for name in ("check 0", "check 1"):
        history, passes = np.empty(0, dtype=np.int64), []
        for turn in range(2):
            question, thinking, answer = (rng.integers(0, vocabulary, count) for count in (5, 7, 4))
            thinking[0] = (answer[0] + 1) % vocabulary  # so that the row branches right behind the question
            prompt = np.concatenate([history, question])
            ids = np.concatenate([prompt, thinking, answer])
            roles = np.repeat([Role.PROMPT, Role.THINKING, Role.ANSWER], [len(prompt), 7, 4]).astype(np.int8)
            weights = (roles != Role.PROMPT).astype(np.float32)
            passes.append(Pass(name, turn, len(prompt), ids, roles, weights))
            history = np.concatenate([prompt, answer])
        conversations.append(passes)
    return conversations
