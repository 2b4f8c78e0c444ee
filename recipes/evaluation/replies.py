"""A generated reply taken apart: its thinking, its answer, and what is wrong with either; and the figures of many."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from flexmask.conversations.thinking import THINK_CLOSE, THINK_OPEN

# What a prompt may already hold of the reply's thinking: an opened block, or an empty one (enable_thinking=false).
_BEGUN = re.compile(rf"{re.escape(THINK_OPEN)}\s*({re.escape(THINK_CLOSE)}\s*)?\Z")


class Thinking(StrEnum):
    """How a reply thinks; every reply is the first of these that fits. What the prompt has begun of the block counts as
    the reply's own."""

    missing = "missing"  # does not begin with <think>: no tags, text in front of the block, or only a closing tag
    truncated = "truncated"  # begins with <think>, and no </think> follows
    doubled = "doubled"  # begins with a block, and has a further <think> or </think> inside or behind it
    empty = "empty"  # begins with its only block, which holds nothing but white space
    valid = "valid"  # begins with its only block, which holds text


@dataclass(frozen=True)
class Reply:
    """A generated message. `ended`: the model ended its turn, within the token limit."""

    thinking: str
    answer: str
    state: Thinking
    ended: bool
    closed: bool  # the answer was reached: no thinking block was left open

    @property
    def finished(self) -> bool:
        return self.ended and self.closed


def parse_reply(prompt: str, generated: str, ended: bool) -> Reply:
    """The reply to `prompt`: `generated` is its text without the end of the turn.

    The answer starts behind the first `</think>`, or is everything where there are no tags.
    """
    text = thinking_begun(prompt).strip() + generated
    before, opening, inside = text.partition(THINK_OPEN)
    if not opening or THINK_CLOSE in before:
        before, inside = "", text
    thinking, closing, behind = inside.partition(THINK_CLOSE)
    if closing:
        answer = behind
    elif opening:
        answer = before
    else:
        thinking, answer = "", text
    if not text.lstrip().startswith(THINK_OPEN):
        state = Thinking.missing
    elif not closing:
        state = Thinking.truncated
    elif THINK_OPEN in inside or THINK_CLOSE in behind:
        state = Thinking.doubled
    else:
        state = Thinking.valid if thinking.strip() else Thinking.empty
    return Reply(thinking.strip(), answer.strip(), state, ended, closed=bool(closing or not opening))


def thinking_begun(prompt: str) -> str:
    """What the prompt holds of the reply's thinking: "", an opened block or a whole, empty one."""
    begun = _BEGUN.search(prompt)
    return begun.group() if begun else ""


@dataclass(frozen=True)
class ChatTurn:
    """One reply beside what the data has in its place.

    turn: counts assistant messages from 0. asked: the messages behind the answer before, as text. expects_thinking: the
    data's own turn thinks, and the prompt has not closed the block. thinking_tokens: of the reply's thinking, without
    tags. correct: None where the matcher has nothing to compare; a reply that is not finished is never correct.
    thinking_correct: the same of the thinking, None where it is not judged. follows: whether the answer follows from
    changed thinking; None where that was not tried (`recipes.evaluation.probes`).
    """

    turn: int
    asked: str
    reply: Reply
    expected: str
    expects_thinking: bool
    thinking_tokens: int
    correct: bool | None
    thinking_correct: bool | None = None
    follows: bool | None = None

    @property
    def thinking(self) -> str:
        return self.reply.thinking

    @property
    def answer(self) -> str:
        return self.reply.answer

    @property
    def thinks_as_expected(self) -> bool:
        """Valid thinking where the data thinks, none where it does not."""
        if self.expects_thinking:
            return self.reply.state is Thinking.valid
        return self.reply.state in (Thinking.empty, Thinking.missing)


@dataclass(frozen=True)
class ChatResult:
    """A conversation as it was chatted with `history` "own" or "teacher"; `messages` is what the last turn was asked on
    and the message behind it. `unasked` has the reason for each turn of the data that was not asked, by turn.
    `succeeded` is what its environment says; None without one."""

    name: str
    history: str
    messages: tuple[dict[str, Any], ...]
    turns: tuple[ChatTurn, ...]
    unasked: dict[int, str]
    succeeded: bool | None = None

    @property
    def correct(self) -> bool | None:
        """Every turn was asked and none is wrong; None where the matcher had nothing to compare in any."""
        compared = [turn.correct for turn in self.turns if turn.correct is not None]
        return all(compared) and not self.unasked if compared else None


def figures(results: Sequence[ChatResult]) -> dict[str, Any]:
    """What chats say of a model; a share is None where there is nothing to take it of.

    answer_accuracy          replies that are right, of those that the matcher could compare
    success_rate             chats whose environment says that the task was done (`recipes.evaluation.environments`)
    conversation_accuracy    conversations with every turn asked and right, of those with a comparable reply
    replies_ended            replies that ended their turn within the token limit
    thinking_valid, _empty, _missing, _truncated, _doubled    replies that think so (see `Thinking`); together 1
    thinking_expected        replies whose turn in the data thinks
    thinking_as_expected     replies with valid thinking where the data thinks, and with none where it does not
    thinking_tokens_mean, thinking_tokens_median    tokens of the thinking, of the replies in which there is any
    chatted_conversations, chatted_replies          how many were asked
    thinking_by_turn         replies in a valid block, where the data thinks, by their number among the assistant
                             messages; a model that was trained on histories with thinking stops thinking in later ones
    thinking_accuracy        replies whose thinking is right, of those whose thinking is judged
    answers_follow_thinking  replies whose answer follows from changed thinking, of the probed_replies
    uncompared_replies       replies with nothing in the data that the matcher could compare
    unasked_turns            turns that the data trains and that were not asked (tool calls, prompts too long)
    """
    asked = [result for result in results if result.turns]
    turns = [turn for result in results for turn in result.turns]
    lengths = [turn.thinking_tokens for turn in turns if turn.thinking_tokens]
    return {
        "answer_accuracy": _share([turn.correct for turn in turns]),
        "success_rate": _share([result.succeeded for result in results]),
        "conversation_accuracy": _share([result.correct for result in asked]),
        "replies_ended": _share([turn.reply.ended for turn in turns]),
        **{f"thinking_{state}": _share([turn.reply.state is state for turn in turns]) for state in Thinking},
        "thinking_expected": _share([turn.expects_thinking for turn in turns]),
        "thinking_as_expected": _share([turn.thinks_as_expected for turn in turns]),
        "thinking_tokens_mean": statistics.mean(lengths) if lengths else None,
        "thinking_tokens_median": statistics.median(lengths) if lengths else None,
        "thinking_by_turn": _thinking_by_turn(turns),
        "thinking_accuracy": _share([turn.thinking_correct for turn in turns]),
        "answers_follow_thinking": _share([turn.follows for turn in turns]),
        "probed_replies": sum(turn.follows is not None for turn in turns),
        "chatted_conversations": len(asked),
        "chatted_replies": len(turns),
        "uncompared_replies": sum(turn.correct is None for turn in turns),
        "unasked_turns": sum(len(result.unasked) for result in results),
    }


def _thinking_by_turn(turns: Sequence[ChatTurn]) -> dict[str, str] | None:
    """{"0": "58 of 60", ...}"""
    found: dict[int, list[bool]] = {}
    for turn in turns:
        if turn.expects_thinking:
            found.setdefault(turn.turn, []).append(turn.reply.state is Thinking.valid)
    return {str(number): f"{sum(valid)} of {len(valid)}" for number, valid in sorted(found.items())} or None


def _share(values: Sequence[bool | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
