"""Choose the conversations that are held out, and repeat those of a source as often as its weight says."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence

from flexmask.conversations.conversation import Conversation

# Where nobody says how many are held out: one in twenty, and no more than measure a loss well.
ONE_IN, AT_MOST = 20, 200


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


def split_heldout(
    sources: Sequence[Sequence[Conversation]], count: int | None, seed: int
) -> list[tuple[list[Conversation], list[Conversation]]]:
    """(the rest, held out) of each source, both in the order given: `count` in all, or a share that fits (None).

    Conversations are grouped by what is said in them (roles and contents but neither system prompts nor thinking,
    white space evened out), over all sources, so that a duplicate never stands on both sides. Groups are taken in the
    order of a hash of `seed` and that text, so a longer source moves few; each source gives in proportion to its size.
    Raises ValueError when an explicit `count` cannot be had exactly with something of each source left to train on.
    """
    groups: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for source, conversations in enumerate(sources):
        for index, conversation in enumerate(conversations):
            groups[_hash(seed, conversation)].append((source, index))
    sizes = [len(conversations) for conversations in sources]
    left = share(sizes) if count is None else apportion(count, sizes)
    heldout: set[tuple[int, int]] = set()
    for _, members in sorted(groups.items()):
        of_source = Counter(source for source, _ in members)
        if all(left[source] >= number for source, number in of_source.items()):
            heldout.update(members)
            left = [number - of_source[source] for source, number in enumerate(left)]
    if count is not None:
        for _, members in sorted(groups.items()):  # duplicates across sources can keep all of them from their part
            if members[0] not in heldout and len(heldout) + len(members) <= count:
                heldout.update(members)
        taken = Counter(source for source, _ in heldout)
        if len(heldout) < count or any(taken[source] == size for source, size in enumerate(sizes)):
            raise ValueError(
                f"data.heldout_conversations={count}: cannot be taken from {sum(sizes):,} conversations "
                f"({len(groups):,} without duplicates) with some {'of each source ' if len(sizes) > 1 else ''}left to "
                "train on; lower it, or give null for one in twenty"
            )
    return [
        (
            [one for index, one in enumerate(conversations) if (source, index) not in heldout],
            [one for index, one in enumerate(conversations) if (source, index) in heldout],
        )
        for source, conversations in enumerate(sources)
    ]


def repeated(conversations: Sequence[Conversation], weight: float, seed: int) -> list[Conversation]:
    """Each conversation as often as the whole part of `weight` says, and a share of them, its fraction, once more.

    That share is chosen by a hash of `seed` and text. [N] -> [about weight * N], a repetition behind the other.
    """
    whole, fraction = divmod(weight, 1)
    order = sorted(range(len(conversations)), key=lambda i: (_hash(seed, conversations[i], "weight"), i))
    chosen = sorted(order[: round(fraction * len(conversations))])
    return list(conversations) * int(whole) + [conversations[i] for i in chosen]


def _hash(seed: int, conversation: Conversation, purpose: str = "") -> str:
    """Equal for conversations in which the same is said."""
    said = [
        [message["role"], " ".join(message["content"].split()), message.get("tool_calls")]
        for message in conversation.messages
        if message["role"] not in ("system", "developer")
    ]
    return hashlib.sha256(f"{purpose}{seed}\n{json.dumps(said, sort_keys=True)}".encode()).hexdigest()
