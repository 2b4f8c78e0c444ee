"""Thinking made worse: which share, how, and that answers stay as they are."""

import re

import pytest

from recipes.configuration.compose import compose
from recipes.configuration.rules import ConfigError
from recipes.sources import tutoring
from recipes.sources.flaws import flawed

FLAWS = ("wrong_step", "irrelevant", "shuffled", "truncated", "missing")


@pytest.fixture(scope="module")
def records():
    return tutoring.generate(300, seed=0, split="train")


def thinkings(records):
    return [message.get("reasoning_content") for record in records for message in record["messages"]]


def changed(records, **shares):
    """(thinking before, thinking after) of each turn that thinks."""
    after = thinkings(flawed(records, shares, seed=1))
    return [(one, other) for one, other in zip(thinkings(records), after, strict=True) if one is not None]


def test_the_same_seed_gives_the_same_flaws(records):
    shares = dict.fromkeys(FLAWS, 0.2)
    assert list(flawed(records, shares, 1)) == list(flawed(records, shares, 1)) != list(flawed(records, shares, 2))
    assert list(flawed(records, {}, 1)) == records


# Broken by a flaw that touches a question or an answer: its cost would not be that of the thinking.
@pytest.mark.parametrize("flaw", FLAWS)
def test_all_but_the_thinking_stays(records, flaw):
    def rest(some):
        return [[{**message, "reasoning_content": None} for message in record["messages"]] for record in some]

    before = rest(records)
    assert rest(flawed(records, {flaw: 1.0}, 1)) == before == rest(records)


@pytest.mark.parametrize("flaw", FLAWS)
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_share_is_the_share(records, flaw, share):
    pairs = changed(records, **{flaw: share})
    found = sum(one != other for one, other in pairs) / len(pairs)
    # A turn of one line cannot be shuffled, and the first conversation has no other one in front of it.
    assert 0.9 * share - 0.07 < found < share + 0.07


# Broken by a draw in which the shares of several flaws overlap: that of the last would be lost to the others.
def test_each_of_several_flaws_has_its_share(records):
    pairs = changed(records, truncated=0.4, missing=0.4)
    missing = sum(other is None for _, other in pairs) / len(pairs)
    assert 0.35 < missing < 0.45 and 0.75 < sum(one != other for one, other in pairs) / len(pairs) < 0.85


# Broken by flaws that always fall on the same place, as a model would learn at once.
def test_flaws_fall_anywhere(records):
    def first_difference(one, other):
        numbers = zip(re.findall(r"\d+", one), re.findall(r"\d+", other), strict=True)
        return next(i for i, (a, b) in enumerate(numbers) if a != b)

    assert len({first_difference(*pair) for pair in changed(records, wrong_step=1.0)}) > 5
    assert len({len(other.split()) for _, other in changed(records, truncated=1.0)}) > 5


def test_what_each_flaw_does(records):
    for one, other in changed(records, wrong_step=1.0):
        before, after = re.findall(r"\d+", one), re.findall(r"\d+", other)
        assert len(before) == len(after) and re.sub(r"\d+", "", one) == re.sub(r"\d+", "", other)
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
    every = {one for one in thinkings(records) if one}
    assert all(other in every for _, other in changed(records, irrelevant=1.0))
    for one, other in changed(records, shuffled=1.0):
        assert sorted(one.splitlines()) == sorted(other.splitlines())
    for one, other in changed(records, truncated=1.0):
        assert one.startswith(other) and 0 < len(other) < len(one)
    assert {other for _, other in changed(records, missing=1.0)} == {None}


# Broken by a sum in floating point, which is a little more than 1.
def test_shares_may_be_all_there_is():
    flaws = compose(["data.flaws={wrong_step: 0.33, shuffled: 0.56, missing: 0.11}"]).data.flaws
    assert sum(flaws.values()) > 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.flaws={sloppy: 0.5}"], "data.flaws.sloppy: no such flaw; there are wrong_step, irrelevant"),
        (["data.flaws={missing: 1.5}"], "data.flaws.missing=1.5: must be from 0 to 1"),
        (["data.flaws={missing: 0.6, shuffled: 0.6}"], "more than 1 together"),
        (["data.flaws={missing: 0.6}", "data=jsonl", "data.path=Makefile"], "only for generated conversations"),
    ],
)
def test_shares_that_are_none_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose(overrides)
