"""A tokenizer's chat template, with everything that decides what it writes for one conversation.

In: a conversation. Out: its messages as the template reads them, and renders of them. Nothing here knows a model
family: what a template takes is found by giving it to the template.
"""

from __future__ import annotations

import datetime
import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import jinja2
from jinja2 import nodes

from flexmask.conversations.conversation import REASONING_KEYS, Conversation
from flexmask.text.control_tokens import special_pattern

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a chat template raises on messages that it does not take.
_REJECTIONS = (
    jinja2.exceptions.TemplateError,
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError, MemoryError),
)
_CLOCK = re.compile(r"""\bstrftime_now\s*\(\s*(?P<quote>["'])(?P<format>.*?)(?P=quote)\s*\)""")
_SWITCHES = ("enable_thinking", "thinking")
# What every template is rendered with: no arguments that a person would set.
_RENDERED_WITH = {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}
_PROBE, _PART = "flexmask probe", "a part"


class RejectedError(ValueError):
    """A chat template does not take the messages."""


@functools.cache
def today() -> datetime.date:
    """One date for all renders of a process, however long it runs."""
    return datetime.date.today()


class ChatTemplate:
    """The template, its arguments and the messages of a conversation as it reads them, `messages`; `special` finds the
    special tokens of its tokenizer.

    template_kwargs: arguments of the template; those of the conversation, `own`, win. date: what the template reads as
    the current date; None is `today()`.
    Raises ValueError for a tokenizer without a template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        conversation: Conversation,
        template_kwargs: Mapping[str, Any] | None = None,
        date: datetime.date | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.tools = list(conversation.tools) if conversation.tools else None
        self.source = _dated(tokenizer.get_chat_template(None, tools=self.tools), date or today())
        switch = {} if conversation.thinks is None or self.switch is None else {self.switch: conversation.thinks}
        self.own = {**switch, **(conversation.template_kwargs or {})}
        self.kwargs = {**(template_kwargs or {}), **self.own}
        self.special = special_pattern(tokenizer)
        self.thinking = _thinking_of(tokenizer, self.source)
        self.content_in_parts = _content_in_parts(tokenizer, self.source)
        self._text_arguments = any("tool_calls" in message for message in conversation.messages) and _arguments_as_text(
            tokenizer, self.source
        )
        self.messages = [self.read(message) for message in conversation.messages]

    def read(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The message as this template reads it."""
        read = {key: value for key, value in message.items() if key != "weight"}
        thinking = read.pop("reasoning_content", None)
        if self.content_in_parts:
            read["content"] = _parts(read["content"])
        if thinking is not None:
            read |= _with_thinking(self.thinking or REASONING_KEYS[0], thinking, read["content"])
        if "tool_calls" in read and self._text_arguments:
            read["tool_calls"] = [_with_text_arguments(call) for call in read["tool_calls"]]
        return read

    def render(
        self, messages: Sequence[dict[str, Any]], where: str, /, *, add_generation_prompt: bool, **settings: Any
    ) -> str:
        """The text that the template makes of messages as `read` gives them; `settings` are over its own arguments.

        Raises RejectedError, beginning with `where`, when the template rejects them.
        """
        given = {"tools": self.tools, **self.kwargs, **settings}
        try:
            return _applied(
                self.tokenizer,
                messages,
                chat_template=self.source,
                add_generation_prompt=add_generation_prompt,
                **given,
            )
        except _REJECTIONS as error:
            raise RejectedError(f"{where}: the chat template rejects the conversation: {error}") from error

    @property
    def reads_thinking(self) -> bool:
        """Whether the template mentions a message's thinking, under any name."""
        return self.thinking is not None

    @property
    def switch(self) -> str | None:
        """The argument that switches thinking on and off, if the template has one."""
        return next((name for name in _SWITCHES if name in self.variables), None)

    def advice(self, right: Callable[[dict[str, Any]], bool]) -> str | None:
        """The argument of the template under which something is right, as advice that more may follow; None where no
        argument that it reads makes it so. `right` is given an argument by name, and may raise RejectedError."""
        reserved = _RENDERED_WITH | inspect.signature(self.tokenizer.apply_chat_template).parameters.keys()
        # What sounds like thinking first.
        for name in sorted(self.variables.keys() - reserved, key=lambda one: (not re.search("think|reason", one), one)):
            for value in (True, False, *self.variables[name]):
                try:
                    if not right({name: value}):
                        continue
                except RejectedError:
                    continue
                if name in self.own:
                    was, other = json.dumps(self.own[name]), json.dumps(value)
                    return f"the conversation itself gives {name!r} as {was}: switch it to {other} there, or "
                return f"set template_kwargs={json.dumps({name: value})}, or "
        return None

    @property
    def variables(self) -> Mapping[str, tuple[str, ...]]:
        """The names that the template reads, each with the texts that it is compared with."""
        return _variables(self.source)


def _applied(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], **settings: Any) -> str:
    """The text that a chat template makes of messages."""
    return cast(str, tokenizer.apply_chat_template(list(messages), tokenize=False, **settings))


@functools.lru_cache(maxsize=64)
def _dated(source: str, date: datetime.date) -> str:
    """The template with a fixed date in place of the clock (gpt-oss, Llama 3.2): renders of one run must agree.

    `strftime_now` is how transformers offers the clock to templates. Its version 5.23 lets no function in as an
    argument, so the calls are replaced in the source.
    """
    dated = _CLOCK.sub(lambda call: json.dumps(date.strftime(call["format"])), source)
    if re.search(r"\bstrftime_now\s*\(", dated):
        raise ValueError(
            "the chat template asks strftime_now for the date in a format that it computes, so that renders of one "
            "run may disagree; give it a template with a format in quotes"
        )
    return dated


@functools.lru_cache(maxsize=64)
def _thinking_of(tokenizer: PreTrainedTokenizerBase, source: str) -> str | None:
    """Where a template finds the thinking of a message: the key that it shows, or else the first that it mentions;
    `_PART`: in a part of the content. None: it mentions none."""
    mentioned = [key for key in REASONING_KEYS if re.search(rf"""[.'"]{key}\b""", source)]

    def shows(place: str) -> bool:
        turn = {"role": "assistant", "content": "4"}
        messages = [{"role": "user", "content": "2 + 2"}, turn | _with_thinking(place, _PROBE, turn["content"])]
        written = _written(tokenizer, source, messages)
        return _PROBE in written and "'type'" not in written  # a list of parts may also be written as it is in Python

    places = [*mentioned, *([_PART] if mentioned else [])]
    return next(filter(shows, places), mentioned[0] if mentioned else None)


def _with_thinking(place: str, thinking: str, content: Any) -> dict[str, Any]:
    """What of a message its thinking makes, where a template looks for it in `place`."""
    if place != _PART:
        return {place: thinking}
    parts = content if isinstance(content, list) else _parts(content)
    return {"content": [{"type": "thinking", "thinking": thinking}, *parts]}


@functools.lru_cache(maxsize=64)
def _variables(source: str) -> Mapping[str, tuple[str, ...]]:
    syntax = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    # transformers (5.23) marks what is generated by a tag of its own, which adds no text.
    parsed = syntax.parse(re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", source))
    # Also names that the template sets: it may do so only where they are not given.
    texts: dict[str, list[str]] = {one.name: [] for one in parsed.find_all(nodes.Name) if one.ctx == "load"}
    for compared in parsed.find_all(nodes.Compare):
        if isinstance(compared.expr, nodes.Name) and compared.expr.name in texts:
            constants = (one.value for operand in compared.ops for one in operand.find_all(nodes.Const))
            texts[compared.expr.name] += [value for value in constants if isinstance(value, str)]
    return {name: tuple(dict.fromkeys(found)) for name, found in texts.items()}


def _parts(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}]


def _written(tokenizer: PreTrainedTokenizerBase, source: str, messages: list[dict[str, Any]]) -> str:
    """What a template writes of messages; nothing where it rejects them."""
    try:
        return _applied(tokenizer, messages, chat_template=source)
    except _REJECTIONS:
        return ""


@functools.lru_cache(maxsize=64)
def _content_in_parts(tokenizer: PreTrainedTokenizerBase, source: str) -> bool:
    """Whether a template shows content only as a list of parts, as those of vision-language models may."""

    def shows(content: Any) -> bool:
        messages = [{"role": role, "content": content} for role in ("user", "assistant")]
        return _written(tokenizer, source, messages).count(_PROBE) == 2

    return not shows(_PROBE) and shows(_parts(_PROBE))


def _with_text_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """The call as some templates take it (DeepSeek V3): with the JSON text of its arguments."""
    function = call["function"]
    return call | {"function": function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


@functools.lru_cache(maxsize=64)
def _arguments_as_text(tokenizer: PreTrainedTokenizerBase, source: str) -> bool:
    """Whether a template takes the arguments of a tool call only as JSON text."""

    def takes(arguments: Any) -> bool:
        call = {"id": "000000000", "type": "function", "function": {"name": _PROBE, "arguments": arguments}}
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": _PROBE},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        return _PROBE in _written(tokenizer, source, messages)

    return not takes({"a": 1}) and takes('{"a": 1}')
