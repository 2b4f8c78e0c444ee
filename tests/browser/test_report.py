"""The pages of a run and of a sweep as somebody sees them: curves, folds, hostile text, a phone, the dark."""

import json
import shutil

import pytest

from recipes.configuration.compose import compose, save_run_config
from recipes.pages.report import write_report
from recipes.pages.sweep import write_sweep

HOSTILE = "</script><script>window.hit = 1</script><img src=x onerror='window.hit = 1'>\"><svg onload=window.hit=1>"
METRICS = [
    {"step": step, "loss": 4 / step, "thinking_loss": 5 / step, "learning_rate": step / 100, "tokens_per_second": 1e4}
    for step in range(1, 31)
]
METRICS.insert(20, {"step": 20, "heldout_loss": 0.3})
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


def turn(name: str, **more) -> dict:
    said = {"asked": "How many?", "thinking": "two and two", "answer": "4", "expected": "4", "correct": True}
    more = said | {"thinks": "valid", "ended": True, "unasked": None} | more
    return {"step": 30, "conversation": name, "history": "own", "turn": 0, **more}


@pytest.fixture
def folder(tmp_path):
    """A run's folder in which all that somebody may write is hostile."""
    path = tmp_path / "a <b>run & more"
    tags = json.dumps([HOSTILE.replace("'", ""), "x"])
    config = compose(["wandb=off", f"wandb.tags={tags}", "data.template_kwargs={a: '<b>x</b>'}"], path)
    save_run_config(config, path)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    hostile = dict.fromkeys(("asked", "thinking", "answer", "expected"), HOSTILE)
    chats = [turn("c1"), turn("c2", correct=False, answer="5"), turn(HOSTILE, **hostile, correct=None)]
    chats += [turn("c4", **dict.fromkeys(("asked", "thinking", "answer", "expected", "correct")), unasked=HOSTILE)]
    (path / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in chats))
    told = {"lines": [HOSTILE, f"note  {HOSTILE}"], "warnings": [HOSTILE], "stopped": HOSTILE, "processes": 1}
    (path / "run.json").write_text(json.dumps(told | {"versions": {HOSTILE: HOSTILE}, "device": HOSTILE}))
    (path / "left_out.jsonl").write_text(
        json.dumps({"conversation": HOSTILE, "reason": f"{HOSTILE}: {HOSTILE}"}) + "\n"
    )
    (path / "block_mask.png").write_bytes(PNG)
    write_report(path)
    return path


def plotted(page) -> list:
    """What uPlot has been given: of each plot the steps, and the values of each curve."""
    return page.evaluate("plots.map(plot => plot.data.map(values => [...values]))")


# Breaks if a figure is drawn under another step, if a curve is missing, or if its table says something else.
def test_curves_have_the_points_of_the_metrics(folder, open_page):
    page = open_page(folder / "report.html")
    steps = [line["step"] for line in METRICS if "loss" in line]
    loss, rate, speed = plotted(page)
    assert loss[0] == rate[0] == speed[0] == steps
    assert loss[1] == pytest.approx([4 / step for step in steps], rel=1e-6)
    assert loss[2] == pytest.approx([5 / step for step in steps], rel=1e-6)
    assert [one for one in zip(steps, loss[3], strict=True) if one[1] is not None] == [(20, 0.3)]
    assert rate[1] == pytest.approx([step / 100 for step in steps], rel=1e-6)
    page.get_by_text("The figures of “Loss”").click()
    cells = page.locator("figure.plot details table tr").evaluate_all(
        "rows => rows.map(r => [...r.cells].map(c => c.textContent))"
    )
    assert cells[0] == ["step", "all", "thinking", "held out, all"]
    assert [float(row[1]) for row in cells[1:]] == pytest.approx([4 / step for step in steps], rel=1e-6)
    assert len(cells) == 31 and cells[20][3] == "0.3" and cells[1][3] == "–"


def test_the_values_at_the_pointer_are_told(folder, open_page):
    page = open_page(folder / "report.html")
    over = page.locator("figure.plot .u-over").first
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    page.mouse.move(box["x"] + 1, box["y"] + 30)
    legend = page.locator("figure.plot .u-legend").first
    assert "1" in legend.inner_text() and "4" in legend.inner_text() and "5" in legend.inner_text()
    # All plots are of the same steps, and are pointed at together.
    assert "0.01" in page.locator("figure.plot .u-legend").nth(1).inner_text()


def test_thinking_is_folded_and_opens(folder, open_page):
    page = open_page(folder / "report.html")
    first = page.locator("details.chat").first
    assert first.locator("text=How many?").is_visible()
    thinking = first.locator("pre")
    assert not thinking.is_visible()
    first.locator("summary", has_text="thinking (valid)").click()
    assert thinking.is_visible() and thinking.inner_text() == "two and two"
    assert page.locator("details.chat").count() == 4
    second = page.locator("details.chat").nth(1)
    assert "1 of 1 answers wrong" in second.locator("summary").first.inner_text()
    assert not second.locator(".turn").first.is_visible()
    second.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert "✗ wrong; the data has “4”" in second.locator(".turn").inner_text()


# Breaks if any of what somebody else has written can become markup.
def test_hostile_text_stays_text(folder, open_page):
    page = open_page(folder / "report.html")
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    text = page.locator("body").inner_text()
    assert page.evaluate("window.hit") is None
    assert page.locator("main svg, main script, img[src=x], h1 b").count() == 0
    assert text.count(HOSTILE) >= 9 and "a <b>run & more" in text
    assert page.title() == "a <b>run & more: report"


@pytest.mark.parametrize("width", [360, 390, 800, 1280])
def test_nothing_is_wider_than_the_screen(folder, open_page, width):
    page = open_page(folder / "report.html", width=width)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("figure.plot canvas").first.bounding_box()["width"] <= width


def pixels(page, plot: int = 0) -> set:
    """The colours of a plot's canvas that are not see-through."""
    script = """i => { const c = plots[i].ctx; const d = c.getImageData(0, 0, c.canvas.width, c.canvas.height).data;
        const seen = new Set();
        for (let k = 0; k < d.length; k += 4) if (d[k + 3] === 255) seen.add([d[k], d[k + 1], d[k + 2]].join());
        return [...seen]; }"""
    return set(page.evaluate(script, plot))


# Breaks if a canvas keeps the colours of the scheme in which it was drawn, or a page in the dark is printed dark.
def test_dark_and_print_have_colours_of_their_own(folder, open_page):
    dark = open_page(folder / "report.html", scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    assert dark.evaluate(ground) == "rgb(20, 23, 28)" and "88,180,240" in pixels(dark)
    dark.emulate_media(color_scheme="light")
    dark.wait_for_function("() => true")
    assert dark.evaluate(ground) == "rgb(255, 255, 255)"
    assert "0,114,178" in pixels(dark) and "88,180,240" not in pixels(dark)
    dark.emulate_media(color_scheme="dark", media="print")
    assert dark.evaluate(ground) == "rgb(255, 255, 255)" and "0,114,178" in pixels(dark)


def test_who_cannot_see_the_plots_is_told(folder, open_page):
    page = open_page(folder / "report.html")
    for canvas in page.locator("figure.plot .canvas").all():
        assert canvas.get_attribute("role") == "img" and "over optimizer steps" in canvas.get_attribute("aria-label")
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("main h1").count() == 1


def test_a_sweep_shows_all_jobs_and_leads_to_their_reports(folder, open_page, tmp_path):
    sweep = tmp_path / "sweep"
    result = {
        "seed": 0,
        "steps": 30,
        "planned_steps": 30,
        "train_seconds": 1.0,
        "tokens_computed": 9,
        "tokens_trained": 8,
    }
    for name, rate in (("0 <b>x", 0.1), ("1", 0.2)):
        path = sweep / name
        shutil.copytree(folder, path)
        save_run_config(compose([f"trainer.learning_rate={rate}"], path), path)
        (path / "result.json").write_text(json.dumps(result | {"answer_accuracy": rate}))
        write_report(path)
    (sweep / "2").mkdir()
    (sweep / "2/failed.txt").write_text(f"{HOSTILE}\n{HOSTILE}\n")
    write_sweep(sweep)
    page = open_page(sweep / "report.html")
    steps = [line["step"] for line in METRICS if "loss" in line]
    loss = plotted(page)[0]
    assert len(loss) == 3 and loss[0] == steps and loss[1] == loss[2] == pytest.approx([4 / step for step in steps])
    assert "0.1, seed 0" in page.locator("figure.plot .u-legend").first.inner_text()
    assert page.locator("#results tr").all_inner_texts()[1].split()[:3] == ["0.1", "0", "10.0%"]
    assert page.evaluate("window.hit") is None and HOSTILE in page.locator("body").inner_text()
    assert page.locator("#results a").first.evaluate("one => one.href") == (sweep / "0 <b>x/report.html").as_uri()
