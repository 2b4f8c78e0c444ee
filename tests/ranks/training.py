"""A rank of test_training.py: its part of each of the runs, the result written by rank 0 to the folder given."""

import gc
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from trainers import BATCH, TWO_PROCESSES, losses_of, make_trainer


def train(name: str, folder: Path) -> None:
    arguments = dict(per_device_train_batch_size=BATCH // 2, pack_length=512, ddp_backend="gloo")
    trainer = make_trainer(folder, **TWO_PROCESSES[name], **arguments)
    trainer.train()
    if trainer.args.process_index == 0:
        torch.save((losses_of(trainer), dict(trainer.model.named_parameters())), folder / f"{name}.pt")


for name in TWO_PROCESSES:
    train(name, Path(sys.argv[1]))
# Threads of a process group that is alive when the interpreter ends can abort it (torch 2.13, gloo): wrapped models and
# their cycles go first, then the group.
gc.collect()
dist.barrier()
dist.destroy_process_group()
