"""Per-turn training written with nothing of the project's row, mask or loss: the reference for exactness.

Each pass alone, stock attention of transformers, the ordinary causal shift.
"""

import json

import numpy as np
import torch
from torch.nn import functional as F


def pass_token_losses(model, one_pass_of_a_turn) -> torch.Tensor:
    """Cross-entropy of tokens 1 ... T-1 of a pass, [T - 1], each predicted from the token before it."""
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    ids = torch.from_numpy(one_pass_of_a_turn.input_ids)[None].to(model.device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")


def per_turn_loss(model, passes) -> torch.Tensor:
    """Sum over passes of weighted token losses."""
    total = 0.0
    for p in passes:
        weights = torch.from_numpy(p.loss_weights[1:]).to(model.device, model.dtype)
        total = total + (pass_token_losses(model, p) * weights).sum()
    return total


def distinct_prefixes(passes) -> int:
    """The fewest tokens that an exact method computes."""
    return len({tuple(one.input_ids[: i + 1].tolist()) for one in passes for i in range(len(one))})


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def worst_gradient_difference(left, right) -> float:
    """Largest entry of the difference over the largest entry of the gradient, worst over all parameters."""
    assert left.keys() == right.keys()
    return max(
        ((left[name] - right[name]).abs().max() / left[name].abs().max().clamp_min(1e-30)).item() for name in left
    )


def record_model(record_property, name, family, model, verdict, differences, why=None) -> None:
    """What tests/support.py writes of a model that a test has compared; differences: of the loss, of the gradients."""
    record = dict(
        kind="model",
        family=name,
        model_class=type(model).__name__,
        attention=family.attention,
        verdict=verdict,
        loss_difference=differences[0],
        gradient_difference=differences[1],
    )
    record_property("support", json.dumps(record | ({} if why is None else {"why": class_of(why)})))


def class_of(layer: str) -> str:
    """The class in "path (class)"."""
    return layer.partition(" ")[2].strip("()")


def path_of(one_pass_of_a_turn, row) -> np.ndarray:
    """Indices in a row of the tokens of one of its passes, [T], by walking down the nodes by their first token."""
    path, node = [], -1
    while len(path) < len(one_pass_of_a_turn):
        token = one_pass_of_a_turn.input_ids[len(path)]
        (node,) = [n for n in np.flatnonzero(row.node_parent == node) if row.input_ids[row.node_start[n]] == token]
        path += range(row.node_start[node], row.node_end[node])
    path = np.array(path[: len(one_pass_of_a_turn)])
    assert np.array_equal(row.input_ids[path], one_pass_of_a_turn.input_ids)
    return path
