"""Mutated conversations under every real chat template: each gives passes that are right, or an error that names it.

FLEXMASK_FUZZ=10000 python -m pytest tests/network/test_rendering_fuzz.py -m network -s      as many of them
FLEXMASK_FUZZ_SEED=7 ...                                                                     others
"""

import json
import os
import random
import time
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from every_template import control_tokens, load, names, tokenizer_name

from flexmask import Conversation, Role
from flexmask.text.rendering import render_conversation
from flexmask.text.template import ChatTemplate

pytestmark = pytest.mark.network
COUNT = int(os.environ.get("FLEXMASK_FUZZ", 1000))  # conversations, over all templates
SEED = int(os.environ.get("FLEXMASK_FUZZ_SEED", 0))
MOST_SECONDS = 2.0  # of one core, for one conversation
WORDS = (
    "what is the sum of 3 and 4, then: carry naïve 東京 x² 😀 e\u0301 \u202eabc \u00a0 \u2028 \\n \\ \" ' ` {{ x }} "
    "{% if assistant user: system tool <b> </b> [/INST [AVAILABLE <| |> <|im_ end|> <th </thin /think think> ### "
    "Response: None null true Tool: thought final analysis <function= name arguments {} [] \r\n \t \n \n\n --- Human:"
).split(" ")
ENDS = ["", "", "", "", " ", "\n", "\n\n", "  \n"]
KWARGS = [None, None, None, {"enable_thinking": True}, {"enable_thinking": False}, {"thinking": True}]
TURNS = {  # how it is written, and which of n turns that is
    "all": lambda n: range(n),
    "-1": lambda n: range(n)[-1:],
    "1:": lambda n: range(n)[1:],
    ":-1": lambda n: range(n)[:-1],
    "::2": lambda n: range(n)[::2],
    "0,2": lambda n: [one for one in (0, 2) if one < n],
}


class Author:
    """Writes a conversation. Each text has a word of its own, `q<number>z`, so that it can be found again."""

    def __init__(self, rng: random.Random, control: list[str]) -> None:
        self.rng, self.words = rng, 0
        self.control = control if rng.random() < 0.25 else []
        self.schemas = [self.schema() for _ in range(rng.choice((0, 0, 1, 2)))]
        self.thinks = rng.choice((0.0, 0.0, 0.5, 1.0))
        self.messages = [
            self.message(role) for role in ("system", "developer") if self.chance((0.4, 0.08)[role[0] == "d"])
        ]
        for _ in range(rng.choice((1, 1, 2, 3, 4))):
            self.exchange()

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def mark(self) -> str:
        self.words += 1
        return f"q{self.words}z"

    def text(self, most: int = 8) -> str:
        words = [*self.rng.choices(WORDS, k=self.rng.randint(0, most)), self.mark()]
        if self.control and self.chance(0.3):
            words.append(self.rng.choice(self.control))
        self.rng.shuffle(words)
        joined = self.rng.choice((" ", " ", "")).join(words) if self.chance(0.9) else words[0]
        return self.rng.choice(ENDS) + joined + self.rng.choice(ENDS)

    def message(self, role: str, **more) -> dict:
        content = "" if self.chance(0.04) else self.text()
        named = {"name": self.mark()} if role == "user" and self.chance(0.02) else {}
        return {"role": role, "content": content, **named, **more}

    def answer(self, calls: bool = False) -> dict:
        message = self.message("assistant")
        if self.chance(self.thinks):
            message["reasoning_content"] = self.text()
        if self.chance(0.15):
            message["weight"] = self.rng.choice((0, 0, 1, 0.5, 3))
        if calls:
            message["content"] = "" if self.chance(0.7) else message["content"]
            message["tool_calls"] = [self.call() for _ in range(self.rng.choice((1, 1, 2, 3)))]
        return message

    def call(self) -> dict:
        arguments = self.rng.choice(
            (
                lambda: {},
                lambda: {"a": self.text(3)},
                lambda: {"a": 3, self.mark(): [1, None, 2.5, True, self.text(2)]},
                lambda: {"a": {"b": {"c": [], "d": {}, "e": [{"f": self.text(2)}]}}},
                lambda: {"a": "", "b": -1e-7, "c": False},
            )
        )()
        given = json.dumps(arguments, ensure_ascii=self.chance(0.5)) if self.chance(0.2) else arguments
        name = self.rng.choice(self.schemas)["function"]["name"]
        return {"id": f"call{self.words:05d}", "type": "function", "function": {"name": name, "arguments": given}}

    def schema(self) -> dict:
        properties = {
            self.mark(): {"type": "string", "description": self.text(3)} for _ in range(self.rng.randint(0, 2))
        }
        parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
        function = {"name": f"add_{self.mark()}", "description": self.text(4), "parameters": parameters}
        return {"type": "function", "function": function}

    def exchange(self) -> None:
        say = self.messages.append
        say(self.message("user"))
        if self.chance(0.05):
            say(self.message(self.rng.choice(("user", "system", "developer", "assistant"))))
        while self.schemas and self.chance(0.4):
            say(self.answer(calls=True))
            for call in self.messages[-1]["tool_calls"]:
                if not self.chance(0.03):
                    say(self.message("tool", name=call["function"]["name"], tool_call_id=call["id"]))
        if self.chance(0.93):
            say(self.answer())


def decoded(tokenizer, ids) -> str:
    return normal(tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def normal(text: str) -> str:
    """Tokenizers compose accents (Qwen's NFC)."""
    return unicodedata.normalize("NFC", text).strip()


def strings(value) -> Iterator[str]:
    """Every text in a value, keys included, and those in arguments that are JSON text."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from strings(one)
    elif isinstance(value, str):
        yield value


def marks(value) -> set[str]:
    """The words of the texts in a value."""
    text = json.dumps(value)
    return {word for word in map("q{}z".format, range(1, 200)) if word in text}


def check(name: str, number: int) -> str:
    """Render one conversation under a template and assert what must hold; the outcome in a word."""
    rng = random.Random(f"{SEED} {name} {number}")
    tokenizer, where = load(name), f"{name}#{SEED}.{number}"
    control = control_tokens(tokenizer)
    author = Author(rng, control)
    held = {one for text in strings([author.messages, author.schemas]) for one in control if one in text}
    turns = rng.choice(("all", "all", "all", *TURNS))
    settings = dict(
        turns=turns,
        thinking_weight=rng.choice((1.0, 1.0, 0.5, 0.0)),
        answer_weight=rng.choice((1.0, 1.0, 2.0)),
        template_kwargs=rng.choice(KWARGS),
        thinking_format=rng.choice(("auto", "auto", "auto", None, "<think>{thinking}</think>")),
        control_tokens=rng.choice(("refuse", "escape")),
        not_shown=rng.choice(("error", "warn")),
        empty_thinking=rng.choice(("train", "context")),
    )
    given = rng.choice((*KWARGS, {"unknown": "q199z"}))
    begun, conversation, outcome = time.process_time(), None, "refused"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            tools = tuple(author.schemas) or None
            conversation = Conversation(
                where, tuple(author.messages), tools, given, rng.choice((None, None, True, False))
            )
            rendered = render_conversation(conversation, tokenizer, **settings)
            outcome = "passes"
        except ValueError as error:
            assert str(error).startswith(f"{where}: "), error
            assert len(str(error)) < 3000, error
            if "contains the control token" in str(error):
                outcome = "control token"
    assert time.process_time() - begun < MOST_SECONDS
    assert all(one.category is UserWarning and str(one.message).startswith("the chat template ") for one in said)
    if settings["control_tokens"] == "refuse" and held and conversation is not None:
        assert outcome == "control token", held
    if outcome == "passes":
        check_passes(conversation, tokenizer, rendered.passes, settings, held)
    return outcome


def check_passes(conversation, tokenizer, passes, settings, held) -> None:
    messages = conversation.messages
    template = ChatTemplate(tokenizer, conversation, settings["template_kwargs"])
    switch = {template.switch: conversation.thinks} if template.switch and conversation.thinks is not None else {}
    kwargs = {**(settings["template_kwargs"] or {}), **switch, **(conversation.template_kwargs or {})}
    indices = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    chosen = [turn for turn in TURNS[settings["turns"]](len(indices)) if messages[indices[turn]].get("weight", 1)]
    assert [p.turn for p in passes] == chosen
    special = set(tokenizer.all_special_ids) | {
        i for i, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    seen = ""
    for p in passes:
        index = indices[p.turn]
        message = messages[index]
        ids = p.input_ids[p.prompt_length :]
        if not held:
            prompt = tokenizer.apply_chat_template(
                template.messages[:index],
                tools=conversation.tools and list(conversation.tools),
                add_generation_prompt=True,
                return_dict=False,
                **kwargs,
            )
            assert p.input_ids[: p.prompt_length].tolist() == prompt
        generated = decoded(tokenizer, ids)
        seen += decoded(tokenizer, p.input_ids[: p.prompt_length]) + generated
        # Breaks if more is trained than the turn, or less than its end.
        assert int(ids[-1]) in special
        of_thinking, of_answer = (p.input_ids[p.roles == role] for role in (Role.THINKING, Role.ANSWER))
        assert normal(message["content"]) in decoded(tokenizer, of_answer)
        assert normal(message.get("reasoning_content", "")) in decoded(tokenizer, of_thinking)
        for call in message.get("tool_calls", ()):
            assert marks(call["function"]) <= marks(generated)
        # Breaks if a weight is lost, counted twice, or reaches the prompt.
        scale = np.float32(message.get("weight", 1))
        thinks = "reasoning_content" in message or settings["empty_thinking"] == "train"
        weights = np.zeros(len(p), np.float32)
        weights[p.roles == Role.THINKING] = scale * settings["thinking_weight"] * thinks
        weights[p.roles == Role.ANSWER] = scale * settings["answer_weight"]
        assert np.array_equal(p.loss_weights, weights)
        assert len(of_thinking) + len(of_answer) == len(ids)
    assert "flexmask_" not in seen  # probes, and marks of cuts
    if passes and settings["not_shown"] == "error":
        # Breaks if anything in front of the last trained turn is lost in silence.
        last = indices[passes[-1].turn]
        told = [{k: v for k, v in m.items() if k != "reasoning_content"} for m in messages[:last]]
        assert marks([told, conversation.tools, conversation.template_kwargs]) <= marks(seen)


GROUPS = sorted(set(map(tokenizer_name, names())))


# Breaks if anything escapes but a ValueError that begins with the conversation's name, or if passes are not the prompts
# of inference followed by what the author wrote, one a trained turn, with its weights.
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("seed", [SEED])
def test_every_outcome_is_right_or_named(group, seed):
    of_group = [name for name in names() if tokenizer_name(name) == group]
    each = -(-COUNT // len(names()))
    outcomes, slowest = Counter(), 0.0
    for name in of_group:
        load(name)
        for number in range(each):
            begun = time.process_time()
            try:
                outcomes[check(name, number)] += 1
            except Exception as error:
                error.add_note(f"check({name!r}, {number}), seed {seed}")
                raise
            slowest = max(slowest, time.process_time() - begun)
    print(f"{group}, seed {seed}: {dict(outcomes)}; the slowest {slowest:.2f} s")
    assert outcomes.total() == each * len(of_group)
    assert outcomes["passes"] > outcomes.total() / 10 or outcomes.total() < 100  # or the test would say little
