"""The passes of a row, or of a pack: which of its tokens each one trains.

The tree shares tokens between passes, also generated ones. A sum over tokens needs to know nothing of that: what each
pass weighs is added up in `loss_weights`. An objective that compares passes (flexmask.objectives) does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from flexmask.text.rendering import Pass


@dataclass(frozen=True, eq=False)
class PassTable:
    """One entry a pass, in arrays of shape [P], and `weights`, of shape [G].

    turn: as in `Pass`. last: index of its last token; the pass is the tokens that this one sees. prompt_length: how
    many of them are its prompt; behind them stands what it generates. candidate, reward: which of the competing
    continuations of its record the pass belongs to, and how good that is (NaN: nothing competes). group: passes of one
    record have the same. weight: the sum of its loss weights. reference: its log-probability by the model that an
    objective compares with, each token times its loss weight (NaN: not asked for). weights: the loss weights of all
    tokens that the passes here generate, one pass behind the other.

    Where passes that compete are divided over several rows, the table of each also has those of the others: their
    `last` is -1, and `log_prob` is their log-probability by the model that is trained, weighed likewise (NaN: not
    known, as for all passes that stand here).
    """

    turn: np.ndarray
    last: np.ndarray
    prompt_length: np.ndarray
    candidate: np.ndarray
    reward: np.ndarray
    group: np.ndarray
    weight: np.ndarray
    reference: np.ndarray
    log_prob: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.turn)

    @classmethod
    def of(cls, passes: Sequence[Pass], last: Sequence[int]) -> PassTable:
        """The table of passes whose last tokens stand at `last`."""
        weights = [p.loss_weights[p.prompt_length :] for p in passes]
        return cls.of_a_row(
            turn=np.array([p.turn for p in passes], dtype=np.int32),
            last=np.array(last, dtype=np.int32),
            prompt_length=np.array([p.prompt_length for p in passes], dtype=np.int32),
            candidate=np.array([p.candidate for p in passes], dtype=np.int32),
            reward=np.array([p.reward for p in passes], dtype=np.float32),
            weight=np.array([one.sum(dtype=np.float64) for one in weights]),
            weights=np.concatenate([np.empty(0, np.float32), *weights]).astype(np.float32),
        )

    @classmethod
    def of_a_row(cls, **columns: np.ndarray) -> PassTable:
        """The table of a row by itself: one record (group 0), and no model has been asked. columns: other fields."""
        count = len(columns["turn"])
        unknown = {name: np.full(count, np.nan) for name in ("reference", "log_prob")}
        return cls(group=np.zeros(count, dtype=np.int32), **unknown, **columns)

    @property
    def is_here(self) -> np.ndarray:
        """Bool [P]: whether the pass stands in this row or pack."""
        return self.last >= 0

    @property
    def competes(self) -> bool:
        """Whether it has passes that compete."""
        return bool((~np.isnan(self.reward)).any())

    def moved(self, start: int, group: int) -> PassTable:
        """The table of the same passes in a pack, where their row begins at `start` and their record is `group`."""
        last = np.where(self.is_here, self.last + start, self.last)
        return replace(self, last=last, group=np.full_like(self.group, group))

    def elsewhere(self) -> PassTable:
        """The entries of the passes for the table of another row."""
        return replace(self, last=np.full_like(self.last, -1), weights=self.weights[:0])

    def taken(self, chosen: np.ndarray) -> PassTable:
        """Some of the passes, by index, without `weights`."""
        columns = {f.name: getattr(self, f.name)[chosen] for f in fields(self) if f.name != "weights"}
        return PassTable(**columns, weights=self.weights[:0])

    @classmethod
    def joined(cls, tables: Iterable[PassTable]) -> PassTable:
        """One table behind the other, each pass once: of several entries the one of the pass that stands here."""
        tables = list(tables)
        both = cls(**{f.name: np.concatenate([getattr(one, f.name) for one in tables]) for f in fields(cls)})
        if both.is_here.all():
            return both
        here_first = np.argsort(~both.is_here, kind="stable")
        keys = np.stack([both.group, both.turn], axis=1)[here_first]
        chosen = np.sort(here_first[np.unique(keys, axis=0, return_index=True)[1]])
        return replace(both.taken(chosen), weights=both.weights)  # which are those of passes that stand here


@dataclass(frozen=True, eq=False)
class Terms:
    """What each pass trains: a term for each of its tokens whose loss weight is not 0, in arrays of shape [N].

    token: its index in the row or pack; a token that several passes generate has a term in each. of: the pass, as an
    index in the table. weight: float32. The terms of a pass stand together, in the order in which they are generated.
    """

    token: np.ndarray
    of: np.ndarray
    weight: np.ndarray


def terms_of(table: PassTable, visible_until: np.ndarray, position_ids: np.ndarray) -> Terms:
    """The terms of the passes of a row or pack; visible_until, position_ids: [S], of its tokens."""
    tokens, of = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    # A pass of another pack has its last token at -1: nothing is seen from there.
    for number, (last, prompt_length) in enumerate(zip(table.last.tolist(), table.prompt_length.tolist(), strict=True)):
        seen = (visible_until[: last + 1] > last) & (position_ids[: last + 1] >= prompt_length)
        tokens.append(np.flatnonzero(seen))
        of.append(np.full(len(tokens[-1]), number))
    token, which = np.concatenate(tokens), np.concatenate(of)
    weighs = table.weights > 0
    return Terms(token[weighs], which[weighs], table.weights[weighs])
