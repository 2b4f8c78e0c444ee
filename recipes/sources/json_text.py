"""JSON text of files, with errors that name the place."""

import json
from typing import Any

from flexmask.conversations.values import parse_json

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def decode(data: bytes, where: str) -> Any:
    """The value of a JSON text in UTF-8. Raises ValueError beginning with `where`, as `parse_json` does."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise ValueError(f"{where}: byte {error.start + 1} (0x{byte:02x}) is not UTF-8; save as UTF-8") from error
    return parse_json(text, where)


def is_object(text: bytes) -> bool:
    """Whether `text` is one JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
