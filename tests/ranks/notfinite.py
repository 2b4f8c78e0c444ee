"""A rank of test_runs.py: a step whose gradient is not finite, in the folder given."""

import gc
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from trainers import IN_ALL, make_trainer

from flexmask import NonFiniteLossError

trainer = make_trainer(Path(sys.argv[1]), pack_length=512, ddp_backend="gloo", **IN_ALL)
trainer.model.model.layers[0].mlp.up_proj.weight.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
try:
    trainer.train()
except NonFiniteLossError as error:
    assert f"step-1-process-{trainer.args.process_index}.pt" in str(error), error
else:
    raise AssertionError("it trains on")
del trainer
gc.collect()  # as in training.py
dist.barrier()
dist.destroy_process_group()
