"""Run by torchrun in test_training.py: one rank's part of a run, its result written by rank 0 to the path given."""

import sys
from pathlib import Path

import torch
from test_training import BATCH, losses_of, make_trainer

folder = Path(sys.argv[1])
trainer = make_trainer(folder, per_device_train_batch_size=BATCH // 2, pack_length=512, ddp_backend="gloo")
trainer.train()
if trainer.args.process_index == 0:
    torch.save((losses_of(trainer), dict(trainer.model.named_parameters())), folder / "result.pt")
