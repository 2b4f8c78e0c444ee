"""The tutoring dialogues: deterministic, checkable, in need of earlier answers, split without overlap."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flexmask.conversations.reading import read_conversation
from recipes.sources.tutoring import WORDINGS, generate, in_words, number_in, solve, split_of, verify

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def records():
    return generate(1500, seed=3, split="train")


def test_every_generated_record_passes_the_verifier(records):
    # Broken by any wrong sum, carry, borrow, look-up or number word in the generator.
    for record in records:
        verify(record)


def test_records_are_conversations_of_three_to_eight_turns(records):
    lengths = set()
    for i, record in enumerate(records):
        conversation = read_conversation(record, f"generated:{i}")
        roles = [message["role"] for message in conversation.messages if message["role"] != "system"]
        assert roles == ["user", "assistant"] * len(record["turns"])
        lengths.add(len(record["turns"]))
    assert lengths == set(range(3, 9))


def test_every_skill_wording_and_both_kinds_of_turn_occur(records):
    # Broken by a skill that the numbers never allow, or a wording that is never drawn.
    assert {turn["skill"] for record in records for turn in record["turns"]} == set(WORDINGS)
    openings = {
        wording[: wording.index("{")] if "{" in wording else wording for all_ in WORDINGS.values() for wording in all_
    }
    questions = [m["content"] for record in records for m in record["messages"] if m["role"] == "user"]
    assert all(any(question.startswith(opening) for question in questions) for opening in openings)
    replies = [m for record in records for m in record["messages"] if m["role"] == "assistant"]
    thinking = sum("reasoning_content" in reply for reply in replies) / len(replies)
    assert 0.7 < thinking < 0.95
    with_system = sum(record["messages"][0]["role"] == "system" for record in records) / len(records)
    assert 0.15 < with_system < 0.35


def test_later_turns_need_an_earlier_answer(records):
    # Broken by a question that holds its own numbers: it could be solved with no answers, or with others.
    for record in records:
        answers = [m["content"] for m in record["messages"] if m["role"] == "assistant"]
        for index, turn in enumerate(record["turns"][1:], start=1):
            with pytest.raises(ValueError, match="no number in the earlier answers"):
                solve(turn, [])
            if turn["skill"] not in ("rise",):  # both its numbers move alike
                other = ["That makes forty three." if number_in(a) else a for a in answers[:index]]
                moved = ["That makes fifty six." if number_in(a) else a for a in answers[:index]]
                assert solve(turn, other) != solve(turn, moved)


def test_the_needed_number_stands_in_no_question_as_a_rule(records):
    # A model that copies from questions instead of answers must fail. Broken by questions that state results.
    found = total = 0
    for record in records:
        questions = [m["content"] for m in record["messages"] if m["role"] == "user"]
        answers = [m["content"] for m in record["messages"] if m["role"] == "assistant"]
        for index in range(1, len(questions)):
            stated = [number for answer in answers[:index] if (number := number_in(answer)) is not None]
            digits = set(" ".join(questions[: index + 1]).replace(".", " ").replace("?", " ").split())
            total += 1
            found += str(stated[-1]) in digits
    assert found / total < 0.15  # by chance


def test_same_arguments_give_the_same_records_in_another_process():
    # Broken by hash(), set order or a global random state in the generator.
    program = (
        "import hashlib, json; from recipes.sources.tutoring import generate;"
        "print(hashlib.sha256(json.dumps(generate(200, 7, 'heldout')).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1
    assert generate(50, 7, "heldout") == generate(200, 7, "heldout")[:50]
    assert generate(50, 7, "heldout") != generate(50, 8, "heldout")


def test_no_held_out_conversation_is_in_training():
    # Same seeds on purpose: the hash keeps the splits apart, not the seeds. Broken by dropping the hash.
    def questions(record):
        return tuple(m["content"] for m in record["messages"] if m["role"] == "user")

    for seed in range(3):
        training = {questions(record) for record in generate(3000, seed, "train")}
        heldout = [questions(record) for record in generate(300, seed, "heldout")]
        assert not training & set(heldout)
    assert {split_of(record) for record in generate(100, 0, "heldout")} == {"heldout"}


def _damage_answer(record):
    reply = record["messages"][-1]
    number = number_in(reply["content"])
    if number is None:  # an answer in digits
        reply["content"] = reply["content"][:-3] + ("11." if reply["content"][-3:] != "11." else "12.")
    else:
        reply["content"] = f"That makes {in_words(number % 79 + 20)}."


def _damage_equation(record):
    thinking = record["messages"][-1]["reasoning_content"]
    record["messages"][-1]["reasoning_content"] = thinking.replace(" = ", " = 9", 1)


def _damage_amount(record):
    record["messages"][-2]["content"] = "And now?"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_damage_answer, "the answer is"),
        (_damage_equation, "the thinking says"),
        (_damage_amount, "is not in the question"),
    ],
)
def test_the_verifier_refuses_a_damaged_record(records, damage, message):
    # Broken by a verifier that takes the generator's word for it.
    damaged = 0
    for record in records[:300]:
        record = copy.deepcopy(record)
        last = record["turns"][-1]
        if damage is not _damage_answer and last["skill"] not in ("gain", "lose", "gain_first", "lose_first"):
            continue
        damage(record)
        damaged += 1
        with pytest.raises(ValueError, match=rf"turn {len(record['turns']) - 1} .*{message}"):
            verify(record)
    assert damaged > 50


def test_numbers_in_words_read_back():
    for value in range(20, 100):
        assert number_in(f"That makes {in_words(value)}.") == value
    assert number_in("In digits, last 42.") is None


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split='test': write 'train' or 'heldout'"):
        generate(1, 0, "test")
