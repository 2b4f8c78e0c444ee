"""What stands beside the messages of a record: system text, tools, arguments of the template, switches; and what of the
keys only describes the conversation. Each function takes out of `left`, the keys that nothing has read so far, what it
reads; errors begin with `name`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flexmask.conversations.calls import read_tools
from flexmask.conversations.formats.answered import is_message
from flexmask.conversations.messages import joined_text
from flexmask.conversations.values import is_empty, parse_json, shown

Left = dict[Any, Any]
SYSTEM_KEYS = ("system", "system_prompt", "instructions")
TOOL_KEYS = ("tools", "tool_defs", "functions")
TEMPLATE_KEYS = {"enable_thinking": bool, "reasoning_effort": str}
SWITCHES = {"on": True, "off": False, "true": True, "false": False}
# Keys that change what the template renders and that are not read from records.
UNSUPPORTED_KEYS = ("documents", "images", "videos", "audios")
# Keys beside the messages that only describe the conversation, by their names or by a part of them.
DESCRIBING_KEYS = frozenset(
    "id uuid idx index source sources dataset data_source subset split category categories domain topic topics subject "
    "task type tags language lang locale license url title author user user_id model generator "
    "version date time timestamp created modified metadata meta info extra extra_info score scores rating "
    "quality difficulty level reward verified correct length hash "
    "num_turns turns token_count usage temperature seed".split()
)
_DESCRIBING_PART = re.compile(
    r"^_|_(?:id|ids|idx|index|uuid|hash|source|count|score|scores|rating|tokens|length|time|date|at|url|metadata|meta|lang|"
    r"language|category|type|version|name|model|license)$|^(?:num|n|is|has)_"
)


def refuse_unsupported(left: Left, name: str) -> None:
    """Raise ValueError for a key that holds something which is not read but would be shown."""
    for key in UNSUPPORTED_KEYS:
        if left.pop(key, None):
            raise ValueError(f"{name}: {key!r} beside the messages is not supported; remove it")


def system_text(left: Left, name: str) -> str:
    """The system text, "" where there is none."""
    found = {key: joined_text(left.pop(key), name) for key in SYSTEM_KEYS if key in left}
    for key, text in found.items():
        if not isinstance(text, str):
            raise ValueError(f"{name}: {key!r} is {shown(text)}; give text")
    texts = {text: key for key, text in found.items() if text.strip()}
    if len(texts) > 1:
        raise ValueError(f"{name}: different texts in {' and '.join(map(repr, texts.values()))}; keep one")
    return next(iter(texts), "")


def tool_schemas(left: Left, name: str) -> tuple[dict[str, Any], ...] | None:
    """The schemas of `read_tools`, under whichever key they stand."""
    found = {key: read_tools(left.pop(key), key, name) for key in TOOL_KEYS if key in left}
    given = [(key, tools) for key, tools in found.items() if tools]
    for key, tools in given[1:]:
        if tools != given[0][1]:
            raise ValueError(f"{name}: different tools in {given[0][0]!r} and {key!r}; keep one")
    return given[0][1] if given else None


def template_kwargs(left: Left, name: str) -> dict[str, Any] | None:
    """The arguments of the chat template for this conversation; those that are null are none."""
    kwargs = left.pop("chat_template_kwargs", None)
    if isinstance(kwargs, str):
        kwargs = parse_json(kwargs, f"{name}: 'chat_template_kwargs'") if kwargs.strip() else None
    if kwargs is not None and not isinstance(kwargs, dict):
        raise ValueError(f"{name}: 'chat_template_kwargs' is {shown(kwargs)}, not names with values")
    found = {key: value for key, value in (kwargs or {}).items() if value is not None}
    for key, kind in TEMPLATE_KEYS.items():
        if key not in left:
            continue
        value = left.pop(key)
        if not isinstance(value, kind) or found.get(key, value) != value:
            expected = "true or false" if kind is bool else "text"
            raise ValueError(f"{name}: {key!r} is {shown(value)}; give {expected}, once")
        found[key] = value
    return found or None


def thinks(left: Left, name: str, kwargs: Mapping[str, Any]) -> bool | None:
    """Whether the record says that its answers are given with thinking or without; None where it says nothing. Raises
    ValueError where its arguments of the template, `kwargs`, say otherwise."""
    found = {key: switch for key in ("reasoning", "thinking") if (switch := as_switch(left.get(key))) is not None}
    for key in found:
        del left[key]
    if len(set(found.values())) > 1:
        raise ValueError(f"{name}: 'reasoning' and 'thinking' say different things; keep one")
    for key, switch in found.items():
        if other := [one for one in ("enable_thinking", "thinking") if kwargs.get(one) is (not switch)]:
            raise ValueError(f"{name}: {key!r} and the template argument {other[0]!r} say different things; keep one")
    return next(iter(found.values()), None)


def as_switch(value: Any) -> bool | None:
    """What "on" and "off" stand for; None for anything else."""
    return SWITCHES.get(str(value).lower()) if isinstance(value, (str, bool)) else None


def unread_keys(left: Mapping[Any, Any]) -> tuple[Any, ...]:
    """Those of the keys `left` that hold something and are not known to describe the conversation. An answer of a model
    describes nothing, whatever its key is called."""
    return tuple(
        key for key, value in left.items() if not is_empty(value) and (is_message(value) or not _describes(key))
    )


def _describes(key: Any) -> bool:
    return isinstance(key, str) and (key in DESCRIBING_KEYS or bool(_DESCRIBING_PART.search(key)))
