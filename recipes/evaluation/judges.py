"""What judges replies: the functions that `evaluation.matcher`, `.thinking_matcher` and `.probe` name."""

from dataclasses import dataclass

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
