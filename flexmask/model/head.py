"""What a causal language model makes of its decoder's states, apart from the decoder.

The model's own `forward` makes the logits, with a decoder that answers with states that are there already. `lm_head`
alone would be shorter, but most of what is here would stay: finding the states that go in, and other parameters for
chunks. Behind or before `lm_head` transformers' models (5.23) scale or cap, under names of their own (logit_scale,
logits_scaling, final_logit_softcapping, ...): that would be a table, and a probe against what a model does that is not
in it. The decoder is looked for by what runs: `get_decoder` and `base_model` name modules that `forward` may not call.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from flexmask.errors import UnsupportedModelError

HALF = (torch.bfloat16, torch.float16)
# What a decoder returns; the states stand first in it.
_Output = tuple | ModelOutput


class Head:
    """The head of a model: states [N, D] -> logits [N, V], in float32 where they come in half precision.

    forward: the model's own; `model.forward` may be replaced meanwhile. parameters: those of the head that are trained.

    The decoder is the outermost module around the embeddings that `forward` calls.
    """

    def __init__(self, model: PreTrainedModel, forward: Callable) -> None:
        self.model, self.forward = model, forward
        embeddings = model.get_input_embeddings()
        path = next(name for name, module in model.named_modules() if module is embeddings).split(".")
        self._around = [".".join(path[:depth]) for depth in range(1, len(path))]
        others = [child for name, child in model.named_children() if name != path[0]]
        self._owners = [model, *(module for child in others for module in child.modules())]
        owned = [*model.parameters(recurse=False), *(p for child in others for p in child.parameters())]
        self.parameters = list(dict.fromkeys(p for p in owned if p.requires_grad))

    def states(self, inputs: dict) -> Tensor:
        """Last hidden states [S, D]."""
        outputs: dict[str, list] = {path: [] for path in self._around}

        def keep(path: str, module: nn.Module, arguments: tuple, output: _Output) -> None:
            outputs[path].append(output)

        handles = [
            self.model.get_submodule(path).register_forward_hook(functools.partial(keep, path)) for path in outputs
        ]
        try:
            none = inputs["input_ids"].new_empty(0)
            rows = self.forward(**inputs, logits_to_keep=none).logits.shape[1]
        finally:
            for handle in handles:
                handle.remove()
        name = type(self.model).__name__
        self._decoder = next((path for path, found in outputs.items() if found), "")
        if len(outputs.get(self._decoder, ())) != 1:
            calls = {path: len(found) for path, found in outputs.items()}
            raise UnsupportedModelError(f"{name}: no module around its embeddings is called once: {calls}")
        if rows:
            raise UnsupportedModelError(
                f"{name} returned {rows:,} rows of logits where none were asked for: it does not take logits_to_keep, "
                "as causal language models of transformers 5 do"
            )
        (self._output,) = outputs[self._decoder]
        return self._output[0][0]

    def __call__(self, states: Tensor) -> Tensor:
        """Logits [N, V] of states [N, D]; after `states`, which finds the decoder."""
        parent, _, attribute = self._decoder.rpartition(".")
        siblings = self.model.get_submodule(parent)._modules
        answer = _Answer(siblings[attribute], _with_states(self._output, states[None]))
        with replaced(siblings, attribute, answer):
            # The decoder does not look at them. Some models take the device or the batch size from them.
            ids = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)
            logits = self.forward(input_ids=ids, use_cache=False).logits[0]
        if len(logits) != len(states):
            raise UnsupportedModelError(
                f"{type(self.model).__name__}.forward made {len(logits):,} rows of logits from {len(states):,} states"
            )
        return widened(logits)

    @contextlib.contextmanager
    def with_parameters(self, aliases: Sequence[Tensor]) -> Iterator[None]:
        """The head computes with `aliases` of `parameters`, on which no hook of theirs runs."""
        with parameters_replaced(self._owners, dict(zip(self.parameters, aliases, strict=True))):
            yield


class _Answer(nn.Module):
    """In place of a decoder: returns `output` whatever it is called with, and has all else from the decoder."""

    def __init__(self, decoder: nn.Module | None, output: _Output) -> None:
        super().__init__()
        self.__dict__.update(_decoder=decoder, _output=output)  # not as its child

    def forward(self, *args: Any, **kwargs: Any) -> _Output:
        """The output that was given, whatever the arguments."""
        return self.__dict__["_output"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_decoder"], name)


def _with_states(output: _Output, states: Tensor) -> _Output:
    """A decoder's output with other states, which stand first in it."""
    if isinstance(output, tuple):
        return (states, *output[1:])
    return type(output)(**{**output, next(iter(output)): states})


def widened(x: Tensor) -> Tensor:
    """In float32 where it is in half precision."""
    return x.float() if x.dtype in HALF else x


@contextlib.contextmanager
def parameters_replaced(modules: Iterable[nn.Module], others: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Each module has `others[p]` wherever it has the parameter p itself, not in a child."""
    with contextlib.ExitStack() as stack:
        for module in modules:
            for name, parameter in list(module._parameters.items()):
                if parameter is not None and parameter in others:
                    stack.enter_context(replaced(module._parameters, name, others[parameter]))
        yield


@contextlib.contextmanager
def replaced(values: dict, name: str, value: object) -> Iterator[None]:
    """`values[name]` is `value`, and afterwards what it was, or not there."""
    missing = object()
    before = values.get(name, missing)
    values[name] = value
    try:
        yield
    finally:
        if before is missing:
            del values[name]
        else:
            values[name] = before
