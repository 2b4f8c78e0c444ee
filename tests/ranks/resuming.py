"""A rank of test_ranks.py: a sharded run that saves every third step in the folder given, from the checkpoint there if
there is one; rank 0 writes the result beside it."""

import gc
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from trainers import IN_ALL, SHARDED, losses_of, make_trainer, whole

folder = Path(sys.argv[1])
saved = folder / "checkpoint-3"
settings = (
    {"pack_length": 512, "ddp_backend": "gloo", "save_strategy": "steps", "save_steps": 3, "model": "hybrid"}
    | IN_ALL
    | SHARDED
)
trainer = make_trainer(folder, **settings)
saved_before = saved.exists()
trainer.train(resume_from_checkpoint=str(saved) if saved_before else None)
parameters = {key: whole(parameter) for key, parameter in trainer.model.named_parameters()}
if trainer.args.process_index == 0:
    name = f"{trainer.args.world_size} processes{', resumed' if saved_before else ''}.pt"
    torch.save((losses_of(trainer), parameters), folder / name)
del trainer
gc.collect()  # as in training.py
dist.barrier()
dist.destroy_process_group()
