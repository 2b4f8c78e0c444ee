"""Rows in shards (`recipes.storage.shards`), one record a conversation, read from memory maps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute

from flexmask import LaidOut, Role, Row
from flexmask.tree.passes import PassTable
from flexmask.tree.segments import pass_lengths
from recipes.storage.shards import Shards

_ROW_ARRAYS = {
    "input_ids": pyarrow.int32(),
    "roles": pyarrow.int8(),
    "loss_weights": pyarrow.float32(),
    "node_start": pyarrow.int32(),
    "node_end": pyarrow.int32(),
    "node_parent": pyarrow.int32(),
}
_PASS_ARRAYS = {
    "turn": pyarrow.int32(),
    "last": pyarrow.int32(),
    "prompt_length": pyarrow.int32(),
    "candidate": pyarrow.int32(),
    "reward": pyarrow.float32(),
    "weight": pyarrow.float64(),
    "weights": pyarrow.float32(),
}
# How much of the arrays each row of a conversation has.
_BORDERS = ("row_tokens", "row_nodes", "row_passes", "row_generated")
COUNTS = ("dropped_turns", "retokenized_texts", "tokens_trained", "tokens_per_turn", "tokens_copied", "tokens_distinct")
SCHEMA = pyarrow.schema(
    {name: pyarrow.list_(dtype) for name, dtype in (_ROW_ARRAYS | _PASS_ARRAYS).items()}
    | {name: pyarrow.list_(pyarrow.int32()) for name in (*_BORDERS, "row_turns", "ends")}
    | {name: pyarrow.int64() for name in COUNTS}
    | {
        "branches": pyarrow.bool_(),
        "competes": pyarrow.bool_(),
        "warnings": pyarrow.list_(pyarrow.string()),
        "name": pyarrow.string(),
    }
    # Why it has no rows (null: it is valid), and whether because of a turn that is longer than a pack.
    | {"invalid": pyarrow.string(), "too_long": pyarrow.bool_()}
)

FIGURES = (*COUNTS, "branches", "competes", "row_tokens", "row_turns")  # numbers of a conversation that add up


class PreparedRows(Sequence):
    """The rows of each conversation, `tuple[Row, ...]`, read from the shards when asked for.

    numbers: of the records in the shards, in the order of this sequence; one may stand there several times.
    """

    def __init__(self, shards: Shards, numbers: np.ndarray) -> None:
        self._shards, self._numbers = shards, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        table, at = self._shards.record(self._numbers[index])
        names = (*_ROW_ARRAYS, *_PASS_ARRAYS, *_BORDERS, "name")
        return _from_record({name: table.column(name)[at] for name in names})


def to_record(name: str, laid_out: LaidOut, warnings: Sequence[str]) -> dict[str, Any]:
    """A conversation as the file has it."""
    rows = laid_out.rows
    return {
        "name": name,
        "invalid": None,
        "too_long": False,
        "warnings": list(warnings),
        "dropped_turns": len(laid_out.dropped_turns),
        "retokenized_texts": laid_out.retokenized_texts,
        "branches": not all(row.is_chain for row in rows),
        "competes": any(row.passes.competes for row in rows),
        "ends": list(laid_out.ends),
        "tokens_trained": sum(int((row.loss_weights > 0).sum()) for row in rows),
        "tokens_per_turn": sum(int(pass_lengths(row).sum()) for row in rows),
        "tokens_distinct": laid_out.tokens_distinct,
        "tokens_copied": sum(int((row.roles == Role.COPY).sum()) for row in rows),
        "row_tokens": [len(row) for row in rows],
        "row_nodes": [len(row.node_start) for row in rows],
        "row_passes": [len(row.passes) for row in rows],
        "row_turns": [len(row.turns) for row in rows],
        "row_generated": [len(row.passes.weights) for row in rows],
        **_arrays(rows, _ROW_ARRAYS),
        **_arrays([row.passes for row in rows], _PASS_ARRAYS),
    }


def _arrays(of: Sequence[Any], names: dict[str, pyarrow.DataType]) -> dict[str, np.ndarray]:
    """These arrays of each, one behind the other."""
    return {
        key: np.concatenate([getattr(one, key) for one in of] or [np.empty(0)]).astype(dtype.to_pandas_dtype())
        for key, dtype in names.items()
    }


def invalid_record(name: str, reason: str, too_long: bool) -> dict[str, Any]:
    """A conversation that has no rows, and why."""
    return to_record(name, LaidOut((), ()), ()) | {"invalid": reason, "too_long": too_long}


def _from_record(record: dict[str, Any]) -> tuple[Row, ...]:
    """The rows that `to_record` was given."""
    arrays = {key: record[key].values.to_numpy() for key in (*_ROW_ARRAYS, *_PASS_ARRAYS, *_BORDERS)}
    borders = {key: np.cumsum([0, *arrays[key]]) for key in _BORDERS}
    rows = []
    for i in range(len(arrays["row_tokens"])):
        tokens, nodes, passes, generated = (slice(*borders[key][i : i + 2]) for key in _BORDERS)
        rows.append(
            Row(
                name=record["name"].as_py(),
                passes=PassTable.of_a_row(
                    **{key: arrays[key][generated if key == "weights" else passes].copy() for key in _PASS_ARRAYS}
                ),
                input_ids=arrays["input_ids"][tokens].astype(np.int64),
                roles=arrays["roles"][tokens].copy(),  # the file's memory cannot be written to
                loss_weights=arrays["loss_weights"][tokens].copy(),
                node_start=arrays["node_start"][nodes].copy(),
                node_end=arrays["node_end"][nodes].copy(),
                node_parent=arrays["node_parent"][nodes].copy(),
            )
        )
    return tuple(rows)


def figures(table: pyarrow.Table) -> np.ndarray:
    """FIGURES of each record, those of its rows added up: [records, figures]."""
    found = np.zeros((table.num_rows, len(FIGURES)), dtype=np.int64)
    for at, name in enumerate(FIGURES):
        if name in (*_BORDERS, "row_turns"):
            of_row = table[name].combine_chunks()
            record, values = pyarrow.compute.list_parent_indices(of_row), of_row.flatten()
            np.add.at(found[:, at], record.to_numpy(), values.to_numpy())
        else:
            found[:, at] = table[name].to_numpy()
    return found
