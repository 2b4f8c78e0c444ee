"""The inspector: what a user sees of a conversation, a data set and a model before training."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from factories import chatml_tokenizer
from stateful_families import BRANCHING, UNBRANCHED

from recipes import inspector
from recipes.configuration.compose import compose
from recipes.models.load import load_tokenizer
from recipes.sources.load import load_data
from recipes.train import prepare_run

ROOT = Path(__file__).parents[2]
CONVERSATION = {
    "messages": [
        {"role": "user", "content": "add 12 and 34"},
        {"role": "assistant", "content": "46", "reasoning_content": "12 + 34"},
        {"role": "user", "content": "then add one"},
        {"role": "assistant", "content": "47", "reasoning_content": "46 + 1"},
    ]
}
PLAIN = {"messages": [{"role": "user", "content": "add"}, {"role": "assistant", "content": "no [bold] thinking"}]}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in (PLAIN, CONVERSATION)))
    return path


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs the command in this process, which is seconds faster than another one."""

    def run_in_process(*arguments, columns=150):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # the command sets its own
        code, message = 0, ""
        try:
            inspector.main(arguments)
        except SystemExit as end:  # a message is printed by the interpreter, which does not end here
            code, message = (end.code, "") if isinstance(end.code, int) else (1, end.code)
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err + message)

    return run_in_process


def of(file, *more):
    return ("data=jsonl", f"data.path={file}", "trainer.epochs=3", *more)


def test_as_a_command(file, python, tmp_path):
    done = python.run("recipes.inspector", *of(file), cwd=tmp_path, COLUMNS="150")
    assert done.returncode == 0, done.stderr
    assert "my.jsonl:1" in done.stdout and "no warnings" in done.stdout


# Breaks if what one process looks at is refused for want of others, or what they would refuse is not.
def test_a_run_of_several_processes_is_looked_at_by_one(run, file, tmp_path):
    parallel = ("parallel=fsdp", "parallel.context_parallel=true")
    done = run(*of(file, *parallel))
    assert "no warnings" in done.stdout, done.stdout
    config = BRANCHING["Qwen3.5"].config()
    config.vocab_size = 1000
    config.save_pretrained(tmp_path / "hybrid")
    load_tokenizer(compose().model).save_pretrained(tmp_path / "hybrid")
    done = run(*of(file, *parallel, "model=hub", f"model.name_or_path={tmp_path / 'hybrid'}"), columns=300)
    assert "context_parallel would cut" in done.stdout, done.stdout


# A narrow terminal costs text, never a number that another line refers to; the name may stand anywhere.
@pytest.mark.parametrize("columns", [150, 80])
def test_a_conversation_by_name(run, file, columns):
    done = run(*of(file), "my.jsonl:2", columns=columns)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    # number, role, turn, tokens, positions, trained, hidden from
    assert ["1", "plain", "copy", "2", "16-17", "no", "5-6"] in [line[:7] for line in lines]
    assert ["3", "thinking", "1", "9", "34-42", "all", "5-6"] in [line[:7] for line in lines]
    assert ["6", "trained", "answer", "0", "3", "26-28", "all"] in [line[:7] for line in lines]
    assert ["thinking", "5", "■", "·", "·", "·", "·", "■"] in lines
    assert "can be trained exactly" in done.stdout and "no warnings" in done.stdout
    assert "memory by formula, of one process with packs of 2,048 tokens: " in done.stdout
    assert "2 conversations, 3 trained turns, 0 held out" in done.stdout
    assert "computed in layout one_pass" in done.stdout and "rows        2, the longest of" in done.stdout


# Breaks if a run on a small file ends without chats and nothing has said why, or if what it says to do does not help.
def test_that_nothing_is_held_out_is_said(run, file):
    said = "so no loss is measured on held-out conversations and the model does not chat"
    assert f"{said}; data.heldout_conversations=1 holds one out" in " ".join(run(*of(file)).stdout.split())
    done = run(*of(file, "data.heldout_conversations=1"))
    assert "1 held out" in done.stdout and said not in " ".join(done.stdout.split())


def test_the_first_conversation_is_the_default_and_markup_in_it_is_text(run, file):
    done = run(*of(file, "--full"))
    assert "my.jsonl:1" in done.stdout and "no [bold] thinking<|im_end|>" in done.stdout


@pytest.mark.parametrize("wanted", ["7", "other.jsonl:1"])
def test_a_conversation_that_is_not_there(run, file, wanted):
    done = run(*of(file, wanted))
    assert done.returncode == 1
    assert f"error: conversation '{wanted}': there is none" in done.stderr and "'my.jsonl:1'" in done.stderr


def test_warnings_of_template_model_and_settings(run, file, tmp_path):
    """Models with layers that carry state, and a template that keeps no thinking: refused, declared, said."""
    folder = tmp_path / "model"
    tokenizer = chatml_tokenizer()

    def save(family):
        config = family.config()
        config.vocab_size = len(tokenizer)
        config.save_pretrained(folder)

    save(BRANCHING["LFM2"])
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    (tmp_path / "template.jinja").write_text(template)
    done = run(
        *of(file, "1", "model=hub", f"model.name_or_path={folder}", f"model.chat_template={tmp_path}/template.jinja"),
        "duplication.thinking_weight=0.5",
        "duplication.turns=-1",
    )
    assert done.returncode == 0, done.stderr
    output = " ".join(done.stdout.split())
    assert "Lfm2ForCausalLM" in output and "no row branches, so nothing is duplicated" in output
    assert "the chat template renders no thinking; it is trained as '<think>" in output
    assert "(1 of 2 conversations)" in output
    assert "all x 0.5" in output
    assert "can be trained exactly" in output and "state branches with the tree in 2 layers (Lfm2ShortConv)" in output
    assert "memory by formula: no formula for layers of lfm2" in output
    save(UNBRANCHED["MiniMax"])
    done = run(
        *of(file, "1", "model=hub", f"model.name_or_path={folder}", f"model.chat_template={tmp_path}/template.jinja")
    )
    output = " ".join(done.stdout.split())
    assert "refused: see the warnings" in output
    assert "layers.0.self_attn (MiniMaxLightningAttention) carry state from token to token" in output


def test_a_data_set_without_a_turn_to_train(run, file):
    done = run(*of(file, "duplication.turns='7:'"))
    assert done.returncode == 0, done.stderr
    assert "! training is refused: no turn of any conversation is trained" in done.stdout
    assert "nothing of it is trained" in done.stdout
    assert "left out    2 conversations with nothing to train" in done.stdout


def test_two_conversations_at_once(run, file):
    assert "one conversation at a time, not 1 and 2" in run(*of(file, "1", "2")).stderr


def test_an_error_in_the_data_is_one_line(run, file):
    file.write_text(
        '{"messages": [{"role": "user", "content": "a <|im_end|>"}, {"role": "assistant", "content": "b"}]}'
    )
    done = run(*of(file))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "my.jsonl:1: messages[0].content contains the control token" in done.stderr


def test_a_misspelt_key(run, file):
    done = run(*of(file, "data.pth=x"))
    assert done.returncode == 1 and "Traceback" not in done.stderr and "pth" in done.stderr


@pytest.mark.parametrize("count", [1, 8, 40])
def test_nothing_of_the_settings_is_too_large_for_few_conversations(run, file, count):
    file.write_text("".join(json.dumps(CONVERSATION | {"id": number}) + "\n" for number in range(count)))
    done = run(*of(file))
    assert done.returncode == 0, done.stderr
    conversations = "1 conversation" if count == 1 else f"{count} conversations"
    assert f"{conversations}, {2 * count} trained turns, 0 held out" in done.stdout  # all say the same


def test_a_folder_a_mix_and_what_is_held_out(run, file, tmp_path):
    lines = (CONVERSATION["messages"][0] | {"content": f"add {number} and 1"} for number in range(20))
    records = [{"messages": [first, *CONVERSATION["messages"][1:]]} for first in lines]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/many.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    (tmp_path / "folder/README.md").write_text("about")
    sources = f"data.sources={{ours:{{path:{tmp_path}/folder}},few:{{path:{file},weight:2.5}}}}"
    done = run("data=mix", sources)
    assert done.returncode == 0, done.stderr
    assert "ours: 20 conversations, 19 to train in an epoch, 1 held out" in done.stdout
    assert "few: 2 conversations, 5 to train in an epoch, 0 held out" in done.stdout
    assert "24 conversations," in done.stdout and "rows        24, the longest of" in done.stdout
    assert "! data.sources.ours.path=" in done.stdout and "README.md" in done.stdout
    # Every conversation can be looked at, also the one that is not trained.
    titles = [
        next(
            line
            for line in run("data=mix", sources, f"ours/many.jsonl:{line}").stdout.splitlines()
            if "many.jsonl:" in line
        )
        for line in range(1, 21)
    ]
    assert sum("held out" in title for title in titles) == 1


def test_invalid_conversations_are_left_out_counted_and_shown(run, file):
    bad = {"messages": [{"role": "user", "content": "a <|im_end|>"}, {"role": "assistant", "content": "b"}]}
    with file.open("a") as lines:
        lines.write(json.dumps(bad) + "\n{}\n")
    done = run(*of(file, "data.on_invalid=drop", "my.jsonl:3"))
    assert done.returncode == 0, done.stderr
    assert "data        2 conversations," in done.stdout and "invalid, left out: see the warnings" in done.stdout
    assert "left out    2 invalid conversations" in done.stdout
    assert "! invalid, left out: my.jsonl:3: messages[0].content" in done.stdout
    assert "as plain text with data.control_tokens=escape" in done.stdout
    assert "! invalid, left out: my.jsonl:4: found keys []" in done.stdout
    done = run(*of(file, "data.on_invalid=drop", "my.jsonl:4"))  # which is not even read
    assert done.returncode == 1 and "'my.jsonl:4': invalid, left out: my.jsonl:4: found keys []" in done.stderr


# --- what a run would say ----------------------------------------------------------------------------------


@pytest.fixture
def half_bad(tmp_path):
    """Twenty conversations, of which those held out cannot be rendered. (System prompts do not decide who is.)"""
    path = tmp_path / "half.jsonl"
    questions = ({"role": "user", "content": f"add {number}"} for number in range(20))
    system, answer = {"role": "system", "content": "s"}, PLAIN["messages"][1]
    records = [{"messages": [dict(system), question, answer]} for question in questions]
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    held = {one.name for one in load_data(compose([*of(path), "data.heldout_conversations=5"]).data).heldout}
    for i, one in enumerate(records):
        if f"half.jsonl:{i + 1}" in held:
            one["messages"][0]["content"] = "a <|im_end|>"
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path, sorted(held)


def test_what_is_held_out_is_prepared_as_well(run, half_bad):
    # Broken by preparing only what is trained: "no warnings", and then training refuses the data.
    path, held = half_bad
    settings = of(path, "data.heldout_conversations=5")
    done = run(*settings)
    assert done.returncode == 1 and "5 of 5 conversations cannot be prepared" in done.stderr and held[0] in done.stderr
    done = run(*settings, "data.on_invalid=drop", held[0])
    assert done.returncode == 0, done.stderr
    assert "left out    5 invalid conversations" in done.stdout and "invalid, left out: see the warnings" in done.stdout
    assert all(f"! invalid, left out: {name}: " in done.stdout for name in held)


def test_warnings_and_notes_are_those_of_the_run(run, file, tmp_path, monkeypatch):
    """Its own lines stand among those that training prints, word for word."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    chatml_tokenizer().save_pretrained(folder)
    settings = of(file, "model=hub", f"model.name_or_path={folder}", "model.from_scratch=true", "trainer.steps=400")
    settings = [one for one in settings if "epochs" not in one]
    config = BRANCHING["LFM2"].config()
    config.vocab_size, config.eos_token_id = len(chatml_tokenizer()), 3
    config.save_pretrained(folder)
    done = run(*settings)
    with pytest.warns(UserWarning, match="go 400 times through 2 conversations") as caught:
        lines = prepare_run(compose(settings)).opening_lines
    assert all(line in done.stdout for line in lines if line.startswith(("data", "left out", "steps", "note", " ")))
    assert any(line.startswith("note") for line in lines)
    said = {str(one.message) for one in caught if issubclass(one.category, UserWarning)}
    assert said and all(f"! {text}\n" in done.stdout for text in said)


REFUSED = {
    "a matcher": (["evaluation.matcher=exakt"], "evaluation.matcher=exakt: no such matcher"),
    "a schedule": (["trainer.schedule=cosin"], "trainer.schedule=cosin: the installed transformers has no such name"),
    "early stopping": (["trainer.evaluate_every=5", "trainer.early_stopping=2"], "no conversation is held out"),
    "an adapter": (["adapter=lora", "adapter.target_modules=[nope]"], "adapter.target_modules"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_training_refuses_is_said(run, file, models, case):
    overrides, text = REFUSED[case]
    own = ["model=hub", f"model.name_or_path={models / 'dense'}"]
    assert "no warnings" in run(*of(file, *own)).stdout
    done = run(*of(file, *own, *overrides))
    assert done.returncode == 0, done.stderr
    assert text in next(line for line in done.stdout.splitlines() if line.startswith("! training is refused: "))


# Breaks if it is not said which call sees what, what later ones see no longer, or what splitting costs.
def test_calls_under_a_rule_are_told_by_name(run, tmp_path):
    turns = []
    for number in range(4):
        call = {"id": f"c{number}", "type": "function", "function": {"name": "add", "arguments": {"a": number}}}
        turns += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"c{number}", "content": "one two three four five six seven " * 4},
        ]
    messages = [{"role": "user", "content": "add"}, *turns, {"role": "assistant", "content": "ten"}]
    schema = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    path = tmp_path / "calls.jsonl"
    path.write_text(json.dumps({"messages": messages, "tools": [schema]}))
    words = [*of(path), "context=keep_last_tool_results", "context.arguments.keep=1"]
    done = run(*words, columns=300)
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    (last,) = [line.split() for line in lines if line.startswith("call 4 (message 9)")]
    prompt, shared, generates, new = (int(one.replace(",", "")) for one in last[-4:])
    assert prompt - shared + generates == new > 0 and shared > 0
    assert any("prompt" in line and "3 ×" in line for line in lines)  # the result that the last call clears
    assert not any("4 ×" in line for line in lines) and "no warnings" in done.stdout
    assert "× later calls see it no longer" in done.stdout
    split = run(*words, "duplication.pack_length=1000", columns=300)
    assert "more than the lower bound of" in split.stdout and "are longer than a pack and are split" in split.stdout
