"""Choose the conversations that are held out, and repeat those of a source as often as its weight says."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flexmask.conversations.conversation import Conversation
from flexmask.conversations.model_calls import Calls

# Where nobody says how many are held out: one in twenty, and no more than measure a loss well.
ONE_IN, AT_MOST = 20, 200
HASH = "S32"  # numpy's type of what `hash_of` returns


def share(counts: Sequence[int]) -> list[int]:
    """How many of each source, of `counts` conversations, are held out where nobody says."""
    shares = [count // ONE_IN for count in counts]
    return shares if sum(shares) <= AT_MOST else apportion(AT_MOST, counts)


def apportion(total: int, counts: Sequence[int]) -> list[int]:
    """`total` in proportion to `counts`, in whole numbers; what remains goes where most was rounded away."""
    exact = [total * count / sum(counts) for count in counts]
    parts = [int(one) for one in exact]
    by_remainder = sorted(range(len(counts)), key=lambda i: parts[i] - exact[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def split_heldout(sources: Sequence[np.ndarray], count: int | None) -> list[np.ndarray]:
    """Which conversations of each source are held out: `count` in all, or a share that fits (None).

    sources: `hash_of` each conversation. [N] -> [N], booleans. Conversations are grouped by what is said in them, over
    all sources, so that a duplicate never stands on both sides. Groups are taken in the order of their hash, so a
    longer source moves few; each source gives in proportion to its size. Raises ValueError when an explicit `count`
    cannot be had exactly with something of each source left to train on.
    """
    sizes = [len(hashes) for hashes in sources]
    hashes = np.concatenate(sources)
    source_of = np.repeat(np.arange(len(sizes)), sizes)
    in_order = np.argsort(hashes, kind="stable")
    is_first = np.ones(len(hashes), dtype=bool)
    is_first[1:] = hashes[in_order][1:] != hashes[in_order][:-1]
    borders = np.append(np.flatnonzero(is_first), len(hashes))
    left = np.array(share(sizes) if count is None else apportion(count, sizes))
    heldout = np.zeros(len(hashes), dtype=bool)
    for members in _groups(in_order, borders):
        if not left.any():
            break
        of_source = np.bincount(source_of[members], minlength=len(sizes))
        if (left >= of_source).all():
            heldout[members] = True
            left -= of_source
    if count is not None:
        missing = count - int(heldout.sum())  # duplicates across sources can keep all of them from their part
        for members in _groups(in_order, borders):
            if not missing:
                break
            if not heldout[members[0]] and len(members) <= missing:
                heldout[members] = True
                missing -= len(members)
        taken = np.bincount(source_of[heldout], minlength=len(sizes))
        if missing or (taken == sizes).any():
            raise ValueError(
                f"data.heldout_conversations={count}: cannot be taken from {sum(sizes):,} conversations "
                f"({len(borders) - 1:,} without duplicates) with some {'of each source ' if len(sizes) > 1 else ''}"
                "left to train on; lower it, or give null for one in twenty"
            )
    return np.split(heldout, np.cumsum(sizes)[:-1])


def _groups(in_order: np.ndarray, borders: np.ndarray) -> Iterator[np.ndarray]:
    return (in_order[start:stop] for start, stop in itertools.pairwise(borders))


def repeated(hashes: np.ndarray, weight: float) -> np.ndarray:
    """Each conversation as often as the whole part of `weight` says, and a share of them, its fraction, once more.

    That share is chosen by `hashes`, `hash_of` each with the purpose "weight". [N] -> [about weight * N] positions, a
    repetition behind the other.
    """
    whole, fraction = divmod(weight, 1)
    chosen = np.sort(np.argsort(hashes, kind="stable")[: round(fraction * len(hashes))])
    return np.concatenate([np.tile(np.arange(len(hashes)), int(whole)), chosen])


def hash_of(seed: int, one: Conversation | Calls, purpose: str = "") -> bytes:
    """Equal for conversations in which the same is said: roles and contents but neither system prompts nor thinking,
    white space evened out. Likewise for calls."""
    said: list[Any] = (
        _said(one)
        if isinstance(one, Conversation)
        else [
            [call.conversation and _said(call.conversation), call.prompt_ids, call.completion_ids] for call in one.calls
        ]
    )
    return hashlib.sha256(f"{purpose}{seed}\n{json.dumps(said, sort_keys=True)}".encode()).digest()


def _said(conversation: Conversation) -> list[Any]:
    return [
        [message["role"], " ".join(message["content"].split()), message.get("tool_calls")]
        for message in conversation.messages
        if message["role"] not in ("system", "developer")
    ]
