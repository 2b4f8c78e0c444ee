"""Turn the conversations of a data set into rows, in processes, kept for the next run."""

import datetime
import functools
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import torch
from transformers import PreTrainedTokenizerBase

import flexmask
from flexmask import Calls, Conversation, prepare_conversation
from flexmask.conversations.contexts import source_of
from flexmask.model.support import unbranched_layers
from flexmask.text.calls import calls_under
from recipes.configuration.rules import rule_of
from recipes.configuration.schema import (
    TEMPLATE,
    ContextConfig,
    DataConfig,
    DuplicationConfig,
    Layout,
    OnInvalid,
    TooLong,
)
from recipes.distributed.processes import available_processors, mapping
from recipes.distributed.ranks import first_on_machine
from recipes.preparation import row_store
from recipes.preparation.row_store import PreparedRows, invalid_record, to_record
from recipes.sources.conversation_store import StoredConversations, digest_of
from recipes.sources.invalid import shown
from recipes.storage import shards
from recipes.terminal.progress import progress

# Fewer conversations than this are prepared before another process has started.
_WORTH_A_PROCESS = 200
_CONVERSATIONS_A_SHARD = 256  # that a process is given, and that a killed preparation need not render again
_WRITTEN_TOGETHER = 64
_MOST_ERRORS = 100  # after which nobody needs to see more of them


@dataclass(frozen=True)
class PreparedData:
    """`items`: rows of each conversation that trains something, in order. The other figures cover all conversations
    given, repetitions included.
    """

    items: PreparedRows
    valid: Sequence[Conversation | Calls]  # those given, without the invalid ones
    turns: int  # that are trained
    tokens_computed: int
    tokens_trained: int
    tokens_per_turn: int  # what one pass a turn would compute
    tokens_distinct: int  # distinct prefixes: the fewest that an exact method computes
    tokens_copied: int  # of those computed: plain copies of answers
    ends: tuple[int, ...]  # token ids that end the trained turns, sorted; see `LaidOut`
    dropped_turns: int  # longer than a pack, with too_long=drop
    without_rows: int  # conversations none of whose turns is trained
    retokenized_texts: int  # as `flexmask.text.tokenization.TextTokenizer` counts them
    competing: int  # conversations whose answers compete
    branching: int  # conversations with a row that branches; the others are chains, in which nothing is duplicated
    invalid: dict[str, str]  # with on_invalid=drop: conversations that cannot be rendered, by name, and why


def settings_of(data: DataConfig, duplication: DuplicationConfig, context: ContextConfig = TEMPLATE) -> dict[str, Any]:
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
        context=asdict(context),
        date=datetime.date.fromisoformat(data.date),
    )


def names_of_calls(
    chosen: Conversation | Calls,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    duplication: DuplicationConfig,
    context: ContextConfig = TEMPLATE,
) -> list[str] | None:
    """The calls of a record, or of a conversation under the context rule; None where the template alone shows it."""
    rule = rule_of(context)
    if rule is not None and isinstance(chosen, Conversation):
        chosen = calls_under(rule, chosen, tokenizer, **settings_of(data, duplication))
    if isinstance(chosen, Conversation):
        return None
    return [call.name.removeprefix(f"{chosen.name}: ") for call in chosen.calls]


def prepare(
    conversations: Sequence[Conversation | Calls],
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    duplication: DuplicationConfig,
    context: ContextConfig = TEMPLATE,
) -> PreparedData:
    """Render and lay out every conversation as `duplication` says, with the histories that `context` makes.

    Runs in `data.processes` processes, which the first process of a run on this machine starts while the others wait.
    What they have to do and write, and the order of the rows, is the same however many there are; none of them, nor
    this one, holds more than a few shards of the data. The shards are kept in the folder `flexmask` of the cache of
    `datasets` (HF_DATASETS_CACHE, by default ~/.cache/huggingface/datasets), each under a fingerprint of everything it
    depends on, and taken from there the next time, also when this one was killed; what was damaged since is prepared
    anew, with a warning, and what was not used for 30 days is removed. Warnings of rendering are repeated once each,
    with the number of conversations that caused them. A conversation that stands in `conversations` several times is
    prepared once.

    Raises ValueError that counts the conversations that cannot be rendered and quotes the first few, which
    `data.on_invalid=drop` leaves out; for turns longer than a pack, unless `duplication.too_long=drop`; and naming the
    folder when it cannot be written to.
    """
    unique, positions = _unique(conversations)
    with first_on_machine():
        found = _shards_of(unique, tokenizer, settings_of(data, duplication, context), data)
    of_all = shards.Shards([one.kept.file for one in found], [len(one.trained) for one in found])
    starts, times = of_all.starts, np.bincount(positions, minlength=len(unique))
    totals = np.zeros(len(row_store.FIGURES), dtype=np.int64)
    said: Counter[str] = Counter()
    for start, one in zip(starts, found, strict=False):
        of_shard = times[start : start + len(one.trained)]
        totals += of_shard @ one.figures
        for index, texts in one.warnings.items():
            said.update(dict.fromkeys(texts, int(of_shard[index])))
    for text, count in said.items():
        warnings.warn(f"{text} ({count:,} of {len(conversations):,} conversations)", stacklevel=2)
    trained = _joined([one.trained for one in found])[positions]
    is_invalid = np.zeros(len(unique), dtype=bool)
    is_invalid[[start + i for start, one in zip(starts, found, strict=False) for i in one.invalid]] = True
    of_figure = dict(zip(row_store.FIGURES, totals.tolist(), strict=True))
    return PreparedData(
        items=PreparedRows(of_all, positions[trained]),
        valid=_taken(conversations, np.flatnonzero(~is_invalid[positions])),
        turns=of_figure.pop("row_turns"),
        tokens_computed=of_figure.pop("row_tokens"),
        ends=tuple(sorted({end for one in found for end in one.ends})),
        without_rows=int((~trained).sum()) - int(is_invalid[positions].sum()),
        branching=of_figure.pop("branches"),
        competing=of_figure.pop("competes"),
        invalid={one.names[i]: reason for one in found for i, reason in one.invalid.items()},
        **of_figure,
    )


def _unique(conversations: Sequence[Conversation | Calls]) -> tuple[Sequence[Conversation | Calls], np.ndarray]:
    """(each conversation once, where each of those given stands among them)."""
    stored = isinstance(conversations, StoredConversations)
    keys = conversations.numbers if stored else np.array(list(map(id, conversations)), dtype=np.int64)
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    in_order = np.argsort(first)
    rank = np.empty_like(in_order)
    rank[in_order] = np.arange(len(in_order))
    return _taken(conversations, first[in_order]), rank[which]


def _taken(conversations: Sequence[Conversation | Calls], positions: np.ndarray) -> Sequence[Conversation | Calls]:
    if isinstance(conversations, StoredConversations):
        return conversations.take(positions)
    return [conversations[i] for i in positions]


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype=bool), *arrays])


def prepare_heldout(
    conversations: Sequence[Conversation | Calls],
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    duplication: DuplicationConfig,
    model: torch.nn.Module | None,
    context: ContextConfig = TEMPLATE,
) -> PreparedData:
    """`prepare` what is held out: always on what inference shows, whatever layout is trained.

    That is one pass, or one pass a turn for a model whose state does not branch: the sum is the same. model: None where
    it is not known, for one pass.
    """
    branches = model is None or not unbranched_layers(model)
    layout = Layout.one_pass if branches else Layout.per_turn
    return prepare(conversations, tokenizer, data, replace(duplication, layout=layout), context)


def fingerprint(conversations: Sequence[Conversation | Calls], of_settings: bytes) -> str:
    """A hash of all that the rows of `conversations` depend on. of_settings: `settings_fingerprint`."""
    stored = isinstance(conversations, StoredConversations)
    names = conversations.names_of_records() if stored else ([one.name] for one in conversations)
    digests = conversations.digests() if stored else map(digest_of, conversations)
    digest = hashlib.sha256(of_settings)
    for name, said in zip(names, digests, strict=True):
        digest.update(json.dumps(name).encode() + said)
    return digest.hexdigest()


def settings_fingerprint(tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> bytes:
    """A hash of tokenizer, chat template, settings, libraries, our own code and that of a user's context rule. The date
    is part of it only where the template reads the clock, or nothing would be found again the next day.
    """
    other = [
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.chat_template,
        {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
        digest_of_rule(ContextConfig(**settings["context"])),
        {**settings, "date": str(settings["date"]) if _reads_the_clock(tokenizer) else None},
        [version(name) for name in ("transformers", "tokenizers", "jinja2", "pyarrow")],
    ]
    code = shards.digest_of_code(Path(flexmask.__file__).parent, Path(__file__), Path(row_store.__file__))
    return hashlib.sha256(json.dumps(other, sort_keys=True).encode() + code).digest()


def digest_of_rule(context: ContextConfig) -> str | None:
    """A hash of the code of a user's own context rule: all of its module, or of the package that it is in. None for
    other rules, whose code is part of ours."""
    place = source_of(asdict(context))
    return None if place is None else shards.digest_of_code(place).hex()


def _reads_the_clock(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether any of the tokenizer's chat templates may write the date (see `ChatTemplate`)."""
    return "strftime_now" in json.dumps(tokenizer.chat_template)


@dataclass(frozen=True)
class _ShardOfRows:
    """What is known of the conversations of a shard, which are counted from 0.

    figures: [conversation, figure], as `row_store.FIGURES` names them. trained: whether it has rows. invalid: why the
    others cannot be prepared; too_long: those of them that are for the length of a turn.
    """

    kept: shards.Kept
    names: dict[int, str]  # of the invalid ones
    figures: np.ndarray
    trained: np.ndarray
    ends: set[int]
    warnings: dict[int, list[str]]
    invalid: dict[int, str]
    too_long: set[int]


def _shards_of(
    conversations: Sequence[Conversation | Calls],
    tokenizer: PreTrainedTokenizerBase,
    settings: dict[str, Any],
    data: DataConfig,
) -> list[_ShardOfRows]:
    """The shards of all conversations, in order. Raises ValueError as `prepare` does; early when very many are refused,
    because all of them might be."""
    starts = range(0, len(conversations), _CONVERSATIONS_A_SHARD)
    parts = (conversations[start : start + _CONVERSATIONS_A_SHARD] for start in starts)
    processes = max(1, min(available_processors(data.processes), len(conversations) // _WORTH_A_PROCESS, len(starts)))
    one = functools.partial(
        _shard_of, tokenizer=tokenizer, settings=settings, of_settings=settings_fingerprint(tokenizer, settings)
    )
    refused, found = _Refused(data.on_invalid), []
    with progress(len(conversations), "rendering conversations") as advance, mapping(one, processes) as mapped:
        for shard in mapped(parts):
            if shard.kept.damage:
                warnings.warn(shard.kept.damage, stacklevel=3)
            refused.add(shard)
            refused.check(most=_MOST_ERRORS)
            advance(len(shard.trained))
            found.append(shard)
    if any(shard.kept.is_new for shard in found):
        shards.remove_old()
    refused.check()
    return found


def _shard_of(
    conversations: Sequence[Conversation | Calls],
    tokenizer: PreTrainedTokenizerBase,
    settings: dict[str, Any],
    of_settings: bytes,
) -> _ShardOfRows:
    """The shard of some conversations, found or made."""
    kept = shards.keep(
        fingerprint(conversations, of_settings), row_store.SCHEMA, lambda: _batches(conversations, tokenizer, settings)
    )
    with shards.naming_cache():
        table = shards.open_table(kept.file)
        invalid = {i: reason for i, reason in enumerate(table["invalid"].to_pylist()) if reason}
        return _ShardOfRows(
            kept=kept,
            names={i: table["name"][i].as_py() for i in invalid},
            figures=row_store.figures(table),
            trained=pyarrow.compute.list_value_length(table["row_tokens"]).to_numpy() > 0,
            ends=set(pyarrow.compute.list_flatten(table["ends"]).to_pylist()),
            warnings={i: texts for i, texts in enumerate(table["warnings"].to_pylist()) if texts},
            invalid=invalid,
            too_long={i for i in invalid if table["too_long"][i].as_py()},
        )


class _Refused:
    """Conversations without rows that the settings do not let pass, in one error."""

    def __init__(self, on_invalid: OnInvalid) -> None:
        self.drop = on_invalid == OnInvalid.drop
        self.seen = 0
        self.reasons: list[str] = []
        self.advice: set[str] = set()

    def add(self, shard: _ShardOfRows) -> None:
        self.seen += len(shard.trained)
        for i, reason in shard.invalid.items():
            if i in shard.too_long:
                self.advice.add(
                    "Raise duplication.pack_length, or leave such turns out, counted, with duplication.too_long=drop"
                )
            elif not self.drop:
                self.advice.add("Repair them, or leave them out, counted, with data.on_invalid=drop")
            else:
                continue
            self.reasons.append(reason)

    def check(self, most: int = 0) -> None:
        """Raise ValueError if there are more than `most`."""
        if len(self.reasons) > most:
            raise ValueError(
                f"{len(self.reasons):,} of {self.seen:,} conversations cannot be prepared:\n{shown(self.reasons)}\n"
                + "\n".join(sorted(self.advice))
            )


def _batches(
    conversations: Sequence[Conversation | Calls], tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]
) -> Iterator[pyarrow.RecordBatch]:
    for start in range(0, len(conversations), _WRITTEN_TOGETHER):
        some = conversations[start : start + _WRITTEN_TOGETHER]
        records = [_prepare_one(one, tokenizer, settings) for one in some]
        yield pyarrow.RecordBatch.from_pylist(records, schema=row_store.SCHEMA)


def _prepare_one(
    conversation: Conversation | Calls, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]
) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            laid_out = prepare_conversation(conversation, tokenizer, **settings)
        except ValueError as error:
            reason = f"{error}{_with_it(conversation)}"
            return invalid_record(conversation.name, reason, _is_too_long(conversation, tokenizer, settings))
    texts = sorted({str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)})
    return to_record(conversation.name, laid_out, texts)


def _with_it(conversation: Conversation | Calls) -> str:
    """What stands or falls with the call that a reason is about."""
    count = len(conversation.calls) if isinstance(conversation, Calls) else 1
    return f"; the {count:,} calls of its record are prepared together or not at all" if count > 1 else ""


def _is_too_long(
    conversation: Conversation | Calls, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]
) -> bool:
    """Whether a conversation was refused for the length of a turn: without that rule it is prepared."""
    if settings["too_long"] != TooLong.error:
        return False
    try:
        prepare_conversation(conversation, tokenizer, **settings | {"too_long": str(TooLong.drop)})
    except ValueError:
        return False
    return True
