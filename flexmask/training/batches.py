"""The order of conversations in a run, and the loader of its batches: the same in every process."""

import signal
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig, LengthGroupedSampler

from flexmask.training.collator import OnePassCollator
from flexmask.training.data import Rows
from flexmask.tree.layouts import Row


def conversations_at_once(args: TrainingArguments) -> int:
    """Conversations of a batch, over all processes: `per_device_train_batch_size` a process, or with accelerate's
    `split_batches` in all."""
    config = args.accelerator_config
    assert isinstance(config, AcceleratorConfig)  # made by TrainingArguments whatever it was given
    return args.train_batch_size * (1 if config.split_batches else args.world_size)


def train_batches(
    dataset: Rows, collator: OnePassCollator, args: TrainingArguments, sampler: Sampler | None
) -> DataLoader:
    """Whole batches in every process, which trains its share of each (see `OnePassCollator`): so neither how many
    there are, nor whether batches come out even, nor how many workers read ahead, changes what a step trains."""
    order: dict[str, Any] = {"sampler": sampler}
    workers = args.dataloader_num_workers
    if isinstance(dataset, IterableDataset):  # each worker reads all of it, so one does
        order, workers = {}, min(workers, 1)
    loader: DataLoader = DataLoader(
        cast(Dataset, dataset),
        batch_size=conversations_at_once(args),
        collate_fn=collator,
        drop_last=args.dataloader_drop_last,
        pin_memory=args.dataloader_pin_memory and torch.accelerator.is_available(),
        num_workers=workers,
        worker_init_fn=_ignore_signals,
        persistent_workers=args.dataloader_persistent_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        prefetch_factor=args.dataloader_prefetch_factor,
        **order,
    )
    # Of accelerate's loaders, for the random order of each epoch and for going on in the middle of one.
    return prepare_data_loader(
        loader, num_processes=1, process_index=0, use_seedable_sampler=True, data_seed=data_seed(args)
    )


def _ignore_signals(_: int) -> None:
    """Ctrl-C and what a scheduler sends reach all processes of a group; the one that trains decides what comes of them,
    and its workers end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def data_seed(args: TrainingArguments) -> int:
    """The seed of the order."""
    return args.seed if args.data_seed is None else args.data_seed


class ByLength(LengthGroupedSampler):
    """Conversations of like length together in a step, in an order that depends on seed and epoch alone."""

    def __init__(self, dataset: Sequence[Sequence[Row]], args: TrainingArguments) -> None:
        lengths = [sum(map(len, rows)) for rows in dataset]
        at_once = conversations_at_once(args) * args.gradient_accumulation_steps
        super().__init__(at_once, lengths=lengths, generator=torch.Generator())
        self._seed = data_seed(args)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch, also of a run that goes on."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self._seed + self._epoch)
        return super().__iter__()
