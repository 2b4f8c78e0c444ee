"""Row -> segments: what a person is shown of a row. Training reads none of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flexmask.text.rendering import Role, is_generated
from flexmask.tree.layouts import Row

# Okabe-Ito: told apart under the common colour-vision deficiencies.
ROLE_COLORS = {Role.PROMPT: "#56B4E9", Role.THINKING: "#E69F00", Role.ANSWER: "#009E73", Role.COPY: "#CC79A7"}
ROLE_LABELS = {
    Role.PROMPT: "prompt",
    Role.THINKING: "thinking",
    Role.ANSWER: "trained answer",
    Role.COPY: "plain copy",
}


@dataclass(frozen=True)
class Segment:
    """Tokens `start:end` of a row, all of one node and one role.

    position: of the first token, as at inference. turn: the assistant turn that generates it, None for context.
    trained: how many of its tokens have a loss weight above 0.
    """

    start: int
    end: int
    position: int
    role: Role
    turn: int | None
    trained: int

    def __len__(self) -> int:
        return self.end - self.start


def segments(row: Row) -> list[Segment]:
    """The segments of a row, in order."""
    generated = is_generated(row.roles)
    cuts = np.zeros(len(row), dtype=bool)
    cuts[row.node_start] = True
    cuts[1:] |= row.roles[1:] != row.roles[:-1]
    starts = np.flatnonzero(cuts)
    positions, turns = row.position_ids, _turn_of_each_token(row)
    return [
        Segment(
            start=start,
            end=end,
            position=int(positions[start]),
            role=Role(int(row.roles[start])),
            turn=int(turns[start]) if generated[start] else None,
            trained=int((row.loss_weights[start:end] > 0).sum()),
        )
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(row)], strict=True)
    ]


def visible_segments(row: Row, of: Sequence[Segment]) -> np.ndarray:
    """Bool [n, n]: whether segment i sees segment j, or is it."""
    starts = np.array([segment.start for segment in of])
    until = row.visible_until[starts]
    return (starts[None, :] <= starts[:, None]) & (starts[:, None] < until[None, :])


def seen_by_passes(row: Row) -> np.ndarray:
    """Bool [S, passes here]: whether a token belongs to each pass, to its prompt or to what it generates."""
    last = row.passes.last[row.passes.is_here]
    tokens = np.arange(len(row))
    return (tokens[:, None] <= last[None, :]) & (last[None, :] < row.visible_until[:, None])


def pass_lengths(row: Row) -> np.ndarray:
    """int64 [passes here]: the tokens of each pass of a row, which training one pass a turn would compute."""
    return row.position_ids[row.passes.last[row.passes.is_here]] + 1


def _turn_of_each_token(row: Row) -> np.ndarray:
    """The first turn that generates a token, -1 where none does."""
    prompts = row.passes.prompt_length[row.passes.is_here]
    generates = seen_by_passes(row) & (row.position_ids[:, None] >= prompts)
    return np.where(generates.any(1), np.array(row.turns)[generates.argmax(1)], -1)
