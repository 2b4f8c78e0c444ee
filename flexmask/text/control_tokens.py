"""Control tokens: which texts a tokenizer reads as one, and the guard against them in messages."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jinja2

from flexmask.conversations.conversation import Conversation
from flexmask.conversations.thinking import THINK_CLOSE, THINK_OPEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


ZERO_WIDTH_SPACE = "\u200b"
# Stands where a control token of a message's text must be cut: letters, which no template writes in another way.
CUT = "flexmask_cut_"


def special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches every special token of a tokenizer, the longest first."""
    return _special_pattern(tokenizer, len(tokenizer), tuple(tokenizer.all_special_tokens))


@functools.lru_cache(maxsize=8)
def _special_pattern(tokenizer: PreTrainedTokenizerBase, size: int, special: tuple[str, ...]) -> re.Pattern[str]:
    found = {*special, *(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)}
    return re.compile("|".join(map(re.escape, sorted(found, key=len, reverse=True))) or r"(?!)")


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of the tokens that `special_pattern` finds in text."""
    return _special_ids(tokenizer, len(tokenizer), tuple(tokenizer.all_special_tokens))


@functools.lru_cache(maxsize=8)
def _special_ids(tokenizer: PreTrainedTokenizerBase, size: int, special: tuple[str, ...]) -> frozenset[int]:
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(index for index, token in added if token.special or token.content in special)


@functools.lru_cache(maxsize=64)
def literal_text(source: str) -> str:
    """What a template can write by itself: the text outside its tags and the strings inside them."""
    tokens = jinja2.Environment().lex(source)
    return "\n".join(value for _, kind, value in tokens if kind in ("data", "string"))


def guard_control_tokens(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, control_tokens: str, mark: str = ZERO_WIDTH_SPACE
) -> Conversation:
    """Refuse or escape control tokens and thinking tags in the texts of a conversation (see `render_conversation`): of
    messages, tools and arguments of the template. Escaped, they have `mark` behind their first character.

    Rendered naively such text would turn into control tokens: a user could end a turn, or a thought. As in
    transformers (5.23, `sanitize_control_tokens`) they are the special tokens and the other added tokens that the chat
    template writes (Qwen3's `<tool_call>`).
    """
    if control_tokens not in ("refuse", "escape"):
        raise ValueError(f'control_tokens="{control_tokens}": write "refuse" or "escape"')
    source = tokenizer.get_chat_template(None, tools=list(conversation.tools) if conversation.tools else None)
    control = _control_tokens(tokenizer, len(tokenizer), tuple(tokenizer.all_special_tokens), source)
    forbidden = control.pattern

    def guarded(value: Any, where: str) -> Any:
        if isinstance(value, Mapping):
            return {guarded(key, f"a key of {where}"): guarded(item, f"{where}.{key}") for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(guarded(item, f"{where}[{i}]") for i, item in enumerate(value))
        if not isinstance(value, str):
            return value
        if CUT in value:
            raise ValueError(
                f"{conversation.name}: {where} holds {CUT.rstrip('_')!r}, which marks cuts in texts; remove it"
            )
        found = forbidden.search(value)
        if found is None:
            if control.normalized and not control.normalized.isdisjoint(
                tokenizer(value, add_special_tokens=False)["input_ids"]
            ):
                raise ValueError(
                    f"{conversation.name}: {where} becomes a control token when the tokenizer normalizes it (lower "
                    f"case, full-width signs): {value[:80]!r}; remove it from the data"
                )
            return value
        if len(found.group()) == 1:
            raise ValueError(
                f'{conversation.name}: {where} contains the control token "{found.group()}", a single character that '
                "cannot be escaped; remove it from the data"
            )
        if control_tokens == "refuse":
            raise ValueError(
                f'{conversation.name}: {where} contains the control token "{found.group()}"; remove it from the '
                'data, or train on it as plain text with control_tokens="escape"'
            )
        while found is not None:  # an escaped token may leave a shorter one
            value = forbidden.sub(lambda token: f"{token.group()[0]}{mark}{token.group()[1:]}", value)
            found = forbidden.search(value)
        return value

    messages, tools = guarded(conversation.messages, "messages"), guarded(conversation.tools, "tools")
    kwargs = guarded(conversation.template_kwargs, "template_kwargs")
    return replace(conversation, messages=messages, tools=tools, template_kwargs=kwargs)


@dataclass(frozen=True)
class _ControlTokens:
    """`pattern` finds them in raw text; `normalized` are ids of those that a normalizer makes of other text as well."""

    pattern: re.Pattern[str]
    normalized: frozenset[int]


@functools.lru_cache(maxsize=8)
def _control_tokens(
    tokenizer: PreTrainedTokenizerBase, size: int, special: tuple[str, ...], source: str
) -> _ControlTokens:
    written = literal_text(source)
    control, normalized = {THINK_OPEN, THINK_CLOSE, *special}, set()
    for index, token in tokenizer.added_tokens_decoder.items():
        if token.special or (token.content in written and not token.content.isspace()):
            control.add(token.content)
            if token.normalized and tokenizer.backend_tokenizer.normalizer is not None:
                normalized.add(index)
    pattern = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))))
    return _ControlTokens(pattern, frozenset(normalized))
