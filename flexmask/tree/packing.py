"""Rows -> packs: several rows laid end to end in one row of at most so many tokens."""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flexmask.tree.layouts import Row
from flexmask.tree.passes import PassTable

if TYPE_CHECKING:
    from flexmask.attention.context import Context


@dataclass(frozen=True, eq=False)
class Pack:
    """What one forward pass computes. All tensors have shape [1, S]; the batch dimension is always 1.

    `input_ids`, `position_ids`, `previous` int64; `visible_until` int32; `roles` int8; `loss_weights` float32.
    `previous` and `visible_until` are indices into the pack. `rows` names the rows, in order. There is no padding:
    S is the sum of the rows' lengths, at most `pack_length`. The mask is made for `pack_length` tokens, so that a
    compiled kernel finds one shape in a whole run, and attention alone fills up to it. `passes` says which tokens each
    pass trains, on the CPU. `context` says which of the tokens this process computes, where several compute the pack
    together; None: all.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    visible_until: torch.Tensor
    previous: torch.Tensor
    loss_weights: torch.Tensor
    roles: torch.Tensor
    rows: tuple[str, ...]
    pack_length: int
    passes: PassTable
    context: "Context | None" = None

    def __len__(self) -> int:
        return self.input_ids.shape[1]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Pack":
        """The pack with its tensors on `device`."""
        moved = self._with(lambda tensors: tensors.to(device, non_blocking=non_blocking))
        object.__setattr__(moved, "_on_host", self.on_host)
        return moved

    def pin_memory(self) -> "Pack":
        """The pack in memory from which a GPU copies while it computes; a DataLoader calls it."""
        return self._with(lambda tensors: tensors.pin_memory())

    def _with(self, change: Callable[[Any], Any]) -> "Pack":
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if hasattr(value, "pin_memory")})

    @property
    def on_host(self) -> "Pack":
        """The pack with its tensors on the CPU: the one that `to` has moved, so that nothing waits for the device."""
        here = self if self.input_ids.device.type == "cpu" else None
        return vars(self).get("_on_host") or here or self.to("cpu")


def pack(rows: Sequence[Row], pack_length: int) -> list[Pack]:
    """The rows of each group of `pack_groups` laid end to end; see there."""
    return [lay_end_to_end(group, pack_length) for group in pack_groups(rows, pack_length)]


def pack_groups(rows: Sequence[Row], pack_length: int) -> list[list[Row]]:
    """Rows that share a pack, by best fit, longest first; deterministic in the order of `rows`.

    Raises ValueError naming a row longer than `pack_length`.
    """
    for row in rows:
        if len(row) > pack_length:
            raise ValueError(f"row {row.name} has {len(row):,} tokens, pack_length is {pack_length:,}")
    groups = _best_fit([len(row) for row in rows], pack_length)
    return [[rows[i] for i in sorted(group)] for group in groups]


def _best_fit(lengths: Sequence[int], pack_length: int) -> list[list[int]]:
    """Groups of indices whose lengths sum to at most `pack_length`: each goes where it leaves the least space."""
    groups: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (free tokens, group), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(spaces, (lengths[index], -1))
        if at < len(spaces):
            free, group = spaces.pop(at)
        else:
            free, group = pack_length, len(groups)
            groups.append([])
        groups[group].append(index)
        insort(spaces, (free - lengths[index], group))
    return groups


def lay_end_to_end(rows: Sequence[Row], pack_length: int, groups: Sequence[int] | None = None) -> Pack:
    """One pack of rows that fit into it together. groups: a number for each row, the same for those of one record;
    None: each row is a record of its own."""
    starts = np.cumsum([0, *(len(row) for row in rows[:-1])])
    groups = range(len(rows)) if groups is None else groups

    def join(values: Callable[[Row, int], np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([values(*of) for of in zip(rows, starts, strict=True)]))[None]

    return Pack(
        input_ids=join(lambda row, start: row.input_ids),
        position_ids=join(lambda row, start: row.position_ids),
        visible_until=join(lambda row, start: (row.visible_until + start).astype(np.int32)),
        previous=join(lambda row, start: np.where(row.previous >= 0, row.previous + start, -1)),
        loss_weights=join(lambda row, start: row.loss_weights),
        roles=join(lambda row, start: row.roles),
        rows=tuple(row.name for row in rows),
        pack_length=pack_length,
        passes=PassTable.joined(
            row.passes.moved(start, group) for row, start, group in zip(rows, starts.tolist(), groups, strict=True)
        ),
    )


def weightless_pack(row: Row, pack_length: int) -> Pack:
    """A pack of the first token of a row, without weight: a pass that trains nothing."""
    first = replace(
        row,
        passes=row.passes.taken(np.empty(0, dtype=np.int64)),
        input_ids=row.input_ids[:1],
        roles=row.roles[:1],
        loss_weights=np.zeros_like(row.loss_weights[:1]),
        node_start=np.array([0]),
        node_end=np.array([1]),
        node_parent=np.array([-1]),
    )
    return lay_end_to_end([first], pack_length)
