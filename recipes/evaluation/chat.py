"""Evaluation by chatting: the model answers each turn on a history as inference would show it.

User turns come from the data. With own history the answers before a turn are the model's: each generated message goes
back with its thinking in `reasoning_content`, and a context rule, where there is one, and the chat template decide what
later turns see of it. So a wrong answer early on harms the later turns that need it, as it would a real user. With
teacher history they are the data's, and every turn is asked on the history that it was trained on.

With an environment the model acts: its calls are carried out, the results go back, and it is asked again until it
answers without a call, which the next user message of the data follows. How often it calls is up to it.
"""

from __future__ import annotations

import datetime
import itertools
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flexmask.conversations.contexts import Rule, shown_by
from flexmask.conversations.conversation import Conversation
from flexmask.conversations.thinking import THINK_CLOSE
from flexmask.model.support import unbranched_layers
from flexmask.text.calls import Prompts
from flexmask.text.template import ChatTemplate, RejectedError
from recipes.configuration.schema import History
from recipes.evaluation.environments import MOST_CALLS, Environment, act, same_calls
from recipes.evaluation.generation import end_tokens, generate, ready_to_generate, text_of
from recipes.evaluation.judges import guarded_matcher, guarded_probe
from recipes.evaluation.matchers import Matcher, load_matcher
from recipes.evaluation.probes import Probe
from recipes.evaluation.replies import ChatResult, ChatTurn, Thinking, parse_reply, thinking_begun

_CALLS = "a turn calls a tool, and tools do not run here"
_CALLS_SOMEWHERE = f"{_CALLS}; evaluation.history=teacher asks the other turns of such a conversation"


def chat(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    max_new_tokens: int,
    batch_size: int,
    history: str = History.own,
    matcher: Matcher | None = None,
    thinking_matcher: Matcher | None = None,
    probe: Probe | None = None,
    environment: Callable[[Conversation], Environment] | None = None,
    template_kwargs: dict[str, Any] | None = None,
    date: datetime.date | None = None,
    rules: Sequence[Rule | None] | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> list[ChatResult]:
    """Chat through `conversations`, greedily; results stand in the same order.

    Turn k of up to `batch_size` conversations is one left-padded `generate` call, which stops at every token that ends
    a turn (`end_tokens`). An assistant message with `weight: 0` is shown as it stands and not asked for.
    `environment` makes the one in which a conversation's calls are carried out; with teacher history none are.
    `template_kwargs` goes to the chat template (for instance `{"enable_thinking": False}`), `date` is what a template
    that writes the date shows (None: today). `rules` has the context rule of each conversation
    (`flexmask.conversations.contexts`; None: what the template shows). `advance` is called with how many turns are
    done, asked or not. The model's attention implementation, mode and generation config are as before afterwards, also
    after an error.

    Nothing in a conversation raises: a turn that cannot be asked is in `ChatResult.unasked`, with one warning for each
    reason. With own history these are all turns of a conversation with a tool call, where no environment runs tools,
    and those from a prompt on that fills the model's positions or that the template rejects, or from calls on that do
    not end; with teacher history only the turns themselves. Where a matcher raises or does not say whether an answer is
    right, the answer counts as wrong, with a warning.

    Raises ValueError for a history that is neither "own" nor "teacher", and a tokenizer without a chat template, or
    where no token is known to end a turn.
    """
    if history not in (History.own, History.teacher):
        raise ValueError(f"history={str(history)!r}: write {str(History.own)!r} or {str(History.teacher)!r}")
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat_template; set one, or use a chat model's tokenizer")
    ends = end_tokens(model, tokenizer)
    errors: Counter[str] = Counter()
    chats = [
        _Chat(
            one,
            ChatTemplate(tokenizer, one, template_kwargs, date=date),
            History(history),
            guarded_matcher(matcher or load_matcher("exact"), errors),
            thinking_matcher and guarded_matcher(thinking_matcher, errors),
            rule,
            Prompts(one, tokenizer, template_kwargs, date, control_tokens=None),
            environment(one) if environment is not None and history == History.own else None,
        )
        for one, rule in zip(conversations, rules or [None] * len(conversations), strict=True)
    ]
    probe = probe and guarded_probe(probe, errors)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if unbranched_layers(model):
        # In batches transformers (5.23) generates something else with these. RWKV ignores the attention mask, so that
        # its state takes in the padding, and mixes the states of the prompts. MiniMax reads a padded prompt as it
        # should, but masks all of it for the tokens that follow.
        batch_size = 1
    with ready_to_generate(model) as plain:
        done = 0
        while waiting := [one for one in chats if one.waiting]:
            asked = [question for one in waiting if (question := one.question(tokenizer, max_new_tokens, positions))]
            for batch in _batches(asked, batch_size):
                replies = generate(plain, [question.ids for question in batch], batch[0].room, ends)
                written = [(text_of(tokenizer, reply), ended) for reply, ended in replies]
                follows: list[bool | None] = [None] * len(batch)
                if probe is not None:
                    follows = _follow(plain, tokenizer, batch, written, probe, positions, ends)
                for question, (text, ended), followed in zip(batch, written, follows, strict=True):
                    question.of.take(question.prompt, text, ended, tokenizer, followed)
                before, done = done, sum(one.done for one in chats)
                advance(done - before)
        advance(sum(one.done for one in chats) - done)
    _warn(chats, history, errors)
    return [one.result() for one in chats]


def turns_to_ask(conversation: Conversation) -> dict[int, int]:
    """The messages that a model is asked for, each with its number among the assistant messages."""
    assistant = [index for index, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    return {index: n for n, index in enumerate(assistant) if conversation.messages[index].get("weight", 1)}


@dataclass(frozen=True)
class _Question:
    """A prompt, and how many tokens its reply may have."""

    of: _Chat
    prompt: str
    ids: list[int]
    room: int


@dataclass
class _Chat:
    """A conversation under way: `messages` so far, and where in the data the next expected answer stands. `shown` is
    what the rule left of the first `asked` messages."""

    conversation: Conversation
    template: ChatTemplate
    history: History
    matcher: Matcher
    thinking_matcher: Matcher | None
    rule: Rule | None
    prompts: Prompts
    environment: Environment | None
    shown: tuple[dict[str, Any], ...] = ()
    asked: int = 0
    messages: list[dict[str, Any]] = field(default_factory=list)
    turns: list[ChatTurn] = field(default_factory=list)
    unasked: dict[int, str] = field(default_factory=dict)
    next: int = 0
    calls: int = 0  # messages with calls since the last user message

    def __post_init__(self) -> None:
        self.to_ask = turns_to_ask(self.conversation)
        acts = any(self._expected(index).get("tool_calls") for index in self.to_ask)
        if self.history == History.own and acts and self.environment is None:
            self._give_up(_CALLS_SOMEWHERE)
        else:
            self._show_until_asked()

    @property
    def waiting(self) -> bool:
        return self.next < len(self.conversation.messages)

    @property
    def done(self) -> int:
        """Turns of the data that were asked, or will not be."""
        return sum(index < self.next for index in self.to_ask)

    def question(
        self, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, positions: int | None
    ) -> _Question | None:
        """The next turn to ask; None where it cannot be asked, which is noted then."""
        try:
            messages = [self.template.read(message) for message in self._history()]
            prompt = self.template.render(messages, self.conversation.name, add_generation_prompt=True)
        except RejectedError as error:
            self._give_up(f"the chat template rejects the history ({error.__cause__ or error})")
            return None
        except ValueError as error:  # of the rule
            self._give_up(str(error))
            return None
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        room = max_new_tokens if positions is None else min(max_new_tokens, positions - len(ids))
        if room < 1:
            self._give_up(f"the prompt fills the model's {positions:,} positions")
            return None
        return _Question(self, prompt, ids, room)

    @property
    def expected(self) -> dict[str, Any]:
        """The data's message in the place of the next answer."""
        return self._expected(self.next)

    def take(
        self, prompt: str, generated: str, ended: bool, tokenizer: PreTrainedTokenizerBase, follows: bool | None = None
    ) -> None:
        """Note the reply to the last question; `follows`: whether its answer follows from changed thinking."""
        reply, expected = parse_reply(prompt, generated, ended), self.expected
        message: dict[str, Any] = {"role": "assistant", "content": reply.answer}
        results: list[dict[str, Any]] = []
        if self.environment is not None:
            message, results = act(message, self.environment)
        right = self.matcher(message["content"], expected["content"], self.messages)
        if self.environment is not None and not same_calls(message, expected):
            right = False
        thinks, thought = "reasoning_content" in expected and THINK_CLOSE not in thinking_begun(prompt), None
        if self.thinking_matcher is not None and thinks:
            thought = self.thinking_matcher(reply.thinking, expected["reasoning_content"], self.messages)
        turn = ChatTurn(
            turn=self.to_ask[self.next],
            asked=_behind_answer(self.messages),
            reply=reply,
            expected=expected["content"],
            expects_thinking=thinks,
            thinking_tokens=len(tokenizer(reply.thinking, add_special_tokens=False)["input_ids"]),
            correct=None if right is None else bool(right) and reply.finished,
            thinking_correct=None if thought is None else bool(thought) and reply.state is Thinking.valid,
            follows=follows,
        )
        self.turns.append(turn)
        if self.history == History.own:
            self.messages.append(message | {"reasoning_content": reply.thinking} if reply.thinking else message)
        else:
            self.messages.append(expected)
        if results:
            self._go_on_with(results)
        else:
            self._go_on_behind_answer()

    def _go_on_with(self, results: list[dict[str, Any]]) -> None:
        """Ask again behind results. Where the data has no more calls, its answer stays what is expected."""
        self.messages += results
        self.calls += 1
        if self.calls == MOST_CALLS:
            self._give_up(f"the model called tools {MOST_CALLS} times in a row")
        else:
            rest = range(self.next + 1, len(self.conversation.messages))
            of_question = itertools.takewhile(lambda index: self._expected(index)["role"] != "user", rest)
            self.next = next((index for index in of_question if index in self.to_ask), self.next)

    def _go_on_behind_answer(self) -> None:
        """Show the next question. In an environment it stands behind all that the data has of this one."""
        self.next += 1
        self.calls = 0
        while self.environment is not None and self.waiting and self._expected(self.next)["role"] != "user":
            self.next += 1
        self._show_until_asked()

    def _history(self) -> Sequence[dict[str, Any]]:
        """What the next assistant turn is shown of the messages before it. Raises ValueError where the rule does."""
        if self.rule is None:
            return self.messages
        self.shown = shown_by(self.rule, self.messages, "the context rule", self.shown, **self.prompts.abilities)
        self.asked = len(self.messages)
        return self.shown

    def _expected(self, index: int) -> dict[str, Any]:
        return self.conversation.messages[index]

    def _show_until_asked(self) -> None:
        while self.waiting:
            message = self._expected(self.next)
            if self.next in self.to_ask:
                if self.environment is not None or not message.get("tool_calls"):
                    return
                self.unasked[self.to_ask[self.next]] = _CALLS
            if message["role"] == "assistant":  # was asked for once, and what a harness cleared then stays so
                with suppress(ValueError):  # which the next turn that is asked meets again
                    self._history()
            self.messages.append(message)
            self.next += 1

    def _give_up(self, reason: str) -> None:
        """With own history there is nothing to go on with, with teacher history there is what the data says."""
        last = len(self.conversation.messages) if self.history == History.own else self.next + 1
        self.unasked |= {turn: reason for index, turn in self.to_ask.items() if self.next <= index < last}
        self.messages += self.conversation.messages[self.next : last] if self.history == History.teacher else ()
        self.next = last
        self._show_until_asked()

    def result(self) -> ChatResult:
        seen = [*self.shown, *self.messages[self.asked :]]
        messages = tuple({key: value for key, value in one.items() if key != "weight"} for one in seen)
        succeeded = None
        if self.environment is not None:
            last = self.turns[-1].reply if self.turns and not self.unasked else None
            succeeded = last is not None and last.finished and self.environment.succeeded(last.answer)
        return ChatResult(
            self.conversation.name, str(self.history), messages, tuple(self.turns), self.unasked, succeeded
        )


def _behind_answer(messages: Sequence[dict[str, Any]]) -> str:
    """The text of the messages behind the last one of the assistant; who says it, where that is not the user."""
    last = list(itertools.takewhile(lambda one: one["role"] != "assistant", reversed(messages)))[::-1]
    said = (one["content"] if one["role"] == "user" else f"{one['role']}: {one['content']}" for one in last)
    return "\n\n".join(said)


def _batches(questions: list[_Question], size: int) -> Iterator[list[_Question]]:
    """Prompts of about one length share a batch, so that little of it is padding; those near the end of the model's
    positions only with others that have as much room."""
    questions.sort(key=lambda one: len(one.ids))
    for _, alike in itertools.groupby(questions, key=lambda one: one.room):
        batch = list(alike)
        yield from (batch[start : start + size] for start in range(0, len(batch), size))


def _follow(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: Sequence[_Question],
    written: Sequence[tuple[str, bool]],
    probe: Probe,
    positions: int | None,
    ends: set[int],
) -> list[bool | None]:
    """Whether the model answers what follows from its own thinking after `probe` has changed it; None where that cannot
    be tried: no whole thinking, nothing in it to change, no room, or a turn that calls tools in the data."""
    found: list[bool | None] = [None] * len(batch)
    tried: dict[int, tuple[list[int], int, str]] = {}  # by place in the batch: tokens, room, the answer that follows
    for index, (question, (text, ended)) in enumerate(zip(batch, written, strict=True)):
        reply, expected = parse_reply(question.prompt, text, ended), question.of.expected
        if reply.state is not Thinking.valid or expected.get("tool_calls"):
            continue
        changed = probe(reply.thinking, expected["content"])
        if changed is None:
            continue
        thinking, answer = changed
        # Where the prompt has opened the block, the reply goes on in it. The tags may hold the same letters.
        before, _, behind = text[: text.index(THINK_CLOSE)].rpartition(reply.thinking)
        until_answer = f"{before}{thinking}{behind}{THINK_CLOSE}"
        ids = tokenizer(question.prompt + until_answer, add_special_tokens=False)["input_ids"]
        room = question.room if positions is None else min(question.room, positions - len(ids))
        if room > 0:
            tried[index] = ids, room, answer
    for room, alike in itertools.groupby(
        sorted(tried, key=lambda index: tried[index][1]), lambda index: tried[index][1]
    ):
        indices = list(alike)
        answers = generate(model, [tried[index][0] for index in indices], room, ends)
        for index, (reply_ids, ended) in zip(indices, answers, strict=True):
            of = batch[index].of
            right = of.matcher(text_of(tokenizer, reply_ids).strip(), tried[index][2], of.messages)
            found[index] = None if right is None else bool(right) and ended
    return found


def _warn(chats: Sequence[_Chat], history: str, errors: Counter[str]) -> None:
    """One warning for each reason why turns were not asked, and one for a matcher that raised."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for one in chats:
        for turn, reason in one.unasked.items():
            reasons[reason].append(f"{one.conversation.name}, turn {turn}")
    for reason, places in reasons.items():
        warnings.warn(
            f"chatting with {history} history: {len(places):,} turns were not asked: {reason} (first {places[0]})",
            stacklevel=3,
        )
    if errors:
        warnings.warn(
            f"a matcher or a probe failed on {errors.total():,} replies, which count as wrong or not tried; most often "
            f"{errors.most_common(1)[0][0]}",
            stacklevel=3,
        )
