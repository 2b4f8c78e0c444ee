"""GSM8K-Socratic problems as conversations. The problems are made up, the oddities are the data's."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexmask.conversations.reading import read_conversation
from recipes.sources.gsm8k import to_record

PROBLEM = {
    "question": "Mia packs 4 boxes of 6 cups  and 5 loose cups.",
    "answer": "How many cups are in the boxes? ** The boxes hold 4 * 6 = <<4*6=24>>24 cups.\n"
    "How many cups does she pack? ** She packs 24 + 5 = <<24+5=29>>29 cups.\n#### 29",
}


def replies(*lines, result="1"):
    """The assistant messages of a problem with these answer lines."""
    answer = "\n".join([*lines, f"#### {result}"])
    return to_record({"question": "q", "answer": answer}, "x")["messages"][1::2]


def test_a_problem_is_this_conversation():
    assert to_record(PROBLEM, "x") == {
        "messages": [
            {"role": "user", "content": f"{PROBLEM['question']}\nHow many cups are in the boxes?"},
            {
                "role": "assistant",
                "content": "The boxes hold 4 * 6 = 24 cups.",
                "reasoning_content": "4*6=24",
            },
            {"role": "user", "content": "How many cups does she pack?"},
            {"role": "assistant", "content": "She packs 24 + 5 = 29 cups.", "reasoning_content": "24+5=29"},
        ],
    }


@pytest.mark.parametrize(
    ("line", "content", "thinking"),
    [
        ("How much? ** It costs 2*1500=$<<2*1500=3000>>3,000", "It costs 2*1500=$3,000", "2*1500=3000"),
        ("Define a variable ** Let x be the cups, 5 < x", "Let x be the cups, 5 < x", None),
        ("How many? ** That is w<<3-10=-7>>-7 cups.", "That is w-7 cups.", "3-10=-7"),
        ("Both? ** 2+2=<<2+2=4>>4 and 4+4=<<4+4=8>>8", "2+2=4 and 4+4=8", "2+2=4\n4+4=8"),
        ("Power? ** 2 ** 3 = <<2**3=8>>8", "2 ** 3 = 8", "2**3=8"),  # only the first ** separates
        ("What is 2**3? ** 2**3 = <<2**3=8>>8", "2**3 = 8", "2**3=8"),  # and only with spaces
        ("How many? ** She has        12.  ", "She has 12.", None),
        ("Half? ** Half of 30 is .5 * 30 = <<30*.5=15>>15", "Half of 30 is .5 * 30 = 15", "30*.5=15"),
    ],
)
def test_calculations_are_thinking_and_the_rest_is_the_answer(line, content, thinking):
    (reply,) = replies(line)
    assert reply["content"] == content
    assert reply.get("reasoning_content") == thinking
    assert "train" not in reply


@pytest.mark.parametrize("line", ["How many on the second street? ** ", "How many on the second street? **"])
def test_a_missing_answer_stays_in_the_history_untrained(line):
    # Breaks if the turn is dropped (later turns would see another history) or trained (to say nothing).
    first, second = replies(line, "How many? ** <<1+1=2>>2.")
    assert first == {"role": "assistant", "content": "", "train": False}
    assert second == {"role": "assistant", "content": "2.", "reasoning_content": "1+1=2"}


def test_blank_lines_and_the_result_are_no_turns():
    record = to_record({"question": "q", "answer": "\nA? ** b\n\nC? ** d\n\n#### 1,080.5\n"}, "x")
    assert [message["content"] for message in record["messages"]] == ["q\nA?", "b", "C?", "d"]
    assert record.keys() == {"messages"}  # a key that nothing reads would be named in every run


words = st.text("abc 0123456789+=.,$%", min_size=1).map(lambda text: " ".join(text.split())).filter(bool)


@given(st.lists(st.tuples(words, words, words, words), min_size=1, max_size=6))
def test_nothing_but_markup_is_lost(turns):
    # Breaks if any word of a sub-question, sentence or calculation goes missing or moves to another turn.
    lines = [f"{asked} ** {before} <<{inner}>>{after}" for asked, before, inner, after in turns]
    record = to_record({"question": "Q", "answer": "\n".join([*lines, "#### 7"])}, "x")
    messages = read_conversation(record, "x").messages
    assert messages[0]["content"] == f"Q\n{turns[0][0]}"
    assert [message["content"] for message in messages[2::2]] == [turn[0] for turn in turns[1:]]
    for (_, before, inner, after), reply in zip(turns, messages[1::2], strict=True):
        assert reply["content"] == f"{before} {after}"
        assert reply["reasoning_content"] == inner


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        ({"question": "q"}, "'answer' is None; a GSM8K-Socratic problem has text in 'question' and 'answer'"),
        ({"messages": []}, "(keys found: messages)"),
        ({"question": " ", "answer": "A? ** b\n#### 1"}, "'question' is ' '"),
        ({"question": "q", "answer": "A? ** b"}, "answer line 1 is 'A? ** b'; the last line must be '#### <"),
        ({"question": "q", "answer": "A? ** b\n####"}, "answer line 2 is '####'"),
        ({"question": "q", "answer": "#### 4"}, "only the result '#### 4'"),
        (
            {"question": "q", "answer": "#### 4\nA? ** b\n#### 4"},
            "answer line 1 is '#### 4'; the result must",
        ),
        (
            {"question": "q", "answer": "A? ** b\nplain\n#### 4"},
            "line 2 is 'plain'; expected 'sub-question **",
        ),
        ({"question": "q", "answer": " ** b\n#### 4"}, "answer line 1 is ' ** b'; expected"),
        (
            {"question": "q", "answer": "A? ** <<1+1=2>2\n#### 4"},
            "line 1 has an unpaired, misplaced or empty",
        ),
        ({"question": "q", "answer": "A <<1>>? ** b\n#### 4"}, "line 1 has an unpaired, misplaced or empty"),
        ({"question": "q", "answer": "A? ** <<>>b\n#### 4"}, "line 1 has an unpaired, misplaced or empty"),
    ],
)
def test_what_is_no_problem_is_refused_by_name(problem, text):
    with pytest.raises(ValueError, match="^" + re.escape("test.jsonl:3: ")) as raised:
        to_record(problem, "test.jsonl:3")
    assert text in str(raised.value)
