"""Which records are calls of one episode: what requests are logged under, line by line.

Calls that are one record share what they begin with and stand on one side of the held-out split. Nothing else follows
from it: each is trained behind its own prompt, whatever it is joined with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flexmask.conversations.values import brief, shown

AUTO = "auto"
# The first of them that a record of one call has, in itself, its request, or the `metadata` of either.
KEYS = ("episode_id", "trajectory_id", "rollout_id", "session_id", "conversation_id", "thread_id", "trace_id")
_UNJOINED = (
    "calls without the id of an episode are a record each, which computes anew what they share; name its key with "
    "data.episode_key"
)


def episode_of(
    record: Mapping[str, Any], name: str, key: str | Sequence[str] | None, *, is_single: bool
) -> tuple[str | None, list[str]]:
    """("key=id" of the episode that the calls of a record belong to, None where it has none; notes for the user).

    key: "auto" looks for KEYS in records that hold one call (is_single); one or several others, with dots for what
    stands inside, in all records of calls; None looks for nothing. Raises ValueError beginning with `name` for an id
    that is neither text nor a whole number.
    """
    if key is None or (key == AUTO and not is_single):
        return None, []
    keys = KEYS if key == AUTO else [key] if isinstance(key, str) else key
    holders = (record, record.get("request"), record.get("request_body"))
    places = [place for one in holders for place in (one, _inside(one, ["metadata"]))]
    for one in keys:
        for place in places:
            value = _inside(place, one.split("."))
            if value is None or value == "":
                continue
            if isinstance(value, bool) or not isinstance(value, (str, int)):
                raise ValueError(f"{name}: {one!r} is {shown(value)}; the id of an episode is text or a whole number")
            return f"{one}={value if isinstance(value, str) else brief(value)}", [
                f"calls of one {brief(one)} are one record (data.episode_key)"
            ]
    return None, [_UNJOINED]


def check_key(key: Any) -> None:
    """Raise ValueError unless `key` is what `episode_of` takes."""
    names = [] if key is None else [key] if isinstance(key, str) else key
    if not isinstance(names, Sequence) or not all(isinstance(one, str) and one for one in names):
        raise ValueError(f"episode_key={key!r}: must be auto, a key, a list of keys, or null, which joins nothing")


def _inside(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
