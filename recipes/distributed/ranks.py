"""Which process of a run this is, and what its processes do together.

Each runs the same recipe. The first one decides, prepares data, makes the folder, prints and reports; all train, and
all chat. A run of one process needs none of this, and imports nothing for it.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

Decided = TypeVar("Decided")

# How long a process waits for the others. The first one prepares all data meanwhile, or writes a checkpoint. When one
# ends, whoever started them ends the others, so nobody waits that long in vain.
PATIENCE = timedelta(hours=12)


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this one, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first_on_machine() -> bool:
    """Whether this is the first process of its machine: the one that the others wait for in `first_on_machine`."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def launched() -> bool:
    """Whether this is one of the processes that torchrun or accelerate starts, be it the only one."""
    return "RANK" in os.environ


def device() -> "torch.device":
    """The accelerator of this process, or the CPU."""
    if count() > 1:
        return _state().device
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def agreed(decide: Callable[[], Decided]) -> Decided:
    """What `decide` returns in the first process, in all of them. Where it raises, all end."""
    if count() == 1:
        return decide()
    _state()
    from accelerate.utils import broadcast_object_list

    decided: list = [None, False]
    error = None
    if rank() == 0:
        try:
            decided = [decide(), True]
        except BaseException as raised:
            error = raised
    decided = broadcast_object_list(decided)
    if error is not None:
        raise error
    if not decided[1]:
        sys.exit(1)  # the first process says why
    return decided[0]


def any_of(mine: bool) -> bool:
    """Whether it is so in any process; each has to ask."""
    if count() == 1:
        return mine
    on = device()
    import torch
    from accelerate.utils import reduce

    return bool(reduce(torch.tensor([int(mine)], device=on), "sum").item())


def gathered(mine: Sequence[Decided]) -> list[Decided]:
    """The items of all processes, those of the first one first."""
    if count() == 1:
        return list(mine)
    _state()
    from accelerate.utils import gather_object

    return gather_object(list(mine))


@contextmanager
def first_on_machine() -> Iterator[None]:
    """The first process of each machine does what is inside before its others do: they find its files."""
    if count() == 1:
        yield
        return
    with _state().local_main_process_first():
        yield


def _state() -> "PartialState":
    """Joins the others, the first time."""
    # torch reads it when it is imported. transformers has DistributedDataParallel look for parameters that a pass does
    # not use, because some models have such; where it finds none, it would say so in every process.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
