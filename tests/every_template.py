"""Every real chat template that the tests know, each with a tokenizer: trl's 41, and those of the survey."""

import functools

import stock_templates
import survey
from transformers import PreTrainedTokenizerBase

from flexmask.text.control_tokens import literal_text


@functools.cache
def names() -> tuple[str, ...]:
    """By package and name, as `survey.templates` has them."""
    return (*(f"trl/{name}" for name in stock_templates.STOCK), *survey.templates())


def tokenizer_name(name: str) -> str:
    """What templates share whose tokenizers are as good as loaded once one of them is."""
    package, _, rest = name.partition("/")
    return stock_templates.STOCK[rest].tokenizer if package == "trl" else package


@functools.cache
def load(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a template: a real one for trl's, one of bytes for those of the survey."""
    package, _, rest = name.partition("/")
    if package == "trl":
        return stock_templates.STOCK[rest].load(rest)
    return survey.tokenizer_of(survey.templates()[name])


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts that mean something to a model: special tokens, added tokens that its template writes, thinking tags."""
    written = literal_text(tokenizer.chat_template)
    added = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.content in tokenizer.all_special_tokens or (token.content in written and not token.content.isspace())
    ]
    return sorted({"<think>", "</think>", *added})
