"""The settings of a run: their schema, rules that types cannot say, and how conf/ and a command line give them."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel has conf/ inside the package, the repository beside it.
FROM_WHEEL = not (_PACKAGE.parent / "pyproject.toml").is_file()
CONF_DIR = str((_PACKAGE if FROM_WHEEL else _PACKAGE.parent) / "conf")
