"""docs/settings.md is what the settings are, and has every one of them."""

import re
import runpy
import sys

import pytest
from hydra import compose, initialize_config_dir
from journeys.workshop import ROOT
from omegaconf import OmegaConf

from recipes.configuration import CONF_DIR

PAGE = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
LINES = dict(re.findall(r"^\| `([^`]+)` \|(.*)$", PAGE, re.MULTILINE))


@pytest.fixture(scope="module")
def made():
    return runpy.run_path(str(ROOT / "docs/settings.py"))


# Breaks when a setting, a default, a file of conf/ or a comment changes and nobody has run make docs.
def test_the_page_is_current(made):
    assert made["page"]() == PAGE, "docs/settings.md is out of date; run make docs"


def keys(node, prefix=""):
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")


# Counted from what Hydra composes, not from the dataclasses that the page is made of.
@pytest.mark.parametrize("name", ["config", "benchmark"])
def test_every_key_that_can_be_given_has_a_line_that_says_what_it_does(name):
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        given = list(keys(OmegaConf.to_container(compose(name))))
    assert len(given) > 15
    for key in given:
        entry = re.sub(r"^(mixes|shapes|devices)\.\w+", r"\1.<name>", key)
        if not re.search(rf"^#+ `{re.escape(entry)}(\.<name>)?`$", PAGE, re.MULTILINE):  # its keys are a table
            assert LINES[entry].split(" | ")[-1].strip(" |"), key


def test_a_line_has_type_default_and_effect_and_what_other_files_of_the_group_say():
    assert LINES["trainer.learning_rate"].split(" | ") == [
        " number",
        "`0.004`<br>finetune: `1.0e-05`<br>lora: `0.0002`",
        "the highest that the schedule reaches |",
    ]
    assert LINES["duplication.too_long"].startswith(" `error`, `drop` | `error` | a single pass that is longer")
    assert "`drop`: left out and counted" in LINES["duplication.too_long"]  # the comment on a value
    assert LINES["pack_length"].startswith(" `duplication.pack_length` | `8192` | `2048`")  # of OnePassConfig


# Breaks if a field may be added without a comment.
def test_a_key_without_an_effect_is_an_error_that_names_it(made, tmp_path, monkeypatch):
    (tmp_path / "settings_of_a_test.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Some:\n    # above it,\n    # over two lines\n"
        "    above: int = 1\n    behind: int = 2  # behind it\n    bare: int = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import settings_of_a_test

    said = made["comments_of"](sys.modules["settings_of_a_test"])
    assert said["Some", "above"] == "above it, over two lines" and said["Some", "behind"] == "behind it"
    defaults = {"": {"above": 1, "behind": 2, "bare": 3}}
    with pytest.raises(ValueError, match=r"^bare: nothing says what it does; write a comment on Some\.bare$"):
        list(made["table"](settings_of_a_test.Some, "", defaults))
