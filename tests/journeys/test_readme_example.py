"""README's own script, as it stands there, on a local model and file."""

import re

from journeys.told import python_of
from journeys.workshop import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

PAGE = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_script_of_the_readme_trains_and_prints_a_loss(workshop):
    script = python_of(PAGE, holding="OnePassTrainer")
    assert len([line for line in script.splitlines() if line.strip()]) <= 12, "README's example is long"
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
