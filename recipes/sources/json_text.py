"""JSON with errors that name the place."""

import json
from typing import Any

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def decode(data: bytes, where: str) -> Any:
    """The value of a JSON text. A key given twice in one object is an error: Python would keep the last.

    Raises ValueError beginning with `where`.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise ValueError(f"{where}: byte {error.start + 1} (0x{byte:02x}) is not UTF-8; save as UTF-8") from error
    except json.JSONDecodeError as error:
        found = error.doc[error.pos : error.pos + 40]
        raise ValueError(
            f"{where}: malformed JSON at {place(error)}: {error.msg}, found {found!r}; repair it"
        ) from error
    except RecursionError as error:
        raise ValueError(f"{where}: brackets stand inside brackets too deep to be read; no conversation is") from error
    except _TwiceError as error:
        raise ValueError(f"{where}: the key {error} stands twice in one object; keep one") from error
    except ValueError as error:  # Python (3.11) converts no more than 4,300 digits
        raise ValueError(f"{where}: holds a number of more digits than can be read; write it as text") from error


def place(error: json.JSONDecodeError) -> str:
    return f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"


def is_object(text: bytes) -> bool:
    """Whether `text` is one JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


class _TwiceError(ValueError):
    """A key that stands twice in one object."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _TwiceError(repr(twice))
    return dict(pairs)
