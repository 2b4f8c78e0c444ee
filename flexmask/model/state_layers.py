"""The layers of transformers whose state branches with the tree, and the functions in front of theirs.

Layers (transformers 5.23) hand every argument of the model's forward that they do not know down to module-level
functions, which are the fast kernels where those are installed (flash-linear-attention, mamba-ssm, causal-conv1d, hub
kernels) and PyTorch code elsewhere. `route_states` puts a function in front of each of them that looks for the argument
`state_branches`: with it, it calls the function behind node by node (state_branches.py); without it, in generation or
in another model of the process, it calls that function as it is. The argument travels with every call of a layer, so
gradient checkpointing meets it again in backward.
"""

import functools
import inspect
import itertools
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from flexmask.model.state_branches import StateBranches

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
    used = _used(branched).keys()

    def routed(*args: Any, state_branches: StateBranches | None = None, **kwargs: Any) -> Any:
        if state_branches is None:
            return function(*args, **kwargs)
        for name in kwargs.keys() - used:  # handed on as they come
            shape = getattr(kwargs[name], "shape", ())
            if tuple(shape[:1]) == (1,) and len(state_branches) in shape[1:]:
                raise ValueError(
                    f"{function.__name__} takes {name} of shape {list(shape)}, one for each token of the pack, which "
                    "does not follow the tree; train this model one pass a turn"
                )
        return branched(function, state_branches, *args, **kwargs)

    vars(routed)["behind"] = function
    return routed
