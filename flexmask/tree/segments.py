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


def pass_lengths(row: Row) -> np.ndarray:
    """The tokens of each pass of a row, int64 [turns]: what training one pass a turn would compute."""
    turns, positions = _turn_of_each_token(row), row.position_ids
    generated = is_generated(row.roles)
    return np.array([positions[generated & (turns == turn)].max() + 1 for turn in row.turns], dtype=np.int64)


def _turn_of_each_token(row: Row) -> np.ndarray:
    """The turn that generates a token, -1 where none does.

    What a turn generates is a run of tokens along a path, and the prompt in front of it is longer than that of the
    turn before.
    """
    generated, previous = is_generated(row.roles), row.previous
    begins = np.flatnonzero(generated & ~((previous >= 0) & generated[previous]))
    turns = np.full(len(row), -1, dtype=np.int64)
    turns[begins[np.argsort(row.position_ids[begins])]] = row.turns
    for token in np.flatnonzero(generated & (turns < 0)).tolist():  # a token stands behind the one it continues
        turns[token] = turns[previous[token]]
    return turns
