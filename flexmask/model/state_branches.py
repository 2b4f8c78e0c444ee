"""State that branches with the tree: convolutions and recurrences over a pack, exact in one pass.

No mask hides a branch from a layer that carries state from token to token. Such a layer runs node by node instead:
each node starts where its parent ended, a root from nothing, so neither branches nor packed rows touch each other.

       q1 a1' q2 t2 a2 t1 a1        nodes  q1 | a1' q2 t2 a2 | t1 a1        (the tree of flexmask.tree.layouts)

    convolution   one call; before each node stand the kernel - 1 tokens that precede it on its path, here the last
                  tokens of q1, and zeros before a root:
                      0 0 q1   q1 q1 a1' q2 t2 a2   q1 q1 t1 a1        (kernel of 3)
    recurrence    level by level for the nodes that others continue; then the leaves, which nobody waits for:
                      q1, from zero;   then a1' q2 t2 a2 and t1 a1 side by side, both from the final state of q1

Nodes of like length run as one batch, and a node that is shorter than its batch ends in tokens that leave the state
alone, so final states are exact. The number of calls that wait for each other is the depth of the deepest tree,
whatever the number of nodes or rows.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Nodes of like length share a batch, the longest at most so much longer than the shortest; those of at most so many
# tokens share one whatever their length. Padding costs more than another call, except where there is little to compute:
# on CPU (8 turns, four rows) a factor of 1.25 in place of 2 takes a tenth off a step of a Gated DeltaNet model.
_PADDING, _SHORT = 1.25, 64


@dataclass(frozen=True)
class _Batch:
    """Nodes that run side by side, each padded to `length` tokens.

    parents: int64 [nodes], the state that each starts from: of a level an index into the states of the level above, of
        leaves one into a state of zeros and then those of all levels. None: all start from zero.
    """

    nodes: int
    length: int
    parents: Tensor | None


class StateBranches:
    """What the stateful layers of a model need to know of one pack; made once, used by all layers.

    previous: int64 [1, T], index of the token in front of each on its path, -1 at roots (`Pack.previous`). Paths may
    lie in any order in which a token stands behind its `previous`. device: of the layers; None: that of `previous`.
    `calls` counts how often a layer's function has branched with it (see `expected_calls`).
    """

    def __init__(self, previous: Tensor, device: torch.device | None = None) -> None:
        self.calls = 0
        self._device = device or previous.device
        self._previous = previous[0].cpu().numpy()
        self._convolutions: dict[int, tuple[Tensor, Tensor]] = {}
        index = np.arange(len(self._previous))
        has_parent = self._previous >= 0
        followers = np.bincount(self._previous[has_parent], minlength=len(index))
        # A token begins a node unless it is the only one that follows the token in front of it.
        self._begins = ~has_parent | (self._previous != index - 1) | (followers[self._previous] > 1)
        self._start = np.flatnonzero(self._begins)
        self._plan_recurrence()

    def __len__(self) -> int:
        return len(self._previous)

    @property
    def steps(self) -> int:
        """Calls of a recurrence that wait for each other."""
        return len(self._levels) + 1

    def _plan_recurrence(self) -> None:
        """Batches, and `_slots` int64 [T]: where each token stands when all batches are laid end to end."""
        node_of = np.cumsum(self._begins) - 1
        length = np.diff(self._start, append=len(self))
        before = self._previous[self._start]
        parent = np.where(before >= 0, node_of[before], -1)
        depth = np.zeros(len(parent), dtype=np.int64)
        for node, above in enumerate(parent.tolist()):  # parents stand in front of their children
            if above >= 0:
                depth[node] = depth[above] + 1
        continued = np.zeros(len(parent), dtype=bool)
        continued[parent[parent >= 0]] = True

        # Continued nodes level by level; `state`: where the final state of each is among all, behind a state of zeros.
        order = np.flatnonzero(continued)
        order = order[np.argsort(depth[order], kind="stable")]
        ends: Sequence[int] = np.cumsum(np.bincount(depth[order])).tolist() if len(order) else []
        state = np.zeros(len(parent), dtype=np.int64)
        first_slot, total = np.empty(len(parent), dtype=np.int64), 0

        def batch(nodes: np.ndarray, parents: np.ndarray | None) -> _Batch:
            nonlocal total
            longest = int(length[nodes].max())
            first_slot[nodes] = total + longest * np.arange(len(nodes))
            total += longest * len(nodes)
            return _Batch(len(nodes), longest, None if parents is None else self._tensor(parents))

        self._levels: list[list[_Batch]] = []
        above = start = 0
        for end in ends:
            groups = [order[start:end][group] for group in _of_like_length(length[order[start:end]])]
            state[np.concatenate(groups)] = 1 + np.arange(start, end)
            parents = [state[parent[nodes]] - 1 - above if start else None for nodes in groups]
            self._levels.append([batch(*of) for of in zip(groups, parents, strict=True)])
            above, start = start, end
        leaves = np.flatnonzero(~continued)
        parent_states = np.where(parent[leaves] >= 0, state[parent[leaves]], 0)
        self._leaves = [
            batch(leaves[group], parent_states[group] if self._levels else None)
            for group in _of_like_length(length[leaves])
        ]
        token_of_node = np.arange(len(self)) - self._start[node_of]
        self._slots, self._slot_count = self._tensor(first_slot[node_of] + token_of_node), total

    @torch.compiler.disable  # numpy, on what is data to a compiler
    def convolution(self, kernel: int) -> tuple[Tensor, Tensor]:
        """int64: the tokens to lay end to end so that each node has its kernel - 1 ancestors in front (T: a zero), and
        [T] where in that line each token of the pack is."""
        if kernel not in self._convolutions:
            reach = kernel - 1
            places = np.arange(len(self)) + reach * np.cumsum(self._begins)
            tokens = np.empty(len(self) + reach * len(self._start), dtype=np.int64)
            tokens[places] = np.arange(len(self))
            above = np.append(np.where(self._previous < 0, len(self), self._previous), len(self))
            ancestor = self._start
            for back in range(1, kernel):
                ancestor = above[ancestor]
                tokens[places[self._start] - back] = ancestor
            self._convolutions[kernel] = (self._tensor(tokens), self._tensor(places))
        return self._convolutions[kernel]

    def recurrence(self, run: Callable, *inputs: Tensor) -> Tensor:
        """`run(inputs, initial states or None, whether final states are wanted) -> (output, final states)` over every
        batch of nodes, for inputs [1, T, ...]; zeros in all of them must leave a state alone. Returns [1, T, ...]."""
        self._check_length(inputs[0].shape[:2])
        batches = [*itertools.chain.from_iterable(self._levels), *self._leaves]
        sizes = [batch.nodes * batch.length for batch in batches]
        laid_out = [
            x.new_zeros(self._slot_count, *x.shape[2:]).index_copy(0, self._slots, x[0]).split(sizes) for x in inputs
        ]
        parts = iter(zip(*laid_out, strict=True))
        outputs: list[Tensor] = []
        finals: list[Tensor] = []

        def run_batch(batch: _Batch, states: Tensor | None, continued: bool) -> Tensor:
            inputs = [part.unflatten(0, (batch.nodes, batch.length)) for part in next(parts)]
            initial = None if batch.parents is None or states is None else states.index_select(0, batch.parents)
            output, final = run(inputs, initial, continued)
            outputs.append(output.flatten(0, 1))
            return final

        for level in self._levels:
            above = finals[-1] if finals else None
            finals.append(torch.cat([run_batch(batch, above, True) for batch in level]))
        states = torch.cat([torch.zeros_like(finals[0][:1]), *finals]) if finals else None
        for batch in self._leaves:
            run_batch(batch, states, False)
        self.calls += 1
        return torch.cat(outputs).index_select(0, self._slots)[None]

    def _check_length(self, shape: Sequence[int]) -> None:
        if tuple(shape) != (1, len(self)):
            raise ValueError(
                f"a layer's input has shape {list(shape)}, but state_branches is of a pack [1, {len(self)}]"
            )

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _of_like_length(length: np.ndarray) -> list[np.ndarray]:
    """Groups of indices, longest first; see `_PADDING`."""
    groups: list[list[int]] = []
    for i in np.argsort(-length, kind="stable").tolist():
        longest = length[groups[-1][0]] if groups else 0
        if not groups or (longest > _SHORT and _PADDING * length[i] < longest):
            groups.append([])
        groups[-1].append(i)
    return [np.array(group) for group in groups]
