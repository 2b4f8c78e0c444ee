"""Environments: what answers the tool calls of a chat, and says whether the task of it was done.

Without one, tools do not run and a conversation that calls them is not chatted. A generated data set may bring one: a
class that is made of a conversation, in `OF_KIND`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from flexmask import Conversation
from flexmask.conversations.reading import read_conversation
from recipes.configuration.schema import DataKind
from recipes.sources.parcels import Parcel

# Messages with calls in a row, after which a harness gives up.
MOST_CALLS = 10


class Environment(Protocol):
    """Made anew of each conversation that is chatted."""

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        """The result of a call. Raises ValueError, whose text the model is shown, where there is none."""

    def succeeded(self, answer: str) -> bool:
        """Whether the task is done, judged by the last answer of the model and not by the text of the data."""


OF_KIND: dict[DataKind, Callable[[Conversation], Environment]] = {DataKind.parcels: Parcel}


def act(message: dict[str, Any], environment: Environment) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(the message of a model with the calls in its text as `tool_calls`, a result for each of them).

    What opens a call and cannot be read as one stays text and has one result, the error.
    """
    try:
        # Behind a question, because a conversation does not begin with an answer. Thinking is taken apart already.
        question = {"role": "user", "content": "-"}
        read = read_conversation({"messages": [question, message]}, "the reply", thinking_tags=None).messages[-1]
    except ValueError as error:
        return message, [_error(error)]
    results = []
    for call in read.get("tool_calls", ()):
        try:
            result = environment.call(call["function"]["name"], call["function"]["arguments"])
            results.append({"role": "tool", "content": result})
        except ValueError as error:
            results.append(_error(error))
    return read, results


def same_calls(message: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether two messages call the same functions with the same arguments, in the same order; or none."""
    one, other = ([call["function"] for call in some.get("tool_calls", ())] for some in (message, expected))
    return one == other


def _error(error: ValueError) -> dict[str, Any]:
    return {"role": "tool", "content": f"error: {error}"}
