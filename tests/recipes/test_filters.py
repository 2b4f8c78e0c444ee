"""Which answers are trained: what each filter refuses, and what happens to what it refuses."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexmask.conversations.records import read_record
from recipes.configuration.compose import compose
from recipes.configuration.rules import ConfigError
from recipes.sources import tutoring
from recipes.sources.conversation_store import Reading
from recipes.sources.filters import equations, filtered, load_filters, result, succeeded, thinks
from recipes.sources.flaws import flawed
from recipes.sources.load import load_data
from recipes.sources.tutoring import in_words
from recipes.sources.tutoring_results import contradicts
from recipes.storage.shards import digest_of_code


def answer(thinking="", content="42"):
    return {"role": "assistant", "content": content} | ({"reasoning_content": thinking} if thinking else {})


@pytest.mark.parametrize(
    "thinking",
    [
        "7 + 3 = 10, 2 + 1 + 1 = 4.", "4*6=24", "2+3*4=14", "20-2*3 = 14", "10/3=3.33", "10/3 = 3", "1,200+34=1,234",
        ".5*10=5", "5 - 8 = -3", "1.5 + 1.5 = 3.0", "no equation: 24", "a = 3", "x + 2 = 7", "(4+1)*6=30", "2(3+4)=14",
        "5 \u00d7 2 + 3 = 13", r"2 \times 3 + 4 = 10", "5 times 2 + 3 = 13", "4 x 2 + 1 = 9", "10 \u2212 4 + 2 = 8",
        "2^3*4=32", "\u221a16 + 3 = 7", "2 1/2 + 1 = 3.5", "5/3 = 1 2/3", "1/4 = 25 percent", "17 mod 5 + 1 = 3",
        "7 % 4 + 1 = 4",
        "2024-01-05 = 5", "2:1 + 3 = 5", "10 000 * 2 = 20000", "2 / 3 = 0.66", "100/3 * 2 = 66.66", "4*6=24\n1+1=2",
        "sin 30 + 1 = 1.5", "Negative 5 + 8 = 3", "twice 5 + 3 = 13", r"5 \cdot 3 + 1 = 16", "from 9 - 5 = 8 hours",
        "45 + 30 = 1 hour and 15 minutes", "45 + 30 = 1 hour 15 minutes", "10 + 4 = 2 pm", "6 + 6 = 1 dozen eggs",
        "5 - 8 = 3 below zero", "1.000 + 500 = 1.500 Euro", "1.05 * 1.05 * 1.05 = 1.16", "3.14 * 2.5 * 2.5 = 19.6",
        "19.99 * 0.0825 = 1.64", "1/3 = 0." + 5000 * "3", 5000 * "1" + " + 1 = 2",
        "20% * 50 = 10", "$5 + $6 = $11", "3 = 4", "2**3=8", "7 + 3 = 10 + 5", "5 x 4 = 20 apples", "4*6=24 kg", "",
    ],
)  # fmt: skip
def test_what_holds_or_is_no_plain_equation_is_left(thinking):
    assert equations(answer(thinking), {}) is None


@pytest.mark.parametrize(
    "thinking",
    [
        "7 + 3 = 11",
        "first 7 + 3 = 10, then 2 + 1 + 1 = 5.",
        "4*6=26",
        "2+3*4=20",
        "10/3=3.4",
        "10/0=0",
        "5 - 8 = 3",
        "4/2 - 3 = 1",
        "3.05 + 1 = 9",
        "2.5 + 2.4 = 5.1",
        "4*6=26\n1+1=2",
        "4*6=24\n1+1=3",
    ],
)
def test_an_equation_that_does_not_hold_is_refused(thinking):
    assert equations(answer(thinking), {}) == "an equation in the thinking does not hold"


# Broken by looking through all of the thinking again at each of its equations.
def test_long_thinking_is_read_once():
    thinking = "we have that 12 + 30 = 42, and go on from there. " * 20_000
    before = time.process_time()
    assert equations(answer(thinking + "7 + 3 = 11"), {})
    assert time.process_time() - before < 20  # one second; minutes otherwise


# Broken by signs that bind wrongly, or by any rounding of what is exact.
@given(
    st.lists(st.integers(0, 99), min_size=2, max_size=4),
    st.lists(st.sampled_from("+-*"), min_size=3),
    st.integers(1, 9),
)
def test_equations_are_computed_as_python_does(numbers, signs, off):
    left = "".join(f"{sign}{number}" for sign, number in zip(["", *signs], numbers, strict=False))
    assert equations(answer(f"{left}={eval(left)}"), {}) is None
    assert equations(answer(f"{left}={eval(left) + off}"), {})


@given(st.text(alphabet="0123456789+-*/=., ()%$x", max_size=40))
def test_no_text_breaks_a_filter(text):
    for one in (equations, result, thinks):
        assert one(answer(text, text), {}) is None or isinstance(one(answer(text, text), {}), str)


# Broken by a filter that refuses thinking which is right: nobody would dare to use it.
def test_the_tutors_thinking_is_never_refused_and_wrong_steps_are():
    records = tutoring.generate(200, seed=0, split="train")
    turns = [message for record in records for message in record["messages"] if "reasoning_content" in message]
    assert not any(equations(message, {}) for message in turns)
    wrong = [message for record in flawed(records, {"wrong_step": 1.0}, 0) for message in record["messages"]]
    assert sum(bool(equations(message, {})) for message in wrong) > 0.5 * len(turns)


# Broken by a filter that takes right thinking for wrong, or a foreign one for its own.
def test_thinking_that_does_not_come_to_the_answer_is_refused():
    records = tutoring.generate(200, seed=0, split="train")
    assert not any(contradicts(message, {}) for record in records for message in record["messages"])
    assert contradicts(answer("Result 07.", in_words(7)), {})  # a tutor's numbers in words begin with twenty
    for flaw, least in (("irrelevant", 0.9), ("missing", 0.99), ("truncated", 0.99)):
        pairs = zip(records, flawed(records, {flaw: 1.0}, 0), strict=True)
        turns = [
            message
            for before, after in pairs
            for was, message in zip(before["messages"], after["messages"], strict=True)
            if message != was and "ty" in message["content"]
        ]
        assert sum(bool(contradicts(message, {})) for message in turns) > least * len(turns)


def test_a_result_that_does_not_stand_in_the_thinking_is_refused():
    assert result(answer("4*6=24", "They have 24 cups."), {}) is None
    assert result(answer("4*6=24", "They have 24.0 cups, of 6."), {}) is None
    assert result(answer("4*6=24", "They have 25 cups."), {})
    assert result(answer("", "25"), {}) is result(answer("24", "none"), {}) is None


def test_answers_without_thinking_are_refused():
    assert thinks(answer(), {}) and not thinks(answer("so"), {})


@pytest.mark.parametrize(
    ("record", "refused"),
    [
        ({"metadata": {"correct": 1, "reward": 0.0}}, None),
        ({"metadata": {"correct": 0}}, "its correct says that it failed"),
        ({"success": False}, "its success says that it failed"),
        ({"reward": -0.37}, "its reward says that it failed"),
        ({"reward": 0.5}, None),
        ({"reward": None, "metadata": {"resolved": True}}, None),
        ({"correct": True, "metadata": {"correct": False}}, None),
        ({"correct": "yes"}, "its correct is neither true or false nor a number"),
        ({"correct": "yes", "reward": 1}, None),
        ({"metadata": "none"}, "its record has none of correct, success, resolved, reward, nor in its metadata"),
    ],
)
def test_answers_of_what_did_not_succeed_are_refused(record, refused):
    assert succeeded(answer(), record) == refused


def asked(*answers):
    return {"messages": [m for one in answers for m in ({"role": "user", "content": "How many?"}, one)]}


# Broken by leaving the turn out: later turns would be trained on a history that they never had.
def test_what_is_refused_stays_in_the_history():
    record = asked(answer("7 + 3 = 11", "11"), answer("1 + 1 = 2", "2"), answer("2 + 2 = 5", "5") | {"weight": 0})
    before = read_record(record, "r")
    found = filtered(before, record, (equations,))
    assert [message.get("weight") for message in found.messages[1::2]] == [0, None, 0]
    assert [message["content"] for message in found.messages] == [message["content"] for message in before.messages]
    assert found.notes == ("data.filter: answers are not trained: an equation in the thinking does not hold",)
    assert filtered(before, record, (thinks,)) is before
    untrained = asked(answer("2 + 2 = 5", "5") | {"weight": 0}, answer("1 + 1 = 2", "2"))
    assert filtered(read_record(untrained, "r"), untrained, (equations,)).notes == ()


def test_calls_are_refused_one_by_one():
    record = {
        "calls": [
            {"prompt": [{"role": "user", "content": "q"}], "completion": answer(one)} for one in ("1+1=3", "1+1=2")
        ]
    }
    found = filtered(read_record(record, "r"), record, (equations,))
    assert [call.weight for call in found.calls] == [0.0, 1.0]


# Broken by filters that look at text alone: rollouts of token ids that failed would be trained.
def test_answers_of_token_ids_are_refused_for_what_their_record_says():
    record = {"calls": [{"prompt": [1, 2, 3], "completion": [4, 5]}], "success": False}
    assert filtered(read_record(record, "r"), record, (succeeded,)).calls[0].weight == 0.0
    assert filtered(read_record(record, "r"), record, (equations, result)).calls[0].weight == 1.0


# Broken by refusing one side alone: a pair without its chosen is none, and a group's mean would be of the survivors.
def test_what_competes_goes_together():
    sides = {"chosen": [answer("1 + 1 = 3", "3")], "rejected": [answer("1 + 1 = 2", "2")]}
    record = {"prompt": [{"role": "user", "content": "q"}], **sides}
    assert {call.weight for call in filtered(read_record(record, "r"), record, (equations,)).calls} == {0.0}
    assert {call.weight for call in filtered(read_record(record, "r"), record, ()).calls} == {1.0}


def test_a_filter_that_raises_refuses():
    record = asked(answer("1 + 1 = 2", "2"))

    class Fails:
        def __call__(self, message, record):
            return record["mine"]

    for one, name in ((lambda message, record: record["mine"], "<lambda>"), (Fails(), "Fails")):
        assert filtered(read_record(record, "r"), record, (one,)).notes == (
            f"data.filter: answers are not trained: {name} raised KeyError: 'mine'",
        )


@pytest.fixture
def data_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = [asked(answer("7 + 3 = 11", "11")), asked(answer("1 + 1 = 2", "2")), asked(answer("", "2"))]
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, records)))

    def load(names, *more):
        overrides = ["data=jsonl", "data.path=my.jsonl", "data.heldout_conversations=0", f"data.filter={names}"]
        return load_data(compose([*overrides, *more]).data)

    return load


# Broken by a cache that does not know which filters a part was read with.
def test_data_is_read_with_its_filters(data_of, tmp_path):
    def trained(data):
        return [message.get("weight", 1) for one in data.train for message in one.messages[1::2]]

    assert trained(data_of("[]")) == [1, 1, 1]
    with pytest.warns(
        UserWarning, match=r"answers are not trained: an equation in the thinking does not hold \(1 of 3"
    ):
        assert trained(data_of("[equations]")) == [0, 1, 1]
    with pytest.warns(UserWarning, match="there is no thinking"):
        assert trained(data_of("[equations,thinks]")) == [0, 1, 0]
    mine = tmp_path / "filter_of_mine.py"
    mine.write_text("def short(message, record):\n    return 'short' if len(message['content']) < 2 else None\n")
    with pytest.warns(UserWarning, match="answers are not trained: short"):
        assert trained(data_of("['filter_of_mine:short']")) == [1, 0, 0]
    assert trained(data_of("[]")) == [1, 1, 1]


# Broken by taking the fault of a filter for one of its records, which are left out then (of the filtered reading alone,
# so that training would stop at them), or by training what a filter has written.
@pytest.mark.parametrize("on_invalid", ["error", "drop"])
def test_a_filter_that_is_at_fault_stops_the_run(on_invalid, tmp_path, data_of):
    (tmp_path / "filters_at_fault.py").write_text(
        "def number(message, record):\n    return 3 if message['content'] == '2' else None\n"
        "def write(message, record):\n    message['content'] = 'mine'\n"
    )
    for name, message in (
        ("number", r"my.jsonl:2: message 1: data.filter: number gave 3; it must give a reason, as text, or None"),
        ("write", r"my.jsonl:1: message 1: data.filter: write has changed the message"),
    ):
        with pytest.raises(ConfigError, match=message):
            data_of(f"['filters_at_fault:{name}']", f"data.on_invalid={on_invalid}")


# Broken by a warning for each answer.
def test_of_many_reasons_the_most_frequent_are_said(tmp_path, data_of):
    (tmp_path / "filter_of_many_words.py").write_text("def each(message, record):\n    return message['content']\n")
    records = [asked(answer("", "often"), answer("", str(i))) for i in range(30)]
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, records)))
    with pytest.warns(UserWarning) as caught:
        data_of("['filter_of_many_words:each']")
    said = [str(one.message) for one in caught if "data.filter" in str(one.message)]
    assert len(said) == 11 and "often (30 of 30 conversations)" in said[0]
    assert said[-1] == "data.filter: answers are not trained for 21 other reasons, each a rarer one"


# Broken by advice to remove what a filter reads.
def test_what_a_filter_reads_is_no_key_that_nothing_reads():
    def grade(message, record):
        return None if record["grade"] == "A" and record.get("tier") else "low grade"

    beside = {"success": True, "grade": "A", "tier": 1, "colour": "red"}
    record = {"prompt": "2+2?", "chosen": "4", "rejected": "5"} | beside
    found = read_record(record, "r")
    assert set(found.unread) == set(beside)
    assert filtered(found, record, (succeeded,)).unread == ("grade", "tier", "colour")
    assert filtered(found, record, (grade, succeeded)).unread == ("colour",)


# Broken by a filter that takes held-out answers away: what is measured with a filter could not be compared.
def test_what_is_held_out_of_a_file_is_not_filtered(data_of, tmp_path):
    records = [asked(answer("1 + 1 = 3", str(i))) for i in range(20)]
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, records)))
    load = ["data=jsonl", "data.path=my.jsonl", "data.heldout_conversations=5"]
    plain = load_data(compose(load).data)
    with pytest.warns(UserWarning, match="20 of 20"):
        kept = load_data(compose([*load, "data.filter=[equations]"]).data)
    assert list(kept.heldout) == list(plain.heldout)
    assert [one.name for one in kept.train] == [one.name for one in plain.train]
    assert all(message.get("weight") == 0 for one in kept.train for message in one.messages[1::2])


# Broken by a cache that does not know the code of a user's filter: after a change the old one would go on.
def test_a_filter_that_has_changed_reads_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, limit in (("filter_a", 2), ("filter_b", 3)):
        (tmp_path / f"{name}.py").write_text(f"def short(message, record):\n    return None if {limit} else ''\n")
    digests = [Reading("auto", 0, filters=(f"{name}:short",)).digest() for name in ("filter_a", "filter_b")]
    (tmp_path / "filter_c.py").write_text((tmp_path / "filter_a.py").read_text())
    assert len({*digests, Reading("auto", 0).digest()}) == 3
    assert digest_of_code(tmp_path / "filter_a.py") == digest_of_code(tmp_path / "filter_c.py")
    assert digest_of_code(tmp_path / "filter_a.py") != digest_of_code(tmp_path / "filter_b.py")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("equation", "data.filter=equation: no such filter; choose equations, result, thinks, succeeded, or give"),
        ("no_such_module:f", r"data.filter=no_such_module:f: cannot be imported"),
        ("os:getpid", "data.filter=os:getpid: "),
    ],
)
def test_a_filter_that_is_none_is_named(name, message, data_of):
    with pytest.raises(ConfigError, match=message):
        load_filters([name])
    with pytest.raises(ConfigError, match=message):
        data_of(f"['{name}']")


def test_what_is_held_out_of_generated_data_is_neither_flawed_nor_filtered():
    overrides = ["data.train_conversations=20", "data.heldout_conversations=10"]
    plain = load_data(compose(overrides).data)
    with pytest.warns(UserWarning, match="data.filter"):
        made = load_data(compose([*overrides, "data.flaws={wrong_step:1}", "data.filter=[equations]"]).data)
    assert list(made.heldout) == list(plain.heldout)
    assert list(made.train) != list(plain.train)
