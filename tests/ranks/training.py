"""A rank of test_ranks.py: its part of each of the runs, the result written by rank 0 to the folder given."""

import gc
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from trainers import IN_ALL, ON_RANKS, losses_of, make_trainer, rows_in, whole


def train(name: str, folder: Path) -> None:
    arguments = dict(pack_length=512, ddp_backend="gloo") | IN_ALL | ON_RANKS[name]
    trainer = make_trainer(folder, heldout=rows_in("one_pass", 512)[:5], **arguments)
    trainer.train()
    held_out = trainer.evaluate()
    parameters = {key: whole(parameter) for key, parameter in trainer.model.named_parameters()}
    if trainer.args.process_index == 0:
        torch.save((losses_of(trainer), parameters, held_out, vars(trainer.run_totals)), folder / f"{name}.pt")


for name in ON_RANKS:
    train(name, Path(sys.argv[1]))
# Threads of a process group that is alive when the interpreter ends can abort it (torch 2.13, gloo): wrapped models and
# their cycles go first, then the group.
gc.collect()
dist.barrier()
dist.destroy_process_group()
