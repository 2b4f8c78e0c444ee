"""The splits of generated data: which random numbers each is made of."""

import random
from typing import Literal, get_args

Split = Literal["train", "heldout"]


def seeded(split: Split, seed: int, source: str = "") -> random.Random:
    """The random numbers of a split, the same in every process. source: of sources whose numbers differ.

    Raises ValueError for a split that does not exist.
    """
    if split not in get_args(Split):
        raise ValueError(f"split={split!r}: write {' or '.join(map(repr, get_args(Split)))}")
    return random.Random(f"{source}{split}/{seed}")
