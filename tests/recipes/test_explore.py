"""The explorer's page as a file: what stands in it, what the command prints, and what it refuses."""

import json
import re
import warnings

import numpy as np
import pytest
from factories import random_conversation

from flexmask import pack, prepare_conversation
from flexmask.model.cost import head_cost, pair_cost
from flexmask.tree.layouts import LAYOUTS
from recipes import explore
from recipes.benchmarking.parts.packing import block_pairs
from recipes.configuration.compose import compose
from recipes.models.load import load_tokenizer, weightless_model
from recipes.pages.explorer import Costs, Vocabulary, conversation_data
from recipes.pages.page import write_page
from recipes.preparation.rows import settings_of
from recipes.sources.load import load_data

CONVERSATION = {
    "messages": [
        {"role": "user", "content": "add 12 and 34"},
        {"role": "assistant", "content": "46", "reasoning_content": "12 + 34"},
        {"role": "user", "content": "then add one"},
        {"role": "assistant", "content": "47", "reasoning_content": "46 + 1"},
    ]
}
INVALID = {"messages": [{"role": "user", "content": "a <|im_end|>"}, {"role": "assistant", "content": "b"}]}
CALLS = {
    "calls": [
        {"prompt": [{"role": "user", "content": "one"}], "completion": {"role": "assistant", "content": "two"}},
        {"prompt": [{"role": "user", "content": "so far"}], "completion": {"role": "assistant", "content": "ten"}},
    ]
}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (CONVERSATION, CALLS, CONVERSATION)))
    return path


@pytest.fixture
def run(capsys, monkeypatch, file):
    """Runs the command on `my.jsonl` in this process: (its exit code, what it printed, its errors)."""

    def run_in_process(*words):
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # the command sets its own
        code, message = 0, ""
        try:
            explore.main(["data=jsonl", "data.path=my.jsonl", "trainer.epochs=1", *words])
        except SystemExit as end:
            code, message = (end.code, "") if isinstance(end.code, int) else (1, end.code)
        printed = capsys.readouterr()
        return code, printed.out, printed.err + message

    return run_in_process


def data_of(path):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text())[1])


def spread(runs):
    return [value for value, count in runs for _ in range(count)]


def test_the_last_line_is_the_page_and_the_one_before_says_what_is_not_in_it(run, tmp_path):
    code, out, err = run()
    assert code == 0, err
    *_, before, path = out.splitlines()
    assert path == "runs/explorer/my.jsonl_1.html" and (tmp_path / path).is_file()
    assert before.startswith("1 of the data's 3 conversations (0 held out) on this page; 0.0")
    assert "1 of the data&#39;s 3 conversations (0 held out) on this page" in (tmp_path / path).read_text()
    assert out.startswith("my.jsonl:1: ") and " tokens in 1 row, " in out


def test_several_by_index_and_name(run, tmp_path):
    code, out, err = run("2", "my.jsonl:2", "--out", "a/b.html")
    assert code == 0, err
    data = data_of(tmp_path / "a/b.html")
    assert [one["name"] for one in data["conversations"]] == ["my.jsonl:3", "my.jsonl:2"]
    assert data["conversations"][0]["calls"] is None and len(data["conversations"][1]["calls"]) == 2
    refused = [one for one in data["conversations"][1]["layouts"] if "refused" in one]
    assert [one["name"] for one in refused] == ["keep_thinking"] and "calls" in refused[0]["refused"]
    assert out.splitlines()[-1] == "a/b.html"


# Breaks if a column is shifted, or if a pass is taken from another place of the tree than it has there.
@pytest.mark.parametrize("pack_length", [None, 150])
def test_the_columns_are_the_rows(pack_length):
    tokenizer = load_tokenizer(compose().model)
    for seed in range(12):
        one = random_conversation(seed)
        laid_out = {}
        for layout in LAYOUTS:
            try:
                laid_out[layout] = prepare_conversation(
                    one, tokenizer, layout=layout, pack_length=pack_length, too_long="drop", thinking_weight=0.25
                )
            except ValueError as error:
                laid_out[layout] = str(error)
        vocabulary = Vocabulary(tokenizer)
        data = conversation_data(laid_out, vocabulary, Costs(0.001, 0.1, pack_length or 4096, 16), None)
        columns = vocabulary.columns()
        assert len(set(zip(columns["id"], columns["text"], strict=True))) == len(columns["id"])
        trees = data["layouts"][0]["rows"]
        for shown in data["layouts"]:
            if "refused" in shown:
                continue
            rows = laid_out[shown["name"]].rows
            assert shown["dropped"] == laid_out[shown["name"]].dropped_turns and len(shown["rows"]) == len(rows)
            for said, row in zip(shown["rows"], rows, strict=True):
                if "spans" in said:
                    assert shown["name"] != "one_pass"
                    of = trees[said["of"]]["tokens"]
                    tokens = [one for start, end in said["spans"] for one in of[start:end]]
                else:
                    tokens = said["tokens"]
                    assert shown["name"] in ("one_pass", "keep_thinking")  # all others are passes of the tree
                assert [columns["id"][i] for i in tokens] == row.input_ids.tolist()
                assert spread(said["roles"]) == row.roles.tolist()
                assert np.allclose(spread(said["weights"]), row.loss_weights, atol=1e-6)
                assert said["nodes"]["parent"] == row.node_parent.tolist()
                assert sum(said["blocks"]["counts"]) == len(said["blocks"]["lines"]) ** 2


# Breaks if rows are packed otherwise than in training, or a layout is set against another than per_turn.
def test_what_is_computed_and_predicted(run, file, tmp_path):
    run("attention.block_size=16", "duplication.pack_length=100")
    config = compose(["data=jsonl", "data.path=my.jsonl", "trainer.epochs=1", "duplication.pack_length=100"])
    tokenizer = load_tokenizer(config.model)
    conversation = load_data(config.data).train[0]
    model = weightless_model(config.model, len(tokenizer))
    settings = settings_of(config.data, config.duplication)
    cost = {}
    for shown in data_of(tmp_path / "runs/explorer/my.jsonl_1.html")["conversations"][0]["layouts"]:
        rows = prepare_conversation(conversation, tokenizer, **settings | {"layout": shown["name"]}).rows
        assert shown["tokens"] == sum(map(len, rows)) and shown["pairs"] == sum(row.visible_pairs for row in rows)
        assert shown["in_blocks"] == sum(block_pairs(one, 16) for one in pack(rows, 100))
        trained = sum(int((row.loss_weights > 0).sum()) for row in rows)
        ours = shown["tokens"] + pair_cost(model) * shown["pairs"] + head_cost(model) * trained
        cost[shown["name"]] = ours, shown["faster"]
    for ours, faster in cost.values():
        assert faster == pytest.approx(cost["per_turn"][0] / ours)
    assert cost["one_pass"][1] > 1


def test_names_that_there_are_not_and_settings_that_there_are_not(run, tmp_path):
    for words, said in (
        (["7"], "conversation '7': there is none"),
        (["other.jsonl:1"], "'my.jsonl:1'"),
        (["data.pth=x"], "pth"),
        (["data.path=no.jsonl"], "no.jsonl"),
        (["--out", "."], "is a folder"),
    ):
        code, out, err = run(*words)
        assert code == 1 and said in err and "Traceback" not in err, (words, err)
    assert not (tmp_path / "runs").exists()


def test_an_invalid_conversation_is_refused_or_left_out_and_said(run, file, tmp_path):
    file.write_text("".join(json.dumps(one) + "\n" for one in (INVALID, CONVERSATION)))
    code, _, err = run("0", "1")
    assert code == 1 and "my.jsonl:1: messages[0].content contains the control token" in err
    assert run("1")[0] == 0  # another's fault is no reason
    code, out, err = run("0", "1", "data.on_invalid=drop", "--out", "page.html")
    assert code == 0, err
    assert "left out, invalid: my.jsonl:1: " in out
    page = (tmp_path / "page.html").read_text()
    assert [one["name"] for one in data_of(tmp_path / "page.html")["conversations"]] == ["my.jsonl:2"]
    assert "Left out of this page, invalid:" in page and "my.jsonl:1: messages[0].content" in page
    code, _, err = run("0", "data.on_invalid=drop")
    assert code == 1 and "there is nothing to show" in err


# Breaks if any file that stands there is replaced.
def test_only_a_page_of_its_own_is_replaced(run, tmp_path):
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    code, _, err = run("--out", "mine.html")
    assert code == 1 and "mine.html: is there, and no page of the explorer" in err
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"
    write_page(tmp_path / "other.html", "base.html", values={"title": 'id="flexmask-explorer"'})
    assert run("--out", "other.html")[0] == 1
    for _ in range(2):
        assert run("--out", "page.html")[0] == 0


def test_what_is_said_of_the_model(run, tmp_path, models):
    run("model=hub", f"model.name_or_path={models / 'gpt_oss'}", "--out", "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "layers of sliding_attention see of that only what is near enough" in page
    run("model=hub", f"model.name_or_path={models / 'hybrid'}", "--out", "page.html")
    assert "state branches with the tree in 1 layers" in (tmp_path / "page.html").read_text()
    (tmp_path / "bare").mkdir()
    load_tokenizer(compose().model).save_pretrained(tmp_path / "bare")
    code, out, err = run("model=hub", f"model.name_or_path={tmp_path / 'bare'}", "--out", "page.html")
    assert code == 0 and "! Nothing is known of the model, so no speed-up is predicted: " in out, err
    assert "Nothing is known of the model" in (tmp_path / "page.html").read_text()
    assert data_of(tmp_path / "page.html")["conversations"][0]["layouts"][0]["faster"] is None


def test_what_is_left_out_of_a_row_and_what_preparing_says(run, tmp_path):
    code, out, err = run("duplication.pack_length=30", "duplication.too_long=drop", "--out", "page.html")
    assert code == 0 and "1 turns are longer than a pack and are left out" in out, out + err
    assert data_of(tmp_path / "page.html")["conversations"][0]["layouts"][0]["dropped"] == [1]
    code, out, _ = run("duplication.turns='7:'", "--out", "page.html")
    assert code == 0 and "nothing of it is trained" in out
    code, out, _ = run("1", "context=keep_last_tool_results", "--out", "page.html")
    assert "  ! a record of calls says itself what each call was shown" in out
    data = data_of(tmp_path / "page.html")
    assert "a record of calls says itself" in data["conversations"][0]["notes"][0]
    code, out, err = run("duplication.pack_length=30", "--out", "page.html")
    assert code == 1 and "the pass of assistant turn 1 has " in err and "duplication.too_long=drop" in err


def test_competing_answers_are_shown(run, file, tmp_path):
    file.write_text(
        json.dumps(
            {
                "prompt": [{"role": "user", "content": "2+2?"}],
                "chosen": [{"role": "assistant", "content": "4"}],
                "rejected": [{"role": "assistant", "content": "5"}],
            }
        )
    )
    code, out, err = run("--out", "page.html")
    assert code == 0, err
    (shown,) = data_of(tmp_path / "page.html")["conversations"]
    assert len(shown["layouts"][0]["rows"][0]["passes"]["turn"]) == 2
