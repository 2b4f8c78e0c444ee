"""Rows -> packs: several rows laid end to end in one row of a fixed length."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from flexmask.rendering import Role
from flexmask.tree import Row


@dataclass(frozen=True, eq=False)
class Pack:
    """What one forward pass computes. All tensors have shape [1, S]; the batch dimension is always 1.

    `input_ids`, `position_ids`, `previous` int64; `visible_until` int32; `roles` int8; `loss_weights` float32.
    `previous` and `visible_until` are indices into the pack. A pad token sees only itself, has position 0,
    `previous` -1 and weight 0. `rows` names the rows, in order; `tokens` counts what is not padding.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    visible_until: torch.Tensor
    previous: torch.Tensor
    loss_weights: torch.Tensor
    roles: torch.Tensor
    rows: tuple[str, ...]
    tokens: int

    def __len__(self) -> int:
        return self.input_ids.shape[1]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Pack":
        """The pack with its tensors on `device`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {
            name: value.to(device, non_blocking=non_blocking) if isinstance(value, torch.Tensor) else value
            for name, value in values.items()
        }
        return Pack(**moved)


def pack(
    rows: Sequence[Row], pack_length: int, *, pad_token_id: int = 0, pad_to_multiple_of: int | None = None
) -> list[Pack]:
    """Pack rows by best fit, longest first; deterministic in the order of `rows`.

    Every pack is padded to `pack_length` (one shape, so one compile on GPU), or, where `pad_to_multiple_of` is
    given, only to the next multiple of it. Raises ValueError naming a row longer than `pack_length`.
    """
    for row in rows:
        if len(row) > pack_length:
            raise ValueError(f"row {row.name} has {len(row):,} tokens, pack_length is {pack_length:,}")
    return [
        _lay_end_to_end([rows[i] for i in sorted(group)], pack_length, pad_token_id, pad_to_multiple_of)
        for group in _best_fit([len(row) for row in rows], pack_length)
    ]


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


def _lay_end_to_end(rows: Sequence[Row], pack_length: int, pad_token_id: int, pad_to_multiple_of: int | None) -> Pack:
    tokens = sum(len(row) for row in rows)
    length = pack_length
    if pad_to_multiple_of is not None:
        length = min(pack_length, -(-tokens // pad_to_multiple_of) * pad_to_multiple_of)
    input_ids = np.full(length, pad_token_id, dtype=np.int64)
    position_ids = np.zeros(length, dtype=np.int64)
    visible_until = np.arange(1, length + 1, dtype=np.int32)
    previous = np.full(length, -1, dtype=np.int64)
    loss_weights = np.zeros(length, dtype=np.float32)
    roles = np.full(length, Role.PROMPT, dtype=np.int8)
    start = 0
    for row in rows:
        here = slice(start, start + len(row))
        input_ids[here] = row.input_ids
        position_ids[here] = row.position_ids
        visible_until[here] = row.visible_until + start
        previous[here] = np.where(row.previous >= 0, row.previous + start, -1)
        loss_weights[here] = row.loss_weights
        roles[here] = row.roles
        start = here.stop
    arrays = (input_ids, position_ids, visible_until, previous, loss_weights, roles)
    return Pack(*(torch.from_numpy(a)[None] for a in arrays), rows=tuple(row.name for row in rows), tokens=tokens)
