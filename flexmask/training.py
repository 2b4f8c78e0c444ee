"""A collator and a Trainer that put rows in front of a Hugging Face model.

The unit of a batch is the conversation: an optimizer step trains the same conversations whatever the layout or
the pack length, so both are free to change without changing what is learned.
"""

import contextlib
import itertools
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import speed_metrics

from flexmask.conversation import Conversation
from flexmask.exactness import check_exact
from flexmask.loss import TokenLosses, token_losses
from flexmask.masks import build_block_mask
from flexmask.models import UnsupportedModelError, prepare_model, unbranched_layers
from flexmask.packing import Pack, pack
from flexmask.rendering import render_conversation
from flexmask.tree import LaidOut, Row, lay_out


class NonFiniteLossError(FloatingPointError):
    """A pack's loss is NaN or infinite; raised before the optimizer moves."""


def prepare_conversation(
    conversation: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    *,
    layout: str = "one_pass",
    pack_length: int | None = None,
    too_long: str = "error",
    **rendering: Any,
) -> LaidOut:
    """Conversation -> passes -> rows. `rendering` goes to `render_conversation`, the rest to `lay_out`."""
    rendered = render_conversation(conversation, tokenizer, **rendering)
    laid_out = lay_out(rendered.passes, layout, pack_length, too_long)
    return replace(laid_out, slow_turns=rendered.slow_turns)


class RunTotals(TrainerCallback, ExportableState):
    """What a training run has spent so far; saved in every checkpoint's trainer state and taken up again from it.

    seconds: wall time of training, interruptions not counted. capacity: `pack_length` of every pack.
    Tokens and packs are those of this process.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.tokens_computed = self.tokens_trained = self.packs = self.capacity = 0
        self._started: float | None = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__, {})
        for name, value in saved.get("attributes", {}).items():
            setattr(self, name, value)
        self._started = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.seconds = self._elapsed()
        self._started = None

    def state(self) -> dict:
        names = ("tokens_computed", "tokens_trained", "packs", "capacity")
        return {"args": {}, "attributes": {"seconds": self._elapsed()} | {name: getattr(self, name) for name in names}}

    def _elapsed(self) -> float:
        return self.seconds + (0.0 if self._started is None else time.perf_counter() - self._started)


class OnePassCollator:
    """Pack the rows of a batch of conversations: `[rows, rows, ...] -> {"packs": [Pack, ...]}`.

    pack_length: most tokens of one forward pass. The mask is made for so many in every pack, so that a compiled kernel
        sees one shape; nothing else is padded.
    block_size: of the mask; attention computes or skips whole blocks.
    one_row_per_pack: no packing, for layers whose state runs on from row to row. `OnePassTrainer` sets it.
    """

    def __init__(
        self,
        pack_length: int,
        *,
        block_size: int = 128,
        one_row_per_pack: bool = False,
    ) -> None:
        if pack_length <= 0:
            raise ValueError(f"pack_length={pack_length:,} must be positive")
        self.pack_length = pack_length
        self.block_size = block_size
        self.one_row_per_pack = one_row_per_pack

    def __call__(self, conversations: Iterable[Sequence[Row]]) -> dict[str, list[Pack]]:
        rows = [row for conversation in conversations for row in conversation]
        groups = [[row] for row in rows] if self.one_row_per_pack else [rows]
        return {"packs": [one for group in groups for one in pack(group, self.pack_length)]}


class OnePassTrainer(Trainer):
    """`transformers.Trainer` whose loss is the sum over passes, normalised over the whole optimizer step.

    A dataset item is the sequence of rows of one conversation, the collator an `OnePassCollator`;
    `per_device_train_batch_size` and `gradient_accumulation_steps` count conversations. The loss of a step is the
    weighted sum of token losses divided by the sum of weights over all its packs, accumulation and processes.
    Beside `loss`, logs `thinking_loss`, `answer_loss`, `tokens_per_second`, `trained_tokens_per_second`,
    `pack_fill` (the share of `pack_length` that packs fill) and `block_sparsity`, each of this process over the
    interval since the last log.

    A model with layers whose state does not branch with the tree (`flexmask.models.unbranched_layers`) is trained on
    rows that do not branch either (layout "per_turn"), one a pack, with a warning. Raises UnsupportedModelError for a
    model that cannot be exact on its rows, NonFiniteLossError before the optimizer steps.
    """

    def __init__(self, model: PreTrainedModel, args, data_collator: OnePassCollator, **kwargs: Any) -> None:
        _check_settings(args, kwargs.get("train_dataset"))
        args.remove_unused_columns = False  # a dataset item is not a dict of model arguments
        if layers := unbranched_layers(model):
            _check_chains(type(model).__name__, layers, kwargs.get("train_dataset"), kwargs.get("eval_dataset"))
            data_collator.one_row_per_pack = True
            warnings.warn(
                f"{len(layers)} layers carry state from token to token ({layers[0]}, ...): every row is a pack of its "
                "own, and attention is the model's",
                stacklevel=2,
            )
        check_exact(prepare_model(model, chains=bool(layers)), data_collator.block_size)
        super().__init__(model=model, args=args, data_collator=data_collator, **kwargs)
        # compute_loss divides by the step's target weight itself, so the Trainer must not divide again.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = True
        self.run_totals = RunTotals()
        self.add_callback(self.run_totals)
        self._interval: Counter[str] = Counter()
        self._interval_start = time.perf_counter()

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of one optimizer step and their target weight, summed over processes."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        weight = sum(p.loss_weights.double().sum() for batch in samples for p in batch["packs"])
        weight = torch.as_tensor(weight, dtype=torch.float64, device=device)
        if self.args.world_size > 1:
            weight = self.accelerator.gather(weight).sum()
        return samples, weight

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Forward and backward of each pack in turn; returns the batch's part of the step's loss."""
        if not inputs["packs"]:
            raise ValueError("a batch has no rows: every turn of its conversations was dropped; leave them out")
        losses = []
        for i, one in enumerate(inputs["packs"]):
            last = i == len(inputs["packs"]) - 1
            # Gradients travel between processes once a batch, however many packs each process has.
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, {"packs": [one]}, num_items_in_batch))
        return torch.stack(losses).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Scalar: weighted token losses over the step's target weight (`num_items_in_batch`)."""
        (one,) = inputs["packs"]
        result = token_losses(model, one.to(self.args.device), self.data_collator.block_size)
        loss = result.total
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"step {self.state.global_step + 1}: the loss is {loss.item()} in a pack with the rows "
                f"{', '.join(sorted(set(one.rows)))}; the optimizer has not stepped. Look at these conversations, "
                "or lower the learning rate"
            )
        if self.model.training:
            self._count(one, result)
        loss = loss / num_items_in_batch.to(loss.dtype) * self.accelerator.num_processes  # DDP averages gradients
        return (loss, result) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the interval's own figures to a training log; see the class."""
        if "loss" in logs and self._interval:
            logs = logs | self._interval_figures()
            self._interval.clear()
            self._interval_start = time.perf_counter()
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Exact held-out loss, thinking and answer apart: weighted token losses over all of the data set's weight."""
        start = time.time()
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        model = self.model
        was_training = model.training
        model.eval()
        tally: Counter[str] = Counter()
        with torch.no_grad():
            for one in self.data_collator(dataset)["packs"]:
                result = token_losses(model, one.to(self.args.device), self.data_collator.block_size)
                tally["loss"] += result.total.item()
                tally["weight"] += result.weights.sum().item()
                tally.update(_loss_sums(result))
        model.train(was_training)
        figures = {"loss": tally["loss"] / tally["weight"], **_loss_by_role(tally)}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        metrics |= speed_metrics(metric_key_prefix, start, num_samples=len(dataset))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def floating_point_ops(self, inputs) -> float:
        """6 operations a token and parameter outside the embeddings; attention is not counted."""
        return 6 * sum(len(p) for p in inputs["packs"]) * self.model.num_parameters(exclude_embeddings=True)

    def _count(self, one: Pack, result: TokenLosses) -> None:
        self._last_pack = one
        self._interval.update(_loss_sums(result))
        counts = dict(tokens_computed=len(one), tokens_trained=len(result.indices), packs=1, capacity=one.pack_length)
        self._interval.update(counts)
        for name, count in counts.items():
            setattr(self.run_totals, name, getattr(self.run_totals, name) + count)

    def _interval_figures(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._interval_start
        tally = self._interval
        visible_until = self._last_pack.visible_until
        return _loss_by_role(tally) | {
            "tokens_per_second": tally["tokens_computed"] / seconds,
            "trained_tokens_per_second": tally["tokens_trained"] / seconds,
            "pack_fill": tally["tokens_computed"] / tally["capacity"],
            "block_sparsity": build_block_mask(visible_until, self.data_collator.block_size).sparsity() / 100,
        }


def _check_settings(args: TrainingArguments, train_dataset) -> None:
    """Refuse what would be ignored, or would fail in the middle of training."""
    if args.label_smoothing_factor:
        raise ValueError(
            f"label_smoothing_factor={args.label_smoothing_factor}: is not part of the loss here; set it to 0"
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process: a pack cannot be scattered over them; start one process a GPU with "
            "torchrun, or choose one with CUDA_VISIBLE_DEVICES=0"
        )
    if isinstance(train_dataset, Sequence):
        empty = [i for i, rows in enumerate(train_dataset) if not rows]
        if empty:
            raise ValueError(
                f"train_dataset: {len(empty)} conversations have no rows because none of their turns is trained "
                f"(indices {', '.join(map(str, empty[:5]))}{', ...' if len(empty) > 5 else ''}); leave them out"
            )


def _check_chains(name: str, layers: Sequence[str], *datasets: Sequence[Sequence[Row]] | None) -> None:
    for rows in itertools.chain.from_iterable(dataset or () for dataset in datasets):
        if branching := next((row.name for row in rows if not row.is_chain), None):
            raise UnsupportedModelError(
                f"{name}: {len(layers)} layers carry state from token to token ({layers[0]}, ...), which no attention "
                f"mask keeps from leaking between branches, and the row of {branching} branches; lay conversations out "
                'with layout="per_turn" (duplication=per_turn), or use a template that keeps earlier thinking'
            )


def _loss_sums(result: TokenLosses) -> dict[str, torch.Tensor]:
    """Per role, the loss sum and the token count; tensors, so that nothing waits for the device before a log."""
    sums = result.sums_by_role()
    return {f"{role}_loss_sum": total for role, (total, _) in sums.items()} | {
        f"{role}_tokens": count for role, (_, count) in sums.items()
    }


def _loss_by_role(tally: Counter) -> dict[str, float]:
    """Mean token loss of thinking and of answer; a role that was not trained is left out."""
    return {
        f"{role}_loss": float(tally[f"{role}_loss_sum"] / tally[f"{role}_tokens"])
        for role in ("thinking", "answer")
        if tally[f"{role}_tokens"] > 0
    }
