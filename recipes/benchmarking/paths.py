"""Attention node by node: the queries of each node of a tree over keys gathered along its path from the root.

That is causal attention over sequences of different lengths, aligned at their ends, which FlashAttention's kernels of
variable length compute. Exactly the visible pairs are computed, and keys are copied as often as nodes see them.
"""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

from flexmask import Row


@dataclass(frozen=True, eq=False)
class Paths:
    """The nodes of rows end to end, in order: each has its own tokens as queries, and its path as keys.

    queries, keys: int32 [nodes + 1], where those of each node begin, then how many there are. longest: the most queries
    and keys of a node. places: of all keys in the pack, int64; None where each node is a path, so that they are the
    pack itself.
    """

    queries: Tensor
    keys: Tensor
    longest: tuple[int, int]
    places: Tensor | None

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Paths":
        starts = np.cumsum([0, *(len(row) for row in rows)])
        nodes = [(path + start, own) for row, start in zip(rows, starts, strict=False) for path, own in node_paths(row)]
        seen, own = [len(path) for path, _ in nodes], [own for _, own in nodes]
        queries, keys = (torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)) for lengths in (own, seen))
        places = None if own == seen else torch.from_numpy(np.concatenate([path for path, _ in nodes]))
        return cls(queries, keys, (max(own), max(seen)), places)

    def to(self, device: torch.device) -> "Paths":
        places = None if self.places is None else self.places.to(device)
        return Paths(self.queries.to(device), self.keys.to(device), self.longest, places)

    def attend(self, kernel: Callable, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """query [1, H, S, D], key and value [1, K, S, D] -> [1, S, H, D]; kernel: as `sdpa_kernel`."""
        if self.places is not None:
            key, value = (x.index_select(2, self.places) for x in (key, value))
        query, key, value = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
        return kernel(query, key, value, self.queries, self.keys, *self.longest, scale)[None]


def node_paths(row: Row) -> Iterator[tuple[np.ndarray, int]]:
    """For each node the indices of its path from the root, its own tokens last, and how many are its own."""
    paths: list[np.ndarray] = []
    for start, end, parent in zip(row.node_start, row.node_end, row.node_parent, strict=True):
        own = np.arange(start, end)
        paths.append(own if parent < 0 else np.concatenate([paths[parent], own]))
        yield paths[-1], len(own)


def sdpa_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Tensor,
    keys: Tensor,
    longest_queries: int,
    longest_keys: int,
    scale: float | None,
) -> Tensor:
    """query [S, H, D], key and value [T, K, D] -> [S, H, D], by scaled_dot_product_attention a node after the other."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    parts = zip(
        *(
            x.transpose(0, 1)[None].split(borders.diff().tolist(), dim=2)
            for x, borders in ((query, queries), (key, keys), (value, keys))
        ),
        strict=True,
    )
    outputs = [
        F.scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(q.shape[2], k.shape[2]), scale=scale)
        for q, k, v in parts
    ]
    return torch.cat(outputs, dim=2)[0].transpose(0, 1)


def flash_kernel() -> tuple[str, Callable]:
    """The FlashAttention of variable lengths that is installed, and its name, with the arguments of `sdpa_kernel`:
    that of FlashAttention 3 or 2, or else torch's own copy.

    All align causal attention at the end of queries and keys. Raises ImportError where torch has none either.
    """
    for package in ("flash_attn_interface", "flash_attn"):
        with contextlib.suppress(ModuleNotFoundError):
            return package, functools.partial(_by_package, importlib.import_module(package).flash_attn_varlen_func)
    from torch.nn.attention.varlen import varlen_attn

    return "torch.nn.attention.varlen", functools.partial(_by_torch, varlen_attn)


def _by_package(attend: Callable, *inputs) -> Tensor:
    *inputs, scale = inputs
    return attend(*inputs, softmax_scale=scale, causal=True)


def _by_torch(attend: Callable, query: Tensor, key: Tensor, *inputs) -> Tensor:
    *inputs, scale = inputs
    grouped, causal = query.shape[1] != key.shape[1], (-1, 0)
    return attend(query, key, *inputs, scale=scale, window_size=causal, enable_gqa=grouped)


def varlen_kernel(device: torch.device) -> tuple[str, Callable]:
    """The kernel for a device, and its name."""
    return flash_kernel() if device.type == "cuda" else ("scaled_dot_product_attention", sdpa_kernel)
