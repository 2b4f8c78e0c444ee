"""Conversation -> text: for every assistant turn the prompt that inference shows, and what the model must generate.

Both come from the tokenizer's own chat template, rendered twice: the prompt is `messages[:k]` with the generation
prompt, the whole is `messages[:k + 1]`, and what the whole adds is generated. Nothing here knows a model family.
"""

from __future__ import annotations

import ast
import datetime
import functools
import json
import re
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import jinja2

from flexmask.conversations.conversation import REASONING_KEYS, Conversation
from flexmask.conversations.thinking import THINK_CLOSE, THINK_OPEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINK_BLOCK = "<think>\n{thinking}\n</think>\n\n"
AUTO = "auto"
# Texts and names to find out where a template puts what. A turn that holds one itself is refused as rewritten.
_PROBE, _THINKING, _ANSWER, _TOOL = "flexmask probe", "flexmask thinking", "flexmask answer", "flexmask_tool_{}"
# Exchanges that are always rendered in full, and how many later prompts are, of a conversation that is longer.
_IN_FULL, _CHECKED = 8, 3
# What a chat template raises on messages that it does not take.
_REJECTIONS = (jinja2.exceptions.TemplateError, ValueError, TypeError, AttributeError, LookupError)
_SEARCHES = ("startswith", "endswith", "find", "rfind", "index", "rindex", "count", "split", "rsplit")
_CLOCK = re.compile(r"""\bstrftime_now\s*\(\s*(?P<quote>["'])(?P<format>.*?)(?P=quote)\s*\)""")


@dataclass(frozen=True)
class TurnText:
    """`prompt`: the text of inference. `generated`: from behind it to the end-of-turn token, which it includes; the
    answer starts at character `answer_start` of it. `index` is the message, `turn` counts assistant messages."""

    turn: int
    index: int
    prompt: str
    generated: str
    answer_start: int


@functools.cache
def today() -> datetime.date:
    """One date for all renders of a process, however long it runs."""
    return datetime.date.today()


class ChatTemplate:
    """A tokenizer's chat template with everything that decides what it writes for one conversation.

    template_kwargs: arguments of the template; the conversation's own win. thinking_format: how thinking is generated
    where the template does not render it (see `render_passes`). date: what the template reads as the current date; None
    is `today()`.
    Raises ValueError for a tokenizer without a template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        conversation: Conversation,
        template_kwargs: dict[str, Any] | None = None,
        thinking_format: str | None = AUTO,
        date: datetime.date | None = None,
    ) -> None:
        self.name = conversation.name
        self.tokenizer = tokenizer
        self.thinking_format = thinking_format
        if thinking_format not in (None, AUTO) and thinking_format.count("{thinking}") != 1:
            raise ValueError(
                f'thinking_format={thinking_format!r}: must hold {{thinking}} once, or be "auto" or None (null)'
            )
        self.tools = list(conversation.tools) if conversation.tools else None
        self.source = _dated(tokenizer.get_chat_template(None, tools=self.tools), date or today())
        self.kwargs = {**(template_kwargs or {}), **(conversation.template_kwargs or {})}
        self.reads_thinking = reads_thinking(self.source)
        self.special = special_pattern(tokenizer)
        self.content_in_parts = _content_in_parts(tokenizer, self.source)
        calls = any("tool_calls" in message for message in conversation.messages)
        self.arguments_as_text = calls and _arguments_as_text(tokenizer, self.source)
        self.messages = [self.read(message) for message in conversation.messages]
        self.scaffolds: dict[bool, list[list[str]]] = {True: [], False: []}  # see `_Turn._located`

    def read(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message as this template reads it."""
        read = {key: value for key, value in message.items() if key != "weight"}
        if self.content_in_parts:
            read["content"] = _parts(read["content"])
        if "tool_calls" in read:
            read["tool_calls"] = [self._read_call(call) for call in read["tool_calls"]]
        return read

    def _read_call(self, call: dict[str, Any]) -> dict[str, Any]:
        """Arguments as the template takes them: an object, or for some (DeepSeek V3) its JSON text."""
        function = call.get("function") or call
        arguments = function.get("arguments")
        if self.arguments_as_text and isinstance(arguments, dict):
            function = function | {"arguments": json.dumps(arguments, ensure_ascii=False)}
        elif not self.arguments_as_text and isinstance(arguments, str):
            function = function | {"arguments": json.loads(arguments)}
        return call | {"function": function} if call.get("function") else function

    def render(self, messages: Sequence[dict[str, Any]], where: str, *, add_generation_prompt: bool) -> str:
        """The text that the template makes of messages as `read` gives them.

        Raises ValueError, beginning with `where`, when the template rejects them.
        """
        try:
            return _applied(
                self.tokenizer,
                messages,
                tools=self.tools,
                chat_template=self.source,
                add_generation_prompt=add_generation_prompt,
                **self.kwargs,
            )
        except _REJECTIONS as error:
            raise ValueError(f"{where}: the chat template rejects the conversation: {error}") from error


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
def reads_thinking(source: str) -> bool:
    """Whether a template's source mentions a message's thinking, under any name."""
    return any(re.search(rf"""[.'"]{key}\b""", source) for key in REASONING_KEYS)


@functools.lru_cache(maxsize=64)
def literal_text(source: str) -> str:
    """What a template can write by itself: the text outside its tags and the strings inside them."""
    tokens = jinja2.Environment().lex(source)
    return "\n".join(value for _, kind, value in tokens if kind in ("data", "string"))


@functools.lru_cache(maxsize=64)
def _looked_for(source: str) -> tuple[str, ...]:
    """The texts that a template looks for in others, by `in` or a method, but for single characters, and for words
    without a sign, which may as well be keys of a message."""
    tokens = [(kind, value) for _, kind, value in jinja2.Environment().lex(source) if kind != "whitespace"]
    found = set()
    for i, (kind, value) in enumerate(tokens):
        behind = [one for _, one in tokens[i + 1 : i + 3]]
        before = [one for _, one in tokens[max(0, i - 2) : i]]
        searched = behind[:1] == ["in"] or behind == ["not", "in"] or (before[1:] == ["("] and before[0] in _SEARCHES)
        if kind == "string" and searched and not (text := ast.literal_eval(value)).isidentifier() and len(text) > 1:
            found.add(text)
    return tuple(sorted(found))


def special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches every special token of a tokenizer, the longest first."""
    return _special_pattern(tokenizer, len(tokenizer), tuple(tokenizer.all_special_tokens))


@functools.lru_cache(maxsize=8)
def _special_pattern(tokenizer: PreTrainedTokenizerBase, size: int, special: tuple[str, ...]) -> re.Pattern[str]:
    found = {*special, *(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)}
    return re.compile("|".join(map(re.escape, sorted(found, key=len, reverse=True))) or r"(?!)")


def _parts(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}]


def _probes_shown(tokenizer: PreTrainedTokenizerBase, source: str, messages: list[dict[str, Any]]) -> int:
    """How often a template shows the probe that stands in `messages`; 0 where it rejects them."""
    try:
        return _applied(tokenizer, messages, chat_template=source).count(_PROBE)
    except _REJECTIONS:
        return 0


@functools.lru_cache(maxsize=64)
def _content_in_parts(tokenizer: PreTrainedTokenizerBase, source: str) -> bool:
    """Whether a template shows content only as a list of parts, as those of vision-language models may."""

    def shows(content: Any) -> bool:
        messages = [{"role": role, "content": content} for role in ("user", "assistant")]
        return _probes_shown(tokenizer, source, messages) == 2

    return not shows(_PROBE) and shows(_parts(_PROBE))


@functools.lru_cache(maxsize=64)
def _arguments_as_text(tokenizer: PreTrainedTokenizerBase, source: str) -> bool:
    """Whether a template takes the arguments of a tool call only as JSON text."""

    def takes(arguments: Any) -> bool:
        call = {"id": "000000000", "type": "function", "function": {"name": _PROBE, "arguments": arguments}}
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": _PROBE},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        return _probes_shown(tokenizer, source, messages) > 0

    return not takes({"a": 1}) and takes('{"a": 1}')


@dataclass(frozen=True)
class RenderedTurns:
    """`slow_turns` counts turns of long conversations whose prompt was rendered from the first message on."""

    texts: list[TurnText]
    slow_turns: int


def render_turns(conversation: Conversation, template: ChatTemplate) -> RenderedTurns:
    """The texts of every assistant turn, in time linear in the number of user messages.

    Raises ValueError as `render_passes` says.
    """
    assistant = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    where = {
        index: f"{conversation.name}: assistant turn {turn} (message {index})" for turn, index in enumerate(assistant)
    }
    prompts, slow_turns = _prompts(template, where)
    texts = []
    for turn, index in enumerate(assistant):
        one = _Turn(template, conversation.messages[index], where[index], prompts[index])
        texts.append(TurnText(turn, index, prompts[index].text, *one.generated()))
    return RenderedTurns(texts, slow_turns)


# ---- Prompts of long conversations from renders of short ones ----


@dataclass(frozen=True)
class _Prompt:
    """`text`: the prompt as inference shows it. `window`: messages that suffice to render the turn, all of them or
    those without the middle, and `window_text`, their own render."""

    text: str
    window: list[dict[str, Any]]
    window_text: str


def _prompts(template: ChatTemplate, where: dict[int, str]) -> tuple[dict[int, _Prompt], int]:
    """The prompt of each assistant message in `where`, and how many had to be rendered from the first message on
    although the conversation is long.

    Rendering all prefixes takes quadratic time. Behind `_IN_FULL` exchanges a prompt is put together instead: the
    conversation without its middle is rendered, and the middle comes from one render of everything. This is checked.
    On every turn, the text before the gap and the whole exchange behind it must be the same in both, so an exchange
    that is shown otherwise by its distance from the start is noticed one exchange later. No message may hold a text
    that the template looks for in messages (a switch such as "/think" may stand in the middle). And `_CHECKED` prompts,
    the last among them, are rendered in full as well. If one check fails, the template's history reaches further back
    than one exchange, and every turn is rendered in full. What they cannot see is a template that, far into a
    conversation and only while a message is the last one, writes what depends on the number of messages before it.
    """
    messages = template.messages

    def in_full(index: int) -> _Prompt:
        text = template.render(messages[:index], where[index], add_generation_prompt=True)
        return _Prompt(text, messages[:index], text)

    starts = _exchange_starts(messages)
    late = [index for index in where if bisect_right(starts, index) > _IN_FULL]
    spliced = _spliced_prompts(template, starts, late, where) if late else {}
    for index in late[:: -max(1, -(-len(late) // _CHECKED))] if spliced else ():
        full = in_full(index)
        if spliced[index].text != full.text:
            spliced = {}
            break
        spliced[index] = full
    return {index: spliced.get(index) or in_full(index) for index in where}, 0 if spliced else len(late)


def _spliced_prompts(
    template: ChatTemplate, starts: list[int], late: list[int], where: dict[int, str]
) -> dict[int, _Prompt]:
    """The prompts of messages `late`, each put together; empty where one of them does not fit."""
    if any(text in _text(message) for text in _looked_for(template.source) for message in template.messages):
        return {}
    messages = template.messages[: late[-1] + 1]
    everything = template.render(messages, where[late[-1]], add_generation_prompt=False)
    shown = [index for index in starts if index < len(messages)]
    at = _positions(template, messages, shown, everything, where[late[-1]])
    spliced = {}
    for index in late:
        prompt = _splice(template, everything, starts, at, index)
        if prompt is None:
            return {}
        spliced[index] = prompt
    return spliced


def _exchange_starts(messages: Sequence[dict]) -> list[int]:
    """Where a user speaks after somebody else: an exchange goes from one such message to the next."""
    roles = [None, *(message["role"] for message in messages)]
    return [i for i, role in enumerate(roles[1:]) if role == "user" and roles[i] != "user"]


def _positions(
    template: ChatTemplate, messages: Sequence[dict[str, Any]], starts: Sequence[int], everything: str, where: str
) -> dict[int, int]:
    """The character of `everything`, the render of `messages`, at which the content of each message in `starts` stands,
    white space in front of it included: some templates strip a content, others do not. Found by rendering probes in
    their places; empty where that gives another text around them."""
    probes = {f"flexmask exchange {index}.": index for index in starts}
    probed = list(messages)
    for probe, index in probes.items():
        probed[index] = messages[index] | {"content": _parts(probe) if template.content_in_parts else probe}
    scaffold = _split(template.render(probed, where, add_generation_prompt=False), probes)
    texts = {probe: _text(messages[index]) for probe, index in probes.items()}
    places = _match(scaffold, everything, texts) or {}
    at = {}
    for probe, place in places.items():
        start = place.start
        while start and everything[start - 1].isspace():
            start -= 1
        at[probes[probe]] = start
    return at


def _splice(
    template: ChatTemplate, everything: str, starts: list[int], at: dict[int, int], index: int
) -> _Prompt | None:
    """The prompt of message `index` from the messages before the second exchange and from the last exchange on; None
    where their render and that of `everything` do not fit together."""
    exchange = bisect_right(starts, index) - 1
    gap, behind, current = starts[1], starts[exchange - 1], starts[exchange]
    if not {gap, behind, current} <= at.keys():
        return None
    window = template.messages[:gap] + template.messages[behind:index]
    try:
        text = template.render(window, template.name, add_generation_prompt=True)
    except ValueError:  # perhaps only because of the gap; the full render says
        return None
    shared = everything[at[behind] : at[current]]
    if text[: at[gap]] != everything[: at[gap]] or not text.startswith(shared, at[gap]):
        return None
    return _Prompt(everything[: at[behind]] + text[at[gap] :], window, text)


# ---- What the model generates in one turn ----


@dataclass(frozen=True)
class _Place:
    """Characters `start:end` of a generated text."""

    start: int
    end: int


@dataclass(frozen=True)
class _Turn:
    template: ChatTemplate
    message: dict[str, Any]  # as the conversation has it
    where: str
    prompt: _Prompt

    @property
    def thinking(self) -> str:
        return self.message.get("reasoning_content") or ""

    def generated(self) -> tuple[str, int]:
        """The generated text, and the character of it at which the answer starts."""
        raw, opened = self._behind_prompt(self.message)
        places = self._located(raw)
        answer_end = max(place.end for place in places.values()) if places else 0
        cursor = places[_THINKING].end if _THINKING in places else 0
        moved = 0
        if opened or (self.thinking and _THINKING not in places):
            block = self._declared_thinking(raw, opened)
            raw = block.removeprefix(opened) + raw
            cursor = moved = len(block) - len(opened)
        # Gemma 4 writes calls in front of the content: they are part of the answer.
        spoken = {probe: place.start for probe, place in places.items() if probe != _THINKING}
        first = min(spoken, key=spoken.__getitem__, default=None)
        content_start = spoken[_ANSWER] + moved if first == _ANSWER else None
        answer_start = self._answer_start(raw, cursor, content_start)
        generated = self._closed(raw, max(answer_end + moved, answer_start))
        if self.prompt.text.rstrip().endswith(THINK_OPEN) and THINK_CLOSE not in generated:
            raise ValueError(
                f"{self.where}: the prompt opens a thinking block (it ends {self.prompt.text[-40:]!r}) that the "
                f"generated text {generated[:60]!r} never closes; declare how thinking is generated, "
                f"for instance thinking_format={THINK_BLOCK!r}"
            )
        return generated, answer_start

    def _behind_prompt(self, message: dict[str, Any]) -> tuple[str, str]:
        """What the whole render with `message` as this turn adds to the prompt, and the opening of a thinking block
        with which the prompt ends and that nothing behind it closes."""
        render, where, prompt = self.template.render, self.where, self.prompt.window_text
        messages = [*self.prompt.window, self.template.read(message)]
        whole = render(messages, where, add_generation_prompt=False)
        opening = self._opening(prompt)
        if whole.startswith(prompt):
            raw = whole[len(prompt) :]
            closing = (self._format() or "").partition("{thinking}")[2].strip()
            return raw, "" if THINK_CLOSE in raw or (closing and closing in raw) else opening
        if opening and whole.startswith(base := prompt[: -len(opening)]):
            return whole[len(base) :], opening
        # Some templates drop earlier thinking once the answer stands (gpt-oss, behind a tool result). At inference it
        # is in the prompt still. What is generated is then read from renders in which there is none to drop.
        bare = [{k: v for k, v in m.items() if k not in REASONING_KEYS} for m in messages[:-1]]
        if bare != messages[:-1]:
            bare_prompt = render(bare, where, add_generation_prompt=True)
            bare_whole = render([*bare, messages[-1]], where, add_generation_prompt=False)
            generated = bare_whole[len(bare_prompt) :]
            if bare_whole.startswith(bare_prompt) and whole.endswith(generated):
                return generated, ""
        raise ValueError(
            f"{where}: the chat template's generation prompt is not a prefix of the rendered turn, so what the "
            f"model must generate is not defined.\n{parting(prompt, whole)}"
        )

    def _located(self, raw: str) -> dict[str, _Place]:
        """Where thinking, answer and the names of tool calls stand in the rendered turn, by the probe of each.

        The turn is rendered once more with probes in their places, which gives the text around them. Searching for the
        texts themselves would find an answer "a" in a header, or a tool's name in another's. Turns without tool calls
        have few such scaffolds, so those of earlier turns are tried first. Thinking that is not rendered has no place.
        Raises ValueError where the template leaves out an answer or a call, or shows the answer otherwise.
        """
        content, calls = self.message["content"], self.message.get("tool_calls", [])
        names = {_TOOL.format(i): (call.get("function") or call).get("name") for i, call in enumerate(calls)}
        if any(not isinstance(name, str) for name in names.values()):
            raise ValueError(f"{self.where}: a tool call has no name; give each call function.name")
        texts = names | {_ANSWER: content} | ({_THINKING: self.thinking} if self.thinking else {})
        known = self.template.scaffolds[bool(self.thinking)] if not calls else []
        for scaffold in known:
            if (places := _match(scaffold, raw, texts)) is not None:
                return places
        for probed in self._probe_messages():
            scaffold = _split(self._behind_prompt(probed)[0], texts)
            self._check_rendered(scaffold, names, probed)
            if (places := _match(scaffold, raw, texts)) is not None:
                known.append(scaffold)
                return places
        raise ValueError(
            f"{self.where}: the chat template rewrites the turn: its content {content[:60]!r} does not stand as it is "
            f"in the generated text {raw[:160]!r}"
        )

    def _probe_messages(self) -> Iterator[dict[str, Any]]:
        """The message with probes for its texts; where the answer is empty, first with one for that as well."""
        calls = self.message.get("tool_calls", [])
        probed = dict(self.message)
        if calls:
            probed["tool_calls"] = [_renamed(call, _TOOL.format(i)) for i, call in enumerate(calls)]
        if self.thinking:
            probed["reasoning_content"] = _THINKING
        if self.message["content"].strip() or not calls:
            yield probed | {"content": _ANSWER}
        if not self.message["content"].strip():
            yield probed

    def _check_rendered(self, scaffold: list[str], names: dict[str, str], probed: dict[str, Any]) -> None:
        """Some templates show the first call only, or none beside content, or no content beside calls; such a turn
        would teach not to call, or not to answer."""
        for probe, name in names.items():
            if probe not in scaffold:
                raise ValueError(
                    f"{self.where}: {len(names)} tool calls, but the chat template does not render each: the call of "
                    f"{name!r} is missing from {''.join(scaffold)[-200:]!r}"
                )
        if probed["content"] == _ANSWER and _ANSWER not in scaffold:
            raise ValueError(
                f"{self.where}: the chat template rewrites the turn: its content {self.message['content'][:60]!r} does "
                f"not stand in the generated text {''.join(scaffold)[:160]!r}"
            )

    def _format(self) -> str | None:
        """The declared format of thinking. None: there is none, and none is guessed for a template that renders it."""
        if self.template.thinking_format != AUTO:
            return self.template.thinking_format
        return None if self.template.reads_thinking else THINK_BLOCK

    def _opening(self, prompt: str) -> str:
        """The opening of a declared thinking block, if the prompt ends with it."""
        opening = (self._format() or "").split("{thinking}")[0]
        return opening if opening and prompt.endswith(opening) else ""

    def _declared_thinking(self, generated: str, opened: str) -> str:
        declared, thinking = self._format(), self.thinking.strip()
        if declared is None:
            reads = (
                "reads thinking but does not render it here" if self.template.reads_thinking else "does not render it"
            )
            raise ValueError(
                f"{self.where}: has thinking, and the chat template {reads}; declare how it is generated, "
                f"for instance thinking_format={THINK_BLOCK!r}"
            )
        opening, prompt = declared.split("{thinking}")[0], self.prompt.text
        opened_otherwise = opening.strip() and not opened and prompt.rstrip().endswith(opening.strip())
        if THINK_OPEN in generated or THINK_CLOSE in generated or opened_otherwise:
            raise ValueError(
                f"{self.where}: the chat template opens a thinking block itself (prompt ends {prompt[-40:]!r}, "
                f"generated text starts {generated[:40]!r}) but does not render this turn's thinking "
                f"{thinking[:40]!r}; declare the generated part with thinking_format=..., or change template_kwargs=..."
            )
        warnings.warn(
            f"the chat template renders no thinking; it is trained as {declared!r} in front of the answer",
            stacklevel=2,
        )
        return declared.replace("{thinking}", thinking)

    def _answer_start(self, generated: str, cursor: int, content_start: int | None) -> int:
        """Where the answer starts, at or behind `cursor`, the end of the thinking; None: it starts with a call."""
        # No message text contains a tag (`guard_control_tokens`), so this one is the template's.
        closing = generated.find(THINK_CLOSE, cursor)
        if closing >= 0:
            cursor = closing + len(THINK_CLOSE)
        if cursor == 0:
            return 0  # all that is generated is the answer
        if content_start is not None and content_start >= cursor:
            return content_start
        return cursor + len(generated[cursor:]) - len(generated[cursor:].lstrip())

    def _closed(self, generated: str, answer_end: int) -> str:
        """The generated text up to its end-of-turn token: a special token behind the answer, with only white space
        behind it."""
        endings = []
        end = len(generated.rstrip())
        for match in reversed(list(self.template.special.finditer(generated, answer_end))):
            if generated[match.end() : end].strip():
                break
            endings.append(match)
            end = match.start()
        if len(endings) == 1 or (endings and self._shown_in_history(endings[0].group())):
            return generated[: endings[0].end()]
        if endings:
            # The last token ends the text, not the turn: no later message stands behind it (Phi-3).
            return generated[: endings[1].end()]
        return self._closed_by_the_next(generated, answer_end)

    def _behind_in_history(self) -> str:
        """What stands between this turn's answer, or the name in its last call, and the content of another message that
        follows; empty where the template refuses one."""
        following = {"role": "user", "content": _PROBE}
        if calls := self.message.get("tool_calls"):
            call = calls[0].get("function") or calls[0]
            following = {
                "role": "tool",
                "name": call.get("name"),
                "tool_call_id": calls[0].get("id"),
                "content": _PROBE,
            }
        probed = next(self._probe_messages())
        messages = [*self.prompt.window, *map(self.template.read, (probed, following))]
        try:
            followed = self.template.render(messages, self.where, add_generation_prompt=True)
        except ValueError:
            return ""
        probes = [_TOOL.format(i) for i in range(len(calls or ()))] or [_ANSWER]
        start, end = max(followed.find(probe) + len(probe) for probe in probes), followed.rfind(_PROBE)
        return followed[start:end] if end >= start else ""

    def _shown_in_history(self, token: str) -> bool:
        """Whether the token still stands behind the turn once another message follows."""
        behind = self._behind_in_history()
        return not behind or token in behind

    def _closed_by_the_next(self, generated: str, answer_end: int) -> str:
        """Some templates write nothing behind an answer: the token that opens the next message ends it (GLM-4)."""
        tail, behind = generated[answer_end:].rstrip(), self._behind_in_history()
        opening = self.template.special.search(behind, len(tail)) if behind.startswith(tail) else None
        if opening is None or behind[len(tail) : opening.start()].strip():
            raise ValueError(
                f"{self.where}: no special token ends the generated text (it closes with {generated[-40:]!r}) or opens "
                "the message behind it, so the model would never learn to stop; the chat template must close an "
                "assistant turn with a special token"
            )
        return generated[:answer_end] + tail + behind[len(tail) : opening.end()]


def _renamed(call: dict[str, Any], name: str) -> dict[str, Any]:
    if call.get("function"):
        return call | {"function": call["function"] | {"name": name}}
    return call | {"name": name}


def _split(text: str, probes: Iterable[str]) -> list[str]:
    """The text cut at its probes, which are pieces of their own."""
    longest_first = sorted(probes, key=len, reverse=True)
    return [piece for piece in re.split(f"({'|'.join(map(re.escape, longest_first))})", text) if piece]


def _match(scaffold: Sequence[str], raw: str, texts: dict[str, str]) -> dict[str, _Place] | None:
    """The first place of each probe of a scaffold in `raw`, if that is the scaffold with `texts` in their places: as
    they are or, as templates do, without white space or newlines at an end. None if it is something else."""
    places: dict[str, _Place] = {}
    at = 0
    for i, piece in enumerate(scaffold):
        if piece not in texts:
            if not raw.startswith(piece, at):
                return None
            at += len(piece)
            continue
        # Text that may follow: the next piece, or where that is a probe as well, anything.
        following = scaffold[i + 1] if i + 1 < len(scaffold) and scaffold[i + 1] not in texts else ""
        ends = (at + len(text) for text in _trimmed(texts[piece]) if raw.startswith(text + following, at))
        end = next((end for end in ends if i + 1 < len(scaffold) or end == len(raw)), None)
        if end is None:
            return None
        places.setdefault(piece, _Place(at, end))
        at = end
    return places if at == len(raw) else None


def _trimmed(text: str) -> list[str]:
    left = (text, text.lstrip("\n"), text.lstrip())
    return list(dict.fromkeys(one for start in left for one in (start, start.rstrip("\n"), start.rstrip())))


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else content[0]["text"]


def parting(left: str, right: str, around: int = 60) -> str:
    """Prompt and whole around the character where they part, for an error message."""
    at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    begin = max(0, at - around)
    return (
        f"  first difference at character {at}:\n"
        f"  prompt: ...{left[begin : at + around]!r}\n"
        f"  whole:  ...{right[begin : at + around]!r}"
    )
