"""Records from where people keep them: files of many kinds, the hub, and which conversations are held out.

An entry is the name of a record and the record, or the reason why what stands in its place is none.
"""

from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]
Entry = tuple[str, Record | ValueError]
