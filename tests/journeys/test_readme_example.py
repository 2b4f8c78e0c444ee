"""The scripts of README and of the first page of docs/, as they stand there, on a local model and file."""

import re

import pytest
from journeys.told import python_of
from journeys.workshop import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_the_script_of_a_page_trains_and_prints_a_loss(workshop, page):
    script = python_of((ROOT / page).read_text(encoding="utf-8"), holding="OnePassTrainer")
    assert len([line for line in script.splitlines() if line.strip()]) <= 12, "the example is long"
    local, count = re.subn(r'"[\w.-]+/[\w.-]+"', '"models/dense"', script)
    assert count >= 1, "no model of the hub in it"
    (workshop.folder / "example.py").write_text(local)
    done = workshop.run("python example.py")
    assert re.search(r"'loss': '?\d", done.out) or re.search(r"loss.{0,20}\d\.\d", done.out), done
    saved = [path.parent for path in workshop.folder.glob("**/model.safetensors") if "models" not in path.parts]
    assert saved, "it leaves no model"
    for folder in saved:
        AutoModelForCausalLM.from_pretrained(folder)
        assert AutoTokenizer.from_pretrained(folder).chat_template
