"""A rank of test_loss.py: the gradients of two ranks under each wrapper against those of both packs in one process;
rank 0 writes the worst relative differences to the file given."""

import gc
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from factories import TINY_MODELS
from test_loss import BLOCK, VOCAB, one_pack
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from trainers import whole

from flexmask import prepare_model, token_losses
from flexmask.model import loss


def sharded(model, own=(), **settings):
    for layer in [*model.model.layers, *(model.get_submodule(name) for name in own)]:
        fully_shard(layer, **settings)
    return fully_shard(model, **settings)


WRAPPERS = {
    "ddp": DistributedDataParallel,
    "ddp static graph": lambda model: DistributedDataParallel(model, static_graph=True),
    "ddp unused": lambda model: DistributedDataParallel(model, find_unused_parameters=True),
    "fsdp": sharded,
    "fsdp reshard": lambda model: sharded(model, reshard_after_forward=True),
    "fsdp head": lambda model: sharded(model, own=("model.embed_tokens", "lm_head")),
}


def difference(family, wrap) -> float:
    model, alone = (prepare_model(TINY_MODELS[family](VOCAB, torch.float64)) for _ in range(2))
    sum(token_losses(alone, one, BLOCK).total for one in packs).backward()
    wrapped = wrap(model)
    for _ in range(2):
        wrapped.zero_grad()
        # Wrappers take the mean over ranks.
        (token_losses(wrapped, packs[dist.get_rank()], BLOCK).total * dist.get_world_size()).backward()
    found = {key: whole(parameter.grad) for key, parameter in model.named_parameters()}
    return max(
        float((found[key] - parameter.grad).abs().max() / parameter.grad.abs().max())
        for key, parameter in alone.named_parameters()
    )


loss.LOGITS_BYTES = 30 * VOCAB * 4
dist.init_process_group("gloo")
packs, differences = [one_pack(2), one_pack(3)], {}
for family in TINY_MODELS:
    for name, wrap in WRAPPERS.items():
        if (family, name) != ("gemma3", "fsdp head"):  # its head is its embedding
            differences[f"{family}, {name}"] = difference(family, wrap)
if dist.get_rank() == 0:
    Path(sys.argv[1]).write_text(json.dumps(differences))
gc.collect()  # as in training.py
dist.barrier()
dist.destroy_process_group()
