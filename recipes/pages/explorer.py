"""Rows -> the data of the explorer's page: what each token is and sees, and the same conversation in other layouts.

Columns, never a matrix: of a row its tokens, its runs of roles and weights, its nodes and its passes. The page itself
takes from them positions, parents and who sees whom, by the rule of flexmask.attention.masks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from flexmask import LaidOut, Row, build_block_mask, pack
from flexmask.attention.masks import block_kinds
from flexmask.model.cost import in_tokens
from flexmask.text.control_tokens import special_ids
from flexmask.text.tokenization import token_texts
from flexmask.tree.layouts import LAYOUTS
from flexmask.tree.segments import seen_by_passes


@dataclass
class Vocabulary:
    """The tokens of all rows of a page, each once for each text that it has somewhere."""

    tokenizer: PreTrainedTokenizerBase
    numbers: dict[tuple[int, str], int] = field(default_factory=dict)

    def numbered(self, row: Row) -> list[int]:
        """The tokens of a row, as indices into `columns`."""
        ids = row.input_ids.tolist()
        texts = token_texts(self.tokenizer, ids, row.previous.tolist())
        return [self.numbers.setdefault(one, len(self.numbers)) for one in zip(ids, texts, strict=True)]

    def columns(self) -> dict[str, list]:
        """id, text, `piece`: as the vocabulary has it, and whether it is a special token."""
        ids = [token for token, _ in self.numbers]
        special = special_ids(self.tokenizer)
        return {
            "id": ids,
            "text": [text for _, text in self.numbers],
            "piece": [str(piece) for piece in self.tokenizer.convert_ids_to_tokens(ids)],
            "special": [int(token in special) for token in ids],
        }


@dataclass(frozen=True)
class Costs:
    """What a layout's cost is reckoned with. pair, head: what a pair of query and key, and the logits of a trained
    token, cost in tokens (`flexmask.model.cost`); None where the model is not known."""

    pair: float | None
    head: float | None
    pack_length: int
    block_size: int


def conversation_data(
    laid_out: Mapping[str, LaidOut | str], vocabulary: Vocabulary, costs: Costs, calls: Sequence[str] | None
) -> dict[str, Any]:
    """A conversation for the page.

    laid_out: its rows in each layout, "one_pass" among them, or why there are none. calls: the names of its calls, by
    number; None for the turns of a conversation.
    """
    one_pass = laid_out["one_pass"]
    assert isinstance(one_pass, LaidOut)
    per_turn = laid_out["per_turn"]
    against = None if isinstance(per_turn, str) else _computed(per_turn, costs)["cost"]
    layouts, seen = [], [(row, seen_by_passes(row)) for row in one_pass.rows]
    for name in LAYOUTS:
        found = laid_out[name]
        if isinstance(found, str):
            layouts.append({"name": name, "refused": found})
            continue
        rows = [_row_data(row, seen if name != "one_pass" else (), vocabulary, costs) for row in found.rows]
        computed = _computed(found, costs)
        cost = computed.pop("cost")
        faster = against / cost if against and cost else None
        layouts.append(
            {"name": name, "rows": rows, "dropped": found.dropped_turns, "faster": faster}
            | {"distinct": found.tokens_distinct, **computed}
        )
    return {"calls": calls, "layouts": layouts}


def _computed(laid_out: LaidOut, costs: Costs) -> dict[str, Any]:
    """What a layout computes; blocks with its rows packed end to end; `cost` in tokens, None where it is not known."""
    blocks = 0
    for one in pack(laid_out.rows, max([costs.pack_length, *map(len, laid_out.rows)])):
        mask = build_block_mask(one.visible_until, costs.block_size)
        blocks += int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
    tokens, pairs = sum(map(len, laid_out.rows)), sum(row.visible_pairs for row in laid_out.rows)
    trained = sum(int((row.loss_weights > 0).sum()) for row in laid_out.rows)
    known = costs.pair is not None and costs.head is not None
    return {
        "tokens": tokens,
        "trained": trained,
        "pairs": pairs,
        "in_blocks": blocks * costs.block_size**2,
        "cost": in_tokens(tokens, pairs, trained, costs.pair, costs.head) if known else None,
    }


def _row_data(
    row: Row, known: Sequence[tuple[Row, np.ndarray]], vocabulary: Vocabulary, costs: Costs
) -> dict[str, Any]:
    """known: rows whose tokens need not be written again, each with `seen_by_passes` of it."""
    at = np.flatnonzero(row.passes.is_here)
    return {
        "turns": row.turns,
        "roles": _runs(row.roles.tolist()),
        "weights": _runs([round(float(weight), 6) for weight in row.loss_weights]),
        "nodes": {key: getattr(row, f"node_{key}").tolist() for key in ("start", "end", "parent")},
        "passes": {key: getattr(row.passes, key)[at].tolist() for key in ("turn", "last", "prompt_length")},
        "blocks": _blocks(row, costs.block_size),
        **(_place_of(row, known) or {"tokens": vocabulary.numbered(row)}),
    }


def _place_of(row: Row, known: Sequence[tuple[Row, np.ndarray]]) -> dict[str, Any] | None:
    """Where the tokens of a row that is one pass stand in another row: its number, and the stretches [start, end) of
    it. None where they do not."""
    if not row.is_chain:
        return None
    for number, (other, seen) in enumerate(known):
        turns = other.turns
        for turn in set(row.turns) & set(turns):
            path = np.flatnonzero(seen[:, turns.index(turn)])
            if np.array_equal(other.input_ids[path], row.input_ids):
                cuts = np.flatnonzero(np.diff(path) > 1) + 1
                spans = [[int(one[0]), int(one[-1]) + 1] for one in np.split(path, cuts)]
                return {"of": number, "spans": spans}
    return None


def _blocks(row: Row, size: int) -> dict[str, Any]:
    """The block mask of a row by itself: how many blocks of each kind, and a line a query block, as runs."""
    kinds = block_kinds(build_block_mask(torch.from_numpy(row.visible_until)[None], size))
    return {
        "size": size,
        "counts": np.bincount(kinds.ravel(), minlength=3).tolist(),
        "lines": [_runs(line) for line in kinds.tolist()],
    }


def _runs(values: Sequence[Any]) -> list[list[Any]]:
    """[value, how often it stands there], in order."""
    return [[value, len(list(some))] for value, some in groupby(values)]
