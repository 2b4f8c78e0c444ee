"""Sessions of small programs: deterministic, changed as they say, judged by what the programs compute."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.sources.programs import MOST_LINES, ProgramError, generate, run, same_results

PAIRS = {"plus": "+", "minus": "-", "times": "*"}


@pytest.fixture(scope="module")
def records():
    return generate(400, seed=3, split="train")


# Does what the request says with the lines of the answer before, and shares nothing with the generator. Broken by
# an answer that does not follow from both, or by a request that a reader could take otherwise.
def carried_out(request, answers):
    lines = answers[-1].splitlines() if answers else []
    if request.startswith("Take your first program"):
        lines = answers[0].splitlines()
    if gone := re.fullmatch(r"Leave ([a-z]) out\.", request):
        return [line for line in lines if not line.startswith(f"{gone[1]}=")]
    program = dict(line.split("=") for line in lines)
    for name, number, operator, variable in re.findall(r"([a-z])=(\d) (plus|minus|times) ([a-z])", request):
        program[name] = f"{number}{PAIRS[operator]}{variable}"
    for of, name in re.findall(r"Put the number of ([a-z]) in ([a-z])", request):
        program[name] = program[of][0] + program[name][1:]
    for name, number in re.findall(r"Now ([a-z])=(\d)", request):
        program[name] = number + program[name][1:]
    return [f"{name}={value}" for name, value in program.items()]


def test_every_answer_follows_from_its_request_and_an_earlier_answer(records):
    kinds = set()
    for record in records:
        answers = []
        for question, answer in zip(record["messages"][::2], record["messages"][1::2], strict=True):
            assert carried_out(question["content"], answers) == answer["content"].splitlines()
            answers.append(answer["content"])
            kinds.add(question["content"].split()[0])
    assert kinds == {"Let", "Now", "Put", "Then", "Leave", "Take"}


# Broken by a plan that is not that of its answer, or that calls lines new which stay.
def test_the_plan_says_what_the_answer_does(records):
    for record in records:
        for turn, message in enumerate(record["messages"][1::2]):
            plans = message["reasoning_content"].replace(".", "")
            for word, sign in PAIRS.items():
                plans = plans.replace(f" {word} ", sign)
            marks, lines = zip(*(plan.split() for plan in plans.splitlines()), strict=True)
            assert list(lines) == message["content"].splitlines()
            gone = record["messages"][2 * turn]["content"].startswith("Leave")
            assert marks.count("New") == (2 if turn == 0 else 0 if gone else 1)


def test_what_a_program_computes():
    assert run("a = x * 3\nb = a + 4", 5) == {"x": 5, "a": 15, "b": 19}
    assert run(" a = x - 12 \n", 2) == {"x": 2, "a": -10}
    assert run("a = 2 * x\na = a - a", 7)["a"] == 0


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("", "0 lines|no step"),
        ("a = x + 1\nreturn a", "line 2: 'return a' is no step"),
        ("a = b + 1", "line 1: 'a = b \\+ 1' uses 'b', which has no value yet"),
        ("a = x / 2", "is no step"),
        ("a = __import__", "is no step"),
        ("a = x * 9999\n" + "a = a * a\n" * 7, "more than 30 digits"),
        ("a = 0 - 9999\nb = a * 9999\n" + "b = b * 9999\n" * 7, "more than 30 digits"),
        ("a = x + 1\n" * (MOST_LINES + 1), "21 lines"),
    ],
)
def test_what_is_no_program_is_an_error_that_names_the_line(program, message):
    with pytest.raises(ProgramError, match=message):
        run(program, 11)


# Broken by a comparison of texts, or of one input alone.
def test_programs_are_the_same_if_they_compute_the_same():
    assert same_results("a = x + x", "a = 2 * x")
    assert same_results("\n a  =  x * 3 \n\n\tb=4+a\r\n", "a=3*x\nb=4+a")
    assert not same_results("a = x * 2", "a = x + 2")  # the same for 2 alone
    assert not same_results("a = x * 3", "a = x * 3\nb = a + 1")
    assert not same_results("a = x * 3\nb = a + 1", "a = x * 3")
    assert not same_results("nothing", "a = x * 3")


@given(st.text(alphabet="abx =+-*0123456789\n", max_size=60))
def test_no_text_does_anything_but_compute_or_be_refused(text):
    assert same_results(text, "a = x * 3") in (True, False)
