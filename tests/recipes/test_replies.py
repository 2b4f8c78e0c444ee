"""Replies taken apart, and the figures of many."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexmask.conversations.thinking import THINK_CLOSE, THINK_OPEN
from recipes.evaluation.replies import ChatResult, ChatTurn, Reply, Thinking, figures, parse_reply

PLAIN, OPENED, CLOSED = "<|im_start|>assistant\n", "assistant\n<think>\n", "assistant\n<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("prompt", "generated", "ended", "parsed"),  # (thinking, answer, state, finished)
    [
        (PLAIN, "<think>\nt\n</think>\n\na", True, ("t", "a", "valid", True)),
        (PLAIN, " \n<think>\nt\n</think>\n\na", True, ("t", "a", "valid", True)),
        (PLAIN, "<think>\nt\n</think>\n\na", False, ("t", "a", "valid", False)),
        (PLAIN, "<think>\n\n</think>\n\na", True, ("", "a", "empty", True)),
        (PLAIN, "a", True, ("", "a", "missing", True)),
        (PLAIN, "", True, ("", "", "missing", True)),
        (PLAIN, "<think>\nt", True, ("t", "", "truncated", False)),  # ended inside its thinking
        (PLAIN, "<think>", False, ("", "", "truncated", False)),
        (PLAIN, "<think>t</think>a<think>u</think>b", True, ("t", "a<think>u</think>b", "doubled", True)),
        (PLAIN, "<think>t</think>a</think>b", True, ("t", "a</think>b", "doubled", True)),
        (PLAIN, "<think>t<think>u</think>a", True, ("t<think>u", "a", "doubled", True)),
        (PLAIN, "<think></think><think>u</think>a", True, ("", "<think>u</think>a", "doubled", True)),
        (PLAIN, "t</think>a", True, ("t", "a", "missing", True)),  # only a closing tag
        (PLAIN, "Well. <think>t</think>a", True, ("t", "a", "missing", True)),  # text in front of the block
        (PLAIN, "Well. <think>t", True, ("t", "Well.", "missing", False)),
        # The prompt opened the thinking.
        (OPENED, "t\n</think>\n\na", True, ("t", "a", "valid", True)),
        (OPENED, "\n</think>\n\na", True, ("", "a", "empty", True)),
        (OPENED, "t", True, ("t", "", "truncated", False)),
        (OPENED, "<think>t</think>a", True, ("<think>t", "a", "doubled", True)),
        # The prompt holds an empty block (enable_thinking=false).
        (CLOSED, "a", True, ("", "a", "empty", True)),
        (CLOSED, "<think>t</think>a", True, ("", "<think>t</think>a", "doubled", True)),
        # What earlier messages say of thinking is not this reply's.
        ("<think>\nt\n</think>\n\nold<|im_end|>\n" + PLAIN, "a", True, ("", "a", "missing", True)),
    ],
)
def test_replies_are_taken_apart(prompt, generated, ended, parsed):
    reply = parse_reply(prompt, generated, ended)
    assert (reply.thinking, reply.answer, str(reply.state), reply.finished) == parsed


pieces = st.lists(st.sampled_from([THINK_OPEN, THINK_CLOSE, "a", " ", "\n", "b"]), max_size=8).map("".join)


@given(st.sampled_from([PLAIN, OPENED, CLOSED]), pieces, st.booleans())
def test_every_reply_is_of_one_kind(prompt, generated, ended):
    """Against the definitions of `Thinking`, written out as conditions that exclude each other."""
    text = ({OPENED: THINK_OPEN, CLOSED: THINK_OPEN + THINK_CLOSE}.get(prompt, "") + generated).strip()
    begins, opens, closes = text.startswith(THINK_OPEN), text.count(THINK_OPEN), text.count(THINK_CLOSE)
    alone = begins and opens == closes == 1
    fits = {
        Thinking.missing: not begins,
        Thinking.truncated: begins and not closes,
        Thinking.doubled: begins and closes > 0 and not alone,
        Thinking.empty: alone and not text[len(THINK_OPEN) : text.find(THINK_CLOSE)].strip(),
        Thinking.valid: alone and bool(text[len(THINK_OPEN) : text.find(THINK_CLOSE)].strip()),
    }
    reply = parse_reply(prompt, generated, ended)
    assert [state for state, holds in fits.items() if holds] == [reply.state]
    assert set(fits) == set(Thinking)
    if THINK_CLOSE in text:  # nothing that was said is lost
        assert reply.answer == text.partition(THINK_CLOSE)[2].strip()


def turn(state="valid", *, expects=True, ended=True, tokens=0, correct=True, number=0):
    reply = Reply("", "a", Thinking(state), ended, closed=True)
    return ChatTurn(number, "q", reply, "a", expects_thinking=expects, thinking_tokens=tokens, correct=correct)


def result(*turns, unasked=()):
    return ChatResult("test:1", "own", (), turns, dict.fromkeys(unasked, "a reason"))


def test_figures():
    found = figures(
        [
            result(turn(tokens=2), turn("missing", correct=False), turn("empty", expects=False)),
            result(turn("truncated", ended=False, tokens=3, correct=False), turn("doubled", tokens=10, correct=None)),
            result(turn(expects=False, tokens=4), unasked=[1]),
            result(unasked=[0, 1]),
            result(turn("missing", expects=False), turn(tokens=6)),
        ]
    )
    assert found == {
        "answer_accuracy": 5 / 7,
        "success_rate": None,
        "conversation_accuracy": 1 / 4,
        "replies_ended": 7 / 8,
        "thinking_missing": 2 / 8,
        "thinking_truncated": 1 / 8,
        "thinking_doubled": 1 / 8,
        "thinking_empty": 1 / 8,
        "thinking_valid": 3 / 8,
        "thinking_expected": 5 / 8,
        "thinking_as_expected": 4 / 8,
        "thinking_tokens_mean": 5.0,
        "thinking_tokens_median": 4,
        "thinking_by_turn": {"0": "2 of 5"},
        "thinking_accuracy": None,
        "answers_follow_thinking": None,
        "probed_replies": 0,
        "chatted_conversations": 4,
        "chatted_replies": 8,
        "uncompared_replies": 1,
        "unasked_turns": 3,
    }


# Broken by counting turns whose data does not think, or those of all turns as one.
def test_thinking_by_turn():
    later = [turn("missing", number=1), turn("valid", number=1), turn("missing", number=1, expects=False)]
    assert figures([result(turn(), *later), result(turn())])["thinking_by_turn"] == {"0": "2 of 2", "1": "1 of 2"}


def test_figures_of_nothing_are_none():
    found = figures([result(unasked=[0])])
    counts = {"probed_replies": 0, "chatted_conversations": 0, "chatted_replies": 0, "uncompared_replies": 0}
    counts["unasked_turns"] = 1
    assert {key: found[key] for key in counts} == counts
    assert all(value is None for key, value in found.items() if key not in counts)
    assert figures([result(turn(correct=None))])["conversation_accuracy"] is None
