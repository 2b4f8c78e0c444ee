"""The licences of what is installed for this project, by the packages' own metadata.

    make licences                    of all that its requirements bring, as a table
    make licences ARGS="--direct"    of what pyproject.toml names, as in docs/licences.md

Fails where a package names no licence.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from recipes.terminal.command import command

PROJECT = "flexmask"
_NAMELESS = {"", "UNKNOWN", "OSI Approved"}


def licence(of: Distribution) -> str:
    """The licence that a package names: an SPDX expression, else its classifiers, else a line of its older field.

    Raises ValueError where it names none.
    """
    metadata = of.metadata
    classifiers = [one.split(" :: ")[-1] for one in metadata.get_all("Classifier", []) if one.startswith("License ::")]
    lines = (metadata.get("License") or "").strip().splitlines()
    for found in (
        metadata.get("License-Expression"),
        ", ".join(x for x in classifiers if x not in _NAMELESS),
        *lines[:1],
    ):
        if found and found.strip() not in _NAMELESS:
            return found.strip()
    raise ValueError(f"{metadata['Name']} {of.version}: its metadata names no licence; look into its files")


def required(direct: bool) -> dict[str, Distribution]:
    """What the project requires and is installed, by name; not itself. direct: only what pyproject.toml names."""
    found: dict[str, Distribution] = {}
    wanted, seen = [(PROJECT, tuple(distribution(PROJECT).metadata.get_all("Provides-Extra")))], set()
    while wanted:
        name, extras = one = wanted.pop()
        if one in seen:
            continue
        seen.add(one)
        for text in distribution(name).requires or ():
            needed = Requirement(text)
            if needed.marker and not any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                continue
            key = canonicalize_name(needed.name)
            if key == PROJECT:
                continue
            try:
                found[key] = distribution(key)
            except PackageNotFoundError:
                continue  # of an extra that is not installed
            if not direct:
                wanted.append((key, tuple(sorted(needed.extras))))
    return dict(sorted(found.items()))


def table(packages: Iterable[Distribution]) -> list[str]:
    """Lines of Markdown. Raises ValueError naming every package without a licence."""
    lines, missing = ["| package | licence |", "|---|---|"], []
    for one in packages:
        try:
            lines.append(f"| {one.metadata['Name']} | {licence(one)} |")
        except ValueError as error:
            missing.append(str(error))
    if missing:
        raise ValueError("\n".join(missing))
    return lines


@command
def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m recipes.licences", description=__doc__.splitlines()[0])
    parser.add_argument("--direct", action="store_true", help="only what pyproject.toml names")
    print("\n".join(table(required(parser.parse_args(arguments).direct).values())))


if __name__ == "__main__":
    main(sys.argv[1:])
