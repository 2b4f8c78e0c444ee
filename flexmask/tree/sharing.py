"""Rows of a step -> shares, one a process, as even as can be in what they cost.

Every process finds the same shares from the same rows, so nothing is sent. A step waits for its slowest process.
"""

import heapq
from collections.abc import Sequence

import numpy as np

from flexmask.tree.layouts import Row


def row_cost(row: Row, pair_cost: float) -> float:
    """What a row costs in tokens: its own, and `pair_cost` for each pair of a query and a key that it sees."""
    return len(row) + pair_cost * row.visible_pairs


def token_costs(position_ids: np.ndarray, pair_cost: float) -> np.ndarray:
    """The same of each token: one at position p sees p + 1 keys, itself and its ancestors."""
    return 1 + pair_cost * (position_ids + 1.0)


def spread(sums: Sequence[float]) -> float:
    """How uneven shares are: the greatest over the mean, 1 where all are the same."""
    return max(sums) * len(sums) / sum(sums)


def even_groups(costs: Sequence[float], count: int) -> list[list[int]]:
    """Indices of `costs` in `count` groups of nearly the same sum, each in order; groups may be empty.

    Largest differencing (Karmarkar and Karp 1982): of two partial solutions that differ most, the heaviest group of one
    joins the lightest of the other, until one is left. Deterministic.
    """
    if count == 1:
        return [list(range(len(costs)))]
    # (negative difference between heaviest and lightest, tie breaker, groups from heaviest to lightest with their sums)
    solutions: list[tuple[float, int, list[tuple[float, list[int]]]]] = []
    for index, cost in enumerate(costs):
        groups: list[tuple[float, list[int]]] = [(cost, [index]), *((0.0, []) for _ in range(count - 1))]
        heapq.heappush(solutions, (-cost, index, groups))
    if not solutions:
        return [[] for _ in range(count)]
    while len(solutions) > 1:
        _, tie, left = heapq.heappop(solutions)
        _, _, right = heapq.heappop(solutions)
        joined = [(a + b, one + other) for (a, one), (b, other) in zip(left, reversed(right), strict=True)]
        joined.sort(key=lambda group: -group[0])
        heapq.heappush(solutions, (joined[-1][0] - joined[0][0], tie, joined))
    return [sorted(indices) for _, indices in solutions[0][2]]
