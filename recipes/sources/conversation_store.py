"""Conversations on disk, read when they are asked for, so that data may be larger than memory.

`keep_part` reads the records of one part of a source into a shard (`recipes.storage.shards`), in a process of
several. What is known of them all is small: which ones are held out depends on a hash each.
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
from flexmask.conversations.model_calls import Call, Calls, read_record
from recipes.sources import Entry, Part
from recipes.sources.gsm8k import to_record
from recipes.sources.heldout import HASH, hash_of
from recipes.storage import shards

_WRITTEN_TOGETHER = 64
# What a conversation says, name apart; the other fields are what reading has to say of it.
_SAID = tuple(field.name for field in fields(Conversation) if field.compare and field.name != "name")
_NOTED = ("format", "unread", "notes")
_HASHES = ("digest", "order", "order_again")
# Texts are JSON: names of files and keys may hold what is no UTF-8.
SCHEMA = pyarrow.schema(
    {"name": pyarrow.binary(), "said": pyarrow.binary(), "noted": pyarrow.binary(), "invalid": pyarrow.binary()}
    | {name: pyarrow.binary(32) for name in _HASHES}
)


@dataclass(frozen=True)
class Reading:
    """How the records of a source become conversations.

    prefix: of their names. gsm8k: whether they are problems of GSM8K. template_kwargs: of the source, beneath those of
    its records. seed: of the choices by hash.
    """

    thinking_tags: str | Sequence[str] | None
    seed: int
    prefix: str = ""
    gsm8k: bool = False
    template_kwargs: Mapping[str, Any] | None = None

    def read(self, entry: Entry) -> Conversation | Calls:
        """What an entry holds. Raises ValueError where that is no conversation, nor calls of a model."""
        name, record = f"{self.prefix}{entry[0]}", entry[1]
        if isinstance(record, ValueError):
            raise record
        record = to_record(record, name) if self.gsm8k else record
        found = read_record(record, name, thinking_tags=self.thinking_tags)
        within = [call.conversation for call in found.calls] if isinstance(found, Calls) else [found]
        for conversation in filter(None, within) if self.template_kwargs else ():
            both = {**self.template_kwargs, **(conversation.template_kwargs or {})}
            object.__setattr__(conversation, "template_kwargs", both)
        return found

    def digest(self) -> bytes:
        """A hash of this, and of the code that reads."""
        library = Path(flexmask.__file__).parent / "conversations"
        settings = [self.thinking_tags, self.seed, self.prefix, self.gsm8k, self.template_kwargs]
        versions = [version(name) for name in ("pyarrow", "datasets")]
        code = shards.digest_of_code(library, Path(__file__).parent)
        return hashlib.sha256(json.dumps([settings, versions], default=list).encode() + code).digest()


@dataclass(frozen=True)
class ReadPart:
    """What is known of the records of a part.

    valid: the records that are conversations, from 0. order, order_again: a hash of each valid one
    (`recipes.sources.heldout`). invalid: the reasons of the others, by name. Counted are the formats, keys that are not
    read and notes of the valid ones.
    """

    kept: shards.Kept
    records: int
    valid: np.ndarray
    order: np.ndarray
    order_again: np.ndarray
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
    return ReadPart(
        kept,
        table.num_rows,
        np.flatnonzero(table["invalid"].is_null().to_numpy()),
        *(np.array(table[name].drop_null().to_pylist(), dtype=HASH) for name in ("order", "order_again")),
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
                asdict(replace(call, conversation=None))
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
    except ValueError as error:
        return {"name": _json(f"{reading.prefix}{entry[0]}"), "invalid": _json(str(error))}
    said = said_by(conversation)
    return {
        "name": _json(conversation.name),
        "said": said,
        "noted": _json({name: getattr(conversation, name) for name in _NOTED}),
        "digest": hashlib.sha256(said).digest(),
        "order": hash_of(reading.seed, conversation),
        "order_again": hash_of(reading.seed, conversation, "weight"),
    }


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _value(text: bytes) -> Any:
    return json.loads(text)


class StoredConversations(Sequence):
    """Conversations in shards, read when they are asked for; equal to any sequence of the same ones.

    numbers: of the records in the shards, in the order of this sequence; one may stand there several times. A slice is
    such a sequence too, and is given to another process with the shards that it needs.
    """

    def __init__(self, of_all: shards.Shards, numbers: np.ndarray) -> None:
        self._shards, self.numbers = of_all, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return type(self)(self._shards, self.numbers[index])
        return self._conversation(self.numbers[index])

    def __iter__(self) -> Iterator[Conversation | Calls]:
        return map(self._conversation, self.numbers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None

    def __reduce__(self):
        return type(self), self._shards.only(self.numbers)

    def names(self) -> Iterator[str]:
        """The names of all."""
        return (_value(self._value("name", number)) for number in self.numbers)

    def digests(self) -> Iterator[bytes]:
        """`digest_of` all."""
        return (self._value("digest", number) for number in self.numbers)

    def take(self, positions: np.ndarray) -> "StoredConversations":
        """Those at `positions` of this sequence."""
        return type(self)(self._shards, self.numbers[positions])

    def _value(self, column: str, number: int) -> bytes:
        table, at = self._shards.record(number)
        return table[column][at].as_py()

    def _conversation(self, number: int) -> Conversation | Calls:
        name, said = _value(self._value("name", number)), _value(self._value("said", number))
        noted = _with_tuples(_value(self._value("noted", number)))
        if isinstance(said, list):
            return _restored(name, said, noted)
        return Calls(name, tuple(map(_restored_call, said["calls"])), tuple(said["rewards"]), **noted)


def _restored(name: str, said: list[Any], noted: dict[str, Any]) -> Conversation:
    return Conversation(name=name, **_with_tuples(dict(zip(_SAID, said, strict=True))), **noted)


def _restored_call(said: dict[str, Any]) -> Call:
    within = said["conversation"]
    conversation = None if within is None else _restored(said["name"], within, {})
    return Call(**_with_tuples(said) | {"conversation": conversation})


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
