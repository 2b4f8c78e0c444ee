"""State that branches with the tree: convolutions and recurrences over a pack, exact in one pass.

No mask hides a branch from a layer that carries state from token to token. Such a layer runs node by node instead:
each node starts where its parent ended, a root from nothing, so neither branches nor packed rows touch each other.

       q1 a1' q2 t2 a2 t1 a1        nodes  q1 | a1' q2 t2 a2 | t1 a1        (the tree of flexmask.tree)

    convolution   one call; before each node stand the kernel - 1 tokens that precede it on its path, here the last
                  tokens of q1, and zeros before a root:
                      0 0 q1   q1 q1 a1' q2 t2 a2   q1 q1 t1 a1        (kernel of 3)
    recurrence    level by level for the nodes that others continue; then the leaves, which nobody waits for:
                      q1, from zero;   then a1' q2 t2 a2 and t1 a1 side by side, both from the final state of q1

Nodes of like length run as one batch, and a node that is shorter than its batch ends in tokens that leave the state
alone, so final states are exact. The number of calls that wait for each other is the depth of the deepest tree,
whatever the number of nodes or rows.

The seam (transformers 5.23): layers hand every argument of the model's forward that they do not know down to
module-level functions, which are the fast kernels where those are installed (flash-linear-attention, mamba-ssm,
causal-conv1d, hub kernels) and PyTorch code elsewhere. `route_states` puts a function in front of each of them that
looks for the argument `state_branches`: with it, it calls the function behind as drawn above; without it, in
generation or in another model of the process, it calls that function as it is. The argument travels with every call
of a layer, so gradient checkpointing meets it again in backward.
"""

import functools
import inspect
import itertools
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_DELTA_RULE = ("causal_conv1d_fn", "torch_chunk_gated_delta_rule")
_KIMI_DELTA_RULE = ("causal_conv1d_fn", "chunk_kimi_delta_attention")
_MAMBA_2 = ("causal_conv1d_fn", "mamba2_chunk_scan", "mamba2_split_conv1d_scan_combined")
_SHORT_CONVOLUTION = ("causal_conv1d_fn",)

# The layers whose state branches, and the functions through which each of them connects tokens (transformers 5.23).
COVERED = {
    "Qwen3NextGatedDeltaNet": _DELTA_RULE,
    "Qwen3_5GatedDeltaNet": _DELTA_RULE,
    "Qwen3_5MoeGatedDeltaNet": _DELTA_RULE,
    "OlmoHybridGatedDeltaNet": _DELTA_RULE,
    "KimiLinearDeltaAttention": _KIMI_DELTA_RULE,
    "BailingHybridDeltaAttention": _KIMI_DELTA_RULE,
    "NemotronHMamba2Mixer": _MAMBA_2,
    "GraniteMoeHybridMambaLayer": _MAMBA_2,
    "BambaMixer": _MAMBA_2,
    "FalconH1Mixer": _MAMBA_2,
    "Zamba2MambaMixer": _MAMBA_2,
    "Lfm2ShortConv": _SHORT_CONVOLUTION,
    "Lfm2MoeShortConv": _SHORT_CONVOLUTION,
    "Lfm3ShortConv": _SHORT_CONVOLUTION,
}

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
    lie in any order in which a token stands behind its `previous`.
    `calls` counts how often a layer's function has branched with it (see `expected_calls`).
    """

    def __init__(self, previous: Tensor) -> None:
        self.calls = 0
        self._device = previous.device
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


# ---- One implementation for each kind of layer; `function` is transformers' own, or the kernel that it stands for ----


def _convolution(
    function: Callable,
    branches: StateBranches,
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    **more: Any,
) -> Tensor:
    """Causal depthwise convolution: hidden_states [1, D, T], weight [D, K] -> [1, D, T]."""
    branches._check_length((hidden_states.shape[0], hidden_states.shape[2]))
    tokens, places = branches.convolution(weight.shape[-1])
    in_line = F.pad(hidden_states[0].T, (0, 0, 0, 1)).index_select(0, tokens).T[None]
    branches.calls += 1
    return function(in_line, weight, bias, **more).index_select(2, places)


def _delta_rule(
    function: Callable,
    branches: StateBranches,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    g: Tensor,
    beta: Tensor,
    chunk_size: int | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    **more: Any,
) -> tuple[Tensor, None]:
    """Gated delta rule, with one gate a head or one a channel (Kimi): all inputs [1, T, heads, ...]."""
    _check_no_cache(initial_state, output_final_state)

    def run(inputs: Sequence[Tensor], state: Tensor | None, continued: bool) -> tuple[Tensor, Tensor]:
        query, key, value, g, beta = inputs
        given = more | _chunks(chunk_size, inputs[0])
        return function(query, key, value, g=g, beta=beta, initial_state=state, output_final_state=continued, **given)

    return branches.recurrence(run, query, key, value, g, beta), None


def _mamba_2(
    function: Callable,
    branches: StateBranches,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    chunk_size: int,
    dt_bias: Tensor,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    **more: Any,
) -> Tensor:
    """State-space scan of Mamba-2: hidden_states [1, T, heads, D], dt [1, T, heads], B and C [1, T, groups, N]."""
    _check_no_cache(initial_states, return_final_states)
    # Steps get their bias and limits here: behind these, the zero of a padded token would no longer be one.
    dt = dt.float() + dt_bias.float()
    dt = (F.softplus(dt) if dt_softplus else dt).clamp(*dt_limit)

    def run(inputs: Sequence[Tensor], state: Tensor | None, continued: bool) -> tuple[Tensor, Tensor | None]:
        x, dt, B, C = inputs
        given = more | _chunks(chunk_size, x) | dict(dt_bias=None, dt_softplus=False, dt_limit=(0.0, np.inf))
        result = function(x, dt, A, B, C, initial_states=state, return_final_states=continued, **given)
        return result if continued else (result, None)

    return branches.recurrence(run, hidden_states, dt, B, C)


def _without_fusion(function: Callable, branches: StateBranches, *args: Any, **more: Any) -> None:
    """Mamba-2's convolution and scan in one kernel, which cannot branch: None sends the layer on to the two apart."""


def _chunks(most: int | None, x: Tensor) -> dict[str, int]:
    """PyTorch's code pads [nodes, length, ...] to whole chunks; short nodes get short ones. Kernels keep theirs."""
    if x.is_cuda:
        return {} if most is None else dict(chunk_size=most)
    return dict(chunk_size=min(most or 64, 1 << (x.shape[1] - 1).bit_length()))


def _check_no_cache(initial: Tensor | None, final: bool) -> None:
    if initial is not None or final:
        raise ValueError(
            "state_branches is for whole packs: call the model with use_cache=False and no past_key_values"
        )


# ---- The seam ----

# What stands in front of each of transformers' functions (5.23). Its parameters are those that a function must have,
# the positional ones first and in this order; what else a function takes is handed on as it comes.
_SEAM: dict[str, Callable] = {
    "causal_conv1d_fn": _convolution,
    "torch_chunk_gated_delta_rule": _delta_rule,
    "chunk_kimi_delta_attention": _delta_rule,
    "mamba2_chunk_scan": _mamba_2,
    "mamba2_split_conv1d_scan_combined": _without_fusion,
}


def is_covered(layer: nn.Module) -> bool:
    """Whether this is a layer whose state branches, provided that transformers is as expected (`moved`)."""
    return bool(_functions(layer))


def moved(layer: nn.Module) -> str | None:
    """What in the installed transformers is not where this module expects it for a covered layer; None: nothing."""
    home = _home(layer)
    for name in _functions(layer):
        function = getattr(home, name, None)
        if function is None:
            return f"{home.__name__} has no {name}"
        taken, used = _parameters(getattr(function, "behind", function)), _used(_SEAM[name])
        in_order = [one for one, parameter in used.items() if parameter.kind is not parameter.KEYWORD_ONLY]
        if list(taken)[: len(in_order)] != in_order or not used.keys() <= taken.keys():
            return f"{name} of {home.__name__} takes {', '.join(taken)}, where {', '.join(used)} are needed"
    return None


def route_states(layers: Iterable[nn.Module]) -> None:
    """Let covered layers take `state_branches`: all layers of their classes do from then on; see above."""
    for layer in layers:
        home = _home(layer)
        for name in _functions(layer):
            if not hasattr(function := getattr(home, name), "behind"):
                setattr(home, name, _in_front_of(function, _SEAM[name]))


def expected_calls(model: nn.Module) -> int:
    """How often one forward pass of a model branches a state, `StateBranches.calls`; 0: no layer is covered."""
    names = [name for module in model.modules() for name in _functions(module)]
    return sum(_SEAM[name] is not _without_fusion for name in names)


def _functions(layer: nn.Module) -> tuple[str, ...]:
    # mypy takes the __hash__ of torch's modules for that of their classes.
    return _functions_of(type(layer))  # type: ignore[arg-type]


@functools.cache  # each pass asks for all modules of a model
def _functions_of(kind: type) -> tuple[str, ...]:
    return next((COVERED[one.__name__] for one in _kinds(kind)), ())


def _home(layer: nn.Module) -> types.ModuleType:
    """The module of transformers in which the layer looks its functions up."""
    return sys.modules[next(_kinds(type(layer))).__module__]


def _kinds(kind: type) -> Iterator[type]:
    # Sharding puts classes of its own in front of a layer's; model code from elsewhere may reuse a name.
    for one in kind.__mro__:
        if one.__name__ in COVERED and one.__module__.startswith("transformers.models."):
            yield one


def _parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(getattr(function, "forward", function)).parameters


def _used(branched: Callable) -> dict[str, inspect.Parameter]:
    """The parameters of transformers' function that the one in front of it knows."""
    behind_two = itertools.islice(_parameters(branched).items(), 2, None)  # those are `function` and `branches`
    return {name: one for name, one in behind_two if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}


def _in_front_of(function: Callable, branched: Callable) -> Callable:
    handed_on = _parameters(function).keys() - _used(branched).keys()

    def routed(*args: Any, state_branches: StateBranches | None = None, **kwargs: Any) -> Any:
        if state_branches is None:
            return function(*args, **kwargs)
        for name in handed_on & kwargs.keys():
            shape = getattr(kwargs[name], "shape", ())
            if tuple(shape[:1]) == (1,) and len(state_branches) in shape[1:]:
                raise ValueError(
                    f"{function.__name__} takes {name} of shape {list(shape)}, one for each token of the pack, which "
                    "does not follow the tree; train this model one pass a turn"
                )
        return branched(function, state_branches, *args, **kwargs)

    vars(routed)["behind"] = function
    return routed
