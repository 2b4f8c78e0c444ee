"""Trainers of tiny models on random conversations, for the tests of what a run trains and of how it may end."""

import functools

import torch
from factories import chatml_tokenizer, random_candidates, random_conversation, tiny_qwen3
from families import Family
from stateful_families import BRANCHING
from torch.utils.data import IterableDataset
from transformers import TrainerCallback, TrainingArguments

from flexmask import OnePassCollator, OnePassTrainer, lay_out, prepare_conversation
from flexmask.objectives.preference import Preference

VOCAB = len(chatml_tokenizer())
CONVERSATIONS = [random_conversation(seed, turns=1 + seed % 5) for seed in range(24)]
STEPS, BATCH = 6, 4


def rows_in(layout, pack_length=1024):
    return list(_rows_in(layout, pack_length))


@functools.cache
def _rows_in(layout, pack_length):
    tokenizer = chatml_tokenizer()
    return [prepare_conversation(c, tokenizer, layout=layout, pack_length=pack_length).rows for c in CONVERSATIONS]


def pairs_in(layout, pack_length):
    """Rows of records of a better and a worse answer; in packs of 96 tokens many are divided."""
    return [lay_out(random_candidates(seed, 2, (seed % 3, 1.5)), layout, pack_length).rows for seed in range(24)]


def tiny_hybrid(vocab, dtype):
    """A model whose layers carry state, which branches with the tree."""
    config = BRANCHING["Qwen3.5"].config()
    config.vocab_size = vocab
    return Family("", lambda: config).build(dtype)


MODELS = {"attention": tiny_qwen3, "hybrid": tiny_hybrid}
# Runs on several processes. `per_device_train_batch_size` is that of all of them together, and seldom a multiple of
# their number; two conversations are fewer than three processes, some of which then train nothing.
IN_ALL = {"accelerator_config": {"split_batches": True}}
SHARDED = {"fsdp": True, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}
ON_RANKS = {
    "attention": {},
    "hybrid": {"model": "hybrid"},
    "stream": {"stream": True},
    "few": {"per_device_train_batch_size": 2, "pack_length": 1024},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "one at a time": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    "whole epochs": {"per_device_train_batch_size": 5, "num_train_epochs": 1.4, "max_steps": -1},
    "sharded": SHARDED,
    "one pack in all": {"context_parallel": True},
    "one pack in all, sharded": {"context_parallel": True, "per_device_train_batch_size": 1} | SHARDED,
    "preferences": {"preferences": "sigmoid"},
    "preferences, divided": {"preferences": "ipo", "pack_length": 96, "per_device_train_batch_size": 5},
    "preferences, sharded": {"preferences": "sigmoid_norm", "pack_length": 96} | SHARDED,
    "sharded hybrid": {"model": "hybrid", "per_device_train_batch_size": 2} | SHARDED,
}


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
    context_parallel=False,
    preferences=None,
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
    rows = rows_in(layout, pack_length) if preferences is None else pairs_in(layout, pack_length)
    if preferences and heldout:
        heldout = rows[:5]
    return OnePassTrainer(
        MODELS[model](VOCAB, dtype),
        TrainingArguments(output_dir=str(tmp_path), **arguments),
        OnePassCollator(pack_length, block_size=16, context_parallel=context_parallel),
        train_dataset=Stream(rows) if stream else rows,
        eval_dataset=heldout,
        callbacks=callbacks,
        objective=preferences and Preference(preferences, 0.5),
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


# The Trainer sums its logged losses in float32; weights keep all of float64.
def assert_same_run(left, right, tolerance=1e-6):
    assert left[0].keys() == right[0].keys()
    for step in left[0]:
        assert abs(left[0][step] - right[0][step]) <= tolerance * abs(left[0][step]), f"step {step}"
    for name in left[1]:
        torch.testing.assert_close(left[1][name], right[1][name], rtol=0, atol=1e-9)


def whole(tensor):
    """A parameter or gradient, gathered from all processes where it is sharded."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()


class Killed(BaseException):
    pass


class KillAt(TrainerCallback):
    """Ends the process's training between two checkpoints, as a kill would: nothing gets to clean up."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed
