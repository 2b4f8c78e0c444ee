"""The report of a run: there at its end, the same when it is made again, and its command repeats the run."""

import html
import json
import re

from journeys.table import TINY

from recipes.configuration.compose import load_run_config


# Breaks if the page holds anything that is not in the folder, or if its command leaves out what was changed, or quotes
# it so that a shell or make takes it apart.
def test_a_report_is_made_again_and_its_command_repeats_the_run(workshop):
    workshop.train(
        *TINY.split(), "wandb=off", "seed=3", r"""wandb.tags=['it\'s $HOME', 'a "b"']""", "output_dir=runs/one"
    )
    page = workshop.folder / "runs/one/report.html"
    before = page.read_bytes()
    page.unlink()
    assert (
        workshop.run('make report ARGS="runs/<folder>"'.replace("<folder>", "one")).last_line == "runs/one/report.html"
    )
    assert page.read_bytes() == before
    (command,) = re.findall(r'<pre id="command">(.*?)</pre>', before.decode(), flags=re.S)
    again = workshop.folder / workshop.run(html.unescape(command)).last_line
    assert load_run_config(again, ["output_dir=x"]) == load_run_config(workshop.folder / "runs/one", ["output_dir=x"])
    results = [json.loads((folder / "result.json").read_text()) for folder in (again, workshop.folder / "runs/one")]
    assert results[0]["loss_last"] == results[1]["loss_last"]
    assert (again / "report.html").is_file()


def test_inspect_tells_the_hours_of_a_run_like_another(workshop):
    workshop.train(*TINY.split(), "wandb=off", "output_dir=runs/rate")
    result = json.loads((workshop.folder / "runs/rate/result.json").read_text())
    done = workshop.run(f'make inspect ARGS="--rate runs/rate {TINY}"')
    assert f"{result['tokens_computed']:,} computed and {result['tokens_trained']:,} trained in 6 steps" in done.out
    assert "hours" in done.out and "as runs/rate had on cpu" in done.out and "that run has another" not in done.out
