"""Training on what the model itself samples: the page to read for a loop of reinforcement learning.

    python -m recipes.on_policy

lets the tiny embedded model, which has learned nothing yet, answer questions several times each, rewards answers by the
share of digits in them, and trains by GRPO: the reward goes up within a minute. What is particular to this library
stands in `learn`. The rollouts of a question are one tree: what they share, at least their prompt, is computed once.
They are given as token ids, so what is trained is what was sampled. For a model, questions and a reward of your own,
change `main`; for rollouts of several turns give a `Call` for each turn, those of one rollout with the same candidate.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from flexmask import Call, Calls, Pack, pack, prepare_conversation, prepare_model
from flexmask.objectives.policy import group_advantages, policy_loss, term_log_probs
from recipes.models.tiny import build_model, build_tokenizer
from recipes.sources import tutoring


def main(steps: int = 20) -> None:
    tokenizer = build_tokenizer()
    model = build_model(seed=0, vocab_size=len(tokenizer))
    dialogues = [record["messages"] for record in tutoring.generate(4 * steps, seed=0, split="train")]
    questions = [[message for message in one if message["role"] == "user"][:1] for one in dialogues]
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    for step, reward in enumerate(learn(model, tokenizer, questions, share_of_digits, steps=steps), start=1):
        if step == 1 or step % 5 == 0:
            print(f"step {step:3d}   mean reward {reward:.3f}", flush=True)


def share_of_digits(messages: Sequence[dict], answer: str) -> float:
    """What an answer is worth, whatever was asked: the share of its characters that are digits."""
    return sum(character.isdigit() for character in answer) / max(1, len(answer))


def learn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[list[dict]],
    reward: Callable[[Sequence[dict], str], float],
    *,
    steps: int,
    samples: int = 8,
    updates: int = 2,
    pack_length: int = 4096,
    learning_rate: float = 1e-3,
) -> Iterator[float]:
    """Train a causal language model of transformers in place: yields the mean reward of the samples of each step.

    questions: the messages that the model answers, divided over the steps. reward: of (messages, answer). samples: of
    each question. updates: optimizer steps on the same samples; from the second on, clipping compares with the model
    that sampled. pack_length: most tokens of one forward pass.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    at_once = len(questions) // steps
    for step in range(steps):
        batch = [
            sampled(model, tokenizer, messages, samples, reward)
            for messages in questions[step * at_once : (step + 1) * at_once]
        ]
        # The rollouts of a question are one tree, which is a row; a pack has room for several rows.
        rows = [row for one in batch for row in prepare_conversation(one, tokenizer, pack_length=pack_length).rows]
        packs = [one.to(model.device) for one in pack(rows, pack_length)]
        prepare_model(model).train()
        before = [term_log_probs(model, one) for one in packs]
        for _ in range(updates):
            update(model, optimizer, packs, before)
        yield sum(value for one in batch for value in one.rewards) / sum(len(one.rewards) for one in batch)


def update(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, packs: Sequence[Pack], before: Sequence[torch.Tensor]
) -> None:
    """One step of the optimizer on all packs; before: log-probabilities by the model that sampled."""
    tokens = sum(len(one) for one in before)
    for one, old in zip(packs, before, strict=True):
        loss = policy_loss(model, one, group_advantages(one.passes), old_log_probs=old, clip_high=0.28).total
        (loss / tokens).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def sampled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict],
    samples: int,
    reward: Callable[[Sequence[dict], str], float],
    most_tokens: int = 24,
) -> Calls:
    """Answers of the model to one question, as calls that compete, with their rewards."""
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    model.set_attn_implementation("sdpa")
    settings = GenerationConfig(
        do_sample=True,
        num_return_sequences=samples,
        max_new_tokens=most_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.no_grad():
        output = model.eval().generate(torch.tensor([prompt], device=model.device), generation_config=settings)
    calls, rewards = [], []
    for candidate, ids in enumerate(output[:, len(prompt) :].tolist()):
        end = ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids)
        name = f"{messages[-1]['content']}, sample {candidate}"
        calls.append(Call(name, None, tuple(prompt), tuple(ids[:end]), candidate=candidate))
        rewards.append(reward(messages, tokenizer.decode(ids[:end], skip_special_tokens=True)))
    return Calls(messages[-1]["content"], tuple(calls), rewards=tuple(rewards))


if __name__ == "__main__":
    main()
