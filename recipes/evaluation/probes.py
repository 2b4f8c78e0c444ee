"""Does an answer follow from the thinking in front of it? Probes change the thinking, and the model answers again.

A probe (`evaluation.probe`) takes (thinking, expected): what the model thought, and the data's answer. It returns the
thinking with a number changed and the answer that follows from it then, or None where there is nothing to change. The
model is continued behind the changed thinking; its answer follows if the matcher takes it for the one that the probe
says. One that ignores its own thinking says what it would have said.
"""

import re
from collections.abc import Callable

from recipes.configuration.functions import named_function
from recipes.configuration.rules import ConfigError
from recipes.sources.numbers import NUMBER

Probe = Callable[[str, str], tuple[str, str] | None]


def last_number(thinking: str, expected: str) -> tuple[str, str] | None:
    """The last number of the thinking is another one of as many digits, which the answer must state. Only with
    `evaluation.matcher=number`."""
    *_, last = [*NUMBER.finditer(thinking)] or [None]
    if last is None:
        return None
    start, end = last.span("digits")
    digits = re.sub(r"\d", lambda digit: str((int(digit[0]) + 3) % 10), last["digits"])
    digits = f"4{digits[1:]}" if digits[0] == "0" else digits
    changed = f"{thinking[:start]}{digits}{thinking[end:]}"
    return changed, changed[last.start() : last.end()]  # with its sign


_OWN: dict[str, Probe] = {"last_number": last_number}


def load_probe(name: str | None, matcher: str) -> Probe | None:
    """The probe that `evaluation.probe` names: one of ours, or a function as `package.module:function`.

    Raises ConfigError when there is none, it cannot be called with two texts, or `matcher` compares no numbers where it
    changes one.
    """
    if name is None:
        return None
    if name in _OWN and matcher == "exact":
        raise ConfigError(
            f"evaluation.probe={name}: no whole answer is known to follow; give evaluation.matcher=number"
        )
    return named_function("evaluation.probe", name, _OWN, ("thinking", "expected"))[0]
