"""The stocktaking episodes: deterministic, solved by their own answers, in need of notes once results are cleared."""

import re

import pytest

from flexmask.conversations.reading import read_conversation
from recipes.sources.stocktaking import NOTE_ALL, THINGS, Store, counts_of, generate
from recipes.sources.tutoring import ONES


@pytest.fixture(scope="module")
def records():
    return generate(300, seed=3, split="train")


def conversations(records):
    return [read_conversation(record, f"generated:{i}") for i, record in enumerate(records)]


def test_the_same_arguments_give_the_same_records():
    assert generate(20, 5, "train") == generate(30, 5, "train")[:20]
    assert generate(20, 5, "train") != generate(20, 6, "train")


def test_no_store_stands_in_both_splits(records):
    heldout = generate(300, seed=3, split="heldout") + generate(300, seed=4, split="heldout")
    stores, other = ({record["messages"][0]["content"] for record in some} for some in (records, heldout))
    assert not stores & other
    with pytest.raises(ValueError, match="write 'train' or 'heldout'"):
        generate(1, 0, "test")


# Broken by any result, note or sum of the generator that the store does not hold.
def test_every_episode_is_solved_by_its_own_calls_and_last_answer(records):
    for conversation in conversations(records):
        store = Store(conversation)
        calls = 0
        for message, result in zip(conversation.messages, conversation.messages[1:], strict=False):
            for call in message.get("tool_calls", ()):
                assert store.call(call["function"]["name"], call["function"]["arguments"]) == result["content"]
                calls += 1
        assert calls == 4
        assert store.succeeded(conversation.messages[-1]["content"])
        assert not store.succeeded("That makes 99.") and not store.succeeded("")


def test_notes_and_sums_agree_with_the_store(records):
    for conversation in conversations(records):
        counts = counts_of(int(re.findall(r"\d+", conversation.messages[0]["content"])[0]))
        for question, answer in zip(conversation.messages, conversation.messages[1:], strict=False):
            if question["content"] == NOTE_ALL:
                noted = re.findall(r"([a-z]+) ([a-z]+)", answer["content"])
                assert all(ONES.index(number) + 1 == counts[thing] for thing, number in noted) and len(noted) in (2, 4)
            if answer["content"].startswith("That makes"):
                asked = [thing for thing in THINGS if thing in question["content"]]
                assert answer["content"] == f"That makes {sum(counts[thing] for thing in asked)}."


def test_the_tool_counts_whatever_the_store_has_and_refuses_all_else(records):
    store = Store(conversations(records)[0])
    assert all(re.fullmatch(rf"{thing} [1-9]", store.call("count", {"thing": thing})) for thing in THINGS)
    for name, arguments in [
        ("weigh", {"thing": "apples"}),
        ("count", {}),
        ("count", {"thing": "ships"}),
        ("count", {"thing": ["apples"]}),
        ("count", {"thing": "apples", "also": "pens"}),
    ]:
        with pytest.raises(ValueError, match="no tool|no thing"):
            store.call(name, arguments)


def test_a_conversation_of_another_kind_is_in_no_store():
    talk = read_conversation(
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "t:1"
    )
    with pytest.raises(ValueError, match="t:1: message 0 is not 'Store <number>.'"):
        Store(talk)
