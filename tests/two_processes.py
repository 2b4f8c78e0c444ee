"""Run by torchrun in test_training.py: one rank's part of a run of each model, its result written by rank 0 to the
folder given."""

import sys
from pathlib import Path

import torch
from test_training import BATCH, MODELS, losses_of, make_trainer

folder = Path(sys.argv[1])
for model in MODELS:
    arguments = dict(per_device_train_batch_size=BATCH // 2, pack_length=512, ddp_backend="gloo")
    trainer = make_trainer(folder, model=model, **arguments)
    trainer.train()
    if trainer.args.process_index == 0:
        torch.save((losses_of(trainer), dict(trainer.model.named_parameters())), folder / f"{model}.pt")
