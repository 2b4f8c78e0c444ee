"""Conversation -> text: for every assistant turn the prompt that inference shows, and what the model must generate.

Both come from the tokenizer's own chat template, rendered twice: the prompt is `messages[:k]` with the generation
prompt, the whole is `messages[:k + 1]`, and what the whole adds is generated. Nothing here knows a model family.
"""

import datetime
import functools
import json
import re
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from flexmask.conversation import REASONING_KEYS, THINK_CLOSE, THINK_OPEN, Conversation

THINK_BLOCK = "<think>\n{thinking}\n</think>\n\n"
AUTO = "auto"
_PROBE = "flexmask probe"
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

    template_kwargs: arguments of the template. thinking_format: how thinking is generated where the template does not
    render it (see `render_passes`). date: what the template reads as the current date; None is `today()`.
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
        self.tools = list(conversation.tools) if conversation.tools else None
        self.source = _dated(tokenizer.get_chat_template(None, tools=self.tools), date or today())
        self.kwargs = template_kwargs or {}
        self.reads_thinking = reads_thinking(self.source)
        self.special = special_pattern(tokenizer)
        self.content_in_parts = _content_in_parts(tokenizer, self.source)
        self.messages = [self.read(message) for message in conversation.messages]

    def read(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message as this template reads it."""
        read = {key: value for key, value in message.items() if key != "train"}
        if self.content_in_parts:
            read["content"] = _parts(read["content"])
        return read

    def render(self, messages: Sequence[dict[str, Any]], where: str, *, add_generation_prompt: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                tools=self.tools,
                chat_template=self.source,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **self.kwargs,
            )
        except (jinja2.exceptions.TemplateError, ValueError, TypeError, AttributeError, LookupError) as error:
            raise ValueError(f"{where}: the chat template rejects the conversation: {error}") from error


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


def special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches every special token of a tokenizer, the longest first."""
    return _special_pattern(tokenizer, len(tokenizer))


@functools.lru_cache(maxsize=8)
def _special_pattern(tokenizer: PreTrainedTokenizerBase, size: int) -> re.Pattern[str]:
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")


def _parts(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}]


@functools.lru_cache(maxsize=64)
def _content_in_parts(tokenizer: PreTrainedTokenizerBase, source: str) -> bool:
    """Whether a template shows content only as a list of parts, as those of vision-language models may."""

    def shows(content: Any) -> bool:
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
        try:
            return tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False).count(_PROBE) == 2
        except (jinja2.exceptions.TemplateError, ValueError, TypeError, AttributeError, LookupError):
            return False

    return not shows(_PROBE) and shows(_parts(_PROBE))


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

    Rendering all prefixes takes quadratic time. From the fourth user message on a prompt is put together instead: the
    conversation without its middle is rendered, and the middle comes from one render of everything. Two things are
    checked. On every turn, the text before the gap and the whole exchange behind it must be the same in both, so an
    exchange that is shown otherwise by its distance from the start is noticed one exchange later. And the prompts of
    the last turn, the one half way, a quarter, ... are rendered in full as well. If one check fails, the template's
    history reaches further back than one exchange, and every turn is rendered in full.
    """
    messages = template.messages

    def in_full(index: int) -> _Prompt:
        text = template.render(messages[:index], where[index], add_generation_prompt=True)
        return _Prompt(text, messages[:index], text)

    starts = _exchange_starts(messages)
    late = [index for index in where if bisect_right(starts, index) > 3]
    spliced = _spliced_prompts(template, starts, late, where) if late else {}
    checked = late if spliced else []
    while checked:
        if spliced[checked[-1]].text != in_full(checked[-1]).text:
            spliced = {}
            break
        checked = checked[: len(checked) // 2]
    return {index: spliced.get(index) or in_full(index) for index in where}, 0 if spliced else len(late)


def _spliced_prompts(
    template: ChatTemplate, starts: list[int], late: list[int], where: dict[int, str]
) -> dict[int, _Prompt]:
    """The prompts of messages `late`, each put together; empty where one of them does not fit."""
    everything = template.render(template.messages[: late[-1] + 1], where[late[-1]], add_generation_prompt=False)
    at = _content_positions(template.messages, everything)
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


def _content_positions(messages: Sequence[dict], text: str) -> dict[int, int]:
    """The character at which each message's content stands in a render, white space in front of it included: some
    templates strip a content, others do not. Messages that are not found are left out."""
    positions, cursor = {}, 0
    for index, message in enumerate(messages):
        content = _text(message).strip()
        at = text.find(content, cursor) if content else -1
        if at >= 0:
            positions[index] = len(text[cursor:at].rstrip()) + cursor
            cursor = at + len(content)
    return positions


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
class _Turn:
    template: ChatTemplate
    message: dict[str, Any]  # as the conversation has it
    where: str
    prompt: _Prompt

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Messages that suffice to render the turn, this one last."""
        return [*self.prompt.window, self.template.read(self.message)]

    def generated(self) -> tuple[str, int]:
        """The generated text, and the character of it at which the answer starts."""
        thinking = (self.message.get("reasoning_content") or "").strip()
        raw, opened = self._behind_prompt()
        cursor = 0
        if opened or (thinking and not self._renders_thinking(raw)):
            block = self._declared_thinking(thinking, raw)
            raw, cursor = block.removeprefix(opened) + raw, len(block) - len(opened)
        elif thinking:
            cursor = raw.find(thinking, _behind_opening(raw)) + len(thinking)
        answer_start = self._answer_start(raw, cursor)
        self._check_tool_calls(raw, cursor)
        return self._closed(raw, answer_start), answer_start

    def _behind_prompt(self) -> tuple[str, str]:
        """What the whole render adds to the prompt, and the opening of a thinking block that only the prompt shows."""
        render, where, messages, prompt = self.template.render, self.where, self.messages, self.prompt.window_text
        whole = render(messages, where, add_generation_prompt=False)
        if whole.startswith(prompt):
            return whole[len(prompt) :], ""
        opening = self._opening(prompt)
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

    def _format(self) -> str | None:
        """The declared format of thinking. None: there is none, and none is guessed for a template that renders it."""
        if self.template.thinking_format != AUTO:
            return self.template.thinking_format
        return None if self.template.reads_thinking else THINK_BLOCK

    def _opening(self, prompt: str) -> str:
        """The opening of a declared thinking block, if the prompt ends with it."""
        opening = (self._format() or "").split("{thinking}")[0]
        return opening if opening and prompt.endswith(opening) else ""

    def _renders_thinking(self, generated: str) -> bool:
        """Whether the template shows this turn's thinking; the answer may quote it, so finding it is not enough."""
        thinking, content = self.message["reasoning_content"].strip(), self.message["content"].strip()
        at = generated.find(thinking, _behind_opening(generated))
        if at < 0:
            return False
        if content and not self.message.get("tool_calls"):
            return generated.find(content, at + len(thinking)) >= 0
        without = {key: value for key, value in self.messages[-1].items() if key not in REASONING_KEYS}
        bare = self.template.render([*self.prompt.window, without], self.where, add_generation_prompt=False)
        return not bare.endswith(generated)

    def _declared_thinking(self, thinking: str, generated: str) -> str:
        declared = self._format()
        if declared is None:
            reads = (
                "reads thinking but does not render it here" if self.template.reads_thinking else "does not render it"
            )
            raise ValueError(
                f"{self.where}: has thinking, and the chat template {reads}; declare how it is generated with "
                f"thinking_format, for instance {THINK_BLOCK!r}"
            )
        opening, prompt = declared.split("{thinking}")[0], self.prompt.text
        opened_otherwise = (
            opening.strip() and not prompt.endswith(opening) and prompt.rstrip().endswith(opening.strip())
        )
        if THINK_OPEN in generated or opened_otherwise:
            raise ValueError(
                f"{self.where}: the chat template opens a thinking block itself (prompt ends {prompt[-40:]!r}, "
                f"generated text starts {generated[:40]!r}) but does not render this turn's thinking "
                f"{thinking[:40]!r}; declare the generated part with thinking_format, or change template_kwargs"
            )
        warnings.warn(
            f"the chat template renders no thinking; it is trained as {declared!r} in front of the answer",
            stacklevel=2,
        )
        return declared.replace("{thinking}", thinking)

    def _answer_start(self, generated: str, cursor: int) -> int:
        """Where the answer starts, at or behind `cursor`, the end of the thinking."""
        content = self.message["content"].strip()
        # No message text contains a tag (`guard_control_tokens`), so this one is the template's.
        closing = generated.find(THINK_CLOSE, cursor)
        if closing >= 0:
            cursor = closing + len(THINK_CLOSE)
        if not content:
            return cursor + len(generated[cursor:]) - len(generated[cursor:].lstrip())
        starts = [generated.find(text, cursor) for text in (self.message["content"], content)]
        if max(starts) < 0:
            raise ValueError(
                f"{self.where}: the chat template rewrites the turn: its content {content[:60]!r} does not stand in "
                f"the generated text {generated[cursor : cursor + 120]!r}"
            )
        if cursor == 0:
            return 0  # all that is generated is the answer
        return starts[0] if starts[0] >= 0 else starts[1]

    def _check_tool_calls(self, generated: str, cursor: int) -> None:
        """Some templates show the first call only, or none beside content; such a turn would teach not to call."""
        names = [(call.get("function") or call).get("name") for call in self.message.get("tool_calls", [])]
        for name in set(names):
            if not isinstance(name, str) or generated.count(name, cursor) < names.count(name):
                raise ValueError(
                    f"{self.where}: {len(names)} tool calls, but the chat template does not render each: function "
                    f"{name!r} stands {generated.count(str(name), cursor)} times in {generated[cursor:][-200:]!r}"
                )

    def _closed(self, generated: str, answer_start: int) -> str:
        """The generated text up to its end-of-turn token: a special token with only white space behind it."""
        endings = []
        end = len(generated.rstrip())
        for match in reversed(list(self.template.special.finditer(generated))):
            if generated[match.end() : end].strip():
                break
            endings.append(match)
            end = match.start()
        if len(endings) == 1 or (endings and self._shown_in_history(endings[0].group())):
            return generated[: endings[0].end()]
        if endings:
            # The last token ends the text, not the turn: no later message stands behind it (Phi-3).
            return generated[: endings[1].end()]
        return self._closed_by_the_next(generated, answer_start)

    def _followed(self) -> str:
        """The render in which another message, its content `_PROBE`, follows; empty where the template refuses it."""
        content = _parts(_PROBE) if self.template.content_in_parts else _PROBE
        following = {"role": "user", "content": content}
        if calls := self.message.get("tool_calls"):
            call = calls[0].get("function") or calls[0]
            following = {
                "role": "tool",
                "name": call.get("name"),
                "tool_call_id": calls[0].get("id"),
                "content": content,
            }
        try:
            return self.template.render([*self.messages, following], self.where, add_generation_prompt=True)
        except ValueError:
            return ""

    def _shown_in_history(self, token: str) -> bool:
        """Whether the token still stands behind the turn once another message follows."""
        followed = self._followed()
        return not followed or followed.count(token) > self.prompt.window_text.count(token)

    def _closed_by_the_next(self, generated: str, answer_start: int) -> str:
        """Some templates write nothing behind an answer: the token that opens the next message ends it (GLM-4)."""
        followed = self._followed()
        followed = followed[: max(followed.rfind(_PROBE), 0)]
        tail = generated[answer_start:].rstrip()[-40:]
        end = followed.rfind(tail) + len(tail) if tail and tail in followed else len(followed)
        opening = self.template.special.search(followed, end)
        if opening is None or followed[end : opening.start()].strip():
            raise ValueError(
                f"{self.where}: no special token ends the generated text (it closes with {generated[-40:]!r}) or opens "
                "the message behind it, so the model would never learn to stop; the chat template must close an "
                "assistant turn with a special token"
            )
        return generated.rstrip() + followed[end : opening.end()]


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else content[0]["text"]


def _behind_opening(generated: str) -> int:
    """Where to search for thinking: the letters of the opening tag are none of it."""
    return generated.find(THINK_OPEN) + len(THINK_OPEN) if THINK_OPEN in generated else 0


def parting(left: str, right: str, around: int = 60) -> str:
    """Prompt and whole around the character where they part, for an error message."""
    at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    begin = max(0, at - around)
    return (
        f"  first difference at character {at}:\n"
        f"  prompt: ...{left[begin : at + around]!r}\n"
        f"  whole:  ...{right[begin : at + around]!r}"
    )
