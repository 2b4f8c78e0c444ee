"""Conversations of a benchmark, as token ids alone: random from a seed, in lengths that are stated or drawn.

No text, tokenizer or download is needed: what one pass saves depends on the lengths of question, thinking and answer
and on the number of turns, and on nothing else.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flexmask import Pass, Role
from recipes.benchmarking.config import BenchmarkConfig
from recipes.sources.gsm8k import to_record

# Tokens of question, thinking and answer, for each turn of one conversation.
Lengths = list[tuple[int, int, int]]
Sampler = Callable[[np.random.Generator], Lengths]


@dataclass(frozen=True, eq=False)
class Turn:
    """The token ids of one turn, int64 [T] each; `thinking` may be empty."""

    question: np.ndarray
    thinking: np.ndarray
    answer: np.ndarray


@dataclass(frozen=True, eq=False)
class Dialogue:
    """A conversation before any layout."""

    name: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Statistics:
    """How long the conversations of a data set are. The values of a list are equally likely."""

    turns: tuple[int, ...]
    first_question: tuple[int, ...]
    later_question: tuple[int, ...]
    thinking: tuple[int, ...]  # where there is some
    answer: tuple[int, ...]
    without_thinking: float  # share of the turns


# The 1,319 test problems of GSM8K (openai/gsm8k, config socratic, split test; MIT), the quantiles 2.5%, 7.5%, ... 97.5%
# of what `file_lengths` gives for that file: a word, a digit or another sign counts as a token, and the template's
# tokens are those of ChatML.
GSM8K_SOCRATIC = Statistics(
    turns=(2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 6, 7),
    first_question=(44, 50, 52, 55, 57, 60, 63, 65, 68, 70, 73, 75, 78, 81, 85, 89, 94, 100, 110, 129),
    later_question=(11, 14, 15, 15, 15, 16, 16, 16, 17, 17, 17, 18, 18, 18, 19, 19, 20, 21, 22, 24),
    thinking=(9, 9, 10, 10, 11, 11, 11, 11, 11, 12, 12, 12, 13, 13, 13, 14, 15, 16, 17, 20),
    answer=(11, 13, 15, 16, 17, 18, 19, 20, 20, 21, 22, 23, 24, 25, 27, 28, 30, 32, 36, 43),
    without_thinking=0.11,
)
# MathChatSync-reasoning (devrev-research/MathChatSync-reasoning, Apache-2.0): 8,797 conversations in 60.5 MB, which at
# four bytes a token is 1,700 tokens a conversation, of about 6 turns and up to ten. Only these means are the data's;
# the spread, and the shares of question, thinking and answer, are assumed.
MATHCHATSYNC = Statistics(
    turns=(3, 4, 5, 5, 6, 6, 6, 7, 8, 10),
    first_question=(25, 40, 50, 60, 70, 80, 90, 105, 125, 155),
    later_question=(9, 14, 18, 22, 27, 32, 38, 46, 56, 78),
    thinking=(60, 85, 105, 120, 135, 150, 165, 185, 215, 280),
    answer=(25, 45, 60, 70, 80, 90, 105, 120, 140, 185),
    without_thinking=0.0,
)


def share_lengths(shares: Sequence[float], turn_tokens: int, turns: int) -> Sampler:
    """Every segment is between half and one and a half of its mean, which is its share of `turn_tokens`."""
    total = sum(shares)

    def sample(rng: np.random.Generator) -> Lengths:
        means = [share / total * turn_tokens for share in shares]
        return [tuple(max(1, round(mean * rng.uniform(0.5, 1.5))) for mean in means) for _ in range(turns)]

    return sample


def statistical_lengths(statistics: Statistics) -> Sampler:
    """Independent draws from the lists."""

    def sample(rng: np.random.Generator) -> Lengths:
        lengths = []
        for turn in range(rng.choice(statistics.turns)):
            question = rng.choice(statistics.later_question if turn else statistics.first_question)
            thinking = 0 if rng.random() < statistics.without_thinking else rng.choice(statistics.thinking)
            lengths.append((int(question), int(thinking), int(rng.choice(statistics.answer))))
        return lengths

    return sample


_PIECE = re.compile(r" ?[^\W\d_]+| ?\d| ?[^\w\s]|_|\n+|[^\S\n]+")


def file_lengths(path: str) -> list[Lengths]:
    """The lengths of every problem of a GSM8K-Socratic file.

    A word, a digit or another sign counts as a token, which BPE tokenizers seldom merge and sometimes split; ChatML's
    own are 8 around a question, 4 around thinking and 2 behind an answer.

    Raises ValueError naming the line that is no such problem.
    """

    def count(text: str) -> int:
        return len(_PIECE.findall(text))

    conversations = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            messages = to_record(json.loads(line), f"{path}:{number}")["messages"]
            lengths = []
            for question, reply in zip(messages[::2], messages[1::2], strict=True):
                thinking = count(reply.get("reasoning_content", ""))
                lengths.append(
                    (count(question["content"]) + 8, thinking + 4 if thinking else 0, count(reply["content"]) + 2)
                )
            conversations.append(lengths)
    return conversations


def chosen_lengths(conversations: Sequence[Lengths]) -> Sampler:
    """One of the given conversations."""
    return lambda rng: conversations[rng.integers(len(conversations))]


def sampler_of(config: BenchmarkConfig, mix: str, turns: int | None) -> Sampler:
    """The lengths of a mix; `turns` None for a data set, which has its own."""
    if mix == "gsm8k_socratic":
        if config.gsm8k_path is not None:
            return chosen_lengths(file_lengths(config.gsm8k_path))
        return statistical_lengths(GSM8K_SOCRATIC)
    if mix == "mathchatsync":
        return statistical_lengths(MATHCHATSYNC)
    shares = config.mixes[mix]
    return share_lengths((shares.question, shares.thinking, shares.answer), config.grid.turn_tokens, turns)


def tree_tokens(lengths: Lengths) -> int:
    """Tokens of the row in one pass: an answer stands twice where thinking came before it and a turn follows."""
    copies = sum(answer for _, thinking, answer in lengths[:-1] if thinking)
    return sum(map(sum, lengths)) + copies


def draw_dialogues(sampler: Sampler, seed: int, vocabulary: int, tokens: int) -> list[Dialogue]:
    """Dialogues from a sampler as long as their rows fit in `tokens` tokens in one pass; one at least."""
    rng = np.random.default_rng(seed)
    dialogues: list[Dialogue] = []
    lengths = sampler(rng)
    while not dialogues or tree_tokens(lengths) <= tokens:
        tokens -= tree_tokens(lengths)
        turns = (Turn(*(rng.integers(0, vocabulary, length) for length in turn)) for turn in lengths)
        dialogues.append(Dialogue(f"dialogue {len(dialogues)}", tuple(turns)))
        lengths = sampler(rng)
    return dialogues


def passes_of(dialogue: Dialogue) -> list[Pass]:
    """What per-turn training feeds for each turn: earlier questions and answers, then question, thinking, answer."""
    passes, history = [], np.empty(0, dtype=np.int64)
    for i, turn in enumerate(dialogue.turns):
        prompt = np.concatenate([history, turn.question])
        ids = np.concatenate([prompt, turn.thinking, turn.answer])
        sizes = [len(prompt), len(turn.thinking), len(turn.answer)]
        roles = np.repeat([Role.PROMPT, Role.THINKING, Role.ANSWER], sizes).astype(np.int8)
        weights = (roles != Role.PROMPT).astype(np.float32)
        passes.append(Pass(dialogue.name, i, len(prompt), ids, roles, weights))
        history = np.concatenate([prompt, turn.answer])
    return passes


def distinct_prefixes(dialogue: Dialogue) -> int:
    """`prefixes_of` its passes."""
    return prefixes_of(passes_of(dialogue))


def prefixes_of(passes: Sequence[Pass]) -> int:
    """How many token prefixes passes have in all: what no exact method can compute fewer states than.

    A prefix is numbered by the number of the prefix one shorter and its last token, so the count is exact. Nothing of
    flexmask's tree takes part.
    """
    numbers: dict[tuple[int, int], int] = {}
    for one in passes:
        prefix = -1
        for token in one.input_ids.tolist():
            prefix = numbers.setdefault((prefix, token), len(numbers))
    return len(numbers)
