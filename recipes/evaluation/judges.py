"""What judges replies: the functions that `evaluation.matcher`, `.thinking_matcher` and `.probe` name.

They may be a user's, and are called when the training before them is done: whatever they do is counted, and stops
nothing.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flexmask.conversations.values import brief
from recipes.configuration.schema import EvaluationConfig
from recipes.evaluation.matchers import Matcher, load_matcher
from recipes.evaluation.probes import Probe, load_probe


@dataclass(frozen=True)
class Judges:
    """matcher: of answers. thinking_matcher: of thinking; None: it is not judged. probe: None: none is tried."""

    matcher: Matcher
    thinking_matcher: Matcher | None
    probe: Probe | None


def load_judges(evaluation: EvaluationConfig) -> Judges:
    """The functions that the settings name. Raises ConfigError where one of them names none."""
    of_thinking = evaluation.thinking_matcher
    return Judges(
        load_matcher(evaluation.matcher),
        None if of_thinking is None else load_matcher(of_thinking, "evaluation.thinking_matcher"),
        load_probe(evaluation.probe, evaluation.matcher),
    )


def guarded_matcher(matcher: Matcher, errors: Counter[str]) -> Matcher:
    """The matcher, which counts as False, and in `errors`, where it raises or gives anything but True, False and None.
    It is shown a copy of the messages, which later turns are asked on."""

    def match(answer: str, expected: str, messages: Sequence[Mapping[str, Any]]) -> bool | None:
        with _counted(errors):
            right = matcher(answer, expected, copy.deepcopy(messages))
            if right is not None and right not in (True, False):
                raise TypeError(f"a matcher gave {brief(right)} in place of True, False or None")
            return right
        return False

    return match


def guarded_probe(probe: Probe, errors: Counter[str]) -> Probe:
    """The probe, which changes nothing, and counts in `errors`, where it raises or gives neither two texts nor None."""

    def change(thinking: str, expected: str) -> tuple[str, str] | None:
        with _counted(errors):
            changed = probe(thinking, expected)
            two_texts = isinstance(changed, tuple) and [*map(type, changed)] == [str, str]
            if changed is not None and not two_texts:
                raise TypeError(f"a probe gave {brief(changed)} in place of two texts, the thinking and the answer")
            return changed
        return None

    return change


@contextmanager
def _counted(errors: Counter[str]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a user's function may raise anything
        errors[f"{type(error).__name__}: {error}"] += 1
