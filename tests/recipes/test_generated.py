"""What the generated sessions have in common: deterministic, splits apart, conversations with thinking."""

import pytest

from flexmask.conversations.reading import read_conversation
from recipes.sources import documents, programs


@pytest.fixture(params=[programs, documents], ids=["programs", "documents"])
def source(request):
    return request.param


def test_the_same_arguments_give_the_same_records(source):
    assert source.generate(20, 5, "train") == source.generate(30, 5, "train")[:20]
    assert source.generate(20, 5, "train") != source.generate(20, 6, "train")
    with pytest.raises(ValueError, match="write 'train' or 'heldout'"):
        source.generate(1, 0, "test")


def test_no_first_answer_stands_in_both_splits(source):
    heldout = source.generate(400, seed=3, split="heldout") + source.generate(400, seed=4, split="heldout")
    first, other = (
        {record["messages"][1]["content"] for record in some}
        for some in (source.generate(400, seed=3, split="train"), heldout)
    )
    assert len(first) > 100 and len(other) > 15 and not first & other


def test_every_record_is_a_conversation_with_thinking(source):
    for i, record in enumerate(source.generate(200, seed=3, split="train")):
        messages = read_conversation(record, f"generated:{i}").messages
        assert all(one["reasoning_content"] for one in messages if one["role"] == "assistant")
