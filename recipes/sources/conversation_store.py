"""Conversations on disk, read when they are asked for, so that data may be larger than memory.

`keep_part` reads the records of one part of a source into a shard (`recipes.storage.shards`), in a process of
several. What is known of them all is small: which ones are held out depends on a hash each. Records of calls that have
the id of an episode in common, wherever they stand, are joined when they are asked for.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

import flexmask
from flexmask.conversations.conversation import Conversation
from flexmask.conversations.episodes import AUTO
from flexmask.conversations.model_calls import Call, Calls, joined
from flexmask.conversations.records import read_record
from flexmask.importing import code_of
from recipes.configuration.rules import ConfigError
from recipes.sources import Entry, Part
from recipes.sources.filters import Filter, filtered, load_filters
from recipes.sources.gsm8k import to_record
from recipes.sources.heldout import HASH, hash_of
from recipes.storage import shards

_WRITTEN_TOGETHER = 64
# What a conversation says, name apart; the other fields are what reading has to say of it.
_SAID = tuple(field.name for field in fields(Conversation) if field.compare and field.name != "name")
_NOTED = ("format", "unread", "notes")
_NOTED_OF_CALLS = (*_NOTED, "episode")
_HASHES = ("digest", "order", "order_again", "episode")
# Texts are JSON: names of files and keys may hold what is no UTF-8.
SCHEMA = pyarrow.schema(
    {"name": pyarrow.binary(), "said": pyarrow.binary(), "noted": pyarrow.binary(), "invalid": pyarrow.binary()}
    | {name: pyarrow.binary(32) for name in _HASHES}
)


@dataclass(frozen=True)
class Reading:
    """How the records of a source become conversations.

    prefix: of their names. gsm8k: whether they are problems of GSM8K. template_kwargs: of the source, beneath those of
    its records. seed: of the choices by hash. episode_key: as in `read_record`. filters: names, as in `data.filter`.
    """

    thinking_tags: str | Sequence[str] | None
    seed: int
    prefix: str = ""
    gsm8k: bool = False
    template_kwargs: Mapping[str, Any] | None = None
    episode_key: str | Sequence[str] | None = AUTO
    filters: tuple[str, ...] = ()

    def read(self, entry: Entry) -> Conversation | Calls:
        """What an entry holds. Raises ValueError where that is no conversation, nor calls of a model."""
        name, record = f"{self.prefix}{entry[0]}", entry[1]
        if isinstance(record, ValueError):
            raise record
        record = to_record(record, name) if self.gsm8k else record
        found = read_record(record, name, thinking_tags=self.thinking_tags, episode_key=self.episode_key)
        within = [call.conversation for call in found.calls] if isinstance(found, Calls) else [found]
        for conversation in filter(None, within) if self.template_kwargs else ():
            both = {**self.template_kwargs, **(conversation.template_kwargs or {})}
            object.__setattr__(conversation, "template_kwargs", both)
        return filtered(found, entry[1], load_filters(self.filters)) if self.filters else found

    def digest(self) -> bytes:
        """A hash of this, and of the code that reads."""
        library = Path(flexmask.__file__).parent / "conversations"
        settings = [
            self.thinking_tags, self.seed, self.prefix, self.gsm8k, self.template_kwargs, self.episode_key, self.filters
        ]  # fmt: skip
        versions = [version(name) for name in ("pyarrow", "datasets")]
        own = [_place(name, one) for name, one in zip(self.filters, load_filters(self.filters), strict=True)]
        code = shards.digest_of_code(library, Path(__file__).parent, *own)
        return hashlib.sha256(json.dumps([settings, versions], default=list).encode() + code).digest()


def _place(name: str, function: Filter) -> Path:
    place = code_of(function)
    if place is None:
        raise ValueError(f"data.filter={name}: its code stands in no file; give a function of a module that has one")
    return place


@dataclass(frozen=True)
class ReadPart:
    """What is known of the records of a part.

    valid: the records that are conversations, from 0. order, order_again: a hash of each valid one
    (`recipes.sources.heldout`); episode: of the id of its episode, empty where it has none. invalid: the reasons of the
    others, by name. Counted are the formats, keys that are not read and notes of the valid ones.
    """

    kept: shards.Kept
    records: int
    valid: np.ndarray
    order: np.ndarray
    order_again: np.ndarray
    episode: np.ndarray
    invalid: dict[str, str]
    formats: Counter[str]
    unread: Counter[str]
    notes: Counter[str]


def keep_part(part: Part, reading: Reading, of_reading: bytes) -> ReadPart:
    """Read the records of a part, unless that was done before; of_reading: `reading.digest()`, the same for all parts.
    Raises ValueError as `shards.keep` does."""
    name = hashlib.sha256(of_reading + part.digest()).hexdigest()
    kept = shards.keep(name, SCHEMA, lambda: _batches(part, reading))
    with shards.naming_cache():
        table = shards.open_table(kept.file)
    formats, unread, notes = Counter(), Counter(), Counter()
    for text in table["noted"].drop_null().to_pylist():
        noted = _value(text)
        formats[noted["format"]] += 1
        unread.update(noted["unread"])
        notes.update(noted["notes"])
    bad = table.filter(table["invalid"].is_valid()).select(["name", "invalid"]).to_pylist()
    valid = table.filter(table["invalid"].is_null())
    return ReadPart(
        kept,
        table.num_rows,
        np.flatnonzero(table["invalid"].is_null().to_numpy()),
        *(np.array([one or b"" for one in valid[name].to_pylist()], dtype=HASH) for name in _HASHES[1:]),
        invalid={_value(one["name"]): _value(one["invalid"]) for one in bad},
        formats=formats,
        unread=unread,
        notes=notes,
    )


def said_by(one: Conversation | Calls) -> bytes:
    """All that a conversation, or the calls of a record, say, the name apart, as JSON text: a list, or an object."""
    if isinstance(one, Conversation):
        said: Any = _fields(one)
    else:
        said = {
            "calls": [
                asdict(replace(call, conversation=None, name=call.name.removeprefix(one.name)))
                | {"conversation": call.conversation and _fields(call.conversation)}
                for call in one.calls
            ],
            "rewards": one.rewards,
        }
    return json.dumps(said, ensure_ascii=False).encode()


def _fields(conversation: Conversation) -> list[Any]:
    return [getattr(conversation, name) for name in _SAID]


def digest_of(one: Conversation | Calls) -> bytes:
    """A hash of all that is said, the name apart."""
    return hashlib.sha256(said_by(one)).digest()


def _batches(part: Part, reading: Reading) -> Iterator[pyarrow.RecordBatch]:
    records: list[dict[str, Any]] = []
    for entry in part.entries():
        records.append(_record(entry, reading))
        if len(records) == _WRITTEN_TOGETHER:
            yield pyarrow.RecordBatch.from_pylist(records, schema=SCHEMA)
            records = []
    if records:
        yield pyarrow.RecordBatch.from_pylist(records, schema=SCHEMA)


def _record(entry: Entry, reading: Reading) -> dict[str, Any]:
    try:
        conversation = reading.read(entry)
    except ConfigError:  # of a filter, which is no fault of the record
        raise
    except ValueError as error:
        return {"name": _json(f"{reading.prefix}{entry[0]}"), "invalid": _json(str(error))}
    said = said_by(conversation)
    of_calls = isinstance(conversation, Calls)
    noted = {name: getattr(conversation, name) for name in (_NOTED_OF_CALLS if of_calls else _NOTED)}
    episode = noted.get("episode")
    return {
        "name": _json(conversation.name),
        "said": said,
        "noted": _json(noted),
        "digest": hashlib.sha256(said).digest(),
        "order": hash_of(reading.seed, conversation),
        "order_again": hash_of(reading.seed, conversation, "weight"),
        "episode": hashlib.sha256(episode.encode()).digest() if episode else None,
    }


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _value(text: bytes) -> Any:
    return json.loads(text)


class StoredConversations(Sequence):
    """Conversations in shards, read when they are asked for; equal to any sequence of the same ones.

    numbers: of the records in the shards, in the order of this sequence; one may stand there several times. episodes:
    the numbers of all records of an episode, by that of its first, which stands for it. A slice is such a sequence too,
    and is given to another process with the shards that it needs.
    """

    def __init__(
        self, of_all: shards.Shards, numbers: np.ndarray, episodes: Mapping[int, np.ndarray] | None = None
    ) -> None:
        self._shards, self.numbers, self._episodes = of_all, numbers, episodes or {}

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return type(self)(self._shards, self.numbers[index], self._episodes)
        return self._item(self.numbers[index])

    def __iter__(self) -> Iterator[Conversation | Calls]:
        return map(self._item, self.numbers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None

    def __reduce__(self):
        members = [self._members(number) for number in self.numbers]
        some, numbers = self._shards.only(np.concatenate([np.empty(0, dtype=np.int64), *members]))
        parts = np.split(numbers, np.cumsum([len(one) for one in members]))[:-1]
        firsts = np.array([part[0] for part in parts], dtype=np.int64)
        return type(self), (some, firsts, {int(part[0]): part for part in parts if len(part) > 1})

    def names(self) -> Iterator[str]:
        """The names of all; an episode is called by its first record."""
        return (_value(self._value("name", number)) for number in self.numbers)

    def names_of_records(self) -> Iterator[list[str]]:
        """The names of the records that each is made of."""
        return ([_value(self._value("name", one)) for one in self._members(number)] for number in self.numbers)

    def digests(self) -> Iterator[bytes]:
        """`digest_of` all; of an episode a hash of those of its records."""
        for number in self.numbers:
            of_members = [self._value("digest", one) for one in self._members(number)]
            yield of_members[0] if len(of_members) == 1 else hashlib.sha256(b"".join(of_members)).digest()

    def take(self, positions: np.ndarray) -> "StoredConversations":
        """Those at `positions` of this sequence."""
        return type(self)(self._shards, self.numbers[positions], self._episodes)

    def _members(self, number: int) -> np.ndarray:
        """The numbers of the records of which one is made."""
        return self._episodes.get(int(number), np.array([number], dtype=np.int64))

    def _value(self, column: str, number: int) -> bytes:
        table, at = self._shards.record(number)
        return table[column][at].as_py()

    def _item(self, number: int) -> Conversation | Calls:
        records = [self._conversation(one) for one in self._members(number)]
        return records[0] if len(records) == 1 else joined(records)

    def _conversation(self, number: int) -> Conversation | Calls:
        name, said = _value(self._value("name", number)), _value(self._value("said", number))
        noted = _with_tuples(_value(self._value("noted", number)))
        if isinstance(said, list):
            return _restored(name, said, noted)
        calls = tuple(_restored_call(one, name) for one in said["calls"])
        return Calls(name, calls, rewards=tuple(said["rewards"]), **noted)


def _restored(name: str, said: list[Any], noted: dict[str, Any]) -> Conversation:
    return Conversation(name=name, **_with_tuples(dict(zip(_SAID, said, strict=True))), **noted)


def _restored_call(said: dict[str, Any], record: str) -> Call:
    name, within = record + said["name"], said["conversation"]
    conversation = None if within is None else _restored(name, within, {})
    return Call(**_with_tuples(said) | {"name": name, "conversation": conversation})


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
