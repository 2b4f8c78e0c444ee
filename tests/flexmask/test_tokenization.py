"""Tokens of a text that begins like another are those of the text, whatever was known of the other."""

import itertools
import random

import pytest
from factories import chatml_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flexmask.text.tokenization import TextTokenizer, token_texts

LETTERS = [*"abcdeABCé e\u0301\u2581", " ", "\n", "<", ">", "|"]
TOKENS = ("<s>", "<e>", "<p>")
NORMALIZERS = {
    "none": None,
    "lower case": normalizers.Lowercase(),
    "composed": normalizers.NFC(),
    "stripped": normalizers.Strip(),
    "SentencePiece": normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]),
}
SPLITTERS = {
    "none": None,
    "words": pre_tokenizers.Whitespace(),
    "first": pre_tokenizers.Metaspace(prepend_scheme="first"),
    "always": pre_tokenizers.Metaspace(prepend_scheme="always"),
}
FLAGS = ("normalized", "lstrip", "rstrip", "single_word")


def tokenizer(normalizer, splitter, **flags):
    letters = {one: i for i, one in enumerate(dict.fromkeys("".join([*LETTERS, "\u00e9"])))}
    merges = [("a", "b"), ("ab", "c"), (" ", "a"), ("\u2581", "a"), ("\n", "\n")]
    merged = [left + right for left, right in merges]
    core = Tokenizer(models.BPE(vocab=letters | {one: len(letters) + i for i, one in enumerate(merged)}, merges=merges))
    core.normalizer, core.pre_tokenizer = NORMALIZERS[normalizer], SPLITTERS[splitter]
    core.add_special_tokens([AddedToken(one, special=True, **flags) for one in TOKENS])
    return PreTrainedTokenizerFast(tokenizer_object=core)


def text(rng, most=12):
    return "".join(rng.choices([*LETTERS, *TOKENS, *TOKENS, "  ", "\n\n", "abc"], k=rng.randint(0, most)))


# Breaks if tokens are kept that the whole of the text does not have: a special token may eat what stands around it, or
# be found in the text only once that is normalized.
@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_what_is_known_of_another_text_changes_nothing(normalizer, splitter):
    rng = random.Random(f"{normalizer} {splitter}")
    kept = 0
    for flags in itertools.product((False, True), repeat=len(FLAGS)):
        made = tokenizer(normalizer, splitter, **dict(zip(FLAGS, flags, strict=True)))
        for _ in range(30):
            begin, tokenizing = text(rng), TextTokenizer(made)
            first, second = begin + text(rng), begin + text(rng)
            found = tokenizing.tokenize(second, tokenizing.tokenize(first))
            alone = TextTokenizer(made).tokenize(second)
            for name in ("ids", "starts", "ends", "restarts"):
                assert getattr(found, name).tolist() == getattr(alone, name).tolist(), (flags, first, second)
            kept += begin != "" and not tokenizing.retokenized_texts
    assert kept > 30  # or nothing was put to the test


# Breaks if a text is tokenized from its beginning though a special token stands in what is known.
@pytest.mark.parametrize("flag", [None, *FLAGS[1:]])
def test_a_text_is_tokenized_from_the_last_special_token_that_it_shares(flag, monkeypatch):
    made = tokenizer("none", "none", **({flag: True} if flag else {}))
    tokenizing, given = TextTokenizer(made), []
    known = tokenizing.tokenize("abc <s> a <e> ab")
    tokenize = type(made).__call__
    monkeypatch.setattr(
        type(made), "__call__", lambda self, one, **more: given.append(one) or tokenize(self, one, **more)
    )
    tokenizing.tokenize("abc <s> a <e> ac", known)
    assert given[0].strip() == "<e> ac" and len(given) == 1 and not tokenizing.retokenized_texts


# Of the last six, each two begin with the same bytes.
LIKE = ["add", "\n", "<|im_end|>", "\u00e8", "\u00e9", "\U0001f389", "\U0001f38a", "\u65e5", "\u65e6"]


# Breaks if tokens are decoded one by one, which loses what a part of a character means.
def test_the_texts_of_tokens_are_those_of_their_path():
    rng, core = random.Random(0), chatml_tokenizer()
    for _ in range(200):
        ids, previous = [], []
        for text in ("".join(rng.choices(LIKE, k=2)) for _ in range(9)):
            at = -1  # each text is a branch of all before it, as far as they begin alike, also within a character
            for token in core(text).input_ids:
                known = [i for i, before in enumerate(previous) if before == at and ids[i] == token]
                if not known:
                    ids.append(token)
                    previous.append(at)
                at = known[0] if known else len(ids) - 1
        texts = token_texts(core, ids, previous)
        leaves = set(range(len(ids))) - set(previous)
        for leaf in leaves:
            path = [leaf]
            while previous[path[0]] >= 0:
                path.insert(0, previous[path[0]])
            assert "".join(texts[i] for i in path) == core.decode([ids[i] for i in path])


def test_a_part_of_a_character_has_no_text_and_nonsense_has_one():
    core = chatml_tokenizer()
    ids = core("\U0001f389").input_ids
    assert token_texts(core, ids, range(-1, len(ids) - 1)) == [*[""] * (len(ids) - 1), "\U0001f389"]
    broken = [ids[-1]] * 9  # the end of a character again and again: nobody waits for more than one has bytes
    texts = token_texts(core, broken, range(-1, 8))
    assert "\ufffd" in texts[3] and "\ufffd" in texts[7]


def test_blanks_that_a_tokenizer_keeps_in_front_of_words_are_shown_between_them():
    core = tokenizer("SentencePiece", "none")
    core.backend_tokenizer.decoder = decoders.Metaspace()
    ids = core("a b a").input_ids
    assert "".join(token_texts(core, ids, range(-1, len(ids) - 1))) == core.decode(ids) == "a b a"
