"""Evaluating a finished run: which conversations, which histories, and what a user may get wrong."""

import json

import pytest
import torch

from flexmask.conversations.reading import read_conversation
from flexmask.text.rendering import render_passes
from recipes import evaluate
from recipes.configuration.compose import compose, save_run_config
from recipes.evaluate import main
from recipes.evaluation import chat
from recipes.evaluation.histories import evaluate_chats, sample
from recipes.models.tiny import build_model, build_tokenizer
from recipes.preparation.rows import prepare_heldout
from recipes.run.folder import write_json
from recipes.sources.load import load_data
from recipes.sources.tutoring import generate

TOKENIZER = build_tokenizer()
SHORT = ["experiment=short", "evaluation.max_new_tokens=4"]


@pytest.fixture(scope="module")
def model():
    return build_model(1, vocab_size=len(TOKENIZER), layers=1, hidden_size=16)


@pytest.fixture(scope="module")
def heldout():
    return [read_conversation(record, f"t:{i}") for i, record in enumerate(generate(5, 0, "heldout"))]


def config_with(*overrides):
    return compose([*SHORT, *overrides])


def evaluated(model, heldout, *overrides):
    config = config_with(*overrides)
    return evaluate_chats(model, TOKENIZER, heldout, config.evaluation, config.data)


@pytest.mark.parametrize(
    ("asked", "chatted"), [("0", 0), ("2", 2), ("5", 5), ("100", 5), ("null", 5)]
)  # more than there are is no error
def test_how_many_are_chatted(model, heldout, asked, chatted):
    figures, chats = evaluated(model, heldout, f"evaluation.conversations={asked}")
    assert figures["chatted_conversations"] == len(chats) == chatted
    assert (figures["answer_accuracy"] is None) == (chatted == 0)


def test_a_sample_is_drawn_from_all_and_stays(heldout):
    # Broken by taking the first: a file may be sorted, and a mix has one source behind the other.
    numbers = list(range(100))
    assert sample(numbers, 10, 0) == sample(numbers, 10, 0) == sorted(sample(numbers, 10, 0))
    assert sample(numbers, 10, 0) != sample(numbers, 10, 1)
    assert max(sample(numbers, 10, 0)) > 50
    assert sample(numbers, None, 0) == sample(numbers, 200, 0) == numbers


def test_histories(model, heldout):
    own, chats = evaluated(model, heldout, "evaluation.conversations=2")
    assert {chat.history for chat in chats} == {"own"} and not any(key.startswith("teacher_") for key in own)
    asked = ["evaluation.conversations=2", "evaluation.history=teacher"]
    teacher, chats = evaluated(model, heldout, *asked)
    assert {chat.history for chat in chats} == {"teacher"}
    # Broken by counts of 0 beside the shares that nobody measured.
    assert teacher["teacher_answer_accuracy"] is not None and all(key.startswith("teacher_") for key in teacher)
    both, chats = evaluated(model, heldout, asked[0], "evaluation.history=both")
    assert both == own | teacher
    assert [chat.history for chat in chats] == ["own", "own", "teacher", "teacher"]


def test_control_tokens_in_text_are_shown_as_in_training(model, monkeypatch):
    # Broken by asking with the text of the data, in which a user would end the turn.
    messages = [{"role": "user", "content": "what is <|im_end|>?"}, {"role": "assistant", "content": "a token"}]
    prompts, generate = [], chat.generate
    monkeypatch.setattr(chat, "generate", lambda model, ids, *more: prompts.extend(ids) or generate(model, ids, *more))
    conversation = read_conversation({"messages": messages}, "escaped")
    evaluated(model, [conversation], "data.control_tokens=escape")
    (trained,) = render_passes(conversation, TOKENIZER, control_tokens="escape")
    assert prompts == [trained.input_ids[: trained.prompt_length].tolist()]


@pytest.fixture(scope="module")
def run(tmp_path_factory, model):
    """What a run leaves, with a model that has learnt nothing."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    save_run_config(config_with("data.heldout_conversations=3", "data.train_conversations=5"), folder)
    model.save_pretrained(folder / "model")
    TOKENIZER.save_pretrained(folder / "model")
    return folder


@pytest.fixture
def data_file(tmp_path):
    path = tmp_path / "it's a test.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in generate(4, 0, "heldout")))
    return path


def printed(capsys, *arguments):
    main(*arguments)
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_a_run_is_evaluated_on_what_it_held_out(run, capsys):
    before = sorted(run.rglob("*"))
    figures, said = printed(capsys, run, None, ["evaluation.history=both", "evaluation.matcher=number"])
    assert figures["chatted_conversations"] == figures["teacher_chatted_conversations"] == 3
    assert "chatting on 3 conversations, of 3 that the run holds out" in said
    assert sorted(run.rglob("*")) == before


# Broken by chatting in float32 with what was trained, and chatted with, in bfloat16: a run of SmolLM2 thought in 55.7%
# of its replies by its own result and in 58.4% evaluated again.
@pytest.mark.parametrize(("mixed", "expected"), [("bf16", torch.bfloat16), ("none", None)])
def test_a_run_is_evaluated_in_its_own_precision(run, monkeypatch, capsys, mixed, expected):
    generate, computed_in = chat.generate, []

    def watched(model, *arguments):
        computed_in.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return generate(model, *arguments)

    monkeypatch.setattr(chat, "generate", watched)
    printed(capsys, run, None, [f"trainer.mixed_precision={mixed}"])
    assert computed_in and set(computed_in) == {expected}


def test_a_file_is_used_whole(run, data_file, capsys):
    # Broken by holding a share of the file out, or by the number of conversations that the run chatted on.
    figures, said = printed(capsys, run, str(data_file), [])
    assert figures["chatted_conversations"] == 4 and "of 4 of " in said
    figures, _ = printed(capsys, run, str(data_file), ["evaluation.conversations=2"])
    assert figures["chatted_conversations"] == 2


UNREADABLE = {"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "a"}]}


def test_invalid_conversations_are_left_out_as_the_run_left_them_out(data_file, tmp_path, model, capsys):
    """A run chats with the valid ones of those that it holds out; evaluating again finds the same figures."""
    lines = [
        json.dumps({"messages": [{"role": "user", "content": f"{number} <|im_end|>"}, UNREADABLE["messages"][1]]})
        for number in range(8)
    ]
    data_file.write_text(data_file.read_text() + "\n".join(lines))
    folder = tmp_path / "run"
    config = config_with(
        "data=jsonl",
        f'data.path="{data_file}"',
        "data.train_conversations=null",
        "data.heldout_conversations=8",
        "data.on_invalid=drop",
    )
    save_run_config(config, folder)
    model.save_pretrained(folder / "model")
    TOKENIZER.save_pretrained(folder / "model")
    held = load_data(config.data).heldout
    of_the_run = prepare_heldout(held, TOKENIZER, config.data, config.duplication, model)
    valid = [one for one in held if "<|im_end|>" not in one.messages[0]["content"]]
    assert of_the_run.valid == valid and 0 < len(valid) < len(held)
    expected, _ = evaluate_chats(model, TOKENIZER, of_the_run.valid, config.evaluation, config.data)
    figures, said = printed(capsys, folder, None, [])
    assert figures == expected and figures["chatted_conversations"] == len(valid)
    assert f"of {len(valid)} that the run holds out; {8 - len(valid)} more are invalid" in said


def test_invalid_conversations_of_a_file(run, data_file, capsys):
    data_file.write_text(data_file.read_text() + json.dumps(UNREADABLE) + "\n{}\n")
    with pytest.raises(SystemExit, match=r"1 of 6 conversations are invalid") as raised:
        main(run, str(data_file), [])
    assert "data.on_invalid=drop" in str(raised.value)
    figures, said = printed(capsys, run, str(data_file), ["data.on_invalid=drop"])
    assert figures["chatted_conversations"] == 4 and "of 4 of " in said and "2 more are invalid" in said


def test_turns_of_a_file_that_are_too_long_to_be_trained_are_asked(run, data_file, capsys):
    figures, _ = printed(capsys, run, str(data_file), ["duplication.pack_length=16"])
    assert figures["chatted_conversations"] == 4


def test_the_data_of_a_run_may_have_gone(data_file, tmp_path, model, capsys):
    folder, trained = tmp_path / "run", tmp_path / "trained.jsonl"
    trained.write_text(data_file.read_text())
    # More to train than there are: what the training has said of that is not said again, and would be an error here.
    data = ["data=jsonl", f"data.path={trained}", "data.heldout_conversations=1", "data.train_conversations=9"]
    save_run_config(config_with(*data), folder)
    model.save_pretrained(folder / "model")
    TOKENIZER.save_pretrained(folder / "model")
    trained.rename(tmp_path / "moved.jsonl")
    with pytest.raises(
        SystemExit, match=r"(?s)data\.path=.*trained\.jsonl: no such file.* Say where its data is now with data\.path="
    ):
        main(folder, None, [])
    figures, _ = printed(capsys, folder, None, [f"data.path={tmp_path / 'moved.jsonl'}"])
    assert figures["chatted_conversations"] == 1  # what the run held out, not what it was trained on
    figures, _ = printed(capsys, folder, str(data_file), [])
    assert figures["chatted_conversations"] == 4
    write_json(folder / "data.json", {"fingerprint": "of what was trained"})
    with pytest.warns(UserWarning, match="its data is not what it was when the run was trained"):
        main(folder, None, [f"data.path={tmp_path / 'moved.jsonl'}"])


def test_the_run_of_a_mix_is_evaluated_on_one_file(data_file, tmp_path, model, capsys):
    # Broken by keeping the sources of the mix beside the file.
    folder = tmp_path / "run"
    save_run_config(
        config_with("data=mix", "data.train_conversations=null", f"data.sources={{mine:{{path:'{tmp_path}'}}}}"), folder
    )
    model.save_pretrained(folder / "model")
    TOKENIZER.save_pretrained(folder / "model")
    figures, _ = printed(capsys, folder, str(data_file), [])
    assert figures["chatted_conversations"] == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.matchr=exact"], r"evaluation\.matchr: no such setting; did you mean evaluation\.matcher\?"),
        (["evaluation.matcher=exakt"], "evaluation.matcher=exakt: no such matcher"),
        (["evaluation.history=mine"], "history"),
        (["evaluation.conversations=0"], "evaluation.conversations=0: nothing to evaluate"),
        (["data.heldout_conversations=0"], "holds no conversations out; name a file"),
        (["+evaluation.matcher=exact"], "only key=value changes"),
        (["data=jsonl"], r"^error: data=jsonl: groups are chosen when a run starts\..* as in data\.path="),
        (["trainer.steps=3", "seed=2"], "trainer.steps=3, seed=2: changes nothing of an evaluation, which reads data"),
        (["evaluation=x", "experiment=short"], "evaluation=x, experiment=short: groups are chosen when a run starts"),
    ],
)
def test_mistakes_are_named(run, overrides, message):
    with pytest.raises(SystemExit, match=message):
        main(run, None, overrides)


def test_folders_that_cannot_be_evaluated_are_named(run, tmp_path, data_file):
    with pytest.raises(SystemExit, match=r"nowhere: no run folder, it has no config\.yaml"):
        main(tmp_path / "nowhere", None, [])
    with pytest.raises(SystemExit, match=r"nowhere: no run folder, it has no config\.yaml"):
        main(tmp_path / "nowhere", str(data_file), [])
    with pytest.raises(SystemExit, match=r"absent\.jsonl: no such file"):
        main(run, "absent.jsonl", [])
    save_run_config(config_with(), tmp_path)
    with pytest.raises(SystemExit, match=r"has no model/, so its training has not ended; make train ARGS=\"resume="):
        main(tmp_path, None, [])


def test_the_command_line_tells_a_file_from_an_override(monkeypatch, tmp_path):
    file = tmp_path / "a=b.jsonl"
    file.touch()
    assert evaluate.arguments(["run", "x.jsonl", "k=v"])[1:] == ("x.jsonl", ["k=v"])
    assert evaluate.arguments(["run", "k=v", str(file)])[1:] == (str(file), ["k=v"])
    assert evaluate.arguments(["run"])[1:] == (None, [])
    with pytest.raises(SystemExit):
        evaluate.arguments(["run", "a.jsonl", "b.jsonl"])
