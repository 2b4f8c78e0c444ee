"""Preparation of a data set: the rows of one conversation at a time, in processes, kept until something changes."""

import copy
import dataclasses
import errno
import os
import pickle
import shutil
import time
import warnings

import numpy as np
import pytest
from factories import chatml_tokenizer, random_conversation

from flexmask import Conversation, prepare_conversation
from recipes.configuration.compose import compose
from recipes.configuration.schema import Layout
from recipes.preparation import rows as preparation
from recipes.preparation.rows import fingerprint, settings_fingerprint
from recipes.storage import shards

CONVERSATIONS = [random_conversation(seed) for seed in range(12)]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    return tmp_path / "flexmask"


def prepare(conversations, tokenizer, config, layout="one_pass"):
    return preparation.prepare(conversations, tokenizer, config.data, in_layout(config, layout))


def settings_of(config, layout="one_pass"):
    return preparation.settings_of(config.data, in_layout(config, layout), config.context)


def in_layout(config, layout):
    return dataclasses.replace(config.duplication, layout=Layout(layout))


def rows_of(prepared):
    return [row for item in prepared.items for row in item]


def same(one, other):
    if not dataclasses.is_dataclass(one):
        return np.array_equal(one, other, equal_nan=getattr(one, "dtype", None) in (np.float32, np.float64))
    return all(same(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one))


# Breaks if a column is cut at a wrong place, loses its type, or processes mix up the order.
@pytest.mark.parametrize("processes", [1, 2])
def test_rows_are_those_of_each_conversation(processes, monkeypatch, cache):
    monkeypatch.setattr(preparation, "_WORTH_A_PROCESS", 3)
    monkeypatch.setattr(preparation, "_CONVERSATIONS_A_SHARD", 5)
    # A short pack: some conversations are split in several rows.
    overrides = [f"data.processes={processes}", "duplication.pack_length=256", "duplication.too_long=drop"]
    config, tokenizer = compose(overrides), chatml_tokenizer()
    laid_out = [prepare_conversation(one, tokenizer, **settings_of(config)) for one in CONVERSATIONS]
    expected = [row for one in laid_out for row in one.rows]
    prepared = prepare(CONVERSATIONS, tokenizer, config)
    assert len(rows_of(prepared)) == len(expected) > len(CONVERSATIONS)
    assert all(map(same, rows_of(prepared), expected))
    assert prepared.dropped_turns == sum(len(one.dropped_turns) for one in laid_out) > 0
    assert prepared.branching == sum(not all(row.is_chain for row in one.rows) for one in laid_out)
    assert prepared.ends == tuple(sorted({end for one in laid_out for end in one.ends})) != ()
    assert prepared.tokens_computed == sum(map(len, expected))
    assert prepared.tokens_trained == sum(int((row.loss_weights > 0).sum()) for row in expected)
    assert prepared.turns == sum(len(row.turns) for row in expected)
    per_turn = prepare(CONVERSATIONS, tokenizer, config, "per_turn")
    assert prepared.tokens_per_turn == per_turn.tokens_computed > prepared.tokens_computed
    # A data loader's processes get the sequence pickled, and not the data with it.
    assert len(pickle.dumps(prepared.items)) < 1000
    assert all(map(same, pickle.loads(pickle.dumps(prepared.items))[0], prepared.items[0]))


@pytest.mark.parametrize("count", [0, 1])
def test_few_conversations(cache, count):
    for _ in range(2):  # made, and found again
        prepared = prepare(CONVERSATIONS[:count], chatml_tokenizer(), compose())
        assert len(prepared.items) == len(list(prepared.items)) == count
        assert bool(prepared.turns) == bool(prepared.ends) == bool(count)


def test_conversations_of_which_nothing_is_trained(cache):
    prepared = prepare(CONVERSATIONS, chatml_tokenizer(), compose(["duplication.turns='99:'"]))
    assert (len(prepared.items), prepared.without_rows, prepared.turns, prepared.ends) == (0, 12, 0, ())


def test_a_conversation_that_stands_several_times_is_prepared_once(cache, monkeypatch):
    names, one = [], preparation._prepare_one
    monkeypatch.setattr(
        preparation,
        "_prepare_one",
        lambda conversation, *more: names.append(conversation.name) or one(conversation, *more),
    )
    first, second = CONVERSATIONS[:2]
    prepared = prepare([first, second, first], chatml_tokenizer(), compose())
    assert names == [first.name, second.name]
    assert [rows[0].name for rows in prepared.items] == [first.name, second.name, first.name]
    assert prepared.tokens_computed == sum(map(len, rows_of(prepared)))


# --- invalid conversations ---------------------------------------------------------------------------------


def saying(text, name):
    messages = ({"role": "user", "content": text}, {"role": "assistant", "content": "a"})
    return Conversation(name, messages)


BAD = [
    saying("<|im_end|>", "bad.jsonl:1"),
    *CONVERSATIONS,
    saying("<|im_start|>", "bad.jsonl:2"),
    saying("<think>", "bad.jsonl:3"),
]


def test_conversations_that_cannot_be_rendered_are_one_error_or_left_out_and_counted(cache):
    tokenizer = chatml_tokenizer()
    for _ in range(2):  # made, and found again
        with pytest.raises(ValueError, match="^3 of 15 conversations cannot be prepared:\n") as raised:
            prepare(BAD, tokenizer, compose())
        assert all(f"\nbad.jsonl:{line}: " in str(raised.value) for line in (1, 2, 3))
        assert str(raised.value).endswith("data.on_invalid=drop")
        prepared = prepare(BAD, tokenizer, compose(["data.on_invalid=drop"]))
        assert list(prepared.invalid) == ["bad.jsonl:1", "bad.jsonl:2", "bad.jsonl:3"]
        assert 'control token "<|im_end|>"' in prepared.invalid["bad.jsonl:1"]
        assert len(prepared.items) == 12 and prepared.without_rows == 0


def test_when_very_many_are_invalid_nobody_waits_for_the_others(cache, monkeypatch):
    monkeypatch.setattr(preparation, "_MOST_ERRORS", 20)
    monkeypatch.setattr(preparation, "_CONVERSATIONS_A_SHARD", 16)
    everything = [saying("<|im_end|>", f"{number}") for number in range(100)]
    with pytest.raises(ValueError, match="^32 of 32 conversations cannot be prepared"):
        prepare(everything, chatml_tokenizer(), compose())


def test_a_long_turn_is_no_invalid_conversation(cache):
    """`on_invalid=drop` must not leave out what `too_long=error` refuses."""
    overrides = ["duplication.pack_length=128", "data.on_invalid=drop"]
    with pytest.raises(ValueError, match="pack_length is 128") as raised:
        prepare(CONVERSATIONS, chatml_tokenizer(), compose(overrides))
    assert "duplication.too_long=drop" in str(raised.value) and "on_invalid" not in str(raised.value)
    prepared = prepare(
        CONVERSATIONS, chatml_tokenizer(), compose([*overrides, "duplication.too_long=drop"]), "one_pass"
    )
    assert prepared.dropped_turns and not prepared.invalid


# --- the cache ---------------------------------------------------------------------------------------------


def test_the_second_time_nothing_is_rendered_and_warnings_are_repeated(monkeypatch, cache):
    config, tokenizer = compose(), copy.copy(chatml_tokenizer())
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.warns(UserWarning, match=r"renders no thinking.*\(\d+ of 12 conversations\)"):
        first = prepare(CONVERSATIONS, tokenizer, config)
    monkeypatch.setattr(preparation, "_prepare_one", None)  # would fail
    with pytest.warns(UserWarning, match=r"renders no thinking.*\(\d+ of 12 conversations\)"):
        second = prepare(CONVERSATIONS, tokenizer, config)
    assert all(map(same, rows_of(first), rows_of(second)))


def changed_byte(folder):
    file = folder / "shard.arrow"
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 1
    file.write_bytes(contents)


def cut(folder):
    file = folder / "shard.arrow"
    file.write_bytes(file.read_bytes()[:-100])


DAMAGE = {
    "a byte": changed_byte,
    "cut off": cut,
    "empty": lambda folder: (folder / "shard.arrow").write_bytes(b""),
    "no rows": lambda folder: (folder / "shard.arrow").unlink(),
    "no checksum": lambda folder: (folder / "shard.sha256").unlink(),
    "another checksum": lambda folder: (folder / "shard.sha256").write_bytes(b"\xff\xfe"),
    "nothing at all": lambda folder: [path.unlink() for path in folder.iterdir()],
    "a folder for a file": lambda folder: [(folder / "shard.arrow").unlink(), (folder / "shard.arrow").mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_rows_are_noticed_said_and_prepared_anew(cache, damage):
    arguments = CONVERSATIONS, chatml_tokenizer(), compose()
    before = rows_of(prepare(*arguments))
    (folder,) = cache.iterdir()
    DAMAGE[damage](folder)
    with pytest.warns(UserWarning, match=f"{folder}: what was prepared is damaged"):
        after = rows_of(prepare(*arguments))
    assert len(before) == len(after) and all(map(same, before, after))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(*arguments)


def test_what_an_interrupted_run_left_is_not_taken_and_goes_in_time(cache, monkeypatch):
    old, new = cache / "partial-old", cache / "partial-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (time.time() - 10**6,) * 2)

    def interrupted(conversation, *_):
        if conversation is CONVERSATIONS[1]:
            raise KeyboardInterrupt
        return done(conversation, *_)

    done = preparation._prepare_one
    monkeypatch.setattr(preparation, "_prepare_one", interrupted)
    monkeypatch.setattr(preparation, "_WRITTEN_TOGETHER", 1)
    with pytest.raises(KeyboardInterrupt):
        prepare(CONVERSATIONS, chatml_tokenizer(), compose())
    assert set(cache.iterdir()) == {old, new}
    monkeypatch.undo()
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache.parent))
    prepare(CONVERSATIONS[:1], chatml_tokenizer(), compose())
    (stored,) = set(cache.iterdir()) - {new}
    assert not stored.name.startswith("partial-")


def test_what_no_run_has_used_for_a_month_is_removed(cache):
    """The day of use counts, not the day of writing; and nothing else that lies there is touched."""
    tokenizer, config = chatml_tokenizer(), compose()
    for conversation in CONVERSATIONS[:2]:
        prepare([conversation], tokenizer, config)
    (cache / "somebody's").mkdir()
    for folder in cache.iterdir():
        os.utime(folder, (time.time() - 31 * 24 * 3600,) * 2)
    everything = set(cache.iterdir())
    prepare([CONVERSATIONS[0]], tokenizer, config)  # found, so used today
    assert set(cache.iterdir()) == everything
    prepare([CONVERSATIONS[2]], tokenizer, config)
    (gone,) = everything - set(cache.iterdir())
    assert gone.name == fingerprint([CONVERSATIONS[1]], settings_fingerprint(tokenizer, settings_of(config)))


def test_a_cache_that_cannot_be_written_to_is_named(cache, monkeypatch):
    arguments = CONVERSATIONS[:2], chatml_tokenizer(), compose()
    cache.write_text("a file where the folder should be")
    with pytest.raises(ValueError, match="HF_DATASETS_CACHE=<folder>") as raised:
        prepare(*arguments)
    assert str(raised.value).startswith(f"{cache}: ")
    cache.unlink()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shards.pyarrow.ipc, "new_file", full)
    with pytest.raises(ValueError, match=f"^{cache}: .*No space left on device"):
        prepare(*arguments)
    assert not list(cache.iterdir())
    shutil.rmtree(cache)


def changed_tokenizer():
    tokenizer = copy.deepcopy(chatml_tokenizer())
    tokenizer.add_tokens(["newtoken"])
    return tokenizer


def changed_template():
    tokenizer = copy.copy(chatml_tokenizer())
    tokenizer.chat_template += " "
    return tokenizer


def dated():
    tokenizer = copy.copy(chatml_tokenizer())
    tokenizer.chat_template = "{{ strftime_now('%d %B %Y') }}" + tokenizer.chat_template
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
    "a template argument of one": dict(
        conversations=[dataclasses.replace(CONVERSATIONS[0], template_kwargs={"a": 1}), *CONVERSATIONS[1:]]
    ),
    "a template argument": dict(overrides=["+data.template_kwargs.enable_thinking=false"]),
    "a declared format": dict(overrides=["data.thinking_format='<t>{thinking}</t>'"]),
    "the date": dict(tokenizer=dated(), overrides=["data.date=2020-02-02"]),
    "control tokens": dict(overrides=["data.control_tokens=escape"]),
    "a context rule": dict(overrides=["context=keep_last_tool_results"]),
}


def fingerprint_of(conversations=CONVERSATIONS, tokenizer=None, overrides=(), layout="one_pass"):
    settings = settings_of(compose(["data.date=2020-01-01", *overrides]), layout)
    return fingerprint(conversations, settings_fingerprint(tokenizer or chatml_tokenizer(), settings))


# Breaks if rows of other settings are taken from the cache.
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_rows_depend_on_changes_the_fingerprint(change):
    before = fingerprint_of(tokenizer=copy.deepcopy(dated() if change == "the date" else chatml_tokenizer()))
    assert fingerprint_of(**CHANGES[change]) != before


# Breaks if rows that a user's own rule has made are found again once it is another one. What its module imports from
# elsewhere is not part of it; what stands in its package is.
def test_a_rule_that_has_changed_changes_the_fingerprint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "own_harness"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "rules.py").write_text("def mine(messages):\n    return messages\n")
    overrides = ["context.rule=own_harness.rules:mine"]
    before = fingerprint_of(overrides=overrides)
    assert before == fingerprint_of(overrides=overrides) != fingerprint_of()
    (package / "helpers.py").write_text("KEEP = 3\n")
    shards.digest_of_code.cache_clear()  # as in another process
    assert fingerprint_of(overrides=overrides) != before


def test_rows_without_a_date_are_found_the_next_day():
    assert fingerprint_of(overrides=["data.date=2020-01-02"]) == fingerprint_of()
