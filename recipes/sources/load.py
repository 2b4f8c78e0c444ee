"""The conversations that `conf/data` names: generated, from files, from the hub, or a mix of sources; some held out.

Nothing is left out silently: an invalid record is an error, or with `data.on_invalid=drop` a line in
`LoadedData.dropped`. Names of conversations are those of their records (`recipes.sources.files`), `<hub id>/<split>[i]`
for data of the hub, and in a mix `<source>/` and such a name.
"""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from flexmask.conversations.conversation import Conversation
from flexmask.conversations.reading import read_conversation, unread_and_notes
from recipes.configuration.schema import DataConfig, DataKind, OnInvalid, SourceConfig
from recipes.sources import Entry, Record
from recipes.sources.files import read_path
from recipes.sources.gsm8k import HUB_CONFIG, HUB_ID, to_record
from recipes.sources.heldout import repeated, share, split_heldout
from recipes.sources.hub import read_hub
from recipes.sources.invalid import shown


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
    dropped: why each record is left out as invalid, by its name; empty with `data.on_invalid=error`.
    sources: by name; of a mix its own, else one.
    formats: how many conversations were read from which format.
    """

    train: list[Conversation]
    heldout: list[Conversation]
    dropped: dict[str, str]
    sources: dict[str, SourceCounts]
    formats: dict[str, int]

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
        conversations, invalid = parse(entries, convert, data.on_invalid, data.thinking_tags)
        if not conversations:
            raise ValueError(f"{key}: {_name(source)} has no valid conversation; {len(invalid):,} were left out")
        if mix and source.template_kwargs:
            conversations = [_with_template_kwargs(one, source.template_kwargs) for one in conversations]
        read.append(conversations)
        dropped.append(invalid)
    for said in unread_and_notes(one for some in read for one in some):
        warnings.warn(said, stacklevel=2)
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
    return LoadedData(
        train, heldout, {name: why for some in dropped for name, why in some.items()}, counts, _formats(read)
    )


def parse(
    entries: Iterable[Entry],
    convert: Callable[[Record, str], Record] | None,
    on_invalid: str,
    thinking_tags: str | Sequence[str] | None = "auto",
) -> tuple[list[Conversation], dict[str, str]]:
    """(conversations, reasons by name of those dropped); with `on_invalid="error"` a single error for all of them."""
    conversations, invalid = [], {}
    for name, record in entries:
        try:
            if isinstance(record, ValueError):
                raise record
            record = convert(record, name) if convert else record
            conversations.append(read_conversation(record, name, thinking_tags=thinking_tags))
        except ValueError as error:
            invalid[name] = str(error)
    if invalid and on_invalid == OnInvalid.error:
        total = len(invalid) + len(conversations)
        raise ValueError(
            f"{len(invalid):,} of {total:,} conversations are invalid:\n{shown(list(invalid.values()))}\n"
            "Repair them, or leave them out, counted, with data.on_invalid=drop"
        )
    return conversations, invalid


def as_json(conversation: Conversation) -> str:
    """All that a conversation says, as JSON text, for hashes."""
    values = [getattr(conversation, field.name) for field in fields(conversation) if field.compare]
    return json.dumps(values, ensure_ascii=False)


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
    return LoadedData(train, heldout, {}, {_name(data): counts}, _formats([train, heldout]))


def _formats(read: Iterable[Iterable[Conversation]]) -> dict[str, int]:
    return dict(Counter(one.format for some in read for one in some).most_common())


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
