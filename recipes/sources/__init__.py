"""Records from files of many kinds, from the hub, or generated; and which conversations are held out.

An entry is a record's name, and the record or a ValueError saying why it cannot be read.
"""

from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]
Entry = tuple[str, Record | ValueError]
