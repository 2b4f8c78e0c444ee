"""Sessions of documents: deterministic, and checked by what an edit has to keep, whatever words a model chooses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexmask.conversations.reading import read_conversation
from recipes.sources.documents import REQUESTS, document_of, generate, keeps


def said(*texts):
    """User and assistant messages in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


WRITE = "Write a line of 4 words with Mia that ends with boats."
BEFORE = said(WRITE, "A Mia likes red boats")
TWO = said(
    WRITE,
    "A Mia likes red boats",
    "Add a line of 3 words with Tom that ends with snow.",
    "A Mia likes red boats\nB Tom sees snow",
)


@pytest.fixture(scope="module")
def records():
    return generate(400, seed=3, split="train")


# The checker and the generator share the wording of the requests alone. Broken by either being wrong.
def test_every_answer_of_the_data_keeps_what_was_asked(records):
    kinds = set()
    for i, record in enumerate(records):
        messages = read_conversation(record, f"generated:{i}").messages
        for at, message in enumerate(messages):
            if message["role"] == "assistant":
                assert keeps(message["content"], "", messages[:at]), messages[: at + 1]
                assert message["reasoning_content"].count("Keep") + message["reasoning_content"].count("New") == len(
                    document_of(message["content"])
                )
            else:
                kinds.add(message["content"].split()[0])
    assert kinds == {"Write", "Add", "Cut", "Put"}


# Broken by a checker that looks at the data's words, or that passes what it was not asked for.
@pytest.mark.parametrize(
    ("history", "request_", "right", "wrong"),
    [
        ([], WRITE, ["A Mia sells old boats", "A Her Mia likes boats"],
         ["A Mia likes boats", "A Mia likes boats red", "Mia likes red boats", "A Tom likes red boats", "",
          "A Mia likes red boats\nB Tom sees boats"]),
        (BEFORE, "Add a line as long as line A with Tom that ends with snow.",
         ["A Mia likes red boats\nB Tom has old snow"],
         ["A Mia likes red boats\nB Tom has snow", "A Mia likes old boats\nB Tom has old snow", "A Tom has old snow",
          "B Tom has old snow\nA Mia likes red boats"]),
        (BEFORE, "Cut line A to 3 words.", ["A Mia likes boats", "A Mia red boats"],
         ["A Mia boats", "A boats likes Mia", "A Mia sells boats", "A Mia likes red boats"]),
        (BEFORE, "Write Zoe in place of the name in line A.", ["A Zoe likes red boats"],
         ["A Zoe likes boats", "A Mia likes red boats", "A Zoe wants red boats"]),
        (said(WRITE, "A Mia sees Tom boats"), "Write Zoe in place of the name in line A.", ["A Zoe sees Tom boats"],
         ["A Zoe sees Zoe boats", "A Mia sees Zoe boats"]),
        (TWO, "Put line B first.", ["A Tom sees snow\nB Mia likes red boats"],
         ["A Mia likes red boats\nB Tom sees snow", "A Tom sees snow", "B Tom sees snow\nA Mia likes red boats"]),
        (BEFORE, "Cut line B to 3 words.", [], ["A Mia likes red boats", "A Mia likes boats"]),
    ],
)  # fmt: skip
def test_what_keeps_a_request(history, request_, right, wrong):
    asked = [*history, {"role": "user", "content": request_}]
    assert [keeps(answer, "", asked) for answer in right] == [True] * len(right)
    assert [keeps(answer, "", asked) for answer in wrong] == [False] * len(wrong)


# What is edited is the model's own document. Broken by a checker that edits the data's.
def test_the_models_own_earlier_answer_is_what_an_edit_is_judged_by():
    own = said(WRITE, "A Mia paints blue boats", "Cut line A to 3 words.")
    assert keeps("A Mia paints boats", "A Mia likes boats", own)
    assert not keeps("A Mia likes boats", "A Mia likes boats", own)
    assert not keeps("A Mia likes boats", "", said(WRITE, "no document", "Cut line A to 3 words."))


def test_a_request_that_is_none_is_named():
    with pytest.raises(ValueError, match="no request of a document: 'Sing.'"):
        keeps("A Mia likes boats", "", said("Sing."))


@given(st.text(alphabet="ABMia boats\n", max_size=40), st.sampled_from(sorted(REQUESTS)))
def test_no_text_breaks_the_checker(text, kind):
    request = REQUESTS[kind].format(n=3, line="A", name="Mia", word="boats")
    assert keeps(text, "", [*BEFORE, {"role": "user", "content": request}]) in (True, False)
