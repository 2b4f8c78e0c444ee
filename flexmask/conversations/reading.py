"""A record in any of the formats that people have -> a conversation, or an error that names what cannot be read.

The format is seen from the shape of the record, message by message (`flexmask.conversations.formats`). No text is
altered except where thinking, calls and results are taken out of it; whatever is not understood is an error, and what
is left out stands in the conversation's `unread` and `notes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flexmask.conversations import beside
from flexmask.conversations.calls import calls_in_text, read_calls, refuse_unread_calls
from flexmask.conversations.conversation import (
    REASONING_KEYS,
    Conversation,
    check_message,
    check_weight,
)
from flexmask.conversations.formats import (
    agentic,
    alpaca,
    answered,
    anthropic,
    glaive,
    harmony,
    hermes,
    mistral,
    openai_chat,
    prompt_completion,
    responses,
    sharegpt,
)
from flexmask.conversations.messages import ENCRYPTED, LISTS, join_pieces, joined_text, plain, refuse_other_keys
from flexmask.conversations.nulls import (
    ARGUMENTS,
    FILLED,
    TRAINED,
    VALUES,
    arguments_hold_null,
    filled_by_table,
    holds_null,
    without_undeclared_nulls,
)
from flexmask.conversations.parameters import typed
from flexmask.conversations.thinking import AUTO as AUTO
from flexmask.conversations.thinking import KNOWN, Tags, split_thinking, tags_of
from flexmask.conversations.values import (
    AS_CALLS,
    MOST_NESTED,
    difference,
    is_empty,
    parse_json,
    shown,
    without_nulls,
)

TOKEN_KEYS = ("input_ids", "prompt_ids", "completion_ids", "token_ids", "prompt_token_ids")
FORMATS = (sharegpt, anthropic, responses, agentic)  # what none of them fits is a chat message
RECORD_FORMATS = (alpaca, prompt_completion)
CALL_FORMATS = (hermes, glaive, mistral)  # in the text of an answer
# Texts that are read though they are empty, as the content of a message is.
TEXTS = frozenset(("instruction", "input", "output", "prompt", "completion", "response"))
_UNCALLED = (
    "results of tools stand behind messages that call none; a call in the text of an answer, in a form that is not "
    "read, is trained as text"
)
_DISORDERED = (
    "results of tools stand in another order than the calls; many chat templates tell them apart by nothing else"
)
_CUT_OFF_NOTE = "answers that were cut off, as their finish_reason says, are trained as if they ended there"
_CUT_OFF = (("finish_reason", "length"), ("stop_reason", "max_tokens"), ("status", "incomplete"))
UNTYPED = "arguments of calls in XML whose type no tool schema declares are read as text"


def read_conversation(
    record: Mapping[str, Any], name: str, *, thinking_tags: str | Sequence[str] | None = AUTO
) -> Conversation:
    """The conversation in one record, which is left as it is.

    record: its messages stand in `messages` or `conversations`, as chat messages, ShareGPT turns, content blocks,
        Responses items or an agent's steps; or it is a prompt with its completion, or an instruction with its output.
        Beside them it may have a system text (`system`, `system_prompt`, `instructions`), tool schemas (`tools`,
        `tool_defs`, `functions`; a list or its JSON text), arguments of the template (`chat_template_kwargs`,
        `enable_thinking`, `reasoning_effort`), `reasoning` or `thinking` ("on", "off"), and a `weight` for all of its
        messages. A key whose value is null or empty counts as absent, but for a text, which may be empty.
    name: with which errors about it begin.
    thinking_tags: the delimiters of thinking inside the text of answers: "auto" knows those of many models and data
        sets, [opening, closing] are others, None reads no thinking from text. Thinking that is empty or white space is
        no thinking.

    Raises ValueError naming the conversation, the message (from 0, as the record has them), the value found and what
    to do.
    """
    try:
        return _Reading(record, name, tags_of(thinking_tags)).conversation()
    except RecursionError:
        raise ValueError(
            f"{name}: brackets stand inside brackets more than {MOST_NESTED} deep; simplify or remove it"
        ) from None


class _Reading:
    """One record under way: `left` are its keys that nothing has read so far."""

    def __init__(self, record: Mapping[str, Any], name: str, tags: Sequence[Tags]) -> None:
        if not isinstance(record, Mapping):
            raise ValueError(f"{name}: a conversation is a JSON object, not {shown(record)}")
        self.name, self.tags = name, tags
        self.left = {
            key: value for key, value in record.items() if not is_empty(value) or (key in TEXTS and value == "")
        }
        self.has_list = any(isinstance(record.get(key), (list, tuple)) for key in LISTS)
        self.notes: dict[str, None] = {}
        self.formats: dict[str, None] = {}

    def conversation(self) -> Conversation:
        """All of it. Raises ValueError as `read_conversation` says."""
        beside.refuse_unsupported(self.left, self.name)
        tools = beside.tool_schemas(self.left, self.name)
        raw = self._turns()
        if filled_by_table(tools, VALUES):
            tools = tuple(without_nulls(list(tools or ())))
            self._note(FILLED)
        if filled_by_table(raw, ARGUMENTS):
            if arguments_hold_null(raw):
                self._note(FILLED)
            raw = without_nulls(list(raw))
        messages = join_pieces(piece for index, one in enumerate(raw) for piece in self._pieces(one, index))
        messages = [message for message in messages if message["role"] != "system" or message["content"].strip()]
        if system := beside.system_text(self.left, self.name):
            if messages and messages[0]["role"] == "system" and messages[0]["content"] != system:
                raise ValueError(f"{self.name}: both 'system' and a first system message; keep one")
            if not messages or messages[0]["role"] != "system":
                messages.insert(0, {"role": "system", "content": system})
        tools = self._declared_tools(messages, tools)
        self._weigh(messages)
        for message in messages:
            for call in message.get("tool_calls", ()):
                self._settle(call, tools or ())
        self._check_order(messages)
        template_kwargs = beside.template_kwargs(self.left, self.name)
        thinks = beside.thinks(self.left, self.name, template_kwargs or {})
        return Conversation(
            name=self.name,
            messages=tuple(messages),
            tools=tools,
            template_kwargs=template_kwargs,
            thinks=thinks,
            format=" with ".join(self.formats),
            unread=beside.unread_keys(self.left),
            notes=tuple(self.notes),
        )

    def _note(self, text: str) -> None:
        self.notes[text] = None

    # ---- the messages ----

    def _turns(self) -> Sequence[Any]:
        """The messages as they stand in the record, whatever their format."""
        present = [key for key in LISTS if key in self.left]
        if len(present) > 1:
            raise ValueError(f"{self.name}: found both {present[0]!r} and {present[1]!r}; keep one")
        if present:
            messages = self.left.pop(present[0])
            if isinstance(messages, str) and messages.lstrip().startswith("["):
                messages = parse_json(messages, f"{self.name}: {present[0]!r}")
            if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
                raise ValueError(f"{self.name}: {present[0]!r} is {shown(messages)}, not a list of messages")
            return messages
        if ids := [key for key in TOKEN_KEYS if key in self.left]:
            raise ValueError(
                f"{self.name}: {ids[0]!r} are token ids, which are not read; give text or messages, or {AS_CALLS}"
            )
        found = next((one for one in RECORD_FORMATS if one.fits(self.left)), None)
        if found is None and self.has_list:  # which is empty
            return ()
        if found is None:
            raise ValueError(
                f"{self.name}: found keys {sorted(map(str, self.left))!s:.200}; a conversation has 'messages' or "
                "'conversations', or 'prompt' and 'completion', or 'instruction' and 'output'"
            )
        self.formats[found.NAME] = None
        turns = list(found.turns(self.left, self.name))
        read = found.keys(self.left)
        self.left = {key: value for key, value in self.left.items() if key not in read}
        if turns and isinstance(turns[-1], Mapping) and turns[-1].get("role") == "assistant":
            for key in REASONING_KEYS:  # of the one answer that there is
                if isinstance(self.left.get(key), str) and beside.as_switch(self.left[key]) is None:
                    thinking = self.left.pop(key)
                    if turns[-1].get(key) not in (None, "", thinking):
                        raise ValueError(
                            f"{self.name}: {key!r} of the record is not that of its last message; keep one"
                        )
                    turns[-1] = {**turns[-1], key: thinking}
        return turns

    def _pieces(self, raw: Any, index: int) -> Iterator[dict[str, Any]]:
        """The pieces of a message, checked, with thinking and calls in keys of their own."""
        where = f"{self.name}: message {index}"
        if not isinstance(raw, Mapping):
            raise ValueError(f"{where}: a message is a JSON object, not {shown(raw)}")
        if any(raw.get(key) == value for key, value in _CUT_OFF):
            self._note(_CUT_OFF_NOTE)
        message = plain(raw, where)
        if "function_call" in message and "tool_calls" in message:
            raise ValueError(f"{where}: both 'function_call' and 'tool_calls'; keep one")
        for key in ("function_call", "tool_calls"):
            if key in message:
                message["tool_calls"] = read_calls(message.pop(key), where, key)
        if "reasoning_details" in message:
            self._read_details(message, where)
        reader = next((one for one in FORMATS if one.fits(message)), openai_chat)
        if reader is not openai_chat or not self.formats:
            self.formats.pop(openai_chat.NAME, None)
            self.formats[reader.NAME] = None
        for piece in reader.pieces(message, where):
            if isinstance(piece, str):
                self._note(piece)
                continue
            results = [piece]
            for one in (hermes, glaive) if piece.get("role") in ("tool", "user") else ():
                if (found := one.results(piece)) != [piece]:
                    results, self.formats[one.NAME] = found, None
            for one in results:
                if one.get("role") == "assistant":
                    self._read_answer(one, where)
                elif "weight" in one:
                    if one.pop("weight"):
                        self._note("'weight' of a message that is not the assistant's changes nothing")
                is_none = one.get("role") in ("system", "developer") and one.get("content") in (None, "")
                if is_none:
                    one["content"] = ""
                partial = any(key in one for key in ("reasoning_content", "tool_calls"))
                check_message({"content": "", **one} if partial else one, where)
                if not is_none:
                    yield one

    def _read_answer(self, piece: dict[str, Any], where: str) -> None:
        """Move all forms of thinking into `reasoning_content` and calls into `tool_calls`, in place."""
        found: dict[str, str] = {}
        for key in (*REASONING_KEYS, "reasoning_details"):
            if key not in piece:
                continue
            thinking = joined_text(piece.pop(key), where)
            if not isinstance(thinking, str):
                raise ValueError(f"{where}: {key!r} is {shown(thinking)}, not a string")
            if thinking.strip():
                found[key] = self._bare(thinking)
        text = piece.get("content")
        if isinstance(text, str):
            if self.tags == KNOWN and harmony.fits(text):
                self.formats[harmony.NAME] = None
                channels = harmony.piece(text, where)
                if thinking := channels.pop("reasoning_content", ""):
                    found["the analysis channel"] = thinking
                calls = channels.pop("tool_calls", [])
                piece |= channels
            else:
                split = split_thinking(text, where, self.tags, has_thinking=bool(found))
                if split.note and not isinstance(text, agentic.CallText):
                    self._note(split.note)
                if split.thinking.strip():
                    found["the content"] = split.thinking
                calls = self._calls(piece, split.answer, where)
            if calls:
                given = piece.setdefault("tool_calls", calls)
                if [one["function"] for one in given] != [one["function"] for one in calls]:
                    raise ValueError(f"{where}: other calls in the text than in 'tool_calls'; keep one of the two")
        if len({thinking.strip("\n") for thinking in found.values()}) > 1:
            raise ValueError(f"{where}: contradicting thinking in {' and '.join(map(repr, found))}; keep one")
        if found:
            piece["reasoning_content"] = next(iter(found.values()))

    def _bare(self, thinking: str) -> str:
        """Thinking that is given beside the answer, without delimiters that stand around all of it."""
        for tags in self.tags:
            inside = thinking.strip()
            if inside.startswith(tags.open) and inside.endswith(tags.close):
                return inside.removeprefix(tags.open).removesuffix(tags.close).strip("\n")
        return thinking

    def _read_details(self, message: dict[str, Any], where: str) -> None:
        """OpenRouter's `reasoning_details` as text, in place; what is encrypted has none."""
        details = message.pop("reasoning_details")
        if not isinstance(details, list) or not all(isinstance(one, Mapping) for one in details):
            raise ValueError(f"{where}: 'reasoning_details' is {shown(details)}, not a list of objects")
        for one in details:
            refuse_other_keys(one, ("type", "text", "summary", "data"), where)
        texts = [one.get("text") or one.get("summary") or "" for one in details]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{where}: 'reasoning_details' is {shown(details)}, whose texts are no strings")
        if any(one.get("data") for one in details):
            self._note(ENCRYPTED)
        text = "".join(texts)
        # They come in pieces, which may have been joined in another way.
        same = [one for one in REASONING_KEYS if "".join(str(message.get(one)).split()) == "".join(text.split())]
        if text and not same:
            message["reasoning_details"] = text

    def _calls(self, piece: dict[str, Any], text: str, where: str) -> list[dict[str, Any]]:
        """The calls in the text of an answer, which is left with what stands before them."""
        all_of_it = isinstance(piece.pop("content"), agentic.CallText)
        before, calls = text, []
        for one in CALL_FORMATS:
            before, calls = one.calls(text, where)
            if calls:
                self.formats[one.NAME] = None
                break
        if all_of_it and not calls:
            return calls_in_text(text, where)
        if before or not all_of_it:
            refuse_unread_calls(before, where)
            piece["content"] = before
        return calls

    def _settle(self, call: dict[str, Any], tools: Sequence[dict[str, Any]]) -> None:
        """Arguments as the schema of the function has them, now that all schemas are known."""
        if not typed(call, tools):
            self._note(UNTYPED)
        declared = without_undeclared_nulls(call, tools)
        if declared != call["function"]["arguments"]:
            self._note(FILLED)
        call["function"]["arguments"] = declared
        if holds_null(declared):
            self._note(TRAINED)

    def _declared_tools(
        self, messages: list[dict[str, Any]], tools: tuple[dict[str, Any], ...] | None
    ) -> tuple[dict[str, Any], ...] | None:
        """The tools, with those of the system texts' `<tools>`, whose explanations go; so do texts that say no more."""
        for message in [one for one in messages if one["role"] == "system"]:
            text, declared = hermes.declared_tools(message["content"], self.name)
            if declared is None:
                continue
            here, beside_them = (
                {one["function"]["name"]: one for one in some} for some in (declared, tools or declared)
            )
            if differs := difference(here, beside_them):
                raise ValueError(
                    f"{self.name}: other tools beside the messages than in <tools>: they differ in {differs}; keep one "
                    "of the two"
                )
            tools = tools or declared
            self.formats[hermes.NAME] = None
            self._note(hermes.NOTE)
            message["content"] = text
            if not text:
                messages.remove(message)
        return tools

    def _check_order(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Note results that no turn sees, or that do not follow their calls. Raises ValueError where the answer to the
        last message stands beside the messages."""
        if messages and messages[-1]["role"] != "assistant":
            answered.refuse_unread(self.left, self.name, messages[-1]["role"])
            self._note("what stands behind the last assistant message is shown to no turn")
        calls: Sequence[Any] = ()
        waiting: list[Any] = []  # the ids of the calls that nothing has answered yet
        for message in messages:
            if message["role"] in ("user", "assistant"):
                calls = message.get("tool_calls", ())
                waiting = [call.get("id") for call in calls]
            elif message["role"] == "tool" and not calls:
                self._note(_UNCALLED)
            elif (identity := message.get("tool_call_id")) in waiting:
                if waiting[0] != identity:
                    self._note(_DISORDERED)
                waiting.remove(identity)

    def _weigh(self, messages: list[dict[str, Any]]) -> None:
        weight = self.left.pop("weight", 1)
        check_weight(weight, f"{self.name}: 'weight'")
        for message in messages if weight != 1 else ():
            if message["role"] == "assistant":
                message["weight"] = message.get("weight", 1) * weight
