"""The conversations that `conf/data` names: generated, from files, from the hub, or a mix of sources; some held out.

Nothing is left out silently: an invalid record is an error, or with `data.on_invalid=drop` a line in
`LoadedData.dropped`. Names of conversations are those of their records (`recipes.sources.files`), `<hub id>/<split>[i]`
for data of the hub, and in a mix `<source>/` and such a name.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from flexmask.text.conversation import Conversation
from recipes.configuration.schema import DataConfig, DataKind, OnInvalid, SourceConfig
from recipes.sources import Entry, Record
from recipes.sources.files import read_path
from recipes.sources.gsm8k import HUB_CONFIG, HUB_ID, to_record
from recipes.sources.heldout import repeated, share, split_heldout
from recipes.sources.hub import read_hub

ERRORS_SHOWN = 5
# Brackets inside brackets in messages and tools. Deeper ones end in RecursionError somewhere on the way to text.
MOST_NESTED = 100


@dataclass(frozen=True)
class SourceCounts:
    """Counts for one source. `train` counts repetitions: weight 2 counts each conversation twice."""

    read: int
    train: int
    heldout: int
    dropped: int

    def __str__(self) -> str:
        dropped = f", {self.dropped:,} invalid and left out" if self.dropped else ""
        return f"{self.read:,} conversations, {self.train:,} to train in an epoch, {self.heldout:,} held out{dropped}"


@dataclass(frozen=True)
class LoadedData:
    """train: one epoch, in the order of the sources; a source of weight 2 stands there twice.
    heldout: each once, and no conversation of it is in `train`, whatever its thinking.
    dropped: for each record left out as invalid, why, beginning with its name; empty with `data.on_invalid=error`.
    sources: by name; of a mix its own, else one.
    """

    train: list[Conversation]
    heldout: list[Conversation]
    dropped: tuple[str, ...]
    sources: dict[str, SourceCounts]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what is trained and held out, in its order; names of files and lines do not count."""
        digest = hashlib.sha256()
        for part in (self.train, self.heldout):
            for conversation in part:
                digest.update(as_json(replace(conversation, name="")).encode())
            digest.update(b"\n")
        return digest.hexdigest()


def load_data(data: DataConfig) -> LoadedData:
    """Conversations to train on and to evaluate with; the same for the same settings and sources.

    Which ones are held out depends on `data.seed` and on the text of each conversation only, so a longer file moves few
    of them and another `train_conversations` none.

    Raises ValueError when a file is not what its name says, when the hub cannot be reached, when records are invalid
    (it counts them and quotes the first few; `data.on_invalid=drop` leaves them out), when a source has no valid
    conversation, and when `data.heldout_conversations` are more than can be held out.
    """
    if data.kind is DataKind.tutoring:
        return _generated(data)
    mix = data.kind is DataKind.mix
    sources: dict[str, DataConfig | SourceConfig] = dict(data.sources) if mix else {_name(data): data}
    read, dropped = [], []
    for name, source in sources.items():
        key, prefix = (f"data.sources.{name}", f"{name}/") if mix else ("data", "")
        entries = ((prefix + record_name, record) for record_name, record in _entries(source, data.seed, key))
        convert = to_record if source.kind is DataKind.gsm8k_socratic else None
        conversations, invalid = parse(entries, convert, data.on_invalid)
        if not conversations:
            raise ValueError(f"{key}: {_name(source)} has no valid conversation; {len(invalid):,} were left out")
        if mix and source.template_kwargs:
            conversations = [_with_template_kwargs(one, source.template_kwargs) for one in conversations]
        read.append(conversations)
        dropped.append(invalid)
    train, heldout, counts = [], [], {}
    split = split_heldout(read, data.heldout_conversations, data.seed)
    for (name, source), (rest, held), everything, invalid in zip(sources.items(), split, read, dropped, strict=True):
        key = f"data.sources.{name}" if mix else "data"
        made = source.kind is DataKind.tutoring  # as many as train_conversations says, of which some are held out
        if not made and source.train_conversations is not None and source.train_conversations > len(rest):
            warnings.warn(
                f"{key}.train_conversations={source.train_conversations}: {len(rest):,} are left to train when "
                f"{len(held):,} are held out; all of them are taken",
                stacklevel=2,
            )
        epoch = rest[: source.train_conversations]
        if mix:
            epoch = _weighted(epoch, source.weight, data.seed, f"{key}.weight")
        train += epoch
        heldout += held
        counts[name] = SourceCounts(len(everything), len(epoch), len(held), len(invalid))
    return LoadedData(train, heldout, tuple(reason for some in dropped for reason in some), counts)


def parse(
    entries: Iterable[Entry], convert: Callable[[Record, str], Record] | None, on_invalid: str
) -> tuple[list[Conversation], list[str]]:
    """(conversations, reasons of those dropped); with `on_invalid="error"` a single error for all of them."""
    conversations, invalid = [], []
    for name, record in entries:
        try:
            if isinstance(record, ValueError):
                raise record
            conversations.append(_conversation(convert(record, name) if convert else record, name))
        except ValueError as error:
            invalid.append(str(error))
    if invalid and on_invalid == OnInvalid.error:
        total = len(invalid) + len(conversations)
        raise ValueError(
            f"{len(invalid):,} of {total:,} conversations are invalid:\n{shown(invalid)}\n"
            "Repair them, or leave them out, counted, with data.on_invalid=drop"
        )
    return conversations, invalid


def shown(reasons: list[str]) -> str:
    """The first few, a line each, and how many more there are."""
    more = [f"... and {len(reasons) - ERRORS_SHOWN:,} more"] if len(reasons) > ERRORS_SHOWN else []
    return "\n".join([*reasons[:ERRORS_SHOWN], *more])


def as_json(conversation: Conversation) -> str:
    """All of a conversation as JSON text, for hashes. Raises TypeError for what JSON cannot hold."""
    return json.dumps([getattr(conversation, field.name) for field in fields(conversation)], ensure_ascii=False)


def _conversation(record: Record, name: str) -> Conversation:
    """Raises ValueError beginning with `name` also for what only a later stage would stumble over."""
    too_deep = f"{name}: brackets stand inside brackets more than {MOST_NESTED} deep; simplify or remove it"
    try:
        conversation = Conversation.from_record(record, name)
        if _depth((conversation.messages, conversation.tools)) > MOST_NESTED:
            raise ValueError(too_deep)
        as_json(conversation).encode()
    except RecursionError as error:
        raise ValueError(too_deep) from error
    except TypeError as error:  # tables have dates and bytes
        raise ValueError(f"{name}: holds a value that JSON has not ({error}); write it as text") from error
    except UnicodeEncodeError as error:  # in tools and tool calls; messages are checked by Conversation
        raise ValueError(
            f"{name}: has half a surrogate pair ({error.object[error.start]!r}) in a text; repair it"
        ) from error
    return conversation


def _depth(value: Any, above: int = 0) -> int:
    """How deep lists and objects stand in each other; counting ends a level behind MOST_NESTED."""
    if above > MOST_NESTED or not isinstance(value, (dict, list, tuple)):
        return above
    inner = value.values() if isinstance(value, dict) else value
    return max((_depth(one, above + 1) for one in inner), default=above + 1)


def _entries(source: DataConfig | SourceConfig, seed: int, key: str) -> Iterator[Entry]:
    """The records of a source: generated, of its path where it has one, else of the hub."""
    if source.kind is DataKind.tutoring:
        return _tutoring(source.train_conversations, seed, "train")
    if source.path is not None:
        return read_path(source.path, source.split, f"{key}.path")
    hub_id, hub_config = source.hub_id, source.hub_config
    if hub_id is None and source.kind is DataKind.gsm8k_socratic:
        hub_id, hub_config = HUB_ID, hub_config or HUB_CONFIG
    if hub_id is None:
        raise ValueError(f"{key}.path: has no value; give a file, folder or pattern (or {key}.hub_id, data of the hub)")
    return read_hub(hub_id, hub_config, source.split, key)


def _generated(data: DataConfig) -> LoadedData:
    """Tutoring dialogues: the generator keeps the splits apart itself, so both have the numbers asked for."""
    count, heldout_count = data.train_conversations, data.heldout_conversations
    if heldout_count is None:
        (heldout_count,) = share([count])
    train, heldout = (
        parse(_tutoring(number, data.seed, split), None, data.on_invalid)[0]
        for number, split in ((count, "train"), (heldout_count, "heldout"))
    )
    counts = SourceCounts(count + heldout_count, count, heldout_count, 0)
    return LoadedData(train, heldout, (), {_name(data): counts})


def _tutoring(count: int, seed: int, split: str) -> Iterator[Entry]:
    from recipes.sources.tutoring import generate

    for index, record in enumerate(generate(count, seed, split)):
        yield f"tutoring/{split}[{index}]", record


def _name(source: DataConfig | SourceConfig) -> str:
    return source.path or source.hub_id or str(source.kind)


def _with_template_kwargs(conversation: Conversation, of_source: dict[str, Any]) -> Conversation:
    return replace(conversation, template_kwargs={**of_source, **(conversation.template_kwargs or {})})


def _weighted(conversations: list[Conversation], weight: float, seed: int, key: str) -> list[Conversation]:
    epoch = repeated(conversations, weight, seed)
    if not epoch:
        raise ValueError(f"{key}={weight:g}: leaves none of {len(conversations):,} conversations; raise it")
    return epoch
