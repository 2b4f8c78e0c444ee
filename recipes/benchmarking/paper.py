"""The paper's layout (arXiv 2504.18246), one row a dialogue, under a dense mask."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recipes.benchmarking.workloads import Dialogue


@dataclass(frozen=True, eq=False)
class Plain:
    """One row of tokens with its own mask rule: [1, S] ids, and [T] for each trained token where it is predicted, what
    it is and its weight."""

    input_ids: Tensor
    previous: Tensor
    targets: Tensor
    weights: Tensor
    position_ids: Tensor | None = None
    roles: Tensor | None = None  # of the paper, [S]
    turns: Tensor | None = None  # [S]

    def to(self, device: torch.device) -> "Plain":
        return Plain(**{name: None if x is None else x.to(device) for name, x in vars(self).items()})


# The paper's layout (arXiv 2504.18246), one row a dialogue: human, thinking, response-in (the copy), response-out
# (trained), every answer twice. Its flat label shift is put right here, or its loss would be another.
HUMAN, THINKING, RESPONSE_IN, RESPONSE_OUT = range(4)


def paper_row(dialogue: Dialogue) -> Plain:
    """A dialogue in the order and with the positions of the paper. The first token of response-out is predicted from
    the last of the thinking, or of the question where there is none; the paper's code predicts it from response-in."""
    ids, roles, turns, positions, trained, previous = [], [], [], [], [], []
    length = answered = 0  # tokens of the row; position behind the last response-in
    for i, turn in enumerate(dialogue.turns):
        human, thinking, answer = len(turn.question), len(turn.thinking), len(turn.answer)
        segments = (
            (HUMAN, turn.question, answered),
            (THINKING, turn.thinking, answered + human),
            (RESPONSE_IN, turn.answer, answered + human),
            (RESPONSE_OUT, turn.answer, answered + human + thinking),
        )
        for role, tokens, first in segments:
            if role in (THINKING, RESPONSE_OUT):
                here = np.arange(length, length + len(tokens))
                before = here - 1
                if role == RESPONSE_OUT and len(tokens):
                    before[0] -= answer  # past response-in
                trained.append(here)
                previous.append(before)
            ids.append(tokens)
            roles.append(np.full(len(tokens), role))
            turns.append(np.full(len(tokens), i))
            positions.append(np.arange(first, first + len(tokens)))
            length += len(tokens)
        answered += human + answer
    row = np.concatenate(ids)
    where = np.concatenate(trained)
    return Plain(
        input_ids=torch.from_numpy(row)[None],
        previous=torch.from_numpy(np.concatenate(previous)),
        targets=torch.from_numpy(row[where]),
        weights=torch.ones(len(where)),
        position_ids=torch.from_numpy(np.concatenate(positions))[None],
        roles=torch.from_numpy(np.concatenate(roles)),
        turns=torch.from_numpy(np.concatenate(turns)),
    )


def paper_mask(item: Plain) -> Tensor:
    """bool [1, 1, S, S], by the paper's table: human and response-in see context (human, response-in); thinking and
    response-out see context of earlier turns and, of their own, human, thinking and response-out."""
    role, turn = item.roles, item.turns
    context = (role == HUMAN) | (role == RESPONSE_IN)
    same = turn[:, None] == turn[None, :]
    allowed = torch.where(context[:, None], context[None, :], torch.where(same, role[None, :] != RESPONSE_IN, context))
    return allowed.tril_()[None, None]
