"""Load the model and tokenizer that `conf/model` names; refuse an unsuitable one before its weights are read."""

import dataclasses
import warnings
from operator import attrgetter
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from flexmask.models import branching_layers, check_model, random_settings
from recipes.config import ModelConfig, ModelKind
from recipes.tiny import build_model, build_tokenizer


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, with the chat template of `model.chat_template` in place of its own where one is given.

    Raises ValueError, naming the key, when there is no tokenizer or no chat template.
    """
    if config.kind is ModelKind.tiny:
        tokenizer = build_tokenizer()
    else:
        tokenizer = _reachable(config, AutoTokenizer.from_pretrained)
    if config.chat_template is not None:
        tokenizer.chat_template = Path(config.chat_template).read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise ValueError(
            f"model.name_or_path={config.name_or_path}: its tokenizer has no chat template, and passes come from "
            "one; give a Jinja file with model.chat_template=<file>"
        )
    return tokenizer


def load_model(config: ModelConfig, vocab_size: int, seed: int, chains: bool = False) -> PreTrainedModel:
    """The model on CPU in `model.dtype`; `seed` draws the weights of a model from scratch. `chains` as in
    `prepare_model`: the rows to train do not branch. Dropout on attention is set to 0 with a warning.

    Raises UnsupportedModelError for a model that cannot be exact: from its configuration, before any weight is
    read. Raises ValueError, naming the key, when the model cannot be reached.
    """
    dtype = getattr(torch, config.dtype)
    if config.kind is ModelKind.tiny:
        return build_model(seed, vocab_size=vocab_size, **dataclasses.asdict(config.tiny)).to(dtype)
    weightless = weightless_model(config, vocab_size)
    check_model(weightless, chains)
    shape = weightless.config
    for setting in random_settings(text := shape.get_text_config()):
        warnings.warn(f"model.name_or_path={config.name_or_path}: {setting} is set to 0", stacklevel=2)
        owner, _, key = setting.partition("=")[0].rpartition(".")
        setattr(attrgetter(owner)(text) if owner else text, key, 0.0)
    if config.from_scratch:
        set_seed(seed)
        return AutoModelForCausalLM.from_config(shape, dtype=dtype)
    model = _reachable(config, AutoModelForCausalLM.from_pretrained, config=shape, dtype=dtype)
    if vocab_size > (rows := model.get_input_embeddings().num_embeddings):
        raise ValueError(
            f"model.name_or_path={config.name_or_path}: its tokenizer has {vocab_size:,} tokens, its embedding only "
            f"{rows:,}; the two do not belong together"
        )
    return model


def weightless_model(config: ModelConfig, vocab_size: int) -> PreTrainedModel:
    """The model's modules without weights (on the meta device), for checks that need none.

    Raises ValueError, naming the key, when its configuration cannot be reached.
    """
    if config.kind is ModelKind.tiny:
        return build_model(0, vocab_size=vocab_size, **dataclasses.asdict(config.tiny))
    shape = _reachable(config, AutoConfig.from_pretrained)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(shape)


def branching_note(model: PreTrainedModel) -> str:
    """One line on the layers whose state branches with the tree; empty where there are none."""
    layers = branching_layers(model)
    kinds = ", ".join(sorted({layer.partition(" ")[2].strip("()") for layer in layers}))
    return f"state branches with the tree in {len(layers)} layers ({kinds})" if layers else ""


def _reachable(config: ModelConfig, load, **arguments):
    try:
        return load(config.name_or_path, **arguments)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"model.name_or_path={config.name_or_path}: cannot be read, neither as a local folder nor from the "
            f"hub; without network give a local folder with model.name_or_path=<folder> ({str(error).splitlines()[0]})"
        ) from error
