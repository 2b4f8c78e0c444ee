"""Reasons of one kind are counted together, and all of them are written down."""

import json

from recipes.sources import invalid

LEFT_OUT = {
    "a.jsonl:3": 'a.jsonl:3: messages[0].content contains the control token "<|im_end|>"; remove it from the data',
    "a.jsonl:7": 'a.jsonl:7: messages[12].content contains the control token "<|im_end|>"; remove it from the data',
    "a.jsonl:9": "a.jsonl:9: message 4: 'content' is 56 (int), not a string; give text",
    "a.jsonl:10": "a.jsonl:10: message 1: 'content' is 'x y' (str), not a string; give text",
    "a.jsonl:11": "data/a.jsonl:11: malformed JSON at column 9: Expecting value, found 'x'; repair it",
    "a.jsonl:12": "data/a.jsonl:12: malformed JSON at column 10: Expecting value, found 'x'; repair it",
}


# Breaks if an index, a value or a line makes every reason one of its own.
def test_reasons_are_of_one_kind_whatever_their_place_and_value():
    assert sorted(invalid.kinds(LEFT_OUT).values()) == [2, 2, 2]
    assert '2 x contains the control token "<|im_end|>" (a.jsonl:3, a.jsonl:7)' in invalid.lines(LEFT_OUT)


def test_many_kinds_and_many_names_are_cut_on_the_terminal_only(tmp_path):
    many = {f"a:{i}": f"a:{i}: {'x' * i}" for i in range(1, 31)} | {f"b:{i}": f"b:{i}: same" for i in range(10)}
    lines = invalid.lines(many)
    assert len(lines) == invalid.SHOWN + 1 and lines[0] == "10 x same (b:0, b:1, b:2, ...)"
    assert lines[-1] == "... and 11 more kinds of reasons"
    invalid.write(many, tmp_path)
    written = [json.loads(line) for line in (tmp_path / invalid.FILE).read_text().splitlines()]
    assert {one["conversation"]: one["reason"] for one in written} == many


def test_there_is_no_file_where_nothing_is_left_out(tmp_path):
    invalid.write({}, tmp_path)
    assert not list(tmp_path.iterdir())
