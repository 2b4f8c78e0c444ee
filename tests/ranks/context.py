"""A rank of test_context.py: loss and gradients of every family where the processes compute each pack together, against
those of the whole pack; rank 0 writes the worst relative differences to the file given."""

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from factories import random_passes
from families import FAMILIES

from flexmask import lay_out, pack, prepare_model, token_losses
from flexmask.attention.context import divide
from flexmask.tree.sharing import token_costs

BLOCK = 16


def difference(family: str, block_size: int = BLOCK) -> float:
    contexts, _ = divide(costs, whole.pack_length, block_size, dist.get_world_size())
    divided = replace(whole, context=contexts[dist.get_rank()])
    model = prepare_model(FAMILIES[family].build(torch.float64))
    total = token_losses(model, whole, block_size).total
    total.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for checkpointing in (False, True):
        if checkpointing and model.supports_gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        part = token_losses(model, divided, block_size).total
        part.backward()
        found = [part.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
        for tensor in found:
            dist.all_reduce(tensor)
        worst = abs(float(found[0] / total.detach()) - 1)
        for name, p in model.named_parameters():
            if name in expected:
                worst = max(worst, float((p.grad - expected[name]).abs().max() / expected[name].abs().max()))
    return worst


dist.init_process_group("gloo")
whole = pack(lay_out(random_passes(3), "one_pass").rows, 512)[0]
costs = token_costs(whole.position_ids[0].numpy(), 0.1)
differences = {family: difference(family) for family in FAMILIES}
differences["one block for all"] = difference("Qwen3", block_size=whole.pack_length)
if dist.get_rank() == 0:
    Path(sys.argv[1]).write_text(json.dumps(differences))
gc.collect()  # as in training.py
dist.barrier()
dist.destroy_process_group()
