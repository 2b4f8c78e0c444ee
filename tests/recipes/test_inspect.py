"""The inspector: what a user sees of a conversation, a data set and a model before training."""

import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from factories import chatml_tokenizer
from stateful_families import BRANCHING, UNBRANCHED

from recipes import inspect

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
            inspect.main(arguments)
        except SystemExit as end:  # a message is printed by the interpreter, which does not end here
            code, message = (end.code, "") if isinstance(end.code, int) else (1, end.code)
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err + message)

    return run_in_process


def of(file, *more):
    return (*more, "data=jsonl", f"data.path={file}")


def test_as_a_command(file):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "150"}
    command = [sys.executable, "-m", "recipes.inspect", *of(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "my.jsonl:1" in done.stdout and "no warnings" in done.stdout


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
    assert re.search(r"2 conversations in layout one_pass: 2 rows", done.stdout)


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
    assert "no turn of any conversation is trained" in done.stdout and "nothing of it is trained" in done.stdout
    assert "2 conversations have no turn to train" in done.stdout


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
    assert f"{count} conversations, {count} to train in an epoch, 0 held out" in done.stdout  # all say the same


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
    assert "24 conversations in layout one_pass: 24 rows" in done.stdout
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
    assert "2 conversations in layout" in done.stdout and "invalid, left out: see the warnings" in done.stdout
    assert "! invalid, left out: my.jsonl:3: messages[0].content" in done.stdout
    assert "! invalid, left out: my.jsonl:4: found keys []" in done.stdout
