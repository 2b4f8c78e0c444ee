"""What `OnePassTrainer` is given, checked before anything runs."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from flexmask.errors import UnsupportedModelError
from flexmask.model.support import check_model, check_positions, unbranched_layers
from flexmask.objectives.preference import Preference
from flexmask.training.arguments import OnePassConfig
from flexmask.training.collator import OnePassCollator, check_objective
from flexmask.training.data import is_rows

# Arguments of other trainers, or of the Trainer for other losses, and what to do instead.
_REFUSED = {
    "compute_metrics": "it needs logits, which are made for a few tokens at a time and never kept; evaluate() gives "
    "the loss of thinking and answers",
    "preprocess_logits_for_metrics": "logits are made for a few tokens at a time and never kept",
    "compute_loss_func": "the loss is that of one pass a turn; weigh it with thinking_weight, answer_weight and turns",
    "tokenizer": "give it as processing_class",
    "formatting_func": "give the messages themselves; for other columns map the data set before",
    "peft_config": "wrap the model: OnePassTrainer(peft.get_peft_model(model, peft_config), ...)",
}


def check_settings(args: TrainingArguments, model: Any, others: Mapping[str, Any]) -> None:
    """Raise ValueError for what would be ignored, or would fail in the middle of training.

    others: the arguments of the trainer that are handed on to the Trainer.
    """
    if not isinstance(args, TrainingArguments):
        raise ValueError(f"args is a {type(args).__name__}; give OnePassConfig(output_dir, ...)")
    for name, advice in _REFUSED.items():
        if others.get(name) is not None:
            raise ValueError(f"{name}: {advice}")
    if (model is None) == (others.get("model_init") is None):
        raise ValueError("give either a model (a module, or the name or folder of one) or model_init")
    for name, advice in {
        "label_smoothing_factor": "is not part of the loss here; set it to 0",
        "auto_find_batch_size": "memory follows pack_length, not the batch size; set it to False and lower pack_length",
        "fp16_full_eval": "evaluation is computed as training is; set it to False",
        "bf16_full_eval": "evaluation is computed as training is; set it to False",
    }.items():
        if value := getattr(args, name):
            raise ValueError(f"{name}={value}: {advice}")
    if str(args.include_num_input_tokens_seen) not in ("no", "False"):
        raise ValueError(
            f"include_num_input_tokens_seen={args.include_num_input_tokens_seen!r}: run_totals counts tokens; leave it "
            "out"
        )
    if args.train_sampling_strategy == "batch_rebalance":
        raise ValueError(
            "train_sampling_strategy='batch_rebalance': the rows of a step are shared out evenly as it is; leave it out"
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process: a pack cannot be scattered over them; start one process a GPU with "
            "torchrun, or choose one with CUDA_VISIBLE_DEVICES=0"
        )


def settle_collator(args: TrainingArguments, collator: Any, objective: Any) -> OnePassCollator:
    """The trainer's own collator, for its processes: a copy of the one given, or as `args` say. Raises ValueError where
    both or neither say it, and for an objective that is none or cannot be computed."""
    own = _own_collator(args, collator)
    own.objective = own.objective if objective is None else objective
    if own.objective is not None and not isinstance(own.objective, Preference):
        raise ValueError(f"objective is a {type(own.objective).__name__}; give Preference(kind, beta), or leave it out")
    if own.objective is not None and own.context_parallel:
        raise ValueError("objective with context_parallel: each process has a part of every answer; leave one out")
    own.processes, own.process_index = args.world_size, args.process_index
    return own


def _own_collator(args: TrainingArguments, collator: Any) -> OnePassCollator:
    if collator is None:
        if not isinstance(args, OnePassConfig):
            raise ValueError(
                f"args is a {type(args).__name__}, which has no pack_length; give OnePassConfig, or data_collator="
                "OnePassCollator(pack_length)"
            )
        return OnePassCollator(
            args.pack_length,
            block_size=args.block_size,
            context_parallel=args.context_parallel,
            backend=args.backend,
        )
    if not isinstance(collator, OnePassCollator):
        raise ValueError(
            f"data_collator is a {type(collator).__name__}; give an OnePassCollator, or leave it out with OnePassConfig"
        )
    names = ("pack_length", "block_size", "context_parallel", "backend")
    for name in names if isinstance(args, OnePassConfig) else ():
        if (own := getattr(collator, name)) != (other := getattr(args, name)):
            raise ValueError(f"{name} is {own} in data_collator and {other} in args; leave data_collator out")
    return copy.copy(collator)


def check_stream(args: TrainingArguments, objective: Preference | None) -> None:
    """Raise ValueError for accumulation over the batches of a stream, and an objective that has a reference."""
    if objective is not None:
        raise ValueError("objective with a stream, of which the reference cannot be asked before training; give a list")
    if args.gradient_accumulation_steps > 1:
        raise ValueError(
            f"gradient_accumulation_steps={args.gradient_accumulation_steps} with a stream, whose end may fall inside "
            "a step; raise per_device_train_batch_size instead: packs run one after the other, so it costs no memory"
        )


def pretrained_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that is given by name or folder."""
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def pretrained_model(name: str, args: TrainingArguments) -> nn.Module:
    """In float32 and without code of its own unless `model_init_kwargs` say otherwise: small updates of half-precision
    weights are lost."""
    settings = {"dtype": torch.float32, "trust_remote_code": False}
    return AutoModelForCausalLM.from_pretrained(name, **settings | (getattr(args, "model_init_kwargs", None) or {}))


def datasets_of(dataset: Any, name: str) -> dict[str, Any]:
    """The data sets of an argument, which may be a dict of them, by what to call them in errors; none of None."""
    if isinstance(dataset, Mapping):
        if not dataset:
            raise ValueError(f"{name} is an empty dict; give it data sets, or leave it out")
        return {f"{name}[{key!r}]": one for key, one in dataset.items()}
    return {} if dataset is None else {name: dataset}


def check_metric(args: TrainingArguments, eval_dataset: Any, compares: bool) -> None:
    """Raise ValueError for a metric that no evaluation gives: the Trainer would only find out at the first one.
    compares: whether there is an objective that compares passes."""
    metric = args.metric_for_best_model
    if metric is None or eval_dataset is None:
        return
    prefixes = [f"eval_{name}" for name in eval_dataset] if isinstance(eval_dataset, Mapping) else ["eval"]
    compared = ("preference_accuracy", "preference_margin") if compares else ()
    known = [f"{prefix}_{name}" for prefix in prefixes for name in ("loss", "thinking_loss", "answer_loss", *compared)]
    if metric.removeprefix("eval_") not in [name.removeprefix("eval_") for name in known]:
        raise ValueError(f"metric_for_best_model={metric!r}: evaluation gives {', '.join(known)}")


def check_rows(
    dataset: Any,
    name: str,
    pack_length: int,
    model: PreTrainedModel | None = None,
    objective: Preference | None = None,
) -> None:
    """Raise ValueError for conversations without rows, rows longer than a pack, tokens that `model` does not have and
    what `objective` cannot train; UnsupportedModelError for rows that branch where the state of the model's layers does
    not, or are longer than its positions allow. Streams are checked as they are read."""
    if isinstance(dataset, IterableDataset):
        return
    has_unbranched = model is not None and bool(unbranched_layers(model))
    tokens = None if model is None else getattr(model.get_input_embeddings(), "num_embeddings", None)
    empty = []
    for i, rows in enumerate(dataset):
        if not is_rows(rows):
            raise ValueError(f"{name}[{i}] is a {type(rows).__name__} among rows; give rows only, or none")
        try:
            check_objective(rows, objective)
        except ValueError as error:
            raise ValueError(f"{name}[{i}]: {error}") from error
        for row in rows:
            if len(row) > pack_length:
                raise ValueError(
                    f"{name}[{i}]: row {row.name} has {len(row):,} tokens, and pack_length is {pack_length:,}; prepare "
                    "it with that pack_length, or raise the trainer's"
                )
            if tokens is not None and (greatest := int(row.input_ids.max())) >= tokens:
                raise ValueError(
                    f"{name}[{i}]: row {row.name} has token {greatest:,}, and {type(model).__name__} has embeddings "
                    f"for {tokens:,}; give the tokenizer of this model, or resize_token_embeddings"
                )
            try:
                if model is not None and not has_unbranched:
                    check_positions(model.config, row)
                elif model is not None and not row.is_chain:
                    check_model(model)
            except UnsupportedModelError as error:
                which = f"the row of {row.name} branches;" if has_unbranched else f"row {row.name}:"
                raise UnsupportedModelError(f"{name}[{i}]: {which} {error}") from error
        if not rows:
            empty.append(i)
    if empty:
        raise ValueError(
            f"{name}: {len(empty)} conversations have no rows because none of their turns is trained "
            f"(indices {', '.join(map(str, empty[:5]))}{', ...' if len(empty) > 5 else ''}); leave them out"
        )
