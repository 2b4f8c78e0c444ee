"""Parameters that stand in for a model's own while it is tried, so that trying leaves nothing behind.

    model's parameter                   stands in for it
    trained                             the same numbers, where gradients arrive and are shortened one by one
    zero throughout                     random numbers: behind an adapter's B or a gate of zero nothing would be seen
    other, in half precision            the same numbers in float32, while its module runs (`in_float32`)

The model's own are neither written nor given a gradient, and no hook on them runs; but for modules that keep a list of
their parameters elsewhere (`nn.LSTM`), which run on their own.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from flexmask.model.head import HALF, parameters_replaced, widened

# How many numbers are kept of each row of a gradient.
_DIRECTIONS = 4


class Gradients:
    """The gradients of backward passes by parameter name, summed up until they are taken, each in short.

    A gradient [..., C] is kept as its products [..., 4] with random directions: linear in it, of its size on average,
    and, but for a coincidence, zero only where it is zero. So no more than one gradient is there at a time.
    """

    def __init__(self) -> None:
        self._found: dict[str, Tensor] = {}

    def receive(self, name: str, parameter: nn.Parameter) -> None:
        """Add a parameter's gradient, and take it from the parameter."""
        assert parameter.grad is not None  # it has just been accumulated
        short = _in_short(parameter.grad)
        parameter.grad = None
        self._found[name] = self._found[name] + short if name in self._found else short

    def take(self) -> dict[str, Tensor]:
        """What has come in since the last call, by parameter name."""
        found, self._found = self._found, {}
        return found


def _in_short(gradient: Tensor) -> Tensor:
    gradient = widened(gradient)
    if gradient.ndim < 2:
        return gradient
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(gradient.shape[-1], _DIRECTIONS, generator=generator).to(gradient)
    return gradient @ directions / _DIRECTIONS**0.5


@contextlib.contextmanager
def standing_in(model: nn.Module, widen: bool) -> Iterator[Gradients]:
    """Parameters of every module that are trained, or zero, are others while this lasts; see above.

    widen: those in half precision are float32 throughout: of the trained ones that is less memory than their gradients
    and AdamW's states will take. Yields what collects the gradients of backward passes.
    """
    gradients = Gradients()
    others = {}
    for seed, (name, parameter) in enumerate(model.named_parameters()):
        zero = _is_zero(parameter)
        if not (zero or parameter.requires_grad):
            continue
        values = _random(parameter, seed) if zero else parameter.detach()
        values = widened(values) if widen else values
        others[parameter] = nn.Parameter(values, requires_grad=parameter.requires_grad)
        if parameter.requires_grad:
            others[parameter].register_post_accumulate_grad_hook(_receiver(gradients, name))
    with parameters_replaced(model.modules(), others):
        yield gradients


def _receiver(gradients: Gradients, name: str) -> Callable[[nn.Parameter], None]:
    return lambda parameter: gradients.receive(name, parameter)


def _is_zero(parameter: nn.Parameter) -> bool:
    known = parameter.dtype in (torch.float64, torch.float32, *HALF) and not parameter.is_meta
    return known and parameter.numel() > 0 and not parameter.any()


def _random(parameter: nn.Parameter, seed: int) -> Tensor:
    """None of them is close to zero. A product with a matrix of them keeps the size of what goes in, about; vectors are
    a tenth, so that what they are added to is still seen beside them."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(parameter.shape, generator=generator) + 0.5
    sign = torch.rand(parameter.shape, generator=generator).sub(0.5).sign()
    inputs = parameter.shape[-1] if parameter.ndim > 1 else 100
    return (sign * size / inputs**0.5).to(parameter)


@contextlib.contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Every module finds its own half-precision tensors in float32 while it runs, and gets the same ones back.

    A float32 copy of a large model might not fit beside it; that of its largest module does. What backward needs of
    them is made again then.
    """
    held: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
    half_of: dict[int, Tensor] = {}  # by the address of the float32 storage that is in its place

    def widen(module: nn.Module, _: object) -> None:
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        inside: Any = module
        # Layers of peft read the weights of those that they wrap.
        while (inside := getattr(inside, "base_layer", None)) is not None:
            tensors += [*inside.parameters(recurse=False), *inside.buffers(recurse=False)]
        # Some code casts to the dtype of the norm that it calls next (Nemotron-H), or computes a convolution itself.
        for child in module.children():
            convolution = isinstance(child, nn.Conv1d)
            tensors += [p for p in child.parameters(recurse=False) if convolution or p.ndim == 1]
        # Each once: an address that is free again would be taken for a tensor that has moved on.
        once = dict.fromkeys(tensor for tensor in tensors if tensor.dtype in HALF and tensor.numel() > 0)
        held[module] = [(tensor, tensor.data) for tensor in once]
        for tensor, data in held[module]:
            tensor.data = data.float()
            half_of[tensor.untyped_storage().data_ptr()] = data

    def restore(module: nn.Module, *_: object) -> None:
        for tensor, data in held.pop(module, ()):
            half_of.pop(tensor.untyped_storage().data_ptr(), None)
            tensor.data = data

    def save(tensor: Tensor) -> Tensor | tuple:
        half = half_of.get(tensor.untyped_storage().data_ptr())
        return tensor if half is None else (half, tensor.shape, tensor.stride(), tensor.storage_offset())

    def load(saved: Tensor | tuple) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        half, *view = saved
        return half.float().as_strided(*view)

    handles = [module.register_forward_pre_hook(widen) for module in model.modules()]
    handles += [module.register_forward_hook(restore, always_call=True) for module in model.modules()]
    try:
        with torch.autograd.graph.saved_tensors_hooks(save, load):
            yield
    finally:
        for handle in handles:
            handle.remove()
