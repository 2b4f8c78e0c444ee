"""A Trainer whose loss is that of one pass a turn.

The unit of a batch is the conversation: an optimizer step trains the same conversations whatever the layout or
the pack length, so both are free to change without changing what is learned.
"""

import contextlib
import copy
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn, cast

import torch
from accelerate.utils import TorchDynamoPlugin, extract_model_from_parallel
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_utils import speed_metrics

from flexmask.attention.kernels import check_backend
from flexmask.errors import NonFiniteLossError
from flexmask.model.cost import pair_cost
from flexmask.model.end_of_turn import align_end_of_turn
from flexmask.model.exactness import check_exact
from flexmask.model.head import HALF
from flexmask.model.loss import TokenLosses, loss_by_role, token_losses
from flexmask.model.randomness import warn_of_shared_draws
from flexmask.model.support import (
    blocks_of,
    check_context,
    evaluating,
    prepare_model,
    unbranched_layers,
    unwrapped,
)
from flexmask.objectives.preference import Preference
from flexmask.training.arguments import OnePassConfig
from flexmask.training.batches import ByLength, train_batches
from flexmask.training.collator import OnePassCollator
from flexmask.training.data import Preparation, Rows, prepare_dataset
from flexmask.training.layers import compile_layers
from flexmask.training.nonfinite import not_finite
from flexmask.training.reference import ReferencingTrainer
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


class OnePassTrainer(ReferencingTrainer):
    """`transformers.Trainer` that trains each conversation in one pass, with the loss of one pass a turn.

        OnePassTrainer("Qwen/Qwen3-0.6B", OnePassConfig("out"), train_dataset=records).train()

    model: a causal language model, wrapped or not, or the name or folder of one; or `model_init`, which makes it.
    args: an `OnePassConfig`; or `TrainingArguments` with an `OnePassCollator` as `data_collator`. Neither is changed.
    train_dataset, eval_dataset: a list, `datasets.Dataset` or stream (`IterableDataset`, with `max_steps`). Each item
        is one conversation: a record (what `read_record` takes), a `Conversation` or `Calls` object, or its finished
        rows (`prepare_conversation(...).rows`). `eval_dataset` may be a dict of such data sets.
    processing_class: the tokenizer. It prepares records and conversations, and is saved in every checkpoint; a model
        given by name brings its own. Where conversations are prepared, tokenizer and model are made to agree on the end
        of turn that is trained (`flexmask.align_end_of_turn`), with a warning that says what has changed.

    `per_device_train_batch_size` and `gradient_accumulation_steps` count conversations. The rows of a batch are shared
    out over processes so that each has about as much to do. The loss of an optimizer step is the weighted sum of token
    losses divided by the sum of the weights, both over all packs of the step: of every batch that is accumulated, on
    every process.

    Beside `loss` (nats a trained token, weighted) these are logged, each over the interval since the last log:
    `thinking_loss`, `answer_loss`, `tokens_per_second`, `trained_tokens_per_second`, `pack_fill` (tokens of the packs
    over `pack_length`), `block_sparsity` (the share of blocks that are not computed, in the last pack of this process)
    and, where there are several processes, `rank_spread` (the work of the process that has most to do, over the mean of
    all). `train_loss` and the other totals of a resumed run are those of all its steps. `torch_compile` compiles the
    model's layers, each by itself.

    objective: for data whose answers compete (`flexmask.objectives.preference.Preference`); None is fine-tuning. With
        an objective the loss is the mean over conversations, and `preference_accuracy` and `preference_margin` are
        logged too. The reference that an objective compares with is the model as it was given: its log-probabilities
        are computed once, before the first step, and kept in `reference-*.npz` in the folder of checkpoints, where a
        resumed run finds them.

    A model with layers whose state does not branch with the tree (`unbranched_layers` of support.py) needs rows that do
    not branch: prepare them with layout "per_turn". A row that branches raises UnsupportedModelError. Each of its rows
    is a pack of its own, as a warning says.

    Raises, before the first step, ValueError for data or settings that cannot be trained with, and
    UnsupportedModelError for a model that cannot be exact on its rows; NonFiniteLossError before the optimizer steps.
    """

    # The Trainer allows for more of each.
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
        objective: Preference | None = None,
        **kwargs: Any,
    ) -> None:
        self.args = copy.copy(args) if args is not None else OnePassConfig("trainer_output")
        check_settings(self.args, model, kwargs)
        self.args.remove_unused_columns = False  # a dataset item is not a dict of model arguments
        self.data_collator = settle_collator(self.args, data_collator, objective)
        self.objective = self.data_collator.objective
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
            noise = f"neftune_noise_alpha={self.args.neftune_noise_alpha}"
            if collator.context_parallel:
                raise ValueError(
                    f"{noise} with context_parallel: noise is scaled by the number of tokens that it is added to, "
                    "which are a part of the pack here; leave one of the two out"
                )
            warn_of_shared_draws(type(inner).__name__, [noise], stacklevel=3)
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
                check_stream(self.args, self.objective)
            self.train_dataset = self._with_reference(self.train_dataset)
        self.eval_dataset = self._heldout(eval_dataset)
        check_metric(self.args, self.eval_dataset, compares=self.objective is not None)

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
            check_rows(dataset, name, self.data_collator.pack_length, objective=self.objective)
            rows[name] = self._with_reference(dataset)
        if isinstance(eval_dataset, Mapping):
            return dict(zip(eval_dataset, rows.values(), strict=True))
        return rows.get("eval_dataset")

    def _fit_to_data(self, model: nn.Module) -> None:
        """Refuse rows that the model cannot be trained on, and let it stop where it learns to."""
        datasets = {"train_dataset": self.train_dataset} if self.train_dataset is not None else {}
        for name, dataset in (datasets | datasets_of(self.eval_dataset, "eval_dataset")).items():
            check_rows(dataset, name, self.data_collator.pack_length, unwrapped(model), self.objective)
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

    # ---- Training ----

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
        self.interval.count_batch(inputs["figures"])
        self.run_totals.count(inputs["figures"])
        losses, packs = [], self._with_log_probs(inputs)
        for i, one in enumerate(packs):
            last = i == len(packs) - 1
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
        result = self._token_losses(model, one)
        loss = result.total
        if not torch.isfinite(loss):
            raise self._not_finite(f"the loss is {loss.item()} in a pack with the rows", [one])
        if self.model.training:
            self.interval.count_pack(one, result)
        step_weight = torch.as_tensor(num_items_in_batch).to(loss.dtype)
        loss = loss / step_weight * self.accelerator.num_processes  # DDP averages gradients
        return (loss, result) if return_outputs else loss

    def _token_losses(self, model: nn.Module, one: Pack) -> TokenLosses:
        """What the objective makes of a pack."""
        one = one.to(self.args.device, non_blocking=True)
        return token_losses(model, one, self.data_collator.block_size, self.objective)

    def _get_grad_norm(self, model: nn.Module, grad_norm: float | None = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        # In float16 a gradient may overflow: the scaler then skips the step and scales less.
        if self.accelerator.scaler is None and not torch.isfinite(torch.as_tensor(norm)):
            raise self._not_finite(f"the norm of the gradient is {float(norm)} of the rows", self._step_packs)
        return norm

    def _not_finite(self, what: str, packs: Sequence[Pack]) -> NonFiniteLossError:
        """The error of this step, whose packs of this process are written to a file."""
        process = self.args.process_index if self.args.world_size > 1 else None
        folder = cast(str, self.args.output_dir)
        return not_finite(what, self.state.global_step + 1, packs, self._step_weight, folder, process)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the interval's own figures to a training log; see the class."""
        if "loss" in logs:
            blocks = blocks_of(self.model, self.args.device, self.data_collator.block_size)
            logs = logs | self.interval.take(blocks, self.add_up)
        super().log(logs, start_time)

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
        self._settle_reference(dataset, metric_key_prefix)
        start = time.time()
        conversations = list(cast(Rows, dataset))
        tally: Counter[str] = Counter()
        with evaluating(self.model), self.accelerator.autocast():
            batch = self.data_collator(conversations)
            for one in self._with_log_probs(batch):
                result = self._token_losses(self.model, one)
                tally.update({"loss": result.total.item(), **result.sums_by_role()})
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        sums = self.add_up(tally)
        compared = self.objective.means(sums) if self.objective else {}
        figures = {"loss": sums["loss"] / batch["figures"].target_weight, **loss_by_role(sums), **compared}
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
