"""Parameters, gradients and optimizer state divided over processes (FSDP2), for models that do not fit in one card."""

import contextlib
import functools
from collections.abc import Iterator

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from flexmask.training.layers import decoder_layers


def allow_on_cpu(accelerator: Accelerator, args: TrainingArguments) -> None:
    """Have an accelerator shard on CPUs as it does elsewhere, if `args` ask for it; accelerate (1.15) would not."""
    if args.fsdp_plugin_args is not None and accelerator.distributed_type is DistributedType.MULTI_CPU:
        plugin = FullyShardedDataParallelPlugin(**args.fsdp_plugin_args)
        if accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(accelerator.mixed_precision)
        accelerator.state.fsdp_plugin = plugin
        # Both states say it, and a new accelerator takes it from the second.
        accelerator.state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def shard(model: nn.Module, plugin: FullyShardedDataParallelPlugin) -> None:
    """Divide `model` over the processes, in place: each decoder layer is gathered when it runs, the rest (embeddings,
    head) with the whole model.

    So the head is whole where the loss is made, chunk by chunk (`flexmask.model.loss`). Left to accelerate, it would be
    sharded apart, and all logits kept. A model that is sharded already is left alone.
    """
    if isinstance(model, FSDPModule):
        return
    plugin.auto_wrap_policy = None  # nothing is left for accelerate to wrap
    settings = {
        "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy(),
        "offload_policy": plugin.cpu_offload,
    }
    for layer in decoder_layers(model):
        fully_shard(layer, reshard_after_forward=plugin.reshard_after_forward, **settings)
    fully_shard(model, reshard_after_forward=False, **settings)


@contextlib.contextmanager
def told_apart(model: nn.Module) -> Iterator[None]:
    """Within, each parameter of a sharded model has an address of its own.

    Where a parameter has fewer rows than there are processes, some process has nothing of it, and all of nothing lies
    at address 0; by its address accelerate (1.15) tells the parameters of an optimizer apart.
    """
    empty = [p._local_tensor for p in model.parameters() if isinstance(p, DTensor) and not p._local_tensor.numel()]
    for number, tensor in enumerate(empty, start=1):
        vars(tensor)["data_ptr"] = functools.partial(int, -number)
    try:
        yield
    finally:
        for tensor in empty:
            del vars(tensor)["data_ptr"]


def whole_state(accelerator: Accelerator, model: nn.Module) -> dict[str, Tensor]:
    """The state of a sharded model in the first process, on CPU; nothing in the others. Weights that are one in the
    model are one in it too, or a file would have both."""
    state = accelerator.get_state_dict(model)
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in state:
            state[name] = state[names.setdefault(id(parameter), name)]
    return state
