"""Trainers of tiny models on random conversations, for the tests of what a run trains and of how it may end."""

import functools

import torch
from factories import chatml_tokenizer, random_conversation, tiny_qwen3
from families import Family
from stateful_families import BRANCHING
from torch.utils.data import IterableDataset
from transformers import TrainerCallback, TrainingArguments

from flexmask import OnePassCollator, OnePassTrainer, prepare_conversation

VOCAB = len(chatml_tokenizer())
CONVERSATIONS = [random_conversation(seed, turns=1 + seed % 5) for seed in range(24)]
STEPS, BATCH = 6, 4


def rows_in(layout, pack_length=1024):
    return list(_rows_in(layout, pack_length))


@functools.cache
def _rows_in(layout, pack_length):
    tokenizer = chatml_tokenizer()
    return [prepare_conversation(c, tokenizer, layout=layout, pack_length=pack_length).rows for c in CONVERSATIONS]


def tiny_hybrid(vocab, dtype):
    """A model whose layers carry state, which branches with the tree."""
    config = BRANCHING["Qwen3.5"].config()
    config.vocab_size = vocab
    return Family("", lambda: config).build(dtype)


MODELS = {"attention": tiny_qwen3, "hybrid": tiny_hybrid}
# Runs on two processes, each of which reads its share of a batch.
TWO_PROCESSES = {"attention": {}, "hybrid": {"model": "hybrid"}, "stream": {"stream": True}}


def make_trainer(
    tmp_path,
    *,
    model="attention",
    layout="one_pass",
    pack_length=1024,
    dtype=torch.float64,
    callbacks=None,
    heldout=None,
    stream=False,
    **arguments,
):
    arguments = {
        "per_device_train_batch_size": BATCH,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
        "logging_nan_inf_filter": False,
    } | arguments
    rows = rows_in(layout, pack_length)
    return OnePassTrainer(
        MODELS[model](VOCAB, dtype),
        TrainingArguments(output_dir=str(tmp_path), **arguments),
        OnePassCollator(pack_length, block_size=16),
        train_dataset=Stream(rows) if stream else rows,
        eval_dataset=heldout,
        callbacks=callbacks,
    )


class Stream(IterableDataset):
    """Can be read again and again, and has no length."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def losses_of(trainer):
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


def trained(trainer, **arguments):
    trainer.train(**arguments)
    return losses_of(trainer), {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


class Killed(BaseException):
    pass


class KillAt(TrainerCallback):
    """Ends the process's training between two checkpoints, as a kill would: nothing gets to clean up."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed
