"""The validated conversation: what every later stage starts from.

`Conversation.from_record` translates the formats that people have (chat messages, inline `<think>`, ShareGPT)
into one: messages as Hugging Face chat templates take them, thinking in `reasoning_content`. It alters no
text except where it takes inline thinking out of `content`; whatever it cannot translate is an error that
names the conversation and the message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    **{role: role for role in ROLES},
}
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
MESSAGE_KEYS = {
    "system": {"role", "content", "name"},
    "developer": {"role", "content", "name"},
    "user": {"role", "content", "name"},
    "assistant": {"role", "content", "name", "reasoning_content", "tool_calls", "train"},
    "tool": {"role", "content", "name", "tool_call_id"},
}
# Keys of a record that change what the template renders and that are not read from it. Any other key beside the
# messages (an id, a source, a score) describes the conversation and is left alone.
UNSUPPORTED_RECORD_KEYS = ("functions", "documents", "images", "videos", "audios", "chat_template_kwargs")
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
        tools, and may have `train: false` to stay out of the loss. No assistant text contains `<think>` or
        `</think>`.
    tools: the function schemas that the template shows, or None.
    template_kwargs: arguments of the chat template for this conversation (`{"enable_thinking": False}`), over those
        of the run; or None.

    Raises ValueError naming the conversation, the message index (from 0), the value found and what to do.
    """

    name: str
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] | None = None
    template_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError(f"{self.name}: the conversation is empty; give it at least one assistant message")
        for index, message in enumerate(self.messages):
            _check_message(message, f"{self.name}: message {index}")
        if self.messages[0]["role"] == "assistant":
            raise ValueError(
                f"{self.name}: message 0 is an assistant message, and nothing comes before it that it could answer; "
                "remove it, or put a user message first"
            )
        if all(message["role"] != "assistant" for message in self.messages):
            roles = ", ".join(message["role"] for message in self.messages)
            raise ValueError(f"{self.name}: no assistant message to learn from (roles: {roles}); remove it")
        check_template_kwargs(self.template_kwargs, f"{self.name}: template_kwargs")

    @classmethod
    def from_record(cls, record: Mapping[str, Any], name: str) -> Conversation:
        """The conversation in one JSON object.

        Accepted: `messages` or `conversations` (not both), a list of `{"role", "content"}` or of ShareGPT's
        `{"from", "value"}` (human, gpt, observation, or a role name); optional `tools` (a list, or the same
        as a JSON string) and `system` (a string, put first as system message). A key whose value is null
        counts as absent, because tables fill missing keys with null. A list of text parts as content is
        joined.

        Thinking is read from `reasoning_content`, `reasoning` or `thinking`, or from one `<think>...</think>`
        at the start of the content, split as Qwen3's chat template splits it: newlines around the thinking
        and before the answer are removed. Thinking that is empty or white space is no thinking. A lone
        `</think>` is refused: it may be an answer whose opening tag was in the prompt, or a damaged one, and
        only the author knows.
        """
        if not isinstance(record, Mapping):
            raise ValueError(f"{name}: a conversation is a JSON object, not {_shown(record)}")
        for key in UNSUPPORTED_RECORD_KEYS:
            if record.get(key):
                raise ValueError(f"{name}: {key!r} beside the messages is not supported; remove it")
        messages = [
            _translate(message, f"{name}: message {index}") for index, message in enumerate(_messages(record, name))
        ]
        system = record.get("system")
        if system is not None:
            if messages and messages[0].get("role") == "system":
                raise ValueError(f"{name}: both 'system' and a first system message; keep one")
            messages.insert(0, {"role": "system", "content": system})
        return cls(name=name, messages=tuple(messages), tools=_tools(record.get("tools"), name))


def check_template_kwargs(kwargs: Any, where: str) -> None:
    """Raise ValueError unless `kwargs` is None or maps names to values, none of them an argument that rendering sets
    itself."""
    if kwargs is None:
        return
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise ValueError(
            f'{where} is {_shown(kwargs)}, not names with values, for instance {{"enable_thinking": false}}'
        )
    if taken := [key for key in RENDERING_ARGUMENTS if key in kwargs]:
        raise ValueError(f"{where} has {taken[0]!r}, which rendering sets itself; remove it")


def _messages(record: Mapping[str, Any], name: str) -> Sequence[Any]:
    """The list of messages in `record`, under whichever of the two keys it has."""
    present = [key for key in ("messages", "conversations") if record.get(key) is not None]
    if len(present) != 1:
        found = "both 'messages' and 'conversations'" if present else f"keys {sorted(map(str, record))}"
        raise ValueError(f"{name}: found {found}; a conversation has exactly one of 'messages', 'conversations'")
    messages = record[present[0]]
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise ValueError(f"{name}: {present[0]!r} is {_shown(messages)}, not a list of messages")
    return messages


def _tools(tools: Any, name: str) -> tuple[dict[str, Any], ...] | None:
    """Function schemas, given as a list or (as tables store them) as the JSON text of a list."""
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}: 'tools' is a string that is not JSON ({error}); give a list") from error
    if tools is None or tools == [] or tools == ():
        return None
    if not isinstance(tools, Sequence) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"{name}: 'tools' is {_shown(tools)}, not a list of function schemas")
    return tuple(tools)


def _translate(message: Any, where: str) -> dict[str, Any]:
    """One message of any accepted format as a chat-template message; `_check_message` judges the result."""
    if not isinstance(message, Mapping):
        raise ValueError(f"{where}: a message is a JSON object, not {_shown(message)}")
    message = {key: value for key, value in message.items() if value is not None}
    if "from" in message or "value" in message:
        message = _from_sharegpt(message, where)
    if message.get("tool_calls") == []:
        del message["tool_calls"]
    message["content"] = _joined(message.get("content"), where, optional="tool_calls" in message)
    if message.get("role") == "assistant":
        _collect_thinking(message, where)
    return message


def _from_sharegpt(message: dict[str, Any], where: str) -> dict[str, Any]:
    mixed = [key for key in ("role", "content") if key in message]
    if mixed:
        raise ValueError(f"{where}: 'from'/'value' and {mixed[0]!r} in one message; keep one pair")
    speaker = message.pop("from", None)
    if speaker == "function_call":
        raise ValueError(f"{where}: 'from' is 'function_call'; write it as an assistant message with 'tool_calls'")
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        known = ", ".join(SHAREGPT_ROLES)
        raise ValueError(f"{where}: unknown 'from' {_shown(speaker)}; known: {known}")
    text = {"content": message.pop("value")} if "value" in message else {}
    return {"role": SHAREGPT_ROLES[speaker], **text, **message}


def _joined(content: Any, where: str, optional: bool) -> Any:
    """Content as one string; a list of `{"type": "text", "text": ...}` parts is joined without separator."""
    if content is None and optional:
        return ""  # a message that only calls tools
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"{where}: content part {_shown(part)} is not text; only text can be trained on")
    return "".join(part["text"] for part in content)


def _collect_thinking(message: dict[str, Any], where: str) -> None:
    """Move all forms of thinking of an assistant message into `reasoning_content`, in place."""
    found: dict[str, str] = {}
    for key in REASONING_KEYS:
        if key not in message:
            continue
        thinking = message.pop(key)
        if not isinstance(thinking, str):
            raise ValueError(f"{where}: {key!r} is {_shown(thinking)}, not a string")
        found[key] = thinking
    content = message["content"]
    if isinstance(content, str) and (THINK_OPEN in content or THINK_CLOSE in content):
        found["<think> in content"], message["content"] = split_inline_thinking(content, where)
    found = {place: thinking for place, thinking in found.items() if thinking.strip()}
    if len({thinking.strip("\n") for thinking in found.values()}) > 1:
        raise ValueError(f"{where}: contradicting thinking in {' and '.join(map(repr, found))}; keep one")
    if found:
        message["reasoning_content"] = next(iter(found.values()))


def split_inline_thinking(content: str, where: str) -> tuple[str, str]:
    """(thinking, answer) of `<think>thinking</think>answer`, both without the newlines next to the tags.

    Raises ValueError unless there is exactly one pair of tags, in order, with only white space before it.
    """
    opened, closed = content.count(THINK_OPEN), content.count(THINK_CLOSE)
    if opened > closed:
        raise ValueError(
            f"{where}: <think> is not closed; the text was probably cut off. Close it where the answer "
            "begins, or remove the conversation"
        )
    if closed > opened:
        raise ValueError(
            f"{where}: </think> without <think> before it; if everything before it is thinking, put <think> "
            "at the start of the content, or move the thinking to 'reasoning_content'"
        )
    before, _, rest = content.partition(THINK_OPEN)
    thinking, _, answer = rest.partition(THINK_CLOSE)
    if THINK_CLOSE in before:
        raise ValueError(f"{where}: </think> stands before <think>; repair the message or remove it")
    if opened != 1:
        raise ValueError(f"{where}: {opened} pairs of <think> tags; one message has one thinking, before its answer")
    if before.strip():
        raise ValueError(
            f"{where}: text {_shown(before)} before <think>; thinking comes first. Move the text behind </think>"
        )
    return thinking.strip("\n"), answer.lstrip("\n")


def _check_message(message: Any, where: str) -> None:
    """Raise unless `message` is as the class docstring of Conversation says."""
    if not isinstance(message, dict):
        raise ValueError(f"{where}: a message is a dict, not {_shown(message)}")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{where}: unknown role {_shown(role)}; known roles: {', '.join(ROLES)}")
    for key in message:
        if key not in MESSAGE_KEYS[role]:
            allowed = ", ".join(sorted(MESSAGE_KEYS[role]))
            raise ValueError(
                f"{where}: unknown key {key!r} with value {_shown(message[key])} in a message of role "
                f"{role!r}; known: {allowed}. Remove or rename it"
            )
    _check_text(message.get("content"), "content", where)
    if role == "assistant":
        _check_assistant(message, where)


def _check_assistant(message: dict[str, Any], where: str) -> None:
    if "reasoning_content" in message:
        _check_text(message["reasoning_content"], "reasoning_content", where)
        if not message["reasoning_content"].strip():
            raise ValueError(f"{where}: 'reasoning_content' is empty; leave the key out when there is no thinking")
    for key in ("content", "reasoning_content"):
        for tag in (THINK_OPEN, THINK_CLOSE):
            if tag in message.get(key, ""):
                raise ValueError(f"{where}: {tag} inside {key!r}; give the thinking without tags")
    if "train" in message and not isinstance(message["train"], bool):
        raise ValueError(f"{where}: 'train' is {_shown(message['train'])}; give true or false")
    calls = message.get("tool_calls", [{}])
    if not isinstance(calls, list) or not calls or not all(isinstance(call, dict) for call in calls):
        raise ValueError(f"{where}: 'tool_calls' is {_shown(calls)}, not a list of calls")
    for call in calls:
        _check_arguments(call.get("function") or call, where)


def _check_arguments(function: Any, where: str) -> None:
    """Arguments are an object or its JSON text; which of the two a template gets is decided where it is rendered."""
    arguments = function.get("arguments", {}) if isinstance(function, dict) else None
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except json.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ValueError(
            f"{where}: the arguments of a tool call are {_shown(arguments)}; give an object, or its JSON text"
        )


def _check_text(text: Any, key: str, where: str) -> None:
    if not isinstance(text, str):
        found = "is missing" if text is None else f"is {_shown(text)}, not a string"
        raise ValueError(f'{where}: {key!r} {found}; give text (an empty answer is "")')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: {key!r} has half a surrogate pair ({text[error.start]!r}) at character {error.start}, "
            "which no tokenizer can encode; repair the text"
        ) from error


def _shown(value: Any, limit: int = 80) -> str:
    """A value for an error message: its type and its beginning."""
    text = repr(value)
    return f"{text if len(text) <= limit else text[:limit] + '...'} ({type(value).__name__})"
