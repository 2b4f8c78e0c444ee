"""Make report.html of a run or of a sweep again, from the files in its folder.

    python -m recipes.report FOLDER
    make report ARGS="runs/<folder>"

A run writes it at its end, and make sweep that of a sweep. Reads nothing but the folder; prints where the page is.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.configuration.compose import RUN_CONFIG
from recipes.configuration.rules import ConfigError
from recipes.terminal.command import command


@command
def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.report", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of a run, or of a sweep")
    folder = parser.parse_args(words).folder
    # Libraries take seconds to import: a wrong folder is told before.
    if (folder / RUN_CONFIG).is_file():
        from recipes.pages.report import write_report as write
    elif any(folder.glob("*/")):
        from recipes.pages.sweep import write_sweep as write
    else:
        raise ConfigError(
            f"{folder}: no folder of a run, which has a {RUN_CONFIG}, nor of a sweep, which has runs in it"
        )
    print(write(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
