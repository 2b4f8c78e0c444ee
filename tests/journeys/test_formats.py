"""Data in the formats that people have: a user trains on the file as it is, and reads what the run says of it."""

import json

import pyarrow
import pyarrow.parquet
import pytest
import traces
from journeys import assets
from records import CALLING_TEMPLATE, SCHEMA, call, turns, user, written

SETTINGS = [
    "model=hub", "model.name_or_path=models/dense", "model.chat_template=calling.jinja", "trainer=finetune",
    "data=jsonl",
    "trainer.steps=3", "trainer.conversations_per_step=4", "evaluation.conversations=0", "wandb=off",
]  # fmt: skip
TOWNS = ("Lund", "Oslo", "Kiel", "Bern")
OTHER = {"type": "function", "function": {"name": "convert", "parameters": {"type": "object", "properties": {
    "amount": {"type": "number"}, "to": {"type": "string"}}}}}  # fmt: skip


def sharegpt(town):
    return turns(
        ("human", f"How warm is {town}?"),
        ("function_call", f"<think>Look it up.</think>{written('temperature', town=town)}"),
        ("observation", "7"),
        ("gpt", "<think>\n7 it says\n</think>\n\nSeven."),
        tools=json.dumps([SCHEMA["function"]]),
        persona="curious",
    )


def hermes(town):
    return turns(
        ("system", f"Call functions of <tools>[{json.dumps(SCHEMA)}]</tools> in <tool_call></tool_call> tags."),
        ("human", f"How warm is {town}?"),
        ("gpt", f"<think>\nLook it up.\n</think>\n<tool_call>\n{written('temperature', town=town)}\n</tool_call>"),
        ("tool", "<tool_response>\n7\n</tool_response>"),
        ("gpt", "<think>\n7 it says\n</think>\nSeven."),
    )


def calls(town):
    """Two functions with differing arguments."""
    converts = call("convert", {"amount": 10.0, "to": "SEK"})
    messages = [user(f"How warm is {town}?")]
    for asked in (call(arguments={"town": town}), converts):
        messages += [{"role": "assistant", "content": "", "reasoning_content": "Look it up.", "tool_calls": [asked]},
                     {"role": "tool", "content": "7"}, {"role": "assistant", "content": "Seven."},
                     user("Ten euros?")]  # fmt: skip
    return {"messages": messages[:-1], "tools": [SCHEMA, OTHER]}


def model_calls(town):
    """Two calls, the second behind a summary; its answer is token ids in every other record."""
    system, answer = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Seven."}
    asked = [system, user(f"How warm is {town}?")]
    after = [system, user(f"So far: {town} has 7. And in euros?")]
    second = {"completion": [20, 21, 22]} if town in TOWNS[::2] else {"completion": answer}
    return {"calls": [{"prompt": asked, "completion": {**answer, "reasoning_content": "7 it says"}},
                      {"prompt": after, "weight": 0.5, **second}], "id": town}  # fmt: skip


def completion(town):
    return {"prompt": f"How warm is {town}?", "completion": "<think>\n7 it says\n</think>\n\nSeven."}


@pytest.fixture(scope="module")
def here(workshop):
    (workshop.folder / "calling.jinja").write_text(CALLING_TEMPLATE)
    for make in (sharegpt, hermes, calls, completion, model_calls):
        assets.write_jsonl(workshop.folder / f"{make.__name__}.jsonl", list(map(make, TOWNS)))
    table = pyarrow.Table.from_pylist(list(map(calls, TOWNS)))
    pyarrow.parquet.write_table(table, workshop.folder / "calls.parquet")
    return workshop


def result_of(here, done):
    return json.loads((here.folder / done.last_line / "result.json").read_text())


@pytest.mark.parametrize(
    ("file", "turns", "says"),
    [
        ("sharegpt.jsonl", 8, ("read as sharegpt\n", "'persona' (4)")),
        ("hermes.jsonl", 8, ("read as sharegpt with Hermes calls\n", "the chat template explains how to call (4 of 4")),
        ("completion.jsonl", 4, ("read as prompt and completion\n",)),
    ],
)
def test_a_file_as_it_is(here, file, turns, says):
    done = here.train(*SETTINGS, f"data.path={file}")
    assert f"4 conversations, {turns} trained turns" in done.out and "left out    nothing" in done.out
    assert all(words in done.out + done.err for words in says), done
    result = result_of(here, done)
    assert result["steps"] == 3 and sum(result["formats"].values()) == 4


# Breaks if calls of a model are lost between a file and its chats, or if what is chatted is not a call's own prompt.
def test_a_file_of_calls(here):
    settings = ["data.path=model_calls.jsonl", "data.heldout_conversations=2"]
    done = here.train(*SETTINGS, *settings, "evaluation.conversations=2", "evaluation.max_new_tokens=4")
    assert "2 conversations, 4 trained turns, 2 held out" in done.out and "read as calls of a model\n" in done.out
    result = result_of(here, done)
    assert result["formats"] == {"calls of a model": 4}
    chats = [json.loads(line) for line in (here.folder / done.last_line / "chats.jsonl").read_text().splitlines()]
    named = {chat["conversation"] for chat in chats}
    assert named <= {f"model_calls.jsonl:{line}: call {call}" for line in range(1, 5) for call in (0, 1)}
    assert len({name.partition(": call")[0] for name in named}) == 2
    assert result["chatted_replies"] == len(chats) == 2 + sum(name.endswith("call 1") for name in named)
    shown = here.run(f'make inspect ARGS="{" ".join([*SETTINGS, *settings])} model_calls.jsonl:1"')
    assert "model_calls.jsonl:1" in shown.out and "no warnings" in shown.out, shown


# The lines of an episode stand apart in two files. Breaks if they are not one record on the road from a folder of logs
# to the chats, or if a call is asked behind another prompt than its own.
def test_a_folder_of_logs(here):
    (here.folder / "logs").mkdir()
    episodes = [traces.logged_episode(town, town) for town in TOWNS]
    for name, number in (("a", 0), ("b", 1)):
        assets.write_jsonl(here.folder / "logs" / f"{name}.jsonl", [one[number] for one in episodes])
    settings = ["data.path=logs", "data.heldout_conversations=1", "evaluation.conversations=1"]
    done = here.train(*SETTINGS, *settings, "evaluation.history=teacher", "evaluation.max_new_tokens=4")
    assert "3 conversations, 6 trained turns, 1 held out" in done.out and "read as logged requests\n" in done.out
    assert (
        "calls of one 'session_id' are one record (data.episode_key) (8 of 8" in done.err
        and "'latency_ms' (8)" in done.err
    )
    chats = [json.loads(line) for line in (here.folder / done.last_line / "chats.jsonl").read_text().splitlines()]
    names = sorted(chat["conversation"] for chat in chats)
    assert [name.partition(":")[0] for name in names] == ["a.jsonl", "b.jsonl"]
    assert len({name.partition(":")[2] for name in names}) == 1
    apart = here.train(*SETTINGS, *settings[:1], "data.episode_key=null")
    assert "8 conversations, 8 trained turns" in apart.out
    shown = here.run(f'make inspect ARGS="{" ".join([*SETTINGS, *settings[:1]])} b.jsonl:2"')
    assert "a.jsonl:2" in shown.out and "calls 0-1" in shown.out, shown


# Breaks if a kind of trace is read by the library only, or a word of what it leaves open is lost on the way to a user.
def test_trajectories_and_rollouts(here):
    (here.folder / "atif").mkdir()
    for name, one in traces.TRAJECTORIES.items():
        (here.folder / "atif" / f"{name}.json").write_text(json.dumps(one, indent=1))
    done = here.train(*SETTINGS, "data.path=atif")
    assert "read as ATIF trajectories\n" in done.out and f"{len(traces.TRAJECTORIES)} conversations" in done.out
    assert "behind a step that replaced the context, calls are given what that step observed" in done.err
    rollouts = [traces.VERL, traces.TRL, traces.PRIME_RL, traces.episode_of_verifiers(), {"trajectory": [traces.STEP]}]
    assets.write_jsonl(here.folder / "rollouts.jsonl", rollouts)
    done = here.train(*SETTINGS, "data.path=rollouts.jsonl")
    assert "read as 3 token ids of rollouts, 2 verifiers traces" in done.out and "20 trained" in done.out
    assets.write_jsonl(here.folder / "dump.jsonl", [traces.VERL_DUMP])
    refused = here.train(*SETTINGS, "data.path=dump.jsonl", code=1)
    assert "dump.jsonl:1: a rollout dump of verl, whose text has lost the special tokens" in refused.err


# Breaks if a null that the table has filled in is trained: then there are more tokens.
def test_a_table_trains_what_its_json_lines_do(here):
    of_lines, of_table = (result_of(here, here.train(*SETTINGS, f"data.path={file}"))
                          for file in ("calls.jsonl", "calls.parquet"))  # fmt: skip
    for name in ("tokens_trained", "tokens_computed", "loss_first", "loss_last"):
        assert of_lines[name] == of_table[name]


def test_all_that_is_wrong_is_named_counted_and_left_out(here):
    """Of reading and of rendering alike."""
    good = [completion(town) for town in TOWNS]
    control = [{"messages": [user(f"What is <|im_end|> in {town}?"), {"role": "assistant", "content": "A token."}]}
               for town in TOWNS[:2]]  # fmt: skip
    unread = [{"messages": [user("q")]}, {"input_ids": [1, 2]}]
    mixed = [good[0], control[0], *good[1:3], unread[0], control[1], unread[1], good[3]]
    assets.write_jsonl(here.folder / "mixed.jsonl", mixed)
    settings = [*SETTINGS, "data.path=mixed.jsonl"]
    done = here.train(*settings, code=1)
    assert "mixed.jsonl:5: " in done.err and "mixed.jsonl:7: " in done.err and "data.on_invalid=drop" in done.err
    done = here.train(*settings, "data.on_invalid=drop")
    assert "left out    4 invalid conversations" in done.out
    assert '2 x contains the control token "<|im_end|>" (mixed.jsonl:2, mixed.jsonl:6)' in done.out, done.out
    lines = (here.folder / done.last_line / "left_out.jsonl").read_text().splitlines()
    left_out = {one["conversation"]: one for one in map(json.loads, lines)}
    assert sorted(left_out) == [f"mixed.jsonl:{line}" for line in (2, 5, 6, 7)]
    assert all(name in one["reason"] and one["kind"] in done.out for name, one in left_out.items())
    result = result_of(here, done)
    assert result["dropped_conversations"] == 4 and sorted(result["dropped_by_reason"].values()) == [1, 1, 2]


# The advice of the error is followed: the run goes on, and says how many conversations the template cuts short.
def test_what_the_template_leaves_out_is_refused_and_then_said(here):
    hides = CALLING_TEMPLATE.replace("{{ m.content }}", "{{ m.content if m.role != 'developer' }}")
    assert hides != CALLING_TEMPLATE
    (here.folder / "hides.jinja").write_text(hides)
    told = {"role": "developer", "content": "Answer in one word."}
    answered = {"role": "assistant", "content": "Seven.", "reasoning_content": "7 it says"}
    records = [{"messages": [*([told] if i else []), user("How warm is it?"), answered]} for i in range(4)]
    assets.write_jsonl(here.folder / "told.jsonl", records)
    settings = [*SETTINGS, "data.path=told.jsonl", "model.chat_template=hides.jinja"]
    refused = here.train(*settings, code=1)
    assert "told.jsonl:2: the chat template of" in refused.err and "the text of developer messages" in refused.err
    assert "data.not_shown=warn" in refused.err
    done = here.train(*settings, "data.not_shown=warn")
    assert "the text of developer messages to no turn that is trained (3 of 4 conversations)" in done.err
    assert result_of(here, done)["steps"] == 3
