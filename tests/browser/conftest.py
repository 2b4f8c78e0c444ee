"""A headless Chromium, in which pages are looked at. Every test here is marked `browser` (make browser-test)."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser.explored import Shown, shown_in
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

# Without them Chromium asks for addresses of its own maker in the background.
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]


def pytest_itemcollected(item):
    item.add_marker(pytest.mark.browser)
    item.add_marker(pytest.mark.xdist_group("browser"))


def launched(playwright: Playwright) -> Browser:
    """CHROMIUM, or the one on the path, or else the one that `playwright install chromium` has fetched."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    # Chromium refuses its sandbox to root, as whom containers run tests.
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    return playwright.chromium.launch(executable_path=found, args=[*QUIET, *root])


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = launched(playwright)
        yield started
        started.close()


@pytest.fixture
def open_page(browser) -> Iterator[Callable[..., Page]]:
    """Opens a file as a page: `open_page(path, width=1280, height=900, scheme="light")`.

    Afterwards fails where the page asked for anything but itself, or where one of its scripts has failed.
    """
    contexts, wrong = [], []

    def opened(path: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        address = Path(path).resolve().as_uri()
        page.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith((address, "data:")) else 0)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        # Chromium tells of what the page's own policy has refused on the console.
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else 0)
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="session")
def shown(tmp_path_factory) -> Shown:
    return shown_in(tmp_path_factory.mktemp("explorer"))


@pytest.fixture
def page(shown, open_page) -> Page:
    """The explorer's page of what is `shown`."""
    return open_page(shown.path, width=1300, height=1000)
