"""Mutated records of every format: whatever stands in one, it is a conversation, calls or a ValueError that names it.

FLEXMASK_FUZZ=100000 python -m pytest tests/flexmask/test_reading_fuzz.py -n 0 -s      as many of them
FLEXMASK_FUZZ_SEED=7 ...                                                               others
"""

import copy
import json
import math
import os
import random
import time

import traces
from records import CALLED, SCHEMA, TABLE, WAYS_TO_CALL, assistant, system, turns, user

from flexmask import Calls, Conversation, read_record

COUNT = int(os.environ.get("FLEXMASK_FUZZ", 8000))
SEED = int(os.environ.get("FLEXMASK_FUZZ_SEED", 0))
MOST_SECONDS = 2.0  # for one record


class Nested(int):
    """So many brackets inside brackets, made when they are needed."""

    def made(self, value="x"):
        for level in range(self):
            value = {"a": value} if level % 2 else [value]
        return value


RECORDS = [
    *WAYS_TO_CALL.values(),
    *TABLE,
    {
        "messages": CALLED,
        "tools": json.dumps([SCHEMA]),
        "chat_template_kwargs": {"enable_thinking": True},
        "weight": 0.5,
    },
    {"messages": [system(f"Tools: <tools>{json.dumps(SCHEMA)}</tools>"), user(), assistant("<think>t</think>a")]},
    turns(("human", "q"), ("gpt", "t</think>a"), system="s", reasoning="on", source="x"),
    {"prompt": "q", "completion": [assistant("a", "t", weight=0)]},
    {"instruction": "q", "input": "i", "output": "[THINK]t[/THINK]a", "history": [["q", "a"]], "thinking": "off"},
    {"messages": [user(), assistant("a", reasoning_details=[{"text": "t"}], refusal=None)], "instructions": "s"},
    {
        "messages": [user(), assistant("<tool_call><function=f><parameter=a>1</parameter></function></tool_call>")],
        "tools": [{"name": "f", "parameters": {"properties": {"a": {"type": ["integer", "null"]}}}}],
    },
    turns(
        ("human", "q"),
        ("gpt", """<functioncall> {"name": "f", "arguments": '{"a": 1}'}"""),
        ("human", "FUNCTION RESPONSE: 7"),
        ("gpt", "a"),
    ),
    {"messages": [user(), assistant('[TOOL_CALLS] [{"name": "f", "arguments": {}}]')]},
]
CALLS = [
    {"calls": [{"prompt": [user()], "completion": assistant("a", "t"), "weight": 0.5, "name": "first"},
               {"prompt": [1, 2], "completion": [7, 8], "completion_mask": [1, 0]}], "tools": [SCHEMA]},
    *traces.TRAJECTORIES.values(), traces.VERL, traces.TRL, traces.PRIME_RL, traces.episode_of_verifiers(),
    traces.logged([traces.QUESTION], traces.CALLING, session_id="s", metadata={}),
    {"messages": [user()], "choices": [{"message": assistant()}], "metadata": {"episode_id": 3}},
    {"trajectory": [traces.STEP, traces.STEP | {"tokens": None}]},
    *traces.turns_of_dialog("d"),
]  # fmt: skip
VALUES = [
    None, "", " ", "x", "null", "{}", "[]", "{", '{"a": NaN}', "\ud800", "a\udfff", "\u0000", 0, 1, -1, 10**5000, 0.5,
    math.nan, math.inf, True, False, [], {}, [None], [[]], [{}], {"\ud83d": "x"}, {"a": None}, {1: 2}, b"x", object(),
    {1, 2}, (1, 2), *map(Nested, (50, 150, 3000)), "[" * 3000, "[" * 200_000, "1" * 5000, "x" * 100_000,
    "<think>", "</think>", "<think>t</think>a", "<tool_call>", "</tool_call>", "<tool_call>{}</tool_call>",
    "<tool_call><function=f>", "<parameter=a>", "[TOOL_CALLS]", "[ARGS]", "<functioncall>", "FUNCTION RESPONSE:",
    "<tools>[{}]</tools>", "<tool_response>x</tool_response>", "<|channel|>analysis<|message|>t<|end|>", "assistant",
    "user", "tool", "function", "reasoning", "tool_call", "system", {"type": "text", "text": "x"},
    {"type": "thinking", "thinking": "t"}, {"type": "tool_use", "name": "f", "input": {}},
    {"role": "assistant", "content": "a"}, "(" * 5000, "-" * 5000,
]  # fmt: skip
KEYS = [
    "role", "content", "from", "value", "messages", "conversations", "tools", "tool_calls", "function_call", "weight",
    "train",
    "reasoning", "thinking", "type", "name", "id", "arguments", "function", "prompt", "completion", "input", "output",
    "system",
    "instruction", "enable_thinking", "chat_template_kwargs", "\ud800", "x", 3, None,
    "reasoning_details", "summary", "history",
]  # fmt: skip


def places(value, depth=0):
    """Every list and object inside a value."""
    if isinstance(value, (dict, list)) and depth < 12:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from places(inner, depth + 1)


def mutated(rng):
    record = copy.deepcopy(rng.choice(rng.choice((RECORDS, CALLS))))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        at = rng.choice(list(places(record)))
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        value = (
            rng.choice(VALUES)
            if rng.random() < 0.8
            else rng.choice(list(places(copy.deepcopy(rng.choice([*RECORDS, *CALLS])))))
        )
        value = value.made() if isinstance(value, Nested) else copy.deepcopy(value)
        kind = rng.random()
        if kind < 0.5 and keys:
            at[rng.choice(keys)] = value
        elif kind < 0.6 and keys:
            del at[rng.choice(keys)]
        elif kind < 0.7 and keys:
            key = rng.choice(keys)
            text = at[key] if isinstance(at[key], str) else "x"
            cut = rng.randrange(len(text) + 1)
            inserted = rng.choice([one for one in VALUES if isinstance(one, str)])
            at[key] = text[:cut] + inserted + text[cut:]
        elif isinstance(at, dict):
            at[rng.choice(KEYS)] = value
        else:
            at.insert(rng.randrange(len(at) + 1), value)
    return record


def test_every_outcome_is_what_was_read_or_an_error_that_names_it():
    """Breaks if anything escapes but a ValueError that begins with the name, if one cannot be printed, or if a record
    takes long. Figures: python -m pytest -s."""
    rng = random.Random(SEED)
    read, refused, slowest = 0, 0, 0.0
    for number in range(COUNT):
        record = mutated(rng)
        name = f"fuzz:{number}"
        begun = time.perf_counter()
        try:
            found = read_record(record, name)
        except ValueError as error:
            text = str(error)
            assert text.startswith(f"{name}: "), (SEED, number, text)
            text.encode()
            assert len(text) < 2000, (SEED, number, text)
            refused += 1
        else:
            assert isinstance(found, (Conversation, Calls))
            ids = [(one.prompt_ids, one.completion_ids, one.completion_mask) for one in getattr(found, "calls", ())]
            within = [one.conversation for one in found.calls if one.conversation] if ids else [found]
            said = [(one.messages, one.tools, one.template_kwargs) for one in within]
            json.dumps([ids, said], allow_nan=False).encode()
            "".join([found.format, *map(str, found.notes)]).encode()
            read += 1
        slowest = max(slowest, time.perf_counter() - begun)
        assert slowest < MOST_SECONDS, (SEED, number, slowest)
    print(f"seed {SEED}: {read:,} read, {refused:,} refused of {COUNT:,}; the slowest {slowest:.3f} s")
    assert read + refused == COUNT and read > COUNT / 20 and refused > COUNT / 20
