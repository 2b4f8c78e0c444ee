"""Text -> token ids, restarting behind what is already known.

Special tokens split a text before anything else is done to it (the `tokenizers` library; byte-level BPE, SentencePiece
and WordPiece alike), so what stands before one does not change the tokens from it on. The passes of a conversation
begin alike: each is tokenized only from the last special token before the point where it parts from the one before.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from flexmask.text.control_tokens import special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters of a text that is remembered: all prompts end alike, from their last special token on.
_TAIL = 64
_BYTES_OF_A_CHARACTER = 4  # at most, in UTF-8


@dataclass(frozen=True, eq=False)
class TokenizedText:
    """`ids`, and the characters `starts` (inclusive) to `ends` (exclusive) that each stands for: int64, shape [T].

    `restarts` [R] are the tokens from which the text could be tokenized without what stands before them.
    """

    text: str
    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    restarts: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def followed_by(self, other: TokenizedText) -> TokenizedText:
        """These tokens and then others, whose characters count from the same start."""
        return TokenizedText(
            self.text + other.text,
            ids=np.concatenate([self.ids, other.ids]),
            starts=np.concatenate([self.starts, other.starts]),
            ends=np.concatenate([self.ends, other.ends]),
            restarts=np.concatenate([self.restarts, other.restarts + len(self)]),
        )

    def behind(self, count: int, text: str) -> TokenizedText:
        """The tokens behind the first `count`, which stand for `text`."""
        restarts = self.restarts[self.restarts >= count] - count
        return TokenizedText(text, self.ids[count:], self.starts[count:], self.ends[count:], restarts)


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int], **settings: bool) -> str:
    """The text of one sequence of tokens."""
    return cast(str, tokenizer.decode(ids, **settings))


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], previous: Sequence[int]) -> list[str]:
    """What each token adds to the text of the tokens before it; "" for one that leaves a character unfinished, which
    the token that ends it then has.

    previous: the index of the token before each, -1 where none is, as in a row: each token stands behind it in `ids`.
    A tokenizer may write the same token otherwise behind others, so each is decoded behind what it continues. The
    text of U+FFFD itself, which also stands for an unfinished character, may be told with the token behind it.
    """
    # Of each token: those that the next one is decoded behind, and those of an unfinished character.
    states: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    known: dict[tuple[tuple[int, ...], tuple[int, ...], int], str | None] = {}
    texts = []
    for token, before in zip(ids, previous, strict=True):
        base, unfinished = states[before] if before >= 0 else ((), ())
        key = base, unfinished, token
        if key not in known:
            known[key] = _added_text(tokenizer, *key)
        text = known[key]
        states.append((base, (*unfinished, token)) if text is None else ((*unfinished, token), ()))
        texts.append(text or "")
    return texts


def _added_text(
    tokenizer: PreTrainedTokenizerBase, base: tuple[int, ...], unfinished: tuple[int, ...], token: int
) -> str | None:
    """None where the text ends within a character."""
    settings = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    before, text = (decode(tokenizer, [*base, *more], **settings) for more in ((), (*unfinished, token)))
    if text.endswith("\ufffd") and len(unfinished) < _BYTES_OF_A_CHARACTER - 1:
        return None
    return text[len(before) :] if text.startswith(before) else decode(tokenizer, [*unfinished, token], **settings)


class TextTokenizer:
    """Tokenizes texts that begin alike, as `tokenizer(text, add_special_tokens=False)` would.

    `retokenized_texts` counts texts (a turn has two: its prompt, and that with what is generated) that began like the
    one before but were tokenized from their first character, because no special token stands in what they share. That
    is slower, and the tokens are the same.
    Raises ValueError for a tokenizer that does not tell which characters a token stands for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} is no fast tokenizer: it does not tell which characters a token stands "
                "for; load one that is backed by the tokenizers library (AutoTokenizer, or convert it)"
            )
        self.tokenizer = tokenizer
        self._can_restart = _can_restart(tokenizer, special_ids(tokenizer))
        self.retokenized_texts = 0
        self._tails: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def tokenize(self, text: str, known: TokenizedText | None = None) -> TokenizedText:
        """The tokens of `text`; `known`, tokens of a text that may begin like it, saves work and changes nothing."""
        if known is None:
            return self._from(text, 0)
        shared = _common_prefix(known.text, text)
        known_restarts = known.restarts[known.ends[known.restarts] < shared]
        if known_restarts.size:
            first = known_restarts[-1]
            at = int(known.starts[first])
            tail = self._from(text[at:], at)
            if tail.ids[0] == known.ids[first] and tail.ends[0] == known.ends[first]:
                return TokenizedText(
                    text,
                    ids=np.concatenate([known.ids[:first], tail.ids]),
                    starts=np.concatenate([known.starts[:first], tail.starts]),
                    ends=np.concatenate([known.ends[:first], tail.ends]),
                    restarts=np.concatenate([known_restarts[:-1], tail.restarts + first]),
                )
        if shared:
            self.retokenized_texts += 1
        return self._from(text, 0)

    def continuation(
        self, prompt: str, pieces: Sequence[str], known: TokenizedText | None, where: str
    ) -> tuple[TokenizedText, TokenizedText, TokenizedText]:
        """(tokens of the prompt as inference feeds them, tokens of the generated text behind it, tokens of both as one
        text). Characters of all three count from the start of the prompt.

        pieces: of the generated text, which is cut where it would hold a control token of a message's text.

        The generated text is tokenized as the end of the whole. Where the whole merges across the seam, it is tokenized
        by itself instead, because at inference the prompt is, and where it is cut, piece by piece: ValueError if that
        does not decode to the text.
        """
        generated = "".join(pieces)
        whole = self.tokenize(prompt + generated, known)
        asked = self.tokenize(prompt, whole)
        count = len(asked)
        if len(pieces) == 1 and np.array_equal(whole.ids[:count], asked.ids):
            return asked, whole.behind(count, generated), whole
        behind = self._from(pieces[0], len(prompt))
        for piece in pieces[1:]:
            behind = behind.followed_by(self._from(piece, len(prompt) + len(behind.text)))
        # From the last restart on, so that the check stays short.
        first = asked.restarts[-1] if asked.restarts.size else 0
        expected = prompt[asked.starts[first] :] + generated
        decoded = decode(
            self.tokenizer,
            [*asked.ids[first:].tolist(), *behind.ids.tolist()],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        normalizer = self.tokenizer.backend_tokenizer.normalizer  # which may compose accents (Qwen)
        if decoded not in (expected, normalizer.normalize_str(expected) if normalizer else expected):
            raise ValueError(
                f"{where}: the prompt is no token prefix of its pass, and tokenizing the two apart does not give "
                'the text back; make the turn context with "weight": 0, or take a tokenizer that does.\n'
                f"{first_difference(expected, decoded)}"
            )
        return asked, behind, whole

    def _from(self, text: str, at: int) -> TokenizedText:
        """The tokens of `text`, which starts at character `at` of another."""
        if (found := self._tails.get(text)) is None:
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            offsets = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
            ids = np.array(encoded["input_ids"], dtype=np.int64)
            found = ids, offsets, np.flatnonzero(np.take(self._can_restart, ids, mode="clip"))
            if len(text) <= _TAIL:
                self._tails[text] = found
        ids, offsets, restarts = found
        return TokenizedText(text, ids, offsets[:, 0] + at, offsets[:, 1] + at, restarts)


@functools.lru_cache(maxsize=8)
def _can_restart(tokenizer: PreTrainedTokenizerBase, special: frozenset[int]) -> np.ndarray:
    """Bool by token id: special tokens that are found in the raw text. What a normalizer makes of one that is found
    behind it may depend on the text before. The last entry stands for all ids behind it."""
    table = np.zeros(max(special, default=0) + 2, dtype=bool)
    table[[index for index in special if not tokenizer.added_tokens_decoder[index].normalized]] = True
    return table


def _common_prefix(left: str, right: str, step: int = 4096) -> int:
    """The number of characters with which both begin."""
    length = min(len(left), len(right))
    low = next((i for i in range(0, length, step) if left[i : i + step] != right[i : i + step]), length)
    high = min(low + step, length)
    while low < high:  # all before `low` is equal, something before `high` + 1 is not
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def first_difference(left: str, right: str, around: int = 60) -> str:
    """Prompt and whole around the character where they part, for an error message."""
    at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    begin = max(0, at - around)
    return (
        f"  first difference at character {at}:\n"
        f"  prompt: ...{left[begin : at + around]!r}\n"
        f"  whole:  ...{right[begin : at + around]!r}"
    )
