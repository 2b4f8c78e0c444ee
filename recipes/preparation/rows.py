"""Turn the conversations of a data set into rows, in processes, kept for the next run."""

import contextlib
import datetime
import functools
import hashlib
import json
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import torch
from transformers import PreTrainedTokenizerBase

import flexmask
from flexmask import Conversation, prepare_conversation
from flexmask.model.support import unbranched_layers
from recipes.configuration.schema import DataConfig, DuplicationConfig, Layout, OnInvalid, TooLong
from recipes.distributed.ranks import first_on_machine
from recipes.preparation import row_store
from recipes.preparation.processes import available_processors, mapping
from recipes.preparation.row_store import DamagedError, PreparedRows, invalid_record, to_record
from recipes.sources.invalid import shown
from recipes.sources.load import as_json
from recipes.terminal.progress import progress

# Fewer conversations than this are prepared before another process has started.
_WORTH_A_PROCESS = 200
_CONVERSATIONS_AT_ONCE = 16  # that a process is given, and that are written together
_MOST_ERRORS = 100  # after which nobody needs to see more of them


@dataclass(frozen=True)
class PreparedData:
    """`items`: rows of each conversation that trains something, in order. The other figures cover all conversations
    given, repetitions included.
    """

    items: PreparedRows
    valid: list[Conversation]  # those given, without the invalid ones
    turns: int  # that are trained
    tokens_computed: int
    tokens_trained: int
    tokens_per_turn: int  # what one pass a turn would compute
    tokens_copied: int  # of those computed: plain copies of answers
    ends: tuple[int, ...]  # token ids that end the trained turns, sorted; see `LaidOut`
    dropped_turns: int  # longer than a pack, with too_long=drop
    without_rows: int  # conversations none of whose turns is trained
    retokenized_texts: int  # as `flexmask.text.tokenization.TextTokenizer` counts them
    branching: int  # conversations with a row that branches; the others are chains, in which nothing is duplicated
    invalid: dict[str, str]  # with on_invalid=drop: conversations that cannot be rendered, by name, and why


def settings_of(data: DataConfig, duplication: DuplicationConfig) -> dict[str, Any]:
    """The arguments of `prepare_conversation` that the settings stand for."""
    return dict(
        layout=str(duplication.layout),
        pack_length=duplication.pack_length,
        too_long=str(duplication.too_long),
        turns=duplication.turns,
        thinking_weight=duplication.thinking_weight,
        answer_weight=duplication.answer_weight,
        template_kwargs=data.template_kwargs,
        thinking_format=data.thinking_format,
        control_tokens=str(data.control_tokens),
        not_shown=str(data.not_shown),
        empty_thinking=str(data.empty_thinking),
        date=datetime.date.fromisoformat(data.date),
    )


def prepare(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    duplication: DuplicationConfig,
) -> PreparedData:
    """Render and lay out every conversation as `duplication` says.

    Runs in `data.processes` processes, which the first process of a run on this machine starts while the others wait.
    The result is kept in the folder `flexmask` of the cache of `datasets`
    (HF_DATASETS_CACHE, by default ~/.cache/huggingface/datasets) under a fingerprint of everything it depends on, and
    taken from there the next time; what was damaged since is prepared anew, with a warning, and what was not used for
    30 days is removed. Warnings of rendering are repeated once each, with the number of conversations that
    caused them. A conversation that stands in `conversations` several times is prepared once.

    Raises ValueError that counts the conversations that cannot be rendered and quotes the first few, which
    `data.on_invalid=drop` leaves out; for turns longer than a pack, unless `duplication.too_long=drop`; and naming the
    folder when it cannot be written to.
    """
    settings = settings_of(data, duplication)
    unique = list({id(one): one for one in conversations}.values())
    with first_on_machine():
        file = _prepared_file(unique, tokenizer, settings, data)
    at = {id(one): index for index, one in enumerate(unique)}
    indices = np.array([at[id(one)] for one in conversations], dtype=np.int64)
    names = [*row_store.COUNTS, "name", "invalid", "warnings", "ends", "branches", "row_tokens", "row_turns"]
    table = row_store.open_table(file).select(names).take(indices)
    column = {name: table.column(name).to_pylist() for name in names}
    for text, count in Counter(text for texts in column["warnings"] for text in texts).items():
        warnings.warn(f"{text} ({count:,} of {len(table):,} conversations)", stacklevel=2)
    trained = np.array(list(map(bool, column["row_tokens"])), dtype=bool)
    invalid = {name: reason for name, reason in zip(column["name"], column["invalid"], strict=True) if reason}
    return PreparedData(
        items=PreparedRows(file, indices[trained]),
        valid=[one for one, reason in zip(conversations, column["invalid"], strict=True) if not reason],
        turns=sum(map(sum, column["row_turns"])),
        tokens_computed=sum(map(sum, column["row_tokens"])),
        ends=tuple(sorted({end for ends in column["ends"] for end in ends})),
        without_rows=int((~trained).sum()) - sum(reason is not None for reason in column["invalid"]),
        branching=sum(column["branches"]),
        invalid=invalid,
        **{name: sum(column[name]) for name in row_store.COUNTS},
    )


def prepare_heldout(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    duplication: DuplicationConfig,
    model: torch.nn.Module | None,
) -> PreparedData:
    """`prepare` what is held out: always on what inference shows, whatever layout is trained.

    That is one pass, or one pass a turn for a model whose state does not branch: the sum is the same. model: None where
    it is not known, for one pass.
    """
    branches = model is None or not unbranched_layers(model)
    layout = Layout.one_pass if branches else Layout.per_turn
    return prepare(conversations, tokenizer, data, replace(duplication, layout=layout))


def fingerprint(
    conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]
) -> str:
    """A hash of all that rows depend on: data, tokenizer, chat template, settings, libraries and our own code. The date
    is part of it only where the template reads the clock, or nothing would be found again the next day.
    """
    code = [*sorted(Path(flexmask.__file__).parent.rglob("*.py")), Path(__file__), Path(row_store.__file__)]
    digest = hashlib.sha256()
    for conversation in conversations:
        digest.update(as_json(conversation).encode() + b"\n")
    other = [
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.chat_template,
        {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
        {**settings, "date": str(settings["date"]) if _reads_the_clock(tokenizer) else None},
        [version(name) for name in ("transformers", "tokenizers", "jinja2", "pyarrow")],
    ]
    digest.update(json.dumps(other, sort_keys=True).encode())
    for path in code:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _reads_the_clock(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether any of the tokenizer's chat templates may write the date (see `ChatTemplate`)."""
    return "strftime_now" in json.dumps(tokenizer.chat_template)


def _prepared_file(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    settings: dict[str, Any],
    data: DataConfig,
) -> Path:
    """The file with a record of each conversation: the one in the cache, or made and put there."""
    cache = datasets.config.HF_DATASETS_CACHE / "flexmask"
    folder = cache / fingerprint(conversations, tokenizer, settings)
    try:
        file = _found(folder)
        if file is None:
            with contextlib.closing(_prepared(conversations, tokenizer, settings, data)) as records:
                file = row_store.store(folder, records)
        refused = _Refused(data.on_invalid)
        refused.add(row_store.open_table(file).select(["invalid", "too_long"]).to_pylist())
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(
            f"{cache}: prepared rows cannot be kept there ({error}); make room, or name another folder: "
            "HF_DATASETS_CACHE=<folder> before the command"
        ) from error
    refused.check()
    return file


def _found(folder: Path) -> Path | None:
    try:
        return row_store.find(folder)
    except DamagedError as error:
        warnings.warn(f"{folder}: prepared rows are damaged ({error}); they are prepared anew", stacklevel=4)
        shutil.rmtree(folder)
        return None


class _Refused:
    """Conversations without rows that the settings do not let pass, in one error."""

    def __init__(self, on_invalid: OnInvalid) -> None:
        self.drop = on_invalid == OnInvalid.drop
        self.seen = 0
        self.reasons: list[str] = []
        self.advice: set[str] = set()

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        self.seen += len(records)
        for record in records:
            if record["too_long"]:
                self.advice.add(
                    "Raise duplication.pack_length, or leave such turns out, counted, with duplication.too_long=drop"
                )
            elif record["invalid"] and not self.drop:
                self.advice.add("Repair them, or leave them out, counted, with data.on_invalid=drop")
            else:
                continue
            self.reasons.append(record["invalid"])

    def check(self, most: int = 0) -> None:
        """Raise ValueError if there are more than `most`."""
        if len(self.reasons) > most:
            raise ValueError(
                f"{len(self.reasons):,} of {self.seen:,} conversations cannot be prepared:\n{shown(self.reasons)}\n"
                + "\n".join(sorted(self.advice))
            )


def _prepared(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    settings: dict[str, Any],
    data: DataConfig,
) -> Iterator[list[dict[str, Any]]]:
    """The records of all conversations, some at a time. Raises when very many are refused: all of them might be."""
    available = data.processes or available_processors()
    processes = max(1, min(available, len(conversations) // _WORTH_A_PROCESS))
    starts = range(0, len(conversations), _CONVERSATIONS_AT_ONCE)
    parts = (conversations[start : start + _CONVERSATIONS_AT_ONCE] for start in starts)
    some = functools.partial(_prepare_some, tokenizer=tokenizer, settings=settings)
    refused = _Refused(data.on_invalid)
    with progress(len(conversations), "rendering conversations") as advance, mapping(some, processes) as mapped:
        for records in mapped(parts):
            refused.add(records)
            refused.check(most=_MOST_ERRORS)
            advance(len(records))
            yield records


def _prepare_some(
    conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    return [_prepare_one(one, tokenizer, settings) for one in conversations]


def _prepare_one(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]
) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            laid_out = prepare_conversation(conversation, tokenizer, **settings)
        except ValueError as error:
            return invalid_record(conversation.name, str(error), _is_too_long(conversation, tokenizer, settings))
    texts = sorted({str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)})
    return to_record(conversation.name, laid_out, texts)


def _is_too_long(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> bool:
    """Whether a conversation was refused for the length of a turn: without that rule it is prepared."""
    if settings["too_long"] != TooLong.error:
        return False
    try:
        prepare_conversation(conversation, tokenizer, **settings | {"too_long": str(TooLong.drop)})
    except ValueError:
        return False
    return True
