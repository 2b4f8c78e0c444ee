"""Preparation of a data set: the rows of one conversation at a time, in processes, kept until something changes."""

import copy
import dataclasses

import numpy as np
import pytest
from factories import chatml_tokenizer, random_conversation

from flexmask import prepare_conversation
from recipes import preparation
from recipes.config import compose
from recipes.preparation import fingerprint, prepare, settings_of

CONVERSATIONS = [random_conversation(seed) for seed in range(12)]


def rows_of(prepared):
    return [row for item in prepared.items for row in item]


def same(one, other):
    return all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one)
    )


# Breaks if a column is cut at a wrong place, loses its type, or processes mix up the order.
@pytest.mark.parametrize("processes", [1, 2])
def test_rows_are_those_of_each_conversation(processes, monkeypatch, tmp_path):
    monkeypatch.setattr(preparation, "_WORTH_A_PROCESS", 3)
    monkeypatch.setattr(preparation.datasets.config, "HF_DATASETS_CACHE", tmp_path)
    # A short pack: some conversations are split in several rows.
    overrides = [f"data.processes={processes}", "duplication.pack_length=256", "duplication.too_long=drop"]
    config, tokenizer = compose(overrides), chatml_tokenizer()
    laid_out = [prepare_conversation(one, tokenizer, **settings_of(config, "one_pass")) for one in CONVERSATIONS]
    expected = [row for one in laid_out for row in one.rows]
    prepared = prepare(CONVERSATIONS, tokenizer, config, "one_pass")
    assert len(rows_of(prepared)) == len(expected) > len(CONVERSATIONS)
    assert all(map(same, rows_of(prepared), expected))
    assert prepared.dropped_turns == sum(len(one.dropped_turns) for one in laid_out) > 0
    assert prepared.branching == sum(not all(row.is_chain for row in one.rows) for one in laid_out)


def test_the_second_time_nothing_is_rendered_and_warnings_are_repeated(monkeypatch, tmp_path):
    monkeypatch.setattr(preparation.datasets.config, "HF_DATASETS_CACHE", tmp_path)
    config, tokenizer = compose(), copy.copy(chatml_tokenizer())
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.warns(UserWarning, match=r"renders no thinking.*\(\d+ of 12 conversations\)"):
        first = prepare(CONVERSATIONS, tokenizer, config, "one_pass")
    monkeypatch.setattr(preparation, "_prepare_one", None)  # would fail
    with pytest.warns(UserWarning, match=r"renders no thinking.*\(\d+ of 12 conversations\)"):
        second = prepare(CONVERSATIONS, tokenizer, config, "one_pass")
    assert all(map(same, rows_of(first), rows_of(second)))


def changed_tokenizer():
    tokenizer = copy.deepcopy(chatml_tokenizer())
    tokenizer.add_tokens(["newtoken"])
    return tokenizer


def changed_template():
    tokenizer = copy.copy(chatml_tokenizer())
    tokenizer.chat_template += " "
    return tokenizer


CHANGES = {
    "a template": dict(tokenizer=changed_template()),
    "a tokenizer": dict(tokenizer=changed_tokenizer()),
    "a conversation": dict(conversations=[*CONVERSATIONS[:-1], random_conversation(99)]),
    "a name": dict(conversations=[dataclasses.replace(CONVERSATIONS[0], name="other"), *CONVERSATIONS[1:]]),
    "the layout": dict(layout="per_turn"),
    "the pack length": dict(overrides=["duplication.pack_length=4096"]),
    "a weight": dict(overrides=["duplication.thinking_weight=0.5"]),
    "turns": dict(overrides=["duplication.turns=-1"]),
    "a template argument": dict(overrides=["+data.template_kwargs.enable_thinking=false"]),
    "a declared format": dict(overrides=["data.thinking_format='<t>{thinking}</t>'"]),
    "the date": dict(overrides=["data.date=2020-02-02"]),
    "control tokens": dict(overrides=["data.control_tokens=escape"]),
}


# Breaks if rows of other settings are taken from the cache.
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_rows_depend_on_changes_the_fingerprint(change):
    def of(conversations=CONVERSATIONS, tokenizer=None, overrides=(), layout="one_pass"):
        tokenizer = tokenizer or chatml_tokenizer()
        return fingerprint(conversations, tokenizer, settings_of(compose(["data.date=2020-01-01", *overrides]), layout))

    assert of() == of(tokenizer=copy.deepcopy(chatml_tokenizer()))
    assert of(**CHANGES[change]) != of()
