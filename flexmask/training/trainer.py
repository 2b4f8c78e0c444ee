"""A Trainer whose loss is that of one pass a turn.

The unit of a batch is the conversation: an optimizer step trains the same conversations whatever the layout or
the pack length, so both are free to change without changing what is learned.
"""

import contextlib
import copy
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn, cast

import torch
from accelerate.utils import DistributedType, TorchDynamoPlugin, extract_model_from_parallel
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import speed_metrics

from flexmask.attention.kernels import check_backend
from flexmask.errors import NonFiniteLossError
from flexmask.model.cost import pair_cost
from flexmask.model.end_of_turn import align_end_of_turn
from flexmask.model.exactness import check_exact
from flexmask.model.head import HALF
from flexmask.model.loss import loss_by_role, token_losses
from flexmask.model.randomness import warn_of_shared_draws
from flexmask.model.support import (
    blocks_of,
    check_context,
    evaluating,
    prepare_model,
    unbranched_layers,
    unwrapped,
)
from flexmask.training.arguments import OnePassConfig
from flexmask.training.batches import ByLength, train_batches
from flexmask.training.data import OnePassCollator, Preparation, Rows, prepare_dataset
from flexmask.training.layers import compile_layers
from flexmask.training.nonfinite import SavedPacks, save_packs
from flexmask.training.run_totals import IntervalFigures, RunTotals
from flexmask.training.sharding import allow_on_cpu, shard, told_apart, whole_state
from flexmask.training.trainer_inputs import (
    check_metric,
    check_rows,
    check_settings,
    check_stream,
    datasets_of,
    pretrained_model,
    pretrained_tokenizer,
    settle_collator,
)
from flexmask.tree.packing import Pack


class OnePassTrainer(Trainer):
    """`transformers.Trainer` whose loss is the sum over passes, normalised over the whole optimizer step.

        OnePassTrainer("Qwen/Qwen3-0.6B", OnePassConfig("out"), train_dataset=records).train()

    model: a causal language model, wrapped or not, or the name or folder of one; or `model_init`, which makes it.
    args: an `OnePassConfig`; or `TrainingArguments` with an `OnePassCollator` as `data_collator`. Neither is changed.
    train_dataset, eval_dataset: a list, `datasets.Dataset` or stream (`IterableDataset`, with `max_steps`) of records
        (`read_conversation`), of `Conversation` objects, or of the rows of a conversation each
        (`prepare_conversation(...).rows`). `eval_dataset` may be a dict of them.
    processing_class: the tokenizer, which prepares what is not rows yet and is saved in every checkpoint; a model given
        by name brings its own. Where conversations are prepared, tokenizer and model are made to agree on the end of
        turn that is trained (`flexmask.align_end_of_turn`), with a warning that says what has changed.

    `per_device_train_batch_size` and `gradient_accumulation_steps` count conversations. Each process trains a share
    of the rows of a batch, so that all have as much to do. The loss of a step is the weighted sum of token losses
    divided by the sum of weights over all its packs, accumulation and processes. Beside `loss`, logs `thinking_loss`,
    `answer_loss`, `tokens_per_second`, `trained_tokens_per_second`, `pack_fill` (the share of `pack_length` that
    packs fill), `block_sparsity` (of this process) and, under several, `rank_spread` (what the one that has most to
    do costs over the mean), each over the interval since the last log. `train_loss` and the other totals of a resumed
    run are those of all its steps.
    `torch_compile` compiles the model's layers, each by itself.

    A model with layers whose state does not branch with the tree (`unbranched_layers` of support.py) is trained
    on rows that do not branch either (layout "per_turn"), one a pack, with a warning.

    Raises, before the first step, ValueError for data or settings that cannot be trained with, and
    UnsupportedModelError for a model that cannot be exact on its rows; NonFiniteLossError before the optimizer steps.
    """

    # The Trainer allows for more of each.
    model: nn.Module
    data_collator: OnePassCollator
    train_dataset: Rows | None
    processing_class: PreTrainedTokenizerBase | None

    def __init__(
        self,
        model: nn.Module | str | None = None,
        args: TrainingArguments | None = None,
        data_collator: OnePassCollator | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ) -> None:
        self.args = copy.copy(args) if args is not None else OnePassConfig("trainer_output")
        check_settings(self.args, model, kwargs)
        self.args.remove_unused_columns = False  # a dataset item is not a dict of model arguments
        self.data_collator = settle_collator(self.args, data_collator)
        if isinstance(model, str):
            processing_class = processing_class or pretrained_tokenizer(model)
            model = pretrained_model(model, self.args)
        self.processing_class = processing_class
        if model is not None:
            self._make_exact(model)
        self._prepare_data(train_dataset, eval_dataset)
        if model is not None:
            self._fit_to_data(model)
        super().__init__(
            model=model,
            args=self.args,
            data_collator=self.data_collator,
            train_dataset=self.train_dataset,
            eval_dataset=self.eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if self._use_cache is not None:  # the Trainer (5.23) would save "do not use a cache" with the model
            unwrapped(self.model).config.use_cache = self._use_cache
        # compute_loss divides by the step's target weight itself, so the Trainer must not divide again.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = True
        self.add_callback(RunTotals())
        self.add_callback(_AtTheStart(self._take_up))  # behind the totals, which it reads
        self._interval = IntervalFigures(self.args.world_size)

    @property
    def run_totals(self) -> RunTotals:
        """What the run has spent so far. The Trainer may put another object in its place when it resumes."""
        return next(one for one in self.callback_handler.callbacks if isinstance(one, RunTotals))

    # ---- Before training ----

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """The model that `model_init` makes, routed and tried as one that was given is."""
        model = super().call_model_init(trial)
        self._make_exact(model)
        self._fit_to_data(model)
        return model

    def _make_exact(self, model: nn.Module) -> None:
        """Route a model's attention and state, and try it."""
        inner = unwrapped(model)
        self._use_cache = getattr(model.config, "use_cache", None)
        self.data_collator.pair_cost = pair_cost(inner)
        extract_model_from_parallel(model, keep_fp32_wrapper=False)  # the autocast of an earlier trainer
        layers = unbranched_layers(inner)
        if layers:
            self.data_collator.one_row_per_pack = True
            warnings.warn(
                f"{len(layers)} layers carry state from token to token ({layers[0]}, ...): every row is a pack of its "
                "own, and attention is the model's",
                stacklevel=3,
            )
        collator, half = self.data_collator, self.args.bf16 or self.args.fp16 or inner.dtype in HALF
        check_backend(collator.backend, self.args.device, collator.block_size, half)
        prepare_model(model, chains=bool(layers), backend=collator.backend)
        blocks_of(model, self.args.device, collator.block_size)
        if collator.context_parallel:
            check_context(inner, collator.backend)
        check_exact(model, self.data_collator.block_size, self.data_collator.pack_length)
        if self.args.neftune_noise_alpha:
            draws = [f"neftune_noise_alpha={self.args.neftune_noise_alpha}"]
            warn_of_shared_draws(type(inner).__name__, draws, stacklevel=3)
        if self.args.torch_compile:
            compile_layers(inner, self.args)

    def _prepare_data(self, train_dataset: Any, eval_dataset: Any) -> None:
        settings, reading = {}, {}
        if isinstance(self.args, OnePassConfig):
            settings = self.args.preparation()
            reading = {"thinking_tags": self.args.thinking_tags, "drop_invalid": self.args.on_invalid == "drop"}
        settings |= {"pack_length": self.data_collator.pack_length}
        self._preparation = Preparation(self.processing_class, settings, **reading)
        self.train_dataset = None
        self._ends: tuple[int, ...] = ()
        if train_dataset is not None:
            quiet = self.args.disable_tqdm or not self.args.should_log
            self.train_dataset, self._ends = prepare_dataset(train_dataset, "train_dataset", self._preparation, quiet)
            if isinstance(self.train_dataset, IterableDataset):
                check_stream(self.args)
        self.eval_dataset = self._heldout(eval_dataset)
        check_metric(self.args, self.eval_dataset)

    def _heldout(self, eval_dataset: Any) -> Any:
        """Held-out data as rows, each data set of a dict by itself; laid out as inference shows it."""
        preparation = self._preparation
        if preparation.settings.get("layout") == "keep_thinking":
            preparation = replace(preparation, settings={**preparation.settings, "layout": "one_pass"})
        rows = {
            name: prepare_dataset(dataset, name, preparation)[0]
            for name, dataset in datasets_of(eval_dataset, "eval_dataset").items()
        }
        for name, dataset in rows.items():
            check_rows(dataset, name, self.data_collator.pack_length)
        if isinstance(eval_dataset, Mapping):
            return dict(zip(eval_dataset, rows.values(), strict=True))
        return rows.get("eval_dataset")

    def _fit_to_data(self, model: nn.Module) -> None:
        """Refuse rows that the model cannot be trained on, and let it stop where it learns to."""
        datasets = {"train_dataset": self.train_dataset} if self.train_dataset is not None else {}
        for name, dataset in (datasets | datasets_of(self.eval_dataset, "eval_dataset")).items():
            check_rows(dataset, name, self.data_collator.pack_length, unwrapped(model))
        if self._ends and self.processing_class is not None:  # which has prepared the turns that end
            changed = align_end_of_turn(unwrapped(model), self.processing_class, self._ends)
            if changed:
                warnings.warn(changed, stacklevel=3)

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        # A compiled model would be compiled again for every pack; its layers are compiled instead.
        return super()._build_accelerator_args(**kwargs) | {"dynamo_plugin": TorchDynamoPlugin(backend="no")}

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        """A sampler that groups by length knows how long the rows of each conversation are."""
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(dataset)
        return ByLength(dataset, self.args)

    def get_train_dataloader(self) -> DataLoader:
        """The loader of `flexmask.training.batches`."""
        if self.train_dataset is None:
            raise ValueError("train: there is no data; give train_dataset to the trainer")
        return train_batches(self.train_dataset, self.data_collator, self.args, self._get_train_sampler())

    def create_accelerator_and_postprocess(self) -> None:
        """The Trainer's, with parameters sharded on CPUs as well."""
        super().create_accelerator_and_postprocess()
        allow_on_cpu(self.accelerator, self.args)
        self.is_fsdp_enabled = self.accelerator.distributed_type is DistributedType.FSDP

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_fsdp_enabled:
            shard(self.model, self.accelerator.state.fsdp_plugin)
        with told_apart(self.model):
            return super()._prepare_for_training(*args, **kwargs)

    # ---- Training ----

    def _take_up(self) -> None:
        """Where the run goes on from a checkpoint, so do the losses that its next log is a mean of, and those of
        `train_loss`, which the Trainer (5.23) both begins at zero; and the best checkpoint is that of this folder,
        wherever it lay when its path was written down."""
        totals, state = self.run_totals, self.state
        self._total_loss_scalar = totals.loss_sum
        if unlogged := totals.unlogged:
            self._tr_loss += unlogged["loss"]
            self._globalstep_last_logged -= unlogged["steps"]
            self._interval.go_on(unlogged["interval"], adds=self.accelerator.is_main_process)
        if state.best_global_step:
            best = os.path.join(cast(str, self.args.output_dir), f"checkpoint-{state.best_global_step}")
            state.best_model_checkpoint = best if os.path.isdir(best) else None

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer (5.23) trains one step too many when it resumes from the last one."""
        finished = self.state.global_step >= self.state.max_steps or any(
            one.early_stopping_patience_counter >= one.early_stopping_patience
            for one in self.callback_handler.callbacks
            if isinstance(one, EarlyStoppingCallback)
        )
        if finished:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor]:
        """The batches of one optimizer step and their target weight, summed over processes."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        figures = [batch["figures"] for batch in samples]
        packs = [one for batch in samples for one in batch["packs"]]
        self._step_packs = [one for one in packs if one.loss_weights.any()] or packs
        weight = sum(one.target_weight for one in figures)
        self._step_weight = float(weight)
        return samples, torch.as_tensor(weight, dtype=torch.float64, device=device)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward of each pack in turn; returns the batch's part of the step's loss."""
        if not inputs["packs"]:
            raise ValueError("a batch has no rows: every turn of its conversations was dropped; leave them out")
        self._interval.count_batch(inputs["figures"])
        self.run_totals.count(inputs["figures"])
        losses = []
        for i, one in enumerate(inputs["packs"]):
            last = i == len(inputs["packs"]) - 1
            # Gradients travel between processes once a batch, however many packs each process has; sharded ones every
            # time, or every process would keep them whole.
            with contextlib.nullcontext() if last or self.is_fsdp_enabled else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, {"packs": [one]}, num_items_in_batch))
        return torch.stack(losses).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Scalar: weighted token losses over the step's target weight (`num_items_in_batch`)."""
        (one,) = inputs["packs"]
        result = token_losses(model, one.to(self.args.device, non_blocking=True), self.data_collator.block_size)
        loss = result.total
        if not torch.isfinite(loss):
            raise self._not_finite(f"the loss is {loss.item()} in a pack with the rows", [one])
        if self.model.training:
            self._interval.count_pack(one, result)
        step_weight = torch.as_tensor(num_items_in_batch).to(loss.dtype)
        loss = loss / step_weight * self.accelerator.num_processes  # DDP averages gradients
        return (loss, result) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: float | None = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        # In float16 a gradient may overflow: the scaler then skips the step and scales less.
        if self.accelerator.scaler is None and not torch.isfinite(torch.as_tensor(norm)):
            raise self._not_finite(f"the norm of the gradient is {float(norm)} of the rows", self._step_packs)
        return norm

    def _not_finite(self, what: str, packs: Sequence[Pack]) -> NonFiniteLossError:
        """The error of this step, whose packs of this process are written to a file."""
        step, rows = self.state.global_step + 1, ", ".join(sorted({name for one in packs for name in one.rows}))
        said = f"step {step}: {what} {rows}; the optimizer has not stepped"
        process = self.args.process_index if self.args.world_size > 1 else None
        try:
            saved = SavedPacks(step, said, self._step_weight, [one.to("cpu") for one in packs])
            kept = f"Its packs are in {save_packs(saved, cast(str, self.args.output_dir), process)}"
        except (OSError, RuntimeError) as error:  # torch's, on a full disk
            kept = f"Its packs could not be written to a file ({str(error).splitlines()[0]})"
        return NonFiniteLossError(f"{said}. {kept}. Look at these conversations, or lower the learning rate")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the interval's own figures to a training log; see the class."""
        if "loss" in logs:
            blocks = blocks_of(self.model, self.args.device, self.data_collator.block_size)
            logs = logs | self._interval.take(blocks, self._add_up)
        super().log(logs, start_time)

    def _add_up(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Sums over all processes, each of which has the same names."""
        device = self.args.device
        values = [torch.as_tensor(value, dtype=torch.float64, device=device) for value in sums.values()]
        return dict(zip(sums, self.accelerator.reduce(torch.stack(values), "sum").tolist(), strict=True))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.run_totals.loss_sum = self._total_loss_scalar
        self.run_totals.unlogged = {
            "loss": self._unlogged_loss(),
            "steps": self.state.global_step - self._globalstep_last_logged,
            "interval": self._interval.saved(self._add_up),
        }
        # The Trainer (5.23) knows the best checkpoint by its folder, and looks for it before sharded weights are there.
        os.makedirs(os.path.join(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}"), exist_ok=True)
        super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A model that `from_pretrained` loads, also of a sharded one, whose checkpoints stay in parts. It is there
        when this returns, in every process."""
        if self.is_fsdp_enabled and not _internal_call:
            self._save(output_dir, whole_state(self.accelerator, self.model))
        else:
            super().save_model(output_dir, _internal_call)
        self.accelerator.wait_for_everyone()

    def _save_rng_state(self, output_dir: str) -> None:
        """Of each process its own; all are there before the trainer state, which says that a checkpoint is whole."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if (inner := unwrapped(self.model)) is not self.model:  # peft saves adapters, and not how to generate with them
            inner.generation_config.save_pretrained(cast(str, output_dir or self.args.output_dir))

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        """The Trainer (5.23) divides by the steps since the run was resumed; here all of them count."""
        totals = self.run_totals
        self._total_loss_scalar, self._initial_global_step = self._total_loss_scalar + self._unlogged_loss(), 0
        self._tr_loss.zero_()
        return super()._finalize_training(trial, num_train_samples, time.time() - totals.elapsed)

    def _unlogged_loss(self) -> float:
        """The sum of the losses of the steps since the last log."""
        return self.accelerator.gather(self._tr_loss).mean().item()

    # ---- Evaluation ----

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Exact held-out loss, thinking and answer apart: weighted token losses over all of the data set's weight.

        eval_dataset: as in the constructor; None is what was given there, a string one of its data sets by name.
        Returns `{prefix}_loss`, `{prefix}_thinking_loss` and `{prefix}_answer_loss` (a role without tokens is left
        out), and the time taken; of a dict those of each data set under `{prefix}_{name}`.
        """
        if isinstance(eval_dataset, str) and isinstance(self.eval_dataset, Mapping):
            if eval_dataset not in self.eval_dataset:
                raise ValueError(f"evaluate({eval_dataset!r}): eval_dataset has {', '.join(self.eval_dataset)}")
            dataset = self.eval_dataset[eval_dataset]
        else:
            dataset = self.eval_dataset if eval_dataset is None else self._heldout(eval_dataset)
        if dataset is None:
            raise ValueError("evaluate: there is no data; give it here, or eval_dataset to the trainer")
        if isinstance(dataset, Mapping):
            of_each = [
                self.evaluate(rows, ignore_keys, f"{metric_key_prefix}_{name}") for name, rows in dataset.items()
            ]
            return {key: value for one in of_each for key, value in one.items()}
        start = time.time()
        conversations = list(cast(Rows, dataset))
        tally: Counter[str] = Counter()
        with evaluating(self.model), self.accelerator.autocast():
            batch = self.data_collator(conversations)
            for one in batch["packs"]:
                result = token_losses(
                    self.model, one.to(self.args.device, non_blocking=True), self.data_collator.block_size
                )
                tally.update({"loss": result.total.item(), **result.sums_by_role()})
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        sums = self._add_up(tally)
        figures = {"loss": sums["loss"] / batch["figures"].target_weight, **loss_by_role(sums)}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        metrics |= speed_metrics(metric_key_prefix, start, num_samples=len(conversations))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> NoReturn:
        """Raises ValueError: logits are never kept."""
        raise ValueError(
            "predict: logits are made for a few tokens at a time and never kept; evaluate(dataset) gives the loss of "
            "thinking and answers, model.generate text"
        )

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """6 operations a token and parameter outside the embeddings; attention is not counted."""
        parameters = unwrapped(self.model).num_parameters(exclude_embeddings=True)
        tokens = sum(len(p) if p.context is None else len(p.context.tokens) for p in inputs["packs"])
        return 6 * tokens * parameters


class _AtTheStart(TrainerCallback):
    """Calls a function when a training begins, after what is to go on has been loaded."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer calls it right before the first step."""
        self._function()
