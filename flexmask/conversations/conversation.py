"""The validated conversation: what every later stage starts from.

`flexmask.conversations.reading` makes one of a record in any of the formats that people have. Whatever the form below
does not hold is an error that names the conversation and the message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flexmask.conversations.calls import read_call, read_schema
from flexmask.conversations.values import brief, check_values, is_empty, shown

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
MESSAGE_KEYS = {
    "system": {"role", "content", "name"},
    "developer": {"role", "content", "name"},
    "user": {"role", "content", "name"},
    "assistant": {"role", "content", "name", "reasoning_content", "tool_calls", "weight"},
    "tool": {"role", "content", "name", "tool_call_id"},
}
_MOST_WEIGHT = 3e38  # of float32
# Arguments of `apply_chat_template` that are no arguments of the template, or that the conversation itself holds.
RENDERING_ARGUMENTS = (
    "conversation",
    "messages",
    "tools",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "return_tensors",
    "return_dict",
)


@dataclass(frozen=True)
class Conversation:
    """Messages in the form that `tokenizer.apply_chat_template` takes, checked when the object is made.

    name: where the conversation comes from, e.g. "train.jsonl:12"; every error about it begins with it.
    messages: one dict a message. `role` is one of ROLES and `content` a string (an answer may be empty). An
        assistant message has `reasoning_content` only if it has thinking, `tool_calls` only if it calls
        tools, and may have a `weight`, by which its loss is multiplied: 0 is context only, none is 1. The thinking
        stands in `reasoning_content` without tags around it; tags in `content` are text, which rendering guards.
        Calls may be given nested or flat, with an object or its JSON text as arguments; they are kept as
        `{"id"?, "type": "function", "function": {"name", "arguments"}}`, with an object.
    tools: the function schemas that the template shows, or None; nested or flat, and kept nested.
    template_kwargs: arguments of the chat template for this conversation (`{"enable_thinking": False}`), over those
        of the run; or None.
    thinks: whether the record says that its answers are given with thinking or without; None where it says nothing.
    format: the format that it was read from.
    unread: the keys of the record that nothing read, other than those known to describe it.
    notes: what reading did that whoever owns the data should know, a sentence a kind.

    Equal are those that say the same, whatever their format and notes.
    Raises ValueError naming the conversation, the message index (from 0), the value found and what to do.
    """

    name: str
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] | None = None
    template_kwargs: Mapping[str, Any] | None = None
    thinks: bool | None = None
    format: str = field(default="messages", compare=False)
    unread: tuple[str, ...] = field(default=(), compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError(f"{self.name}: the conversation is empty; give it at least one assistant message")
        for index, message in enumerate(self.messages):
            check_message(message, f"{self.name}: message {index}")
        if self.messages[0]["role"] == "assistant":
            raise ValueError(
                f"{self.name}: message 0 is an assistant message, and nothing comes before it that it could answer; "
                "remove it, or put a user message first"
            )
        if all(message["role"] != "assistant" for message in self.messages):
            roles = ", ".join(message["role"] for message in self.messages)
            raise ValueError(f"{self.name}: no assistant message to learn from (roles: {roles}); remove it")
        # The form is frozen for everybody but its maker.
        object.__setattr__(self, "messages", tuple(_with_calls(one, self.name) for one in self.messages))
        if self.tools:
            tools = tuple(read_schema(tool, f"{self.name}: tools") for tool in self.tools)
            object.__setattr__(self, "tools", tools)
        check_values(self.tools, f"{self.name}: tools")
        check_template_kwargs(self.template_kwargs, f"{self.name}: template_kwargs")


def _with_calls(message: dict[str, Any], where: str) -> dict[str, Any]:
    calls = message.get("tool_calls")
    return message | {"tool_calls": [read_call(call, where) for call in calls]} if calls else message


def check_template_kwargs(kwargs: Any, where: str) -> None:
    """Raise ValueError unless `kwargs` is None or maps names to values, none of them an argument that rendering sets
    itself."""
    if kwargs is None:
        return
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise ValueError(
            f'{where} is {shown(kwargs)}, not names with values, for instance {{"enable_thinking": false}}'
        )
    if taken := [key for key in RENDERING_ARGUMENTS if key in kwargs]:
        raise ValueError(f"{where} has {taken[0]!r}, which rendering sets itself; remove it")
    check_values(kwargs, where)


def check_message(message: Any, where: str) -> None:
    """Raise ValueError, beginning with `where`, unless `message` is as the docstring of Conversation says."""
    if not isinstance(message, dict):
        raise ValueError(f"{where}: a message is a dict, not {shown(message)}")
    role = message.get("role")
    if role is None:
        of_type = f" of the type {brief(message['type'])}" if "type" in message else ""
        keys = ", ".join(brief(key) for key, value in message.items() if not is_empty(value))
        raise ValueError(
            f"{where}: a message{of_type} without a role (its keys: {keys}); give it one of {', '.join(ROLES)}, or "
            "remove the conversation"
        )
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{where}: unknown role {shown(role)}; known roles: {', '.join(ROLES)}")
    for key in message:
        if key not in MESSAGE_KEYS[role]:
            allowed = ", ".join(sorted(MESSAGE_KEYS[role]))
            raise ValueError(
                f"{where}: unknown key {brief(key)} with value {shown(message[key])} in a message of role "
                f"{role!r}; known: {allowed}. Remove or rename it"
            )
    _check_text(message.get("content"), "content", where)
    if role == "assistant":
        _check_assistant(message, where)
    for key, value in message.items():
        check_values(value, f"{where}: {key!r}")


def _check_assistant(message: dict[str, Any], where: str) -> None:
    thinking = message.get("reasoning_content")
    if "reasoning_content" in message:
        _check_text(thinking, "reasoning_content", where)
        if not message["reasoning_content"].strip():
            raise ValueError(f"{where}: 'reasoning_content' is empty; leave the key out when there is no thinking")
    if "weight" in message:
        check_weight(message["weight"], f"{where}: 'weight'")
    if "tool_calls" in message:
        calls = message["tool_calls"]
        if not isinstance(calls, list) or not calls:
            raise ValueError(
                f"{where}: 'tool_calls' is {shown(calls)}, not a list of calls; leave it out without calls"
            )
        for call in calls:
            check_values(read_call(call, where), f"{where}: a tool call")


def check_weight(weight: Any, where: str) -> None:
    """Raise ValueError, beginning with `where`, unless `weight` is a finite number of at least 0."""
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not number or not 0 <= weight <= _MOST_WEIGHT:
        raise ValueError(f"{where} is {shown(weight)}; give 0 (context only), 1, or any other factor of the loss")


def _check_text(text: Any, key: str, where: str) -> None:
    if not isinstance(text, str):
        found = "is missing" if text is None else f"is {shown(text)}, not a string"
        raise ValueError(f'{where}: {key!r} {found}; give text (an empty answer is "")')
