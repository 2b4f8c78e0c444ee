"""The site of docs/: what is wrong in a page fails its build, and every page and name stands in it."""

import re
import runpy
import shutil
import subprocess
import sys

import pytest
from journeys.workshop import ROOT

import flexmask

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


@pytest.fixture
def build(tmp_path):
    """Builds these pages, by their names, under docs/conf.py: (exit code, what was printed, the folder of the site)."""
    for folder in ("_ext", "_static"):
        shutil.copytree(DOCS / folder, tmp_path / "docs" / folder)
    shutil.copy(DOCS / "conf.py", tmp_path / "docs")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/some.py").write_text("x = '<b>'\n")

    def built(**pages: str):
        for name, text in pages.items():
            (tmp_path / f"docs/{name}.md").write_text(text)
        sphinx = [sys.executable, "-m", "sphinx", "-E", "-q", "-W", "--keep-going", str(tmp_path / "docs")]
        done = subprocess.run([*sphinx, str(tmp_path / "site")], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr, tmp_path / "site"

    return built


TOCTREE = "\n```{toctree}\nother\n```\n"


def test_links_to_pages_headings_files_and_folders_work_on_the_site(build):
    links = "[p](other.md), [h](other.md#a-heading), [f](../recipes/some.py), [d](../recipes)"
    code, said, site = build(index=f"# Index\n\n{links}\n{TOCTREE}", other="# Other\n\n## A heading\n")
    assert code == 0, said
    page = (site / "index.html").read_text()
    for target in ("other.html", "other.html#a-heading", "repository/recipes/some.py.html", "repository/recipes.html"):
        assert f'href="{target}"' in page
    assert "&lt;b&gt;" in (site / "repository/recipes/some.py.html").read_text()
    assert 'href="recipes/some.py.html"' in (site / "repository/recipes.html").read_text()


# What stands in a page, and words of the warning.
NOWHERE = {
    "[x](nowhere.md)": "nowhere.md",
    "[x](other.md#no-such-heading)": "no-such-heading",
    "[x](../recipes/nowhere.py)": "recipes/nowhere.py",
    "![x](images/nowhere.png)": "images/nowhere.png",
    "```{eval-rst}\n.. autofunction:: flexmask.no_such_name\n```": "no_such_name",
}


def test_each_thing_that_leads_nowhere_fails_the_build(build):
    index = "\n\n".join(NOWHERE)
    code, printed, _ = build(index=f"# Index\n\n{index}\n{TOCTREE}", other="# Other\n")
    warnings = [line for line in printed.splitlines() if "WARNING" in line]
    assert code != 0 and len(warnings) == len(NOWHERE), printed
    for words in NOWHERE.values():
        assert any(words in line for line in warnings), words


def test_a_page_that_no_other_leads_to_fails_the_build(build):
    code, printed, _ = build(index="# Index\n", other="# Other\n")
    assert code != 0 and "other.md" in printed and "toctree" in printed


# On GitHub there is no Sphinx that would find a page by another path than the one that is written.
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_of_a_page_is_a_path_that_is_there(page):
    text = re.sub(r"^```.*?^```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert re.match(r"https?://", target) or (page.parent / target).exists(), target


# Breaks if a name is added to flexmask/__init__.py that no reader of the reference is told of.
def test_every_public_name_stands_in_the_reference():
    reference = (DOCS / "api.md").read_text()
    documented = re.findall(r"^\.\. auto(?!module)\w+:: flexmask\.(\w+)(?:\(|$)", reference, re.MULTILINE)
    assert sorted(documented) == sorted(flexmask.__all__)


def test_docstrings_become_lists_literals_and_references():
    as_rst = runpy.run_path(str(DOCS / "_ext/docstrings.py"))["as_rst"]
    docstring = """Sum of `a * b` over `Row.turns`, a *real* one of x_ | y.

    q1 a1'
    1  *

model, other: the one
    that is `broken
    over lines`. Raises: nothing
And a line of it.
- one
- two""".split("\n")
    assert as_rst(docstring) == [
        "Sum of ``a * b`` over `Row.turns`, a *real* one of x\\_ \\| y.",
        "",
        "::",
        "",
        "    q1 a1'",
        "    1  *",
        "",
        "- ``model, other``: the one",
        "  that is ``broken over lines``. Raises: nothing",
        "  And a line of it.",
        "",
        "- one",
        "- two",
        "",
    ]
