"""What is installed: pyproject.toml, constraints.txt, requirements.lock and docs/licences.md say the same."""

import re
import tomllib
from email.message import Message
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from recipes.licences import licence, required, table

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
# name -> [(version, marker)]
LOCKED: dict[str, list[tuple[str, str]]] = {}
for name, version, marker in re.findall(r"^([\w.-]+)==([^\s;\\]+)(?: ; (.*?))?(?: \\)?$", LOCK, re.M):
    LOCKED.setdefault(canonicalize_name(name), []).append((version, marker))
# Builds differ between CPU and the versions of CUDA, each with hashes of its own: left to the user's index.
OUT = re.compile(r"torch|triton|(nvidia|cuda)-.*")


def direct():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    some = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    return [one for one in map(Requirement, some) if one.name != project["name"]]


# Breaks if a dependency is added, or a version excluded, without `make lock`.
def test_every_direct_dependency_is_locked_in_a_version_that_fits():
    for needed in direct():
        if not OUT.fullmatch(needed.name):
            versions = [version for version, _ in LOCKED[canonicalize_name(needed.name)]]
            assert all(needed.specifier.contains(version) for version in versions), needed


def test_the_lock_has_the_versions_of_the_constraints():
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or OUT.fullmatch(line.partition("==")[0]):
            continue
        name, _, version = line.partition("==")
        assert [one for one, _ in LOCKED[canonicalize_name(name)]] == [version], name


# All that the installed packages require, however far: with a hash each, so nothing else is fetched unseen.
def test_everything_required_is_locked_with_hashes():
    missing = {name for name in required(direct=False) if not OUT.fullmatch(name)} - LOCKED.keys()
    assert not missing
    blocks = re.split(r"\n(?=\S)", LOCK.strip())
    assert len(blocks) == sum(map(len, LOCKED.values()))
    assert all("--hash=sha256:" in block for block in blocks)
    for found in LOCKED.values():
        applying = [version for version, marker in found if not marker or Marker(marker).evaluate()]
        assert len(applying) <= 1, found


def test_the_lock_names_no_place_to_fetch_from_and_no_build_of_torch():
    assert not re.search(r"https?://|file:|index|find-links|@ ", re.sub(r"^[\w.-]+==", "", LOCK, flags=re.M))
    assert not [name for name in LOCKED if OUT.fullmatch(name)]


def test_the_page_of_licences_is_what_the_packages_say():
    lines = "\n".join(table(required(direct=True).values()))
    assert lines in (ROOT / "docs/licences.md").read_text(encoding="utf-8"), f"docs/licences.md should have:\n{lines}"
    assert {canonicalize_name(one.name) for one in direct()} == required(direct=True).keys()


class Package:
    """A package with nothing but metadata."""

    version = "1"

    def __init__(self, **fields):
        self.metadata = Message()
        for name, value in {"Name": "one", **fields}.items():
            self.metadata[name.replace("_", "-")] = value


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (dict(License_Expression="MIT OR Apache-2.0", Classifier="License :: X :: BSD License"), "MIT OR Apache-2.0"),
        (dict(License="UNKNOWN", Classifier="License :: OSI Approved :: MIT License"), "MIT License"),
        (dict(License="BSD\nand its text", Classifier="License :: OSI Approved"), "BSD"),
    ],
)
def test_a_licence_is_found(fields, expected):
    assert licence(Package(**fields)) == expected


def test_packages_without_a_licence_are_named():
    with pytest.raises(ValueError, match="one 1: its metadata names no licence(.|\n)*two 1"):
        table([Package(), Package(Name="fine", License="MIT"), Package(Name="two", License="UNKNOWN")])
