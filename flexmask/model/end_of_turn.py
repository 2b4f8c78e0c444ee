"""One end of turn for all who read a model: the tokenizer, config.json and generation_config.json.

A chat template ends the turns that are trained with a token of its own choice. Base models have another end of
sequence (`<|endoftext|>` beside `<|im_end|>`), some tokenizers none: the model would learn to stop, and whoever
generates with it would not notice.
"""

import json
from collections.abc import Sequence

import jinja2
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def align_end_of_turn(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> str | None:
    """Make a model stop where it learns to, in place; every checkpoint and the saved model then say so.

    model: may be wrapped, as peft does. ends: ids of the tokens that end trained turns, as `LaidOut.ends`. If it is
    empty, nothing is changed. Afterwards
    - `tokenizer.eos_token` is one of `ends` (it is left alone where it was one), and the chat template writes what it
      wrote before,
    - `tokenizer.pad_token` is set, where there was none, to a token that ends no turn if there is one,
    - `generation_config.eos_token_id` has `ends` and what it had, `config.eos_token_id` has `ends`,
    - beginning and padding of both are the tokenizer's, as the Trainer's own alignment makes them, which then finds
      nothing left to change.

    Returns one line on what has changed of the end of turn, and on padding that was chosen; None where neither has.
    """
    if not ends:
        return None
    generation = getattr(model, "generation_config", None)
    configs = [model.config.get_text_config(), *([generation] if generation is not None else [])]
    said: list[str] = []
    moved: dict[str, list[str]] = {}
    before = tokenizer.eos_token_id
    if before not in ends:
        known = [index for config in configs[::-1] for index in _ids(config) if index in ends]
        said.append(_set_token(tokenizer, "eos_token", (known or list(ends))[0]))
    if tokenizer.pad_token_id is None:
        said.append(_set_token(tokenizer, "pad_token", _padding(model, tokenizer, ends, before)))
    for config in configs:
        name = "generation_config" if config is generation else "config"
        found = getattr(config, "eos_token_id", None)
        trained = list(dict.fromkeys([tokenizer.eos_token_id, *ends]))
        # A single end in config.json is the one that is replaced; a list, and generation_config.json, tell where to
        # stop, and more places do no harm.
        kept = _ids(config) if config is generation or isinstance(found, list) else []
        wanted = _ids(config) if set(trained) <= set(_ids(config)) else list(dict.fromkeys([*trained, *kept]))
        value = wanted if isinstance(found, list) or len(wanted) > 1 else wanted[0]
        if found != value:
            config.eos_token_id = value
            moved.setdefault(f"{value} ({_was(found)})", []).append(name)
        for special in ("bos_token_id", "pad_token_id"):
            if (index := getattr(tokenizer, special)) is not None:
                setattr(config, special, index)
    said += [f"eos_token_id of {' and '.join(names)} is {change}" for change, names in moved.items()]
    shown = " and ".join(map(repr, tokenizer.convert_ids_to_tokens(list(ends))))
    return f"turns end with {shown}: {'; '.join(said)}" if said else None


def _ids(config: PreTrainedConfig | GenerationConfig) -> list[int]:
    """The ends of sequence of a config: none, one or several."""
    found = getattr(config, "eos_token_id", None)
    return [] if found is None else list(found) if isinstance(found, (list, tuple)) else [found]


def _was(value: object) -> str:
    return "was none" if value is None else f"was {value!r}"


def _set_token(tokenizer: PreTrainedTokenizerBase, name: str, index: int) -> str:
    """Give a tokenizer another special token, without a change to what its chat templates write."""
    before = getattr(tokenizer, name)
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        tokenizer.chat_template = {key: _pinned(source, name, before) for key, source in templates.items()}
    elif templates:
        tokenizer.chat_template = _pinned(templates, name, before)
    setattr(tokenizer, name, tokenizer.added_tokens_decoder.get(index) or tokenizer.convert_ids_to_tokens(index))
    kept = "" if tokenizer.chat_template == templates else ", as the chat template still has it"
    return f"{name} of the tokenizer is {getattr(tokenizer, name)!r} ({_was(before)}{kept})"


def _pinned(source: str, name: str, text: str | None) -> str:
    """A chat template that does not follow the tokenizer's special token `name` any more, but writes `text`.

    Phi-3's writes `{{ eos_token }}` behind a conversation whose turns end otherwise. A template that reads no such
    variable stays as it is.
    """
    if not any((kind, value) == ("name", name) for _, kind, value in jinja2.Environment().lex(source)):
        return source
    # A name that nothing defines is to the template what a missing special token was. Templates are rendered with
    # trim_blocks: the newline is not written, and the old first line still is one.
    value = f"no_{name}" if text is None else json.dumps(text, ensure_ascii=False)
    return f"{{% set {name} = {value} %}}\n{source}"


def _padding(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], former_end: int | None
) -> int:
    """A token to pad with: the model's own, one made for it, or another that has no meaning in a turn.

    Whoever pads leaves these tokens out of the loss, so padding with a trained end would teach never to stop.
    """
    text = model.config.get_text_config()
    added = sorted(tokenizer.added_tokens_decoder.items())
    candidates = [
        getattr(getattr(model, "generation_config", None), "pad_token_id", None),
        getattr(text, "pad_token_id", None),
        *(index for index, token in added if token.special and "pad" in token.content.lower()),
        former_end,
        tokenizer.unk_token_id,
        tokenizer.bos_token_id,
        *(index for index, token in added if token.special),
    ]
    rows = getattr(text, "vocab_size", None) or len(tokenizer)
    return next((i for i in candidates if i is not None and 0 <= i < rows and i not in ends), tokenizer.eos_token_id)
