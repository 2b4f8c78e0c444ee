"""What the project says of itself (version, types, packages), and that imports go one way."""

import ast
import re
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import flexmask

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_version_of_pyproject_is_that_of_the_citation_and_of_the_newest_changes():
    version = PYPROJECT["project"]["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [version]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changes, re.MULTILINE)[0] == version


def test_whoever_installs_the_package_gets_its_types():
    assert (Path(flexmask.__file__).parent / "py.typed").is_file()
    assert "py.typed" in PYPROJECT["tool"]["setuptools"]["package-data"]["flexmask"]


def imported(path):
    """The modules that a file imports, also inside functions and for type checkers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def module_of(path):
    return str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")


# A circle would be a stage that knows of what comes behind it. The sorter raises CycleError, which names it.
def test_imports_go_one_way():
    modules = {path: module_of(path) for path in (ROOT / "flexmask").rglob("[!_]*.py")}
    library = {name: {one for one in imported(path) if one in modules.values()} for path, name in modules.items()}
    assert list(TopologicalSorter(library).static_order())
    folders = {name: {one.split(".")[1] for one in needed} for name, needed in library.items() if name.count(".") > 1}
    rooms = {name.split(".")[1]: set() for name in folders}
    for name, needed in folders.items():
        rooms[name.split(".")[1]] |= needed - {name.split(".")[1]}
    assert "tree" in rooms["attention"] | rooms["model"] and list(TopologicalSorter(rooms).static_order())
    packages = {path.parent.name: path.parent for path in (ROOT / "recipes").glob("*/__init__.py")}
    recipes = {
        name: {one.split(".")[1] for path in folder.rglob("*.py") for one in imported(path) if "recipes." in one}
        & packages.keys() - {name}
        for name, folder in packages.items()
    }
    assert "sources" in recipes["preparation"] and list(TopologicalSorter(recipes).static_order())


def test_all_packages_are_in_the_wheel():
    found = {
        module_of(path.parent) for folder in ("flexmask", "recipes") for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == found | {"recipes.conf"}
