"""The table of a sweep: which settings tell its runs apart, the spread of seeds, the order of jobs."""

import json

import pytest

from recipes.compare import compare, markdown_table, read_sweep
from recipes.configuration.compose import compose, save_run_config

LAYOUTS = ("one_pass", "per_turn")


@pytest.fixture
def swept(tmp_path):
    def make(*runs):
        """A folder of finished runs, each given as (answers right, overrides)."""
        for job, (right, overrides) in enumerate(runs):
            folder = tmp_path / f"{job}_run"
            folder.mkdir()
            config = compose(overrides, output_dir=folder)
            save_run_config(config, folder)
            result = {
                "seed": config.seed,
                "steps": 3,
                "answer_accuracy": right,
                "tokens_computed": 10,
                "probed_replies": 0,
            }
            (folder / "result.json").write_text(json.dumps(result))
            (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
        return tmp_path

    return make


def rows(folder):
    return [line for line in markdown_table(read_sweep(folder)).splitlines() if line.startswith("|")]


# Broken by a mean that hides how far seeds lie apart, or by jobs in the order of their names.
def test_seeds_stand_together_with_their_spread(swept):
    runs = [(0.5 + 0.1 * (seed == 10) + 0.001 * seed, [f"seed={seed}"]) for seed in range(11)]
    _, _, *lines, mean = rows(swept(*runs))
    assert [line.split(" | ")[1] for line in lines] == [str(seed) for seed in range(11)]
    assert "| mean of 11 | 51.4% (50.0% to 61.0%) |" in mean and "| 10 |" in mean  # tokens are the same in all


# Broken by a mean of those seeds alone that have a figure, which looks like that of all.
def test_a_mean_is_of_all_seeds_or_none(swept):
    lines = rows(swept((0.5, ["seed=0"]), (None, ["seed=1"])))
    assert "replies probed" not in lines[0]
    assert "| mean of 2 | - |" in lines[-1]


# Broken by the plot of flaws for runs that differ in something else too, which it does not draw.
def test_flaws_and_layouts_have_the_usual_plot(swept, monkeypatch):
    monkeypatch.setattr("recipes.compare.plot_flaws", lambda flawed: pytest.fail("drawn over flaws alone"))
    arms = [(f"data.flaws={one}", f"duplication={two}") for one in ("{}", "{missing: 1.0}") for two in LAYOUTS]
    compare(swept(*((0.5, [*arm]) for arm in arms)))


# Broken by a column for what follows from another one, or by leaving such a setting out without a word.
def test_what_follows_from_another_setting_is_named_below(swept):
    arms = [[f"data={name}", f"model.tiny.words={name}"] for name in ("programs", "documents")]
    folder = swept(*((0.5, [*arm, f"duplication={layout}"]) for arm in arms for layout in ("one_pass", "last_turn")))
    assert rows(folder)[0].startswith("| kind | layout | seed |")
    assert "model.tiny.words differ too, and follow from these." in markdown_table(read_sweep(folder))


# Broken by taking a setting that is another in every run, as a search draws them, for one that decides all others.
def test_settings_that_are_drawn_for_each_run_all_stay(swept):
    drawn = [(1e-3, 0.1), (2e-3, 0.0), (3e-3, 0.1), (4e-3, 0.0)]
    runs = [(0.5, [f"trainer.learning_rate={lr}", f"trainer.weight_decay={decay}"]) for lr, decay in drawn]
    assert rows(swept(*runs))[0].startswith("| learning_rate | weight_decay | seed |")


# Broken by the order of names, in which 10 stands before 2.
def test_runs_without_a_result_stand_in_order_of_their_number(swept):
    folder = swept(*((0.5, [f"seed={seed}"]) for seed in range(11)))
    for job in (2, 10):
        (folder / f"{job}_run/result.json").unlink()
    assert list(read_sweep(folder).missing) == ["2_run", "10_run"]


# Broken by a traceback, or a message that does not say which of the runs it is about.
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"seed": 0, "st', "1_run/result.json: is no JSON"),
        ("[1]", "1_run/result.json: is no JSON object"),
        ('{"seed": 0, "steps": 3}', "1_run/result.json: has no tokens_computed, so it is not the result of a training"),
    ],
)
def test_a_damaged_result_is_named(text, message, swept):
    folder = swept((0.5, []), (0.5, ["seed=1"]))
    (folder / "1_run/result.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        compare(folder)


# Broken by a column for each flaw, or by a plot that does not take them.
def test_flaws_are_one_setting_and_have_a_plot_of_their_own(swept):
    flaws = ("{}", "{wrong_step: 0.5}", "{missing: 1.0}")
    folder = swept(*((0.5, [f"data.flaws={one}"]) for one in flaws))
    compare(folder)
    for name in ("none", "wrong_step 0.5", "missing 1"):
        assert any(row.startswith(f"| {name} | 0 | 50.0% |") for row in rows(folder))
    assert (folder / "comparison.png").stat().st_size > 10_000 and (folder / "report.html").exists()
