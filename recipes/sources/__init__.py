"""Records from files of many kinds, from the hub, or generated; and which conversations are held out.

An entry is a record's name, and the record or a ValueError saying why it cannot be read. Records come in parts, which
are decoded where they are read: in the processes that do it.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

Record = Mapping[str, Any]
Entry = tuple[str, Record | ValueError]


class Part(Protocol):
    """Some records that follow each other in a source, as it holds them. Which ones depends on the source alone.

    records: how many; size: about how many bytes.
    """

    @property
    def records(self) -> int: ...  # noqa: D102

    @property
    def size(self) -> int: ...  # noqa: D102

    def entries(self) -> Iterator[Entry]:
        """The records, decoded."""

    def digest(self) -> bytes:
        """A hash of all that the entries depend on."""
