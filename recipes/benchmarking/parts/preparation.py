"""From text to rows."""

import statistics

import torch

from flexmask import Conversation, lay_out, render_passes
from recipes.benchmarking.config import BenchmarkConfig
from recipes.benchmarking.measure import interleaved_seconds
from recipes.models.tiny import build_tokenizer
from recipes.sources import tutoring

PREPARED_TURNS = (8, 64)


def measure(config: BenchmarkConfig) -> list[dict]:
    """From messages to a row, beside rendering and tokenizing the conversation once, and beside doing so for every
    turn's own history, all with the embedded tokenizer."""
    tokenizer = build_tokenizer()
    results = []
    for turns in PREPARED_TURNS:
        conversation = long_conversation(turns)
        messages = list(conversation.messages)
        actions = {
            "ours": lambda c=conversation: lay_out(render_passes(c, tokenizer), "one_pass"),
            "plain": lambda m=messages: tokenizer.apply_chat_template(m, tokenize=True),
            "every_turn": lambda m=messages: [
                tokenizer.apply_chat_template(m[: end + 1], tokenize=True) for end in range(1, len(m), 2)
            ],
        }
        times = interleaved_seconds(actions, 5, torch.device("cpu"))
        seconds = {name: statistics.median(values) for name, values in times.items()}
        (row,) = actions["ours"]().rows
        results.append(
            {
                "turns": turns,
                "row_tokens": len(row),
                "seconds": seconds,
                "over_plain": seconds["ours"] / seconds["plain"],
                "all_seconds": times,
            }
        )
    return results


def long_conversation(turns: int) -> Conversation:
    """Turns of tutoring dialogues, one after another."""
    messages = (message for record in tutoring.generate(turns, seed=0, split="train") for message in record["messages"])
    spoken = [message for message in messages if message["role"] in ("user", "assistant")]
    return Conversation("long", tuple(spoken[: 2 * turns]))
