"""One pass a conversation without a Trainer: the page to read first.

    python -m recipes.loop

trains the tiny embedded model for a few steps on generated tutoring dialogues and prints its loss. What is particular
to this library stands in `train`: conversations become rows, rows become packs, and `token_losses` gives the loss of a
pack. The rest is a loop over batches as in any other training. For a model and data of your own, change `main`:

    tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen3-0.6B")
    model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B", dtype=torch.float32)
    records = [json.loads(line) for line in open("my.jsonl")]  # {"messages": [{"role": ..., "content": ...}, ...]}

What it leaves is a model for `save_pretrained`. recipes/train.py does the same steps (a test compares losses and
weights), with checkpoints, evaluation, adapters, mixed precision and logging beside them.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flexmask import Conversation, align_end_of_turn, pack, prepare_conversation, prepare_model, token_losses
from flexmask.conversations.reading import read_conversation
from flexmask.model.exactness import check_exact
from recipes.models.tiny import build_model, build_tokenizer
from recipes.sources import tutoring


def main(steps: int = 40) -> None:
    tokenizer = build_tokenizer()
    model = build_model(seed=0, vocab_size=len(tokenizer))
    records = tutoring.generate(3 * steps, seed=0, split="train")
    conversations = [read_conversation(record, f"record {i}") for i, record in enumerate(records)]
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    for step, loss in enumerate(train(model, tokenizer, conversations, steps=steps), start=1):
        if step == 1 or step % 5 == 0:
            print(f"step {step:3d}   loss {loss:.4f}", flush=True)


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    steps: int,
    conversations_per_step: int = 3,
    pack_length: int = 2048,
    learning_rate: float = 4e-3,
    warmup_steps: int = 4,
    seed: int = 0,
) -> Iterator[float]:
    """Train a causal language model of transformers in place: a generator that takes a step for each loss it yields.

    The loss of a step is the weighted sum of the token losses of its conversations, divided by the sum of the weights.
    It does not depend on `pack_length`, which says how many tokens one forward pass has at most: memory follows it.
    """
    # Every turn of a conversation is rendered as inference will show it, and what turns share is merged: a tree, laid
    # out in one row. It is split into several only where it is longer than a pack.
    prepared = [prepare_conversation(one, tokenizer, pack_length=pack_length) for one in conversations]
    # The model is to stop where the chat template ends a turn.
    ends = sorted({end for one in prepared for end in one.ends})
    if note := align_end_of_turn(model, tokenizer, ends):
        print(note)
    # Attention takes block masks from here on. A model for which that is not exact is refused, by name or by trying.
    check_exact(prepare_model(model), pack_length=pack_length)
    model.train()

    optimizer = adamw(model, learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, warmup_steps, steps))
    trained = [one.rows for one in prepared if one.rows]
    if not trained:
        raise ValueError(f"none of the {len(conversations):,} conversations has a turn to train")
    batches = shuffled_batches(trained, conversations_per_step, seed)
    for _ in range(steps):
        packs = pack([row for rows in next(batches) for row in rows], pack_length)
        # Counted before anything is computed, so that the packs of a step are parts of one mean.
        weight = sum(float(one.loss_weights.double().sum()) for one in packs)
        step_loss = 0.0
        for one in packs:
            # Forward: the mask of the pack, positions in the tree, and each token's loss under what precedes it there.
            loss = token_losses(model, one.to(model.device)).total / weight
            loss.backward()
            step_loss += loss.item()
        if not math.isfinite(step_loss):
            raise FloatingPointError(f"the loss is {step_loss}; lower the learning rate, or look at the data")
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield step_loss


def adamw(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW whose weight decay is for matrices alone."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)


def cosine(step: int, warmup_steps: int, steps: int) -> float:
    """The share of the learning rate at a step: a straight line up, then half a cosine down to 0."""
    if step < warmup_steps:
        return step / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def shuffled_batches(items: Sequence, size: int, seed: int) -> Iterator[list]:
    """Batches of all items again and again, in another order each time."""
    generator, epoch = torch.Generator(), 0
    while True:
        order = torch.randperm(len(items), generator=generator.manual_seed(seed + epoch)).tolist()
        yield from ([items[i] for i in order[start : start + size]] for start in range(0, len(items), size))
        epoch += 1


if __name__ == "__main__":
    main()
