"""Parts of sources (`recipes.sources.Part`): lines, rows of a table, decoded records, and several small parts."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from flexmask.conversations.values import without_nulls
from recipes.sources import Entry, Part, Record
from recipes.sources.json_text import decode

# A part ends with the record that reaches one of the two.
MOST_RECORDS, MOST_BYTES = 256, 4 << 20


@dataclass(frozen=True)
class Lines:
    """JSON lines of a file. name: of the file in those of records; path: in errors. lines: with their numbers."""

    name: str
    path: str
    lines: tuple[tuple[int, bytes], ...]

    @property
    def records(self) -> int:
        """A line each."""
        return len(self.lines)

    @property
    def size(self) -> int:
        """Of the text."""
        return sum(len(line) for _, line in self.lines)

    def entries(self) -> Iterator[Entry]:
        """A record a line."""
        for number, line in self.lines:
            yield f"{self.name}:{number}", decoded(line, f"{self.path}:{number}")

    def digest(self) -> bytes:
        """Of names and text."""
        digest = hashlib.sha256(repr(("lines", self.name, self.path)).encode())
        for number, line in self.lines:
            digest.update(b"%d %d " % (number, len(line)))
            digest.update(line)
        return digest.digest()


@dataclass(frozen=True)
class TableRows:
    """Rows of a table. name: of the table in those of records; first: the number of the first row. data: a stream of
    Arrow, which holds these rows and no others of the table that they were cut from."""

    name: str
    first: int
    records: int
    data: bytes

    @property
    def size(self) -> int:
        """Of the values."""
        return len(self.data)

    def entries(self) -> Iterator[Entry]:
        """A record a row, without what the table filled in."""
        import pyarrow

        with pyarrow.ipc.open_stream(self.data) as reader:
            plain = _decoder(reader.schema)
            for number, record in enumerate(itertools.chain.from_iterable(map(_records, reader)), start=self.first):
                yield f"{self.name}[{number}]", without_nulls(plain(record))

    def digest(self) -> bytes:
        """Of names and values."""
        return hashlib.sha256(repr(("table", self.name, self.first)).encode() + self.data).digest()


@dataclass(frozen=True)
class Decoded:
    """Records that could not be divided before they were decoded, or that were generated."""

    values: tuple[Entry, ...]
    size: int

    @property
    def records(self) -> int:
        """A value each."""
        return len(self.values)

    def entries(self) -> Iterator[Entry]:
        """The records as they are."""
        return iter(self.values)

    def digest(self) -> bytes:
        """Of names and values."""
        return hashlib.sha256(json.dumps(self.values, default=repr).encode()).digest()


@dataclass(frozen=True)
class Several:
    """Small parts that follow each other."""

    parts: tuple[Part, ...]

    @property
    def records(self) -> int:
        """Of all."""
        return sum(one.records for one in self.parts)

    @property
    def size(self) -> int:
        """Of all."""
        return sum(one.size for one in self.parts)

    def entries(self) -> Iterator[Entry]:
        """Those of each."""
        return itertools.chain.from_iterable(one.entries() for one in self.parts)

    def digest(self) -> bytes:
        """Of all."""
        return hashlib.sha256(b"several" + b"".join(one.digest() for one in self.parts)).digest()


def parts_of_entries(entries: Iterable[Entry], size: int = 0) -> Iterator[Decoded]:
    """Records in parts. size: about how many bytes all of them have."""
    iterator = iter(entries)
    while some := tuple(itertools.islice(iterator, MOST_RECORDS)):
        yield Decoded(some, size)


def together(parts: Iterable[Part]) -> Iterator[Part]:
    """The same records in fewer parts, where those are small: a folder may hold a file for each conversation."""
    some: list[Part] = []
    records = size = 0
    for part in parts:
        records, size = records + part.records, size + part.size
        if some and (records > MOST_RECORDS or size > MOST_BYTES):
            yield some[0] if len(some) == 1 else Several(tuple(some))
            some, records, size = [], part.records, part.size
        some.append(part)
    if some:
        yield some[0] if len(some) == 1 else Several(tuple(some))


def parts_of_lines(lines: Iterable[tuple[int, bytes]], name: str, path: str) -> Iterator[Lines]:
    """Numbered lines in parts."""
    some: list[tuple[int, bytes]] = []
    size = 0
    for number, line in lines:
        some.append((number, line))
        size += len(line)
        if len(some) == MOST_RECORDS or size >= MOST_BYTES:
            yield Lines(name, path, tuple(some))
            some, size = [], 0
    if some:
        yield Lines(name, path, tuple(some))


def parts_of_table(batches: Iterable[Any], name: str) -> Iterator[TableRows]:
    """Record batches, or tables, of Arrow in parts."""
    import pyarrow

    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, MOST_RECORDS):
            rows = batch.slice(start, MOST_RECORDS)
            sink = pyarrow.BufferOutputStream()
            with pyarrow.ipc.new_stream(sink, rows.schema) as writer:
                writer.write(rows)
            yield TableRows(name, number, rows.num_rows, sink.getvalue().to_pybytes())
            number += rows.num_rows


def parts_of_dataset(table: Any, name: str) -> Iterator[TableRows]:
    """A `datasets.Dataset` in parts."""
    arrow = table.with_format("arrow")
    metadata = table.features.arrow_schema.metadata
    pieces = (arrow[start : start + MOST_RECORDS] for start in range(0, len(table), MOST_RECORDS))
    return parts_of_table((piece.replace_schema_metadata(metadata) for piece in pieces), name)


def decoded(text: bytes, where: str) -> Record | ValueError:
    """The record of a JSON text, or why it is none."""
    try:
        return if_object(decode(text, where), where)
    except ValueError as error:
        return error


def if_object(value: Any, where: str) -> Record | ValueError:
    """The value if it is a record, or why it is none."""
    if isinstance(value, dict):
        return value
    return ValueError(f'{where}: a JSON {type(value).__name__} in place of an object such as {{"messages": ...}}')


def _records(batch: Any) -> list[Record]:
    return batch.to_pylist()


def _decoder(schema: Any) -> Callable[[Record], Record]:
    """What makes plain values of a record: columns that `datasets` has written may hold JSON text, for instance."""
    if b"huggingface" not in (schema.metadata or {}):
        return lambda record: record
    import datasets

    return datasets.Features.from_arrow_schema(schema).decode_example
