"""The command `flexmask` that a wheel installs: `flexmask train seed=1` is `python -m recipes.train seed=1`."""

import ast
import importlib.util
import runpy
import sys
from pathlib import Path

COMMANDS = {  # the module of each
    "train": "recipes.train",
    "evaluate": "recipes.evaluate",
    "inspect": "recipes.inspector",
    "explore": "recipes.explore",
    "merge": "recipes.merge",
    "replay": "recipes.replay",
    "compare": "recipes.compare",
    "report": "recipes.report",
    "benchmark": "recipes.benchmark",
    "convert_gguf": "recipes.convert_gguf",
}


def main() -> None:
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: flexmask COMMAND ...\n")
        for command, module in COMMANDS.items():
            print(f"  {command:<14}{first_line(module)}")
        print("\nCOMMAND --help says more.")
    elif name not in COMMANDS:
        sys.exit(f"error: flexmask {name}: no such command; there are {', '.join(COMMANDS)}")
    else:
        sys.argv[1:] = words
        # As `python -m` does it: the processes that prepare data find the module by its name.
        runpy.run_module(COMMANDS[name], run_name="__main__", alter_sys=True)


def first_line(module: str) -> str:
    """Of a module's docstring, up to a colon, read without importing the module, which would take seconds."""
    source = Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)).splitlines()[0].partition(":")[0].rstrip(".")


if __name__ == "__main__":
    main()
