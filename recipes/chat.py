"""Evaluation by chatting: the model answers each turn on the history that inference would show it.

User turns come from the data, answers from the model. Each generated message goes back into the history with its
thinking in `reasoning_content`, and the chat template decides what later turns see of it. So a wrong answer early
on harms the later turns that need it, as it would a real user.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from flexmask.chat_template import ChatTemplate
from flexmask.conversation import THINK_CLOSE, THINK_OPEN, Conversation


@dataclass(frozen=True)
class ChatTurn:
    """One generated turn beside what the data expects.

    `finished` is False where the model did not end its turn within the token limit or did not close its thinking;
    such a turn is never correct.
    """

    thinking: str
    answer: str
    expected: str
    finished: bool

    @property
    def correct(self) -> bool:
        return self.finished and self.answer == self.expected.strip()


@dataclass(frozen=True)
class ChatResult:
    """A conversation as the model had it: `messages` is the whole chat with the model's own answers."""

    name: str
    messages: tuple[dict[str, Any], ...]
    turns: tuple[ChatTurn, ...]

    @property
    def correct(self) -> bool:
        return all(turn.correct for turn in self.turns)


def answer_accuracy(results: Sequence[ChatResult]) -> float:
    """Share of turns answered exactly right, over the turns of all conversations."""
    turns = [turn for result in results for turn in result.turns]
    return sum(turn.correct for turn in turns) / len(turns)


def conversation_accuracy(results: Sequence[ChatResult]) -> float:
    """Share of conversations in which every turn is right."""
    return sum(result.correct for result in results) / len(results)


def accuracy_by_turn(results: Sequence[ChatResult]) -> list[float]:
    """Share of right answers at turn 0, 1, ... over the conversations that are that long."""
    longest = max(len(result.turns) for result in results)
    at = [[result.turns[i].correct for result in results if len(result.turns) > i] for i in range(longest)]
    return [sum(correct) / len(correct) for correct in at]


def chat(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    max_new_tokens: int,
    batch_size: int,
    template_kwargs: dict[str, Any] | None = None,
    date: datetime.date | None = None,
) -> list[ChatResult]:
    """Chat through `conversations`, greedily; results stand in the same order.

    Turns run in lockstep: turn k of `batch_size` conversations is one left-padded `generate` call. An assistant
    message with `train: false` is shown as it stands and not asked for. `template_kwargs` goes to the chat
    template (for instance `{"enable_thinking": False}`), `date` is what a template that writes the date shows (None:
    today). The model's attention implementation, mode and generation
    config are as before afterwards, also after an error.

    Raises ValueError for no conversations, a conversation that expects tool calls, a tokenizer without a chat
    template or end-of-sequence token.
    """
    if not conversations:
        raise ValueError("chat needs at least one conversation, got none")
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat_template; set one, or use a chat model's tokenizer")
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token, so no turn could end; set tokenizer.eos_token")
    chats = [_Chat(one, ChatTemplate(tokenizer, one, template_kwargs, date=date)) for one in conversations]
    with _ready_to_generate(model):
        while waiting := [one for one in chats if one.waiting]:
            # Prompts of about one length share a batch, so that little of it is padding.
            prompts = {id(one): one.prompt() for one in waiting}
            waiting.sort(key=lambda one: len(prompts[id(one)]))
            for start in range(0, len(waiting), batch_size):
                batch = waiting[start : start + batch_size]
                texts = [prompts[id(one)] for one in batch]
                replies = _generate(model, tokenizer, texts, max_new_tokens)
                for one, text, (reply, ended) in zip(batch, texts, replies, strict=True):
                    one.take(parse_reply(reply, ended, thinking_opened=text.rstrip().endswith(THINK_OPEN)))
    return [one.result() for one in chats]


def parse_reply(reply: str, ended: bool, *, thinking_opened: bool = False) -> tuple[str, str, bool]:
    """Generated text -> (thinking, answer, finished); the answer starts behind the first `</think>`.

    thinking_opened: the prompt itself ended in `<think>`, so the reply starts inside the thinking.
    """
    thinking, closing, answer = reply.partition(THINK_CLOSE)
    if closing:
        return thinking.strip().removeprefix(THINK_OPEN).strip(), answer.strip(), ended
    if thinking_opened or reply.lstrip().startswith(THINK_OPEN):
        return reply.strip().removeprefix(THINK_OPEN).strip(), "", False
    return "", reply.strip(), ended


@dataclass
class _Chat:
    """A conversation under way: `messages` so far, and where in the data the next expected answer stands."""

    conversation: Conversation
    template: ChatTemplate
    messages: list[dict[str, Any]] = field(default_factory=list)
    turns: list[ChatTurn] = field(default_factory=list)
    next: int = 0

    def __post_init__(self) -> None:
        self._show_until_asked()

    @property
    def waiting(self) -> bool:
        return self.next < len(self.conversation.messages)

    def prompt(self) -> str:
        messages = [self.template.read(message) for message in self.messages]
        return self.template.render(messages, self.conversation.name, add_generation_prompt=True)

    def take(self, reply: tuple[str, str, bool]) -> None:
        thinking, answer, finished = reply
        expected = self.conversation.messages[self.next]["content"]
        self.turns.append(ChatTurn(thinking, answer, expected, finished))
        message = {"role": "assistant", "content": answer}
        self.messages.append(message | {"reasoning_content": thinking} if thinking else message)
        self.next += 1
        self._show_until_asked()

    def _show_until_asked(self) -> None:
        for message in self.conversation.messages[self.next :]:
            if message["role"] == "assistant" and message.get("train", True):
                if message.get("tool_calls"):
                    raise ValueError(
                        f"{self.conversation.name}: chatting runs no tools, and message {self.next} calls one"
                    )
                return
            self.messages.append({key: value for key, value in message.items() if key != "train"})
            self.next += 1

    def result(self) -> ChatResult:
        return ChatResult(self.conversation.name, tuple(self.messages), tuple(self.turns))


@contextmanager
def _ready_to_generate(model: PreTrainedModel) -> Iterator[None]:
    """Plain attention with a growing cache and no dropout, whatever the model was trained with."""
    attention, training = model.config._attn_implementation, model.training
    try:
        model.set_attn_implementation("sdpa")
        model.eval()
        yield
    finally:
        model.set_attn_implementation(attention)
        model.train(training)


@torch.inference_mode()
def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int
) -> Iterable[tuple[str, bool]]:
    """For each prompt the generated text up to the end of the turn, and whether that end was reached."""
    ends = _end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    width = max(map(len, ids))
    # Padded by hand: this must not depend on the tokenizer's own padding side.
    input_ids = torch.tensor([[pad] * (width - len(row)) + row for row in ids], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=model.device)
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(ends), pad_token_id=pad, use_cache=True
    )
    output = model.generate(input_ids=input_ids, attention_mask=mask, generation_config=settings)
    for row in output[:, width:].tolist():
        end = next((i for i, token in enumerate(row) if token in ends), None)
        yield tokenizer.decode(row[:end], skip_special_tokens=False), end is not None


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """What ends a turn: the tokenizer's end of sequence and whatever the model's generation config adds."""
    own = model.generation_config.eos_token_id
    own = [] if own is None else [own] if isinstance(own, int) else own
    return {tokenizer.eos_token_id, *own}
