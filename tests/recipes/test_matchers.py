"""Matchers: what counts as a right answer."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.configuration.rules import ConfigError
from recipes.evaluation.matchers import contains, exact, load_matcher, number
from recipes.sources.numbers import last_number

values = st.decimals(min_value=-(10**12), max_value=10**12, places=3) | st.integers(-(10**9), 10**9).map(Decimal)
no_digits = st.text(st.characters(blacklist_categories=["N", "C"]), max_size=20)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("She pays 1,234,567.50 dollars.", "1234567.5"),
        ("So 3 + 4 = 7", "7"),
        ("#### 42", "42"),
        ("16 - 3 - 4 = <<16-3-4=9>>9\n#### 9", "9"),
        ("it fell to -5", "-5"),
        ("it fell to \u22125 degrees", "-5"),
        ("x=-5", "-5"),
        ("-$1,000", "-1000"),
        ("$-2.50", "-2.5"),
        (r"\boxed{\$18}", "18"),
        ("costs $.50", "0.5"),
        ("-.5", "-0.5"),
        ("50%", "50"),
        ("7-3", "3"),  # a subtraction
        ("7 - 3", "3"),
        ("(7)-3", "3"),
        ("10%-20%", "20"),
        ("pages 3-5", "5"),
        ("COVID-19", "19"),
        ("version 1.2.3", "3"),
        ("2e3", "2000"),
        ("1.5E-2 m", "0.015"),
        ("3e", "3"),
        ("12,34", "34"),  # no thousands
        ("12345,678", "678"),
        ("1,234,5", "5"),
        ("0042", "42"),
        ("no number", None),
        ("", None),
        ("...", None),
    ],
)
def test_last_number(text, value):
    assert last_number(text) == (None if value is None else Decimal(value))


@given(
    values, st.sampled_from(["", "$", "€", r"\$"]), st.sampled_from(["", "%", " dollars", "kg", "**", "}"]), no_digits
)
def test_a_number_is_read_however_it_is_written(value, currency, unit, before):
    # Broken by a sign or a separator that is overlooked. White space keeps the text before it from joining the number.
    for written in (f"{abs(value)}", f"{abs(value):,}", f"{abs(value):.4f}"):
        sign = "-" if value < 0 else ""
        for text in (
            f"{sign}{currency}{written}{unit}.",
            f"{before} {sign}{currency}{written}{unit}",
            f"12 {sign}{written}",
        ):
            assert last_number(text) == value, text
            assert number(text, f"#### {value}") is True


@given(values, values)
def test_other_numbers_do_not_match(one, other):
    assert number(f"The answer is {one:,}.", f"{other}") is (one == other)


@given(st.text(), st.text())
def test_no_text_breaks_a_matcher(answer, expected):
    for matcher in (exact, number, contains):
        assert matcher(answer, expected) in (True, False, None)
    assert number(answer, "no digits") is None
    assert number("no digits", "1") is False


@given(no_digits.filter(str.strip), st.text(max_size=20), st.text(max_size=20))
def test_contains_evens_out_case_and_white_space(expected, before, after):
    shown = f"{before} {expected.casefold()}\n{after}"
    assert contains(shown, "  ".join(expected.split())) is True


def test_contains_finds_words_not_pieces():
    assert contains("It is 42 now", "4") is False
    assert contains("It is 4, now", "4") is True
    assert contains("He concatenates", "cat") is False
    assert contains("PARIS,  France", "paris, france") is True
    assert contains("我在北京市", "北京") is True
    assert contains("a", "a b") is False
    assert contains("anything", " \n") is None  # nothing to look for


def test_exact_ignores_white_space_around_only():
    assert exact("a b", " a b\n") and not exact("a  b", "a b") and not exact("A", "a")


def test_a_matcher_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "scoring_of_mine.py").write_text(
        "def first_letter(answer, expected):\n    return answer[:1] == expected[:1]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in __import__("sys").path if path])
    assert load_matcher("scoring_of_mine:first_letter")("ab", "ac", []) is True


def test_a_matcher_may_take_the_messages_as_well():
    history = [{"role": "user", "content": "Write a line of 3 words with Mia that ends with boats."}]
    assert load_matcher("recipes.sources.documents:keeps")("A Mia likes boats", "", history) is True


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("exakt", r"evaluation.matcher=exakt: no such matcher; choose exact, number, contains, or"),
        ("math:", "no such matcher"),
        ("no_such_module_here:f", r"cannot be imported \(ModuleNotFoundError"),
        ("math:no_such", r"cannot be imported \(AttributeError"),
        ("os:getpid", r"cannot be called with \(answer, expected\), nor with \(answer, expected, messages\)"),
    ],
)
def test_a_wrong_matcher_is_a_named_error(name, message):
    with pytest.raises(ConfigError, match=message):
        load_matcher(name)
