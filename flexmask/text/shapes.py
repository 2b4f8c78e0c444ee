"""What a chat template leaves out of the schemas of tools and of the arguments of calls.

A template does the same to all that have one shape: the same keys around other texts and numbers. So each shape is
asked for once (leaves.py) and the answer remembered.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flexmask.text.forms import Forms
from flexmask.text.leaves import NAME, Place, places, replaced, unwritten
from flexmask.text.template import ChatTemplate, RejectedError

_MOST_SHAPES = 4096  # of one template, after which they are asked for anew


@functools.lru_cache(maxsize=64)
def _remembered(*template: Any) -> dict[Any, list[int] | None]:
    return {}


def _unwritten(
    template: ChatTemplate, key: Any, shape: Any, asked: Sequence[Place], render: Callable[[Any], str]
) -> list[int] | None:
    """Which of `asked` the template leaves out of a shape, by their indices; None where it does not take it."""

    def rendered(value: Any) -> str | None:
        try:
            return render(value)
        except RejectedError:
            return None

    known = _remembered(template.tokenizer, template.source, json.dumps(template.kwargs, sort_keys=True, default=str))
    key = (key, json.dumps(shape))
    if key not in known:
        if len(known) >= _MOST_SHAPES:
            known.clear()
        missing = unwritten(shape, asked, rendered)
        known[key] = None if missing is None else [i for i, place in enumerate(asked) if place in missing]
    return known[key]


# ---- The arguments of calls ----


def with_arguments(call: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The call with other arguments."""
    return call | {"function": call["function"] | {"arguments": arguments}}


def unwritten_arguments(
    forms: Forms, turn: Mapping[str, Any], calls: Sequence[dict[str, Any]]
) -> list[tuple[str, Place, Any]]:
    """What the template leaves out of the arguments of `calls` where it writes a turn: the function, the place in its
    arguments (NAME at the end: a name), and what is left out. `turn` is the message with probes for its texts."""
    told = [call["function"]["arguments"] for call in calls]
    shape = replaced(told, {place: _typical(value) for place, value in places(told) if place[-1] is not NAME})
    functions = [call["function"]["name"] for call in calls]

    def render(arguments: Any) -> str:
        given = [with_arguments(call, one) for call, one in zip(calls, arguments, strict=True)]
        return forms.render([*forms.context, forms.template.read({**turn, "tool_calls": given})])

    found = [(place, value) for place, value in places(told) if len(place) > 1]
    roles = (forms.whole, *(message["role"] for message in forms.history))
    beside = tuple(bool(turn.get(key)) for key in ("content", "reasoning_content"))
    missing: set[Place] = set()
    # Names apart from values: a template may do something of its own to an argument of some name.
    for names in (True, False):
        asked = [place for place, _ in found if (place[-1] is NAME) == names]
        if asked:
            key = ("arguments", names, roles, beside, *functions)
            missing |= {asked[i] for i in _unwritten(forms.template, key, shape, asked, render) or ()}
    return [(functions[place[0]], place[1:], value) for place, value in found if place in missing]


def _typical(value: Any) -> Any:
    """What is written as a value is: templates ask for its type, and whether it is true."""
    if isinstance(value, str) and value.strip():
        return "text"
    return type(value)(7) if isinstance(value, (int, float)) and not isinstance(value, bool) and value else value


# ---- The schemas of tools ----


def unwritten_of_tool(
    template: ChatTemplate, context: Sequence[dict[str, Any]], tool: dict[str, Any]
) -> list[tuple[Place, Any]]:
    """What the template leaves out of a tool's schema where it writes a prompt behind `context`, messages as it reads
    them; nothing where it does not write the tool there. Keywords are no matter, but the names of properties are."""
    known: dict[str, str] = {}
    typical = {
        place: known.setdefault(value, f"text{len(known)}") if isinstance(value, str) else _typical(value)
        for place, value in places(tool)
        if (_is_parameter(place) if place[-1] is NAME else place[-1] != "type" and (value or value == 0))
    }
    shape = replaced(tool, typical)
    # The shape has them in the same order.
    both = [
        (place, value, of_shape)
        for (place, value), (of_shape, _) in zip(places(tool), places(shape), strict=True)
        if (_is_parameter(place) if place[-1] is NAME else _says_something(tool, place, value))
    ]

    def render(one: Any) -> str:
        return template.render(context, "", add_generation_prompt=True, tools=[one])

    roles = ("tool", *(message["role"] for message in context))
    missing = set(_unwritten(template, roles, shape, [of_shape for *_, of_shape in both], render) or ())
    left_out = [(place, value) for i, (place, value, _) in enumerate(both) if i in missing]
    return [] if any(place[-1] == "name" and len(place) <= 2 for place, _ in left_out) else left_out


def _is_parameter(place: Place) -> bool:
    return len(place) > 2 and place[-3] == "properties"


def _says_something(tool: Any, place: Place, value: Any) -> bool:
    """Whether a value of a schema says more than what stands beside it."""
    beside = functools.reduce(lambda inner, key: inner[key], place[:-1], tool)
    if place[-1] == "type":
        return not any(
            key in beside for key in ({"object": "properties", "array": "items"}.get(str(value)), "function")
        )
    return value != {} and not (place[-1] == "required" and value == [])
