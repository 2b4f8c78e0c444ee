"""Nothing of a model's folder, a checkpoint, a template or a record runs as code. Each tries to leave a file."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from journeys import assets
from pretrained import config_of
from transformers import TrainingArguments

from flexmask import OnePassCollator, OnePassConfig, OnePassTrainer, prepare_conversation
from flexmask.conversations.reading import read_conversation
from flexmask.training.nonfinite import load_packs
from recipes.models.load import load_model, load_tokenizer, weightless_model


@pytest.fixture
def mark(tmp_path):
    """A file that hostile code makes; it must not be there afterwards."""
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists()


@pytest.fixture
def copied(models, tmp_path):
    return shutil.copytree(models / "dense", tmp_path / "model")


class Hostile:
    """What makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def change(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# Else nothing below could fail.
def test_the_file_is_made_where_it_is_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Hostile(tmp_path / "made")))
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "messages.__init__.__globals__",
        "raise_exception.__globals__['os']",
        "cycler.__init__.__globals__.os.system('true')",
        "messages.append(1)",
    ],
)
def test_a_template_that_reaches_for_python_is_refused_by_name(models, tmp_path, expression):
    (tmp_path / "own.jinja").write_text("{{ " + expression + " }}" + assets.CHAT_TEMPLATE)
    tokenizer = load_tokenizer(config_of(models / "dense", chat_template=str(tmp_path / "own.jinja")).model)
    with pytest.raises(ValueError, match="my.jsonl:1.*(unsafe|SecurityError)"):
        prepare_conversation(read_conversation(assets.conversations(1)[0], "my.jsonl:1"), tokenizer)


@pytest.mark.parametrize("kind", ["of a type that nobody knows", "of a known type"])
def test_code_beside_a_model_is_not_run(copied, tmp_path, mark, kind):
    for name in ("configuration_m", "modeling_m", "tokenization_m"):
        (copied / f"{name}.py").write_text(f"open({str(mark)!r}, 'w')")
    code = {"AutoConfig": "configuration_m.M", "AutoModelForCausalLM": "modeling_m.M"}
    change(copied, "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_m.T", None]})
    known = kind == "of a known type"
    change(copied, "config.json", auto_map=code, **({} if known else {"model_type": "m"}))
    config = config_of(copied)
    if known:  # transformers has code of its own for it
        assert load_model(config, 300).config.model_type == "qwen3"
    else:
        with pytest.raises(ValueError, match=r"auto_map in its config.json\), which is not run here"):
            weightless_model(config.model, 300)
        # Without a word transformers would ask on the terminal, and run it for a yes.
        with pytest.raises(ValueError, match="trust_remote_code"):
            OnePassTrainer(
                str(copied), OnePassConfig(str(tmp_path / "out"), report_to=[]), train_dataset=assets.conversations(2)
            )
    assert load_tokenizer(config.model).chat_template


def test_pickled_weights_are_not_run(copied, mark):
    (copied / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Hostile(mark)}, copied / "pytorch_model.bin")
    with pytest.raises(ValueError, match="model.name_or_path=.*cannot be read"):
        load_model(config_of(copied), 300)


def test_a_pickled_pack_is_not_run(tmp_path, mark):
    torch.save({"packs": Hostile(mark)}, tmp_path / "packs.pt")
    with pytest.raises(Exception, match="(?i)weights.only"):
        load_packs(tmp_path / "packs.pt")


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickled_checkpoint_is_not_run(models, tmp_path, mark, file):
    config = config_of(models / "dense")
    tokenizer = load_tokenizer(config.model)
    rows = [prepare_conversation(read_conversation(one, "a"), tokenizer).rows for one in assets.conversations(2)]

    def trainer(steps):
        arguments = TrainingArguments(
            str(tmp_path / "out"), max_steps=steps, report_to=[], use_cpu=True, save_steps=1, disable_tqdm=True
        )
        return OnePassTrainer(load_model(config, 300), arguments, OnePassCollator(512), train_dataset=rows)

    trainer(1).train()
    torch.save(Hostile(mark), tmp_path / "out/checkpoint-1" / file)
    with pytest.raises(Exception, match="(?i)weights.only"):
        trainer(2).train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-1"))


# Hydra makes objects of such keys, where it is asked to; records are no configuration.
def test_a_record_names_no_code(mark):
    record = assets.conversations(1)[0] | {
        "_target_": "pathlib.Path.touch",
        "_args_": [str(mark)],
        "matcher": "os:mkdir",
    }
    found = read_conversation(record, "my.jsonl:1")
    assert [message["role"] for message in found.messages] == ["user", "assistant"] * 3
