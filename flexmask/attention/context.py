"""Context parallelism: several processes compute one pack, each some blocks of its queries, over the keys of all.

Everything but attention looks at one token at a time, so a process runs the model over its own tokens alone. Attention
gathers keys and values, and its gradients of them go back to who made them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup, group
from torch.distributed._functional_collectives import all_gather_single_autograd
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Context:
    """What one of several processes computes of a pack.

    process: its number. blocks: of `block_size` queries, ascending, as many in every pack of one length; those behind
    the pack's tokens are padding of the mask. tokens [n]: of these blocks. owner [S]: the process to which a token of
    the pack belongs. order [S]: where it stands in what is gathered, `longest` tokens of each process.
    """

    process: int
    block_size: int
    blocks: tuple[int, ...]
    tokens: Tensor
    owner: Tensor
    order: Tensor
    longest: int

    @property
    def queries(self) -> Tensor:
        """The tokens of all its blocks, padding included: [len(blocks) * block_size]."""
        return torch.from_numpy(_tokens_of(self.blocks, self.block_size)).to(self.tokens.device)

    @property
    def places(self) -> Tensor:
        """Where a token stands among those of its owner, [S]."""
        return self.order % self.longest

    def gather(self, own: Tensor) -> Tensor:
        """[1, K, n, D] of this process's tokens -> [1, K, S, D] of all, in the order of the pack. Every process calls
        it; gradients are summed over them."""
        padded = F.pad(own, (0, 0, 0, self.longest - own.shape[2])).contiguous()
        every = all_gather_single_autograd(padded, gather_dim=2, group=cast(ProcessGroup, group.WORLD))
        return every.index_select(2, self.order)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Context":
        """The same with its tensors on `device`."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Context":
        """The same in memory from which a GPU copies while it computes."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Context":
        return replace(self, tokens=change(self.tokens), owner=change(self.owner), order=change(self.order))


def divide(costs: np.ndarray, length: int, block_size: int, processes: int) -> tuple[list[Context], list[float]]:
    """A pack's blocks dealt out to processes, and what each has to do.

    costs [S]: of each token. length: for which the mask is made. Blocks go round, the dearest first and back again, so
    that all have as many tokens and nearly the same cost. A process that no block is left for computes the first one
    once more, without owning it.
    """

    def within(blocks: Sequence[int]) -> np.ndarray:
        tokens = _tokens_of(blocks, block_size)
        return tokens[tokens < len(costs)]

    of_block = np.add.reduceat(costs, np.arange(0, len(costs), block_size))
    dearest = np.argsort(-of_block, kind="stable")
    padding = range(len(of_block), -(-length // block_size))
    rounds = [*range(processes), *reversed(range(processes))]
    dealt: list[list[int]] = [[] for _ in range(processes)]
    for i, block in enumerate([*dearest.tolist(), *padding]):
        dealt[rounds[i % len(rounds)]].append(block)
    owner = np.zeros(len(costs), dtype=np.int64)
    place = np.zeros(len(costs), dtype=np.int64)
    own: list[np.ndarray] = []
    for process, blocks in enumerate(dealt):
        blocks.sort()
        tokens = within(blocks)
        owner[tokens], place[tokens] = process, np.arange(len(tokens))
        if not len(tokens):
            blocks[:1] = [0]
            tokens = within(blocks)
        own.append(tokens)
    longest = max(map(len, own))
    order = torch.from_numpy(owner * longest + place)
    contexts = [
        Context(process, block_size, tuple(blocks), torch.from_numpy(tokens), torch.from_numpy(owner), order, longest)
        for process, (blocks, tokens) in enumerate(zip(dealt, own, strict=True))
    ]
    return contexts, [float(costs[tokens].sum()) for tokens in own]


def _tokens_of(blocks: Sequence[int], block_size: int) -> np.ndarray:
    return (np.array(blocks, dtype=np.int64)[:, None] * block_size + np.arange(block_size)).ravel()
