"""What a run will compute and how long that takes, told before it begins."""

import itertools
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from torch.utils.data import RandomSampler
from transformers import PreTrainedModel

from flexmask.model.cost import head_cost, in_tokens, pair_cost
from flexmask.training.batches import train_batches
from flexmask.tree.segments import pass_lengths
from recipes.configuration.rules import ConfigError
from recipes.configuration.schema import Layout, ObjectiveKind, TrainConfig
from recipes.preparation.rows import PreparedData
from recipes.run.arguments import collator_of, in_one_process, planned_steps, training_arguments
from recipes.run.folder import RESULT, settings_of_training
from recipes.run.record import read_run
from recipes.terminal.progress import duration

# Settings beside which a rate is that of another kind of run.
_OF_SPEED = ("model.", "adapter.", "duplication.layout", "duplication.pack_length", "attention.", "parallel.")
_OF_SPEED += ("trainer.mixed_precision", "trainer.torch_compile", "objective.kind")


@dataclass(frozen=True)
class Work:
    """What the conversations of a run cost, once through.

    tokens, trained: of each conversation, int64 [conversations]. pairs: of a query and a key that it sees, of all.
    pass_tokens, pass_pairs: the same where each pass is computed by itself. rows, longest (tokens), split
    (conversations in several rows), packs: of all, with the conversations in the order of the data.
    """

    tokens: np.ndarray
    trained: np.ndarray
    pairs: int
    pass_tokens: int
    pass_pairs: int
    rows: int
    longest: int
    split: int
    packs: int

    @classmethod
    def of(cls, config: TrainConfig, prepared: PreparedData) -> "Work":
        """Reads a step of conversations at a time: all rows may be more than memory holds."""
        collator, size = collator_of(in_one_process(config)), config.trainer.conversations_per_step
        tokens, trained = [], []
        pairs = pass_tokens = pass_pairs = rows = longest = split = packs = 0
        for start in range(0, len(prepared.items), size):
            items = prepared.items[start : start + size]
            packs += len(collator(items)["packs"])
            for item in items:
                tokens.append(sum(map(len, item)))
                trained.append(sum(int((row.loss_weights > 0).sum()) for row in item))
                rows, split = rows + len(item), split + (len(item) > 1)
                longest = max(longest, *map(len, item))
                for row in item:
                    pairs += row.visible_pairs
                    lengths = pass_lengths(row).astype(np.int64)
                    pass_tokens += int(lengths.sum())
                    pass_pairs += int((lengths * (lengths + 1) // 2).sum())
        return cls(np.array(tokens), np.array(trained), pairs, pass_tokens, pass_pairs, rows, longest, split, packs)

    def planned(self, config: TrainConfig) -> tuple[int, int, int]:
        """(optimizer steps, tokens computed, tokens trained) of the run, whatever the number of its processes.

        Whole times through the data are all of it; of the last one, which may be a part, it looks at the order in which
        a Trainer takes the conversations.
        """
        count = len(self.tokens)
        steps, _ = planned_steps(config.trainer, count)
        whole, rest = divmod(steps, -(-count // config.trainer.conversations_per_step))
        one = in_one_process(config)
        one = replace(one, trainer=replace(one.trainer, loader_workers=0))
        arguments = training_arguments(one, Path("unused"), evaluates=True)
        loader = train_batches(range(count), list, arguments, RandomSampler(range(count)))
        loader.set_epoch(whole)
        taken = [index for batch in itertools.islice(loader, rest) for index in batch]
        of = (int(whole * one.sum() + one[taken].sum()) for one in (self.tokens, self.trained))
        return steps, *of

    def speed_up(self, model: PreTrainedModel) -> float:
        """How many times the operations of packed per-turn training are those of this layout."""
        trained, costs = int(self.trained.sum()), (pair_cost(model), head_cost(model))
        per_turn = in_tokens(self.pass_tokens, self.pass_pairs, trained, *costs)
        return per_turn / in_tokens(int(self.tokens.sum()), self.pairs, trained, *costs)


@dataclass(frozen=True)
class Rate:
    """Tokens computed a second, of all `processes` together; `source` is where it comes from, as words."""

    tokens_per_second: float
    processes: int
    source: str


def rate_of(given: str, config: TrainConfig) -> Rate:
    """A number of tokens a second, or what a finished run has measured.

    Raises ConfigError for what is neither, and for a run without a result.
    """
    try:
        number = float(given.replace(",", ""))
    except ValueError:
        number = None
    if number is not None:
        if not 0 < number < float("inf"):
            raise ConfigError(f"--rate {given}: tokens a second are a number above 0")
        return Rate(number, 1, "as given")
    folder = Path(given)
    if not folder.is_dir():
        raise ConfigError(f"--rate {given}: neither a number of tokens a second nor the folder of a run")
    run = read_run(folder)
    if run.result is None:
        raise ConfigError(
            f"--rate {given}: this run has no {RESULT}, so it has measured nothing yet; name one that has finished, or "
            "give tokens a second as a number"
        )
    result = run.result
    words = f"as {folder} had on {result['device']}"
    if result["processes"] > 1:
        words += f" with {result['processes']} processes"
    if unlike := _unlike(run.settings, config):
        words += f"; that run has another {', '.join(unlike)}"
    return Rate(result["tokens_computed"] / result["train_seconds"], result["processes"], words)


def _unlike(settings: dict, config: TrainConfig) -> list[str]:
    """The settings that decide how fast a run is and are others there."""
    mine = settings_of_training(asdict(config))
    return [
        key
        for key, value in settings_of_training(settings).items()
        if key.startswith(_OF_SPEED) and mine.get(key) != value
    ]


def estimate_lines(
    config: TrainConfig,
    work: Work,
    model: PreTrainedModel | None,
    heldout: PreparedData,
    rate: Rate | None,
) -> list[str]:
    """Steps, tokens, the speed-up over one pass a turn, and with a measured rate the hours.

    model: without weights; None where it is not known.
    """
    steps, computed, trained = work.planned(config)
    at_most = "at most " if config.trainer.early_stopping else ""
    lines = [
        f"tokens      {at_most}{computed:,} computed and {trained:,} trained in {steps:,} steps, "
        f"{computed / steps:,.0f} computed a step; the same under any number of processes",
        *_beside(config, work, steps, heldout),
    ]
    if model is not None and config.duplication.layout is Layout.one_pass:
        lines += [
            f"speed-up    {work.speed_up(model):.2f} times over packed per-turn training, predicted by operations: T + "
            f"{pair_cost(model):.2g} P + {head_cost(model):.2g} L,",
            "            of T tokens computed, P pairs of tokens that see each other, and L trained tokens for their "
            "logits (flexmask/model/cost.py)",
        ]
    if rate is None:
        lines.append(
            "time        unknown: --rate 12000 gives the tokens that are computed a second, --rate runs/<folder> takes "
            "them from a finished run like this one"
        )
        return lines
    seconds = computed / rate.tokens_per_second
    gpus = f", {seconds * rate.processes / 3600:,.2f} hours of one" if rate.processes > 1 else ""
    lines.append(
        f"time        {at_most}{seconds / 3600:,.2f} hours ({duration(seconds)}) of training at "
        f"{rate.tokens_per_second:,.0f} tokens/s, {rate.source}{gpus}"
    )
    return lines


def _beside(config: TrainConfig, work: Work, steps: int, heldout: PreparedData) -> list[str]:
    """What is computed forward only, beside the training itself."""
    every, lines = config.trainer.evaluate_every, []
    if heldout.items:
        times = steps // every + (steps % every > 0) if every else 1
        lines.append(
            f"            beside it held-out losses: {times:,} times {heldout.tokens_computed:,} tokens, forward only"
        )
    if config.objective.kind is ObjectiveKind.dpo:
        reference = int(work.tokens.sum()) + heldout.tokens_computed
        lines.append(f"            beside it the reference: once {reference:,} tokens, forward only")
    return lines
