"""The documentation's pictures: all are drawn, the measured ones from what was measured."""

import json

import pytest

from flexmask.conversations.contexts import RULES
from recipes.picture import main

RULED = {f"context_{name}.png" for name in RULES}
PICTURES = {"block_mask.png", "state_branches.png", "layouts.png", "speedup.png"} | RULED


@pytest.fixture
def sweep(tmp_path):
    for layout in ("one_pass", "per_turn"):
        folder = tmp_path / "sweep" / layout
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(f"duplication: {{layout: {layout}}}\n")
        result = {"layout": layout, "seed": 0, "steps": 2, "answer_accuracy": 0.5, "tokens_computed": 1000}
        (folder / "result.json").write_text(json.dumps(result))
        lines = [{"step": step, "loss": 2.0 / step} for step in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "sweep"


@pytest.fixture
def benchmark(tmp_path):
    ratios = {"measured_ratio": 1.61234, "predicted_ratio": 1.5, "needed_ratio": 1.4, "seconds": 3}
    cells = [
        {"mix": "balanced", "turns": turns, "turns_mean": turns, "arms": {"per_turn_packed": ratios}}
        for turns in (2, 4)
    ]
    folder = tmp_path / "benchmark"
    folder.mkdir()
    (folder / "benchmark.json").write_text(json.dumps({"grid": cells}))
    return folder


def test_all_pictures_are_drawn_and_drawn_again(tmp_path, sweep, benchmark):
    folder = tmp_path / "images"
    main(folder, sweep, benchmark)
    drawn = {path.name for path in folder.glob("*.png")}
    assert drawn == PICTURES
    kept = json.loads((folder / "data" / "speedup.json").read_text())
    assert kept[0]["arms"]["per_turn_packed"] == {"measured_ratio": 1.612, "predicted_ratio": 1.5, "needed_ratio": 1.4}
    before = {name: (folder / name).read_bytes() for name in drawn}
    for name in drawn:
        (folder / name).unlink()
    main(folder)  # from what is kept
    assert {name: (folder / name).read_bytes() for name in drawn} == before


def test_a_picture_that_cannot_be_drawn_is_said(tmp_path, sweep, capsys):
    main(tmp_path / "images", sweep)
    out, err = capsys.readouterr()
    assert "speedup.png stays as it is: no " in err and "speedup.png" not in out
    with pytest.raises(SystemExit, match="no benchmark.json with the section grid"):
        main(tmp_path / "images", None, sweep)
    with pytest.raises(SystemExit, match="no run with a result.json"):
        main(tmp_path / "images", tmp_path / "images")
