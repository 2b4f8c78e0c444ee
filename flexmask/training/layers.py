"""The decoder layers of a model, and what is done to each by itself."""

from torch import nn
from transformers import TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Those that transformers can run again in backward, each alone; none of a model that has no such."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def compile_layers(model: nn.Module, args: TrainingArguments) -> None:
    """Compile each layer in place: the loss stands in the model's own call, and packs have lengths of their own."""
    layers = decoder_layers(model)
    if not layers:
        raise ValueError(
            f"torch_compile=True: {type(model).__name__} has no layers that transformers can compile alone"
        )
    for layer in layers:
        layer.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
