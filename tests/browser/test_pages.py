"""What every page of recipes/pages keeps: whatever text it shows stays text, and it fetches nothing."""

import json

import pytest

from recipes.pages import page as pages

HOSTILE = [
    "</script><script>window.hit = 1</script>",
    "</ScRiPt ><img src=x onerror='window.hit = 1'>",
    "<!--<script>",
    "]]>\u2028\u2029\x00&lt;b&gt;",
    '"><svg onload=window.hit=1>',
    "\ud800 half of a pair",
]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a page whose template is `body`."""

    def written(body: str, **more):
        for name in ("base.html", "base.css"):
            (tmp_path / name).write_text((pages.ASSETS / name).read_text())
        (tmp_path / "shown.html").write_text("{% extends 'base.html' %}{% block body %}" + body + "{% endblock %}")
        (tmp_path / "said.js").write_text("window.said = JSON.parse(document.getElementById('data').textContent);")
        monkeypatch.setattr(pages, "ASSETS", tmp_path)
        monkeypatch.setattr(pages, "_TEMPLATES", pages._TEMPLATES.overlay(loader=pages.FileSystemLoader(tmp_path)))
        path = tmp_path / "page.html"
        pages.write_page(path, "shown.html", scripts=["said.js"], **more)
        return path

    return written


# Breaks if templates do not escape, or if JSON is written as json.dumps gives it (the first text ends the element).
def test_hostile_text_stays_text(write, open_page):
    path = write("<p id=shown>{{ text }}</p>", data=HOSTILE, values={"title": HOSTILE[0], "text": HOSTILE[0]})
    page = open_page(path)
    assert page.evaluate("window.said") == json.loads(json.dumps(HOSTILE))
    assert page.evaluate("window.hit") is None
    assert page.locator("#shown").inner_text() == HOSTILE[0]
    assert page.title() == HOSTILE[0]


# Breaks if the policy allows scripts in general: what slips through a template would run.
def test_markup_that_slipped_through_does_not_run(write, open_page, browser):
    path = write("<div id=slipped>{{ text | safe }}</div>", data=[], values={"title": "t", "text": "<b>x</b>"})
    assert open_page(path).locator("#slipped b").count() == 1
    path = write("{{ text | safe }}", data=[], values={"title": "t", "text": "<script>window.hit = 1</script>"})
    context = browser.new_context()
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.evaluate("window.hit") is None
    context.close()
