"""Random packs for mask and attention tests, made from parents alone: no code of the library takes part."""

import random

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def random_parents(seed: int, length: int) -> list[int]:
    """Parent of each token, -1 for a root: trees in depth-first order, several to a pack, then some padding.

    In depth-first order the parent of a token is the token before it or one of that token's ancestors.
    """
    rng = random.Random(seed)
    branching, packing = rng.choice([0.0, 0.02, 0.1, 0.5]), rng.choice([0.0, 0.005, 0.05])
    padding = rng.choice([0, 0, 1, rng.randrange(length)])
    parents, path = [], []
    for token in range(length):
        if token >= length - padding or rng.random() < packing:
            path = []
        elif path and rng.random() < branching:
            path = path[: rng.randrange(len(path)) + 1]
        parents.append(path[-1] if path else -1)
        path.append(token)
    return parents


def ancestor_mask(parents: list[int], window: int | None = None, chunk: int | None = None) -> torch.Tensor:
    """Who sees whom [S, S], by walking up from each token: at most `window` tokens with itself, or as far as the
    chunk of its depth goes."""
    mask = torch.zeros(len(parents), len(parents), dtype=torch.bool)
    for query in range(len(parents)):
        path = [query]
        while parents[path[-1]] >= 0:
            path.append(parents[path[-1]])
        seen = len(path) if window is None else window
        if chunk is not None:
            seen = (len(path) - 1) % chunk + 1  # its depth is the number of its ancestors
        mask[query, path[:seen]] = True
    return mask


def random_pack(seed: int, length: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """visible_until int32 [1, S], position_ids int64 [1, S] and the parents they follow from."""
    parents = random_parents(seed, length)
    until, depth = [token + 1 for token in range(length)], [0] * length
    for token in reversed(range(length)):
        if parents[token] >= 0:
            until[parents[token]] = max(until[parents[token]], until[token])
    for token in range(length):
        if parents[token] >= 0:
            depth[token] = depth[parents[token]] + 1
    return torch.tensor([until], dtype=torch.int32), torch.tensor([depth]), parents


class LargestTensor(TorchDispatchMode):
    """Within it, `elements` is the size of the largest tensor that any torch operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result
