"""What of a step waits for the device: reading a value of one of its tensors from Python does.

A device is stood in for by tensors that tell, where a pack has been moved and in all that comes of it, whenever Python
asks for a value: `.item()`, `bool()`, `.tolist()`, `.cpu()`, `nonzero`, a mask as an index. Attention is taken out, as
its CPU path is not what runs on a device, and gradients of parameters are plain: that their norm is finite is looked at
once a step.
"""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from trainers import STEPS, make_trainer

from flexmask.attention import interface
from flexmask.tree.packing import Pack

READS = ("item", "tolist", "numpy", "cpu", "nonzero", "argwhere", "masked_select", "unique", "equal", "is_nonzero")
READS += ("__bool__", "__int__", "__float__", "__index__", "__array__")
found: Counter = Counter()


class OnDevice(torch.Tensor):
    """Counts what reads it."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        index = args[1] if name in ("__getitem__", "__setitem__") else ()
        parts = index if isinstance(index, tuple) else (index,)
        by_mask = any(isinstance(x, OnDevice) and x.dtype == torch.bool for x in parts)
        if name in READS or by_mask:
            found[name] += 1
        return super().__torch_function__(func, types, args, kwargs)


def moved_to_device(pack, device, non_blocking=False):
    """`Pack.to` with a device that counts."""
    tensors = {name: x.clone().as_subclass(OnDevice) for name, x in vars(pack).items() if isinstance(x, torch.Tensor)}
    moved = replace(pack, **tensors)
    object.__setattr__(moved, "_on_host", pack)
    return moved


def attention(query, key, value, *_):
    """Some function of all three, of the right shape."""
    value, key = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (value, key))
    return (query * key + value).transpose(1, 2)


# Breaks if a place, a position, a mask or a count by role is looked up on the device: each is a wait for all its work.
# Of the code of Qwen3.5 (transformers 5.23) is one more, which asks whether its mask of padding is ones throughout.
@pytest.mark.parametrize(("model", "reads"), [("attention", 1), ("hybrid", 2)])
def test_a_pass_waits_for_the_device_once_for_its_loss(model, reads, monkeypatch, tmp_path):
    trainer = make_trainer(tmp_path, model=model, pack_length=512, dtype=torch.float32)  # has tried the model
    monkeypatch.setattr(Pack, "to", moved_to_device)
    monkeypatch.setattr(interface, "block_sparse_attention", attention)
    step, packs = trainer.training_step, []

    def training_step(model, inputs, *more):
        found.clear()
        result = step(model, inputs, *more)
        packs.append(len(inputs["packs"]))
        assert found == {"__bool__": reads * packs[-1]}  # whether the loss of each pack is finite
        return result

    trainer.training_step = training_step
    trainer.train()
    assert len(packs) == STEPS and max(packs) > 1


def test_what_reads_a_tensor_is_counted():
    found.clear()
    x = torch.arange(4).as_subclass(OnDevice)
    (x + 1)[1:].sum().item(), x.tolist(), bool(x[0] > 0), x.cpu(), torch.nonzero(x), x[x > 1], int(x.max())
    assert found == {
        "item": 1, "tolist": 1, "__bool__": 1, "cpu": 1, "nonzero": 1, "__getitem__": 1, "__int__": 1,
    }  # fmt: skip
