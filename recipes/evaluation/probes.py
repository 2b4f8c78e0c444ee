"""Does an answer follow from the thinking in front of it? Probes change the thinking, and the model answers again.

A probe (`evaluation.probe`) takes (thinking, expected): what the model thought, and the data's answer. It returns the
thinking with a number changed and the answer that follows from it then, or None where there is nothing to change. The
model is continued behind the changed thinking; its answer follows if the matcher takes it for the one that the probe
says. One that ignores its own thinking says what it would have said.
"""

import inspect
import re
from collections.abc import Callable

from flexmask.importing import function_at, is_import_path
from recipes.configuration.rules import ConfigError
from recipes.evaluation.matchers import NUMBER

Probe = Callable[[str, str], tuple[str, str] | None]


def last_number(thinking: str, expected: str) -> tuple[str, str] | None:
    """The last number of the thinking, wherever it stands there, becomes another one, which the answer must state
    (with `evaluation.matcher=number`)."""
    found = [one["digits"] for one in NUMBER.finditer(thinking)]
    if not found:
        return None
    # Of as many digits, and never the same: every digit is another one. The first is not made 0.
    other = "".join(str((int(digit) + 3) % 10) for digit in re.sub(r"\D", "", found[-1]))
    other = f"4{other[1:]}" if other[0] == "0" else other
    return re.sub(rf"(?<![\d.,]){re.escape(found[-1])}(?!\d|[.,]\d)", other, thinking), other


_OWN: dict[str, Probe] = {"last_number": last_number}


def load_probe(name: str | None) -> Probe | None:
    """The probe that `evaluation.probe` names: one of ours, or a function as `package.module:function`.

    Raises ConfigError when there is none, or it cannot be called with two texts.
    """
    if name is None or name in _OWN:
        return _OWN[name] if name else None
    key = f"evaluation.probe={name}"
    if not is_import_path(name):
        raise ConfigError(f"{key}: no such probe; there is {', '.join(_OWN)}, and yours as package.module:function")
    try:
        function = function_at(name)
        inspect.signature(function).bind("thinking", "expected")
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{key}: {error}") from error
    return function
