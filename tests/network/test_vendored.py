"""What recipes/pages carries of others is what they publish, to the byte."""

import tarfile

import pytest
from packages import UPLOT, published

from recipes.pages.page import ASSETS

pytestmark = pytest.mark.network
FILES = {
    "dist/uPlot.iife.min.js": "vendor/uPlot.iife.min.js",
    "dist/uPlot.min.css": "vendor/uPlot.min.css",
    "LICENSE": "vendor/uPlot.LICENSE",
}


@pytest.mark.parametrize("name", FILES)
def test_uplot_is_the_published_one(name):
    with tarfile.open(published(UPLOT)) as package:
        assert (ASSETS / FILES[name]).read_bytes() == package.extractfile(f"package/{name}").read()


def test_all_that_is_carried_is_compared():
    assert {path.name for path in (ASSETS / "vendor").iterdir()} == {path.partition("/")[2] for path in FILES.values()}
