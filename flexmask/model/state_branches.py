"""State that branches with the tree: convolutions and recurrences over a pack, exact in one pass.

No mask hides a branch from a layer that carries state from token to token. Such a layer runs node by node instead:
each node starts where its parent ended, a root from nothing, so neither branches nor packed rows touch each other.

       q1 a1' q2 t2 a2 t1 a1        nodes  q1 | a1' q2 t2 a2 | t1 a1        (the tree of flexmask.tree.layouts)

    convolution   one call; before each node stand the kernel - 1 tokens that precede it on its path, here the last
                  tokens of q1, and zeros before a root:
                      0 0 q1   q1 q1 a1' q2 t2 a2   q1 q1 t1 a1        (kernel of 3)
    recurrence    by the cheaper of two plans:
                  level by level the nodes that others continue, then the leaves, which nobody waits for:
                      q1, from zero;   then a1' q2 t2 a2 and t1 a1 side by side, both from the final state of q1
                  or path by path, all at once, where tokens that paths share run in each of them:
                      q1 a1' q2 t2 a2 and q1 t1 a1 side by side, from zero

What is of like length runs as one batch, and what is shorter than its batch ends in tokens that leave the state alone,
so final states are exact. Level by level, the calls that wait for each other are as many as the deepest tree has
levels, whatever the number of nodes or rows, and no token runs twice; path by path they are one.
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


# What a call of a recurrence costs, forward and backward, in tokens. On CPU `make bench ARGS="sections=[plans]"` finds
# 32 to 39; for a GPU it is an estimate, some thirty kernels to launch against what is computed meanwhile, not measured.
CALL_IN_TOKENS = {"cpu": 32, "cuda": 1024}


@dataclass(frozen=True)
class _Batch:
    """Runs of tokens side by side, each padded to `length`.

    parents: int64 [runs], the state that each starts from: of a level an index into the states of the level above, of
        what nobody waits for one into a state of zeros and then those of all levels. None: all start from zero.
    """

    runs: int
    length: int
    parents: Tensor | None


@dataclass(frozen=True)
class _Plan:
    """Batches of nodes that others start from, a list a level, and of what nobody waits for.

    tokens: int64 [slots], the token in each place when all batches are laid end to end, T where there is padding.
    places: int64 [T], a place of each token.
    """

    levels: list[list[_Batch]]
    leaves: list[_Batch]
    tokens: Tensor
    places: Tensor

    @property
    def batches(self) -> int:
        return sum(map(len, self.levels)) + len(self.leaves)

    def cost(self, call: float) -> float:
        """In tokens; `call`: of a call."""
        return len(self.tokens) + call * self.batches


class StateBranches:
    """What the stateful layers of a model need to know of one pack; made once, used by all layers.

    previous: int64 [1, T], index of the token in front of each on its path, -1 at roots (`Pack.previous`). Paths may
    lie in any order in which a token stands behind its `previous`. device: of the layers; None: that of `previous`.
    call_in_tokens: what a call of a recurrence costs; None: CALL_IN_TOKENS of the device. Below zero the plan of most
    calls is the cheapest.
    `calls` counts how often a layer's function has branched with it (see `expected_calls`).
    """

    def __init__(
        self, previous: Tensor, device: torch.device | None = None, call_in_tokens: float | None = None
    ) -> None:
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
        self._nodes = np.split(index, self._start[1:])
        before = self._previous[self._start]
        self._parent = np.where(before >= 0, (np.cumsum(self._begins) - 1)[before], -1)
        self._continued = np.zeros(len(self._nodes), dtype=bool)
        self._continued[self._parent[self._parent >= 0]] = True
        call = call_in_tokens
        if call is None:
            call = CALL_IN_TOKENS.get(self._device.type, CALL_IN_TOKENS["cuda"])
        self._plan = self._level_by_level()
        if self._tokens_of_paths() < self._plan.cost(call):  # else there may be very many of them
            self._plan = min((self._plan, self._path_by_path()), key=lambda plan: plan.cost(call))

    def __len__(self) -> int:
        return len(self._previous)

    @property
    def steps(self) -> int:
        """Calls of a recurrence that wait for each other."""
        return len(self._plan.levels) + 1

    @property
    def tokens_run(self) -> int:
        """Tokens over which a recurrence runs, padding and those that run in several paths included."""
        return len(self._plan.tokens)

    @property
    def batches(self) -> int:
        """Calls of a recurrence."""
        return self._plan.batches

    def _level_by_level(self) -> _Plan:
        depth = np.zeros(len(self._nodes), dtype=np.int64)
        for node, above in enumerate(self._parent.tolist()):  # parents stand in front of their children
            if above >= 0:
                depth[node] = depth[above] + 1
        length = np.array(list(map(len, self._nodes)))
        # Continued nodes level by level; `state`: where the final state of each is among all, behind a state of zeros.
        order = np.flatnonzero(self._continued)
        order = order[np.argsort(depth[order], kind="stable")]
        ends: Sequence[int] = np.cumsum(np.bincount(depth[order])).tolist() if len(order) else []
        state = np.zeros(len(self._nodes), dtype=np.int64)
        laid: list[np.ndarray] = []
        levels: list[list[_Batch]] = []
        above = start = 0
        for end in ends:
            groups = [order[start:end][group] for group in _of_like_length(length[order[start:end]])]
            state[np.concatenate(groups)] = 1 + np.arange(start, end)
            parents = [state[self._parent[nodes]] - 1 - above if start else None for nodes in groups]
            levels.append(
                [self._batch(nodes, self._nodes, of, laid) for nodes, of in zip(groups, parents, strict=True)]
            )
            above, start = start, end
        leaves = np.flatnonzero(~self._continued)
        parent_states = np.where(self._parent[leaves] >= 0, state[self._parent[leaves]], 0)
        last = [
            self._batch(leaves[group], self._nodes, parent_states[group] if levels else None, laid)
            for group in _of_like_length(length[leaves])
        ]
        return self._laid_out(levels, last, laid)

    def _tokens_of_paths(self) -> int:
        length = np.array(list(map(len, self._nodes)))
        for node, above in enumerate(self._parent.tolist()):
            if above >= 0:
                length[node] += length[above]
        return int(length[~self._continued].sum())

    def _path_by_path(self) -> _Plan:
        paths: list[np.ndarray] = []
        for leaf in np.flatnonzero(~self._continued).tolist():
            nodes = [leaf]
            while (above := int(self._parent[nodes[-1]])) >= 0:
                nodes.append(above)
            paths.append(np.concatenate([self._nodes[node] for node in reversed(nodes)]))
        laid: list[np.ndarray] = []
        batches = [self._batch(group, paths, None, laid) for group in _of_like_length(np.array(list(map(len, paths))))]
        return self._laid_out([], batches, laid)

    def _batch(
        self, chosen: np.ndarray, runs: Sequence[np.ndarray], parents: np.ndarray | None, laid: list[np.ndarray]
    ) -> _Batch:
        """The batch of the chosen runs of tokens, which are added to `laid` with their padding."""
        longest = max(len(runs[i]) for i in chosen)
        padded = np.full((len(chosen), longest), len(self))
        for line, i in zip(padded, chosen, strict=True):
            line[: len(runs[i])] = runs[i]
        laid.append(padded.ravel())
        return _Batch(len(chosen), longest, None if parents is None else self._tensor(parents))

    def _laid_out(self, levels: list[list[_Batch]], leaves: list[_Batch], laid: list[np.ndarray]) -> _Plan:
        tokens = np.concatenate(laid)
        places = np.empty(len(self) + 1, dtype=np.int64)
        places[tokens] = np.arange(len(tokens))
        return _Plan(levels, leaves, self._tensor(tokens), self._tensor(places[:-1]))

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
        batch, for inputs [1, T, ...]; zeros in all of them must leave a state alone. Returns [1, T, ...]."""
        self._check_length(inputs[0].shape[:2])
        plan = self._plan
        batches = [*itertools.chain.from_iterable(plan.levels), *plan.leaves]
        sizes = [batch.runs * batch.length for batch in batches]
        laid_out = [
            torch.cat([x[0], x.new_zeros(1, *x.shape[2:])]).index_select(0, plan.tokens).split(sizes) for x in inputs
        ]
        parts = iter(zip(*laid_out, strict=True))
        outputs: list[Tensor] = []
        finals: list[Tensor] = []

        def run_batch(batch: _Batch, states: Tensor | None, continued: bool) -> Tensor:
            inputs = [part.unflatten(0, (batch.runs, batch.length)) for part in next(parts)]
            initial = None if batch.parents is None or states is None else states.index_select(0, batch.parents)
            output, final = run(inputs, initial, continued)
            outputs.append(output.flatten(0, 1))
            return final

        for level in plan.levels:
            above = finals[-1] if finals else None
            finals.append(torch.cat([run_batch(batch, above, True) for batch in level]))
        states = torch.cat([torch.zeros_like(finals[0][:1]), *finals]) if finals else None
        for batch in plan.leaves:
            run_batch(batch, states, False)
        self.calls += 1
        return torch.cat(outputs).index_select(0, plan.places)[None]

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
