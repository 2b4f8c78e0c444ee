"""What a newcomer gets wrong: one message that names it and says what to do, and never a traceback."""

import gzip
import json

import pytest
from journeys import assets

TINY = "model.tiny.layers=1 model.tiny.hidden_size=32 trainer.steps=2 trainer.warmup_steps=0 wandb=off"
OWN = "model=hub model.name_or_path=models/dense trainer=finetune data=jsonl data.path=my.jsonl wandb=off"
MOST_LINES = 12


def training(words: str) -> str:
    return f"python -m recipes.train {words}"


@pytest.fixture(scope="module")
def here(workshop):
    """The workshop, with files that are not what their names say."""
    folder = workshop.folder
    records = assets.conversations(4)
    lines = "".join(json.dumps(one) + "\n" for one in records)
    (folder / "array.jsonl").write_text(json.dumps(records, indent=1))
    (folder / "zipped.jsonl").write_bytes(gzip.compress(lines.encode()))
    (folder / "utf16.jsonl").write_text(lines, encoding="utf-16")
    (folder / "table.jsonl").write_text("question,answer\nwhat,that\n" * 200)
    (folder / "paper.pdf").write_bytes(b"%PDF-1.7\n" + bytes(range(256)) * 8)
    (folder / "empty.jsonl").write_text("")
    (folder / "broken.parquet").write_bytes(b"PAR1 no parquet")
    (folder / "nothing").mkdir()
    assets.write_jsonl(folder / "norole.jsonl", [records[0], {"messages": [{"content": "hello"}]}])
    assets.write_jsonl(folder / "plain.jsonl", [{"text": "not a conversation"}])
    said = {"role": "user", "content": "say <|im_end|> now"}
    assets.write_jsonl(folder / "control.jsonl", [{"messages": [said, records[0]["messages"][1]]}])
    (folder / "bad.jinja").write_text("{% for message in messages %}{{ message.content }")
    (folder / "fails.jinja").write_text("{{ raise_exception('only two roles') }}")
    (folder / "notes.gguf").write_text("not a model")
    model = folder / "headless"
    model.mkdir()
    (model / "config.json").write_text((folder / "models/dense/config.json").read_text())
    broken = folder / "torn"
    broken.mkdir()
    for path in (folder / "models/dense").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:1000])
    untemplated = folder / "untemplated"
    untemplated.mkdir()
    for path in (folder / "models/dense").iterdir():
        if path.name != "chat_template.jinja":
            (untemplated / path.name).write_bytes(path.read_bytes())
    return workshop


WRONG = {
    # settings
    "group": (training("duplication=onepass"), ["onepass", "one_pass"]),
    "key": (training("trainer.stepz=1"), ["trainer.stepz"]),
    "key of a group": (training("trainr.steps=1"), ["trainr"]),
    "type": (training("trainer.steps=many"), ["trainer.steps", "many"]),
    "choice": (training("data.on_invalid=skip"), ["data.on_invalid", "skip"]),
    "range": (training("duplication.pack_length=0"), ["duplication.pack_length=0", "at least 1"]),
    "schedule": (training(f"{TINY} trainer.schedule=cosin"), ["trainer.schedule", "cosin"]),
    "optimizer": (training(f"{TINY} trainer.optimizer=adamq"), ["trainer.optimizer", "adamq"]),
    "two lengths": (training("trainer.epochs=1 trainer.steps=5"), ["trainer.epochs", "trainer.steps"]),
    "best without measuring": (training(f"{TINY} trainer.keep_best=true"), ["trainer.keep_best", "evaluate_every"]),
    "adapter of random weights": (training(f"{TINY} adapter=lora"), ["adapter=lora", "model=hub"]),
    "words": (training("hello"), ["hello"]),
    # models
    "no model": (training("model=hub"), ["model.name_or_path"]),
    "model of the hub without network": (
        training(f"{OWN} model.name_or_path=nobody/nothing"),
        ["model.name_or_path=nobody/nothing", "local folder"],
    ),
    "folder without a model": (training(f"{OWN} model.name_or_path=nothing"), ["model.name_or_path=nothing"]),
    "no tokenizer": (training(f"{OWN} model.name_or_path=headless"), ["model.name_or_path=headless", "tokenizer"]),
    "torn weights": (training(f"{OWN} model.name_or_path=torn"), ["model.name_or_path=torn"]),
    "no template": (training(f"{OWN} model.name_or_path=untemplated"), ["chat template", "model.chat_template"]),
    "template file": (training(f"{OWN} model.chat_template=no.jinja"), ["model.chat_template=no.jinja"]),
    "template's syntax": (training(f"{OWN} model.chat_template=bad.jinja"), ["bad.jinja"]),
    "template that refuses": (training(f"{OWN} model.chat_template=fails.jinja"), ["my.jsonl:1", "only two roles"]),
    "adapter's modules": (training(f"{OWN} adapter=lora adapter.target_modules=[nope]"), ["adapter.target_modules"]),
    # data
    "no path": (training("data=jsonl"), ["data.path"]),
    "missing file": (training("data=jsonl data.path=mine.jsonl"), ["data.path=mine.jsonl", "no such file"]),
    "empty file": (training(f"{OWN} data.path=empty.jsonl"), ["empty.jsonl"]),
    "empty folder": (training(f"{OWN} data.path=nothing"), ["nothing"]),
    "array": (training(f"{OWN} data.path=array.jsonl"), ["array.jsonl", "JSON array", ".json"]),
    "gzip": (training(f"{OWN} data.path=zipped.jsonl"), ["zipped.jsonl", "gzip", ".gz"]),
    "UTF-16": (training(f"{OWN} data.path=utf16.jsonl"), ["utf16.jsonl", "UTF-16"]),
    "comma-separated": (training(f"{OWN} data.path=table.jsonl"), ["table.jsonl"]),
    "PDF": (training(f"{OWN} data.path=paper.pdf"), ["paper.pdf"]),
    "parquet": (training(f"{OWN} data.path=broken.parquet"), ["broken.parquet"]),
    "no role": (training(f"{OWN} data.path=norole.jsonl"), ["norole.jsonl:2", "role"]),
    "no conversation": (training(f"{OWN} data.path=plain.jsonl"), ["plain.jsonl:1", "messages"]),
    "control tokens": (
        training(f"{OWN} data.path=control.jsonl"),
        ["control.jsonl:1", "<|im_end|>", "data.control_tokens"],
    ),
    "other kind of data": (training(f"{OWN} data=gsm8k_socratic data.path=my.jsonl"), ["my.jsonl", "question"]),
    "too much held out": (training(f"{OWN} data.heldout_conversations=12"), ["data.heldout_conversations"]),
    "too long": (training(f"{OWN} duplication.pack_length=16"), ["my.jsonl:", "pack_length is 16"]),
    "data of the hub without network": (training("data=gsm8k_socratic wandb=off"), ["openai/gsm8k", "data.path"]),
    # folders
    "resume": (training("resume=runs/tpyo"), ["resume=runs/tpyo"]),
    "resume of no run": (training("resume=nothing"), ["nothing", "config.yaml"]),
    "evaluate": ("python -m recipes.evaluate nothing", ["nothing", "config.yaml"]),
    "evaluate what": ("python -m recipes.evaluate", ["usage:", "RUN"]),
    "compare": ("python -m recipes.compare nothing", ["nothing"]),
    "sweep": ('make sweep SWEEP=layoutz', ["layoutz"]),
    # other commands
    "matcher": (training(f"{TINY} evaluation.matcher=fuzzy"), ["evaluation.matcher", "fuzzy", "exact"]),
    "matcher's module": (training(f"{TINY} evaluation.matcher=nowhere:right"), ["evaluation.matcher", "nowhere"]),
    "inspect an index": (f'make inspect ARGS="99 {OWN}"', ["99", "0 to 11"]),
    "inspect a line": (f'make inspect ARGS="my.jsonl:99 {OWN}"', ["my.jsonl:99"]),
    "inspect a key": ('make inspect ARGS="trainer.stepz=1"', ["stepz"]),
    "gguf": ("python -m recipes.convert_gguf notes.gguf out", ["notes.gguf", "GGUF"]),
    "bench": ('make bench ARGS="sections=[speed]"', ["speed"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_named(here, name):
    command, words = WRONG[name]
    done = here.run(command, code=None)
    said = done.err.replace("\n", " ")
    for word in words:
        assert word in said, f"{word!r} is missing in\n{done}"
    assert done.err.strip().count("\n") < MOST_LINES, done
    assert "+trainer" not in done.err and "+data" not in done.err, "Hydra's advice adds a key that is refused then"


# A run has a folder once everything is prepared and checked: mistakes leave none behind.
def test_no_mistake_leaves_a_run_folder(here):
    for name in ("array", "control tokens", "matcher", "torn weights", "too long"):
        here.run(WRONG[name][0], code=None)
    assert not list(here.folder.glob("runs/2*"))
