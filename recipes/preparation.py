"""Load the conversations that `conf/data` names, and turn a whole data set into rows, in processes and cached."""

import datetime
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

import flexmask
from flexmask import Conversation, Row, prepare_conversation
from recipes.config import DataConfig, TrainConfig
from recipes.data import LoadedData, load_conversations

# Fewer conversations than this are prepared before another process has started.
_WORTH_A_PROCESS = 200
_ROW_ARRAYS = {
    "input_ids": "int32",
    "roles": "int8",
    "loss_weights": "float32",
    "node_start": "int32",
    "node_end": "int32",
    "node_parent": "int32",
}
_FEATURES = datasets.Features(
    {name: datasets.List(datasets.Value(dtype)) for name, dtype in _ROW_ARRAYS.items()}
    | {name: datasets.List(datasets.Value("int32")) for name in ("row_tokens", "row_nodes", "row_turns", "turns")}
    | {name: datasets.Value("int32") for name in ("dropped_turns", "slow_turns")}
    | {
        "branches": datasets.Value("bool"),
        "name": datasets.Value("string"),
        "warnings": datasets.List(datasets.Value("string")),
    }
)


class PreparedRows(Sequence):
    """The rows of each conversation, `tuple[Row, ...]`, read from disk when asked for."""

    def __init__(self, table: datasets.Dataset) -> None:
        self._table = table.with_format("numpy")

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return _from_columns(self._table[index])


@dataclass(frozen=True)
class PreparedData:
    """items: the rows of each conversation that trains anything, in order. The counts say what is not in them."""

    items: PreparedRows
    dropped_turns: int  # longer than a pack, with too_long=drop
    without_rows: int  # conversations none of whose turns is trained
    slow_turns: int  # rendered or tokenized from the first message on; see `RenderedConversation`
    branching: int  # conversations with a row that branches; the others are chains, in which nothing is duplicated


def load_data(data: DataConfig) -> LoadedData:
    """`data` as arguments of `load_conversations`; raises what that raises."""
    return load_conversations(
        data.kind,
        path=data.path,
        hub_id=data.hub_id,
        hub_config=data.hub_config,
        split=data.split,
        train_conversations=data.train_conversations,
        heldout_conversations=data.heldout_conversations,
        seed=data.seed,
        on_invalid=data.on_invalid,
    )


def settings_of(config: TrainConfig, layout: str) -> dict[str, Any]:
    """The arguments of `prepare_conversation` that `config` stands for."""
    duplication, data = config.duplication, config.data
    return dict(
        layout=str(layout),
        pack_length=duplication.pack_length,
        too_long=str(duplication.too_long),
        turns=duplication.turns,
        thinking_weight=duplication.thinking_weight,
        answer_weight=duplication.answer_weight,
        template_kwargs=data.template_kwargs,
        thinking_format=data.thinking_format,
        control_tokens=str(data.control_tokens),
        date=datetime.date.fromisoformat(data.date),
    )


def prepare(
    conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, config: TrainConfig, layout: str
) -> PreparedData:
    """Render and lay out every conversation as `config.duplication` says, in `layout`.

    Runs in `config.data.processes` processes. The result is kept in the cache folder of `datasets` (HF_DATASETS_CACHE)
    under a fingerprint of everything it depends on, and taken from there the next time. Warnings of rendering are
    repeated once each, with the number of conversations that caused them.

    Raises ValueError (see `render_conversation`, `lay_out`) naming the conversation.
    """
    settings = settings_of(config, layout)
    cached = datasets.config.HF_DATASETS_CACHE / "flexmask" / fingerprint(conversations, tokenizer, settings)
    if not cached.exists():
        _store(_map(conversations, tokenizer, settings, config.data.processes), cached)
    table = datasets.load_from_disk(str(cached))
    for text, count in Counter(text for texts in table["warnings"] for text in texts).items():
        warnings.warn(f"{text} ({count:,} of {len(table):,} conversations)", stacklevel=2)
    trained = [i for i, tokens in enumerate(table["row_tokens"]) if tokens]
    return PreparedData(
        items=PreparedRows(table.select(trained)),
        dropped_turns=sum(table["dropped_turns"]),
        without_rows=len(table) - len(trained),
        slow_turns=sum(table["slow_turns"]),
        branching=sum(table["branches"]),
    )


def fingerprint(
    conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]
) -> str:
    """A hash of all that rows depend on: data, tokenizer, chat template, settings, libraries and our own code."""
    code = sorted(Path(flexmask.__file__).parent.glob("*.py"))
    return Hasher.hash(
        [
            [asdict(conversation) for conversation in conversations],
            tokenizer.backend_tokenizer.to_str(),
            tokenizer.chat_template,
            tokenizer.special_tokens_map,
            settings,
            [version(name) for name in ("transformers", "tokenizers", "jinja2")],
            [path.read_bytes() for path in [*code, Path(__file__)]],
        ]
    )


def _map(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    settings: dict[str, Any],
    processes: int | None,
) -> datasets.Dataset:
    # As JSON text: messages differ in their keys, and a table would fill every key in everywhere.
    texts = [json.dumps([one.name, one.messages, one.tools]) for one in conversations]
    table = datasets.Dataset.from_dict({"conversation": texts})
    available = processes or len(os.sched_getaffinity(0))
    return table.map(
        _prepare_one,
        fn_kwargs={"tokenizer": tokenizer, "settings": settings},
        remove_columns=table.column_names,
        features=_FEATURES,
        num_proc=max(1, min(available, len(conversations) // _WORTH_A_PROCESS)),
        new_fingerprint="prepared",  # else datasets would hash the tokenizer; `prepare` has the fingerprint that counts
        desc="rendering conversations",
    )


def _prepare_one(
    record: dict[str, str], tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]
) -> dict[str, Any]:
    name, messages, tools = json.loads(record["conversation"])
    conversation = Conversation(name, tuple(messages), None if tools is None else tuple(tools))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        laid_out = prepare_conversation(conversation, tokenizer, **settings)
    texts = sorted({str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)})
    rows = laid_out.rows
    return {
        "name": name,
        "warnings": texts,
        "dropped_turns": len(laid_out.dropped_turns),
        "slow_turns": laid_out.slow_turns,
        "branches": not all(row.is_chain for row in rows),
        "row_tokens": [len(row) for row in rows],
        "row_nodes": [len(row.node_start) for row in rows],
        "row_turns": [len(row.turns) for row in rows],
        "turns": [turn for row in rows for turn in row.turns],
    } | {
        key: np.concatenate([getattr(row, key) for row in rows] or [np.empty(0)]).astype(dtype)
        for key, dtype in _ROW_ARRAYS.items()
    }


def _from_columns(record: dict[str, Any]) -> tuple[Row, ...]:
    """The rows that `_prepare_one` wrote."""
    borders = {key: np.cumsum([0, *record[key]]) for key in ("row_tokens", "row_nodes", "row_turns")}
    rows = []
    for i in range(len(record["row_tokens"])):
        tokens, nodes, turns = (slice(*borders[key][i : i + 2]) for key in ("row_tokens", "row_nodes", "row_turns"))
        rows.append(
            Row(
                name=str(record["name"]),
                turns=tuple(record["turns"][turns].tolist()),
                input_ids=record["input_ids"][tokens].astype(np.int64),
                roles=record["roles"][tokens],
                loss_weights=record["loss_weights"][tokens],
                node_start=record["node_start"][nodes],
                node_end=record["node_end"][nodes],
                node_parent=record["node_parent"][nodes],
            )
        )
    return tuple(rows)


def _store(table: datasets.Dataset, folder: Path) -> None:
    """Whole or not at all: an interrupted run leaves nothing that a later one would take for complete."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    table.save_to_disk(str(partial))
    try:
        partial.rename(folder)
    except OSError:  # another run has just stored the same
        shutil.rmtree(partial)
