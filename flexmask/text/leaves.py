"""Which values of a nested value, the schema of a tool or the arguments of a call, a chat template writes.

Each is asked for in its own place. First all at once, with a probe for each that stands nowhere else. Then one by one
those that were not found, and those that no probe can stand for (false, null, nothing): a value that is written makes a
difference when it is another one, and when it is not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# Keys and indices to a value; for the name of a key itself, with NAME behind it.
Place = tuple[Any, ...]
NAME, _ABSENT = object(), object()
_TEXT, _FIRST_NUMBER = "flexmask_{}_", 731_000_000
PROBES = re.compile(rf"flexmask_\d+_|{_FIRST_NUMBER // 10**6}\d{{6}}")


def places(value: Any, at: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every name and every value that holds no other, with its place, as they follow each other."""
    if isinstance(value, dict) and value:
        for name, one in value.items():
            yield (*at, name, NAME), name
            yield from places(one, (*at, name))
    elif isinstance(value, (list, tuple)) and value:
        for i, one in enumerate(value):
            yield from places(one, (*at, i))
    else:
        yield at, value


def replaced(value: Any, new: Mapping[Place, Any], at: Place = ()) -> Any:
    """A copy with other names and values in some places."""
    if isinstance(value, dict) and value:
        return {
            new.get((*at, name, NAME), name): replaced(one, new, (*at, name))
            for name, one in value.items()
            if new.get((*at, name)) is not _ABSENT
        }
    if isinstance(value, (list, tuple)) and value:
        return [replaced(one, new, (*at, i)) for i, one in enumerate(value) if new.get((*at, i)) is not _ABSENT]
    return new.get(at, value)


def probe(value: Any, number: int) -> Any:
    """What stands for a value and is found in a text by its `str`; None where nothing can stand for it: templates ask
    whether a value is true, or is a truth value."""
    if isinstance(value, str) and value.strip():
        return _TEXT.format(number)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value:
        return _FIRST_NUMBER + number + (0.5 if isinstance(value, float) else 0)
    return None


def unwritten(value: Any, asked: Sequence[Place], render: Callable[[Any], str | None]) -> list[Place] | None:
    """The places of `asked` that are not in the text that `render` makes of `value`; it returns None for what it does
    not take. None where it does not take the value itself."""
    held = dict(places(value))
    probes = {place: one for i, place in enumerate(asked) if (one := probe(held[place], i)) is not None}
    written = render(replaced(value, probes)) if probes else None
    found = set(PROBES.findall(written or ""))
    missing = [place for place in asked if place not in probes or str(probes[place]).partition(".")[0] not in found]
    if not missing:
        return []
    plain = render(value)
    if plain is None:
        return None
    return [
        place
        for place in missing
        if any(
            render(replaced(value, {place: other})) == plain
            for other in (_other(held[place]), *([] if place[-1:] == (NAME,) else [_ABSENT]))
        )
    ]


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return _TEXT.format(0)
