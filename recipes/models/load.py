"""Load the model and tokenizer that `conf/model` names; refuse an unsuitable one before its weights are read."""

import contextlib
import dataclasses
import tempfile
import warnings
from collections import Counter
from operator import attrgetter
from pathlib import Path
from typing import Any

import jinja2
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    Mxfp4Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from flexmask.model.randomness import random_settings
from flexmask.model.support import branching_layers, check_model, check_routes, unwrapped
from recipes.configuration.schema import AdapterConfig, AdapterKind, ModelConfig, ModelKind, TrainConfig
from recipes.models.adapters import ADAPTER_CONFIG, add_adapter, four_bits, lora_config, with_adapter
from recipes.models.files import named_errors, place, refuse_other_models
from recipes.models.precision import resolve_precision
from recipes.models.tiny import build_model, build_tokenizer
from recipes.sources.reach import ask_hub


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, with the chat template of `model.chat_template` in place of its own where one is given.

    Raises ValueError, naming the key, when there is no tokenizer or no chat template.
    """
    if config.kind is ModelKind.tiny:
        tokenizer = build_tokenizer(config.tiny.words)
    else:
        ask_hub(config.name_or_path, "model", "model.name_or_path", "give a local folder: model.name_or_path=<folder>")
        with named_errors(config.name_or_path):
            tokenizer = AutoTokenizer.from_pretrained(place(config.name_or_path), trust_remote_code=False)
        # transformers (5.23) makes an empty tokenizer of the model's type where there are no files of one.
        if not tokenizer("word", add_special_tokens=False).input_ids or len(tokenizer) < 2:
            raise ValueError(
                f"model.name_or_path={config.name_or_path}: no tokenizer there; copy tokenizer.json and "
                "tokenizer_config.json of the model into the folder"
            )
    if config.chat_template is not None:
        tokenizer.chat_template = Path(config.chat_template).read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise ValueError(
            f"model.name_or_path={config.name_or_path}: its tokenizer has no chat template, and passes come from "
            "one; give a Jinja file with model.chat_template=<file>"
        )
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(
            f"{_template_key(config)}: line {error.lineno} of the chat template: {error.message}"
        ) from error
    except (jinja2.TemplateError, ValueError, TypeError, AttributeError, LookupError):
        pass  # a template may reject this message; it says why where a conversation is rendered
    return tokenizer


def _template_key(config: ModelConfig) -> str:
    if config.chat_template is not None:
        return f"model.chat_template={config.chat_template}"
    return f"model.name_or_path={config.name_or_path}"


def load_model(config: TrainConfig, vocab_size: int, chains: bool = False) -> torch.nn.Module:
    """The model in the dtype of `resolve_precision`, with the adapter of `conf/adapter` around it where there is one;
    on CPU, but for weights in 4 bits. `seed` draws the weights of adapters, and of a model from scratch. `chains` as in
    `prepare_model`: the rows to train do not branch. Dropout on attention is set to 0 with a warning.

    Raises UnsupportedModelError for a model that cannot be exact, and ValueError for an adapter that does not fit it:
    from its configuration, before any weight is read. Raises ValueError, naming the key, when the model cannot be
    reached, lacks weights, could not be saved again, or has no attention of `attention.backend`.
    """
    dtype = resolve_precision(config.model.dtype, config.adapter.kind, config.trainer.mixed_precision).dtype
    if config.model.kind is ModelKind.tiny:
        return _tiny(config.model, config.seed, vocab_size).to(dtype)
    name = config.model.name_or_path
    weightless = weightless_model(config.model, vocab_size)
    check_model(weightless, chains)
    try:
        check_routes(weightless, config.attention.backend)
    except ValueError as error:
        raise ValueError(f"attention.{error}") from error
    lora = adapter_for(weightless, config.adapter, config.model)
    shape = weightless.config
    set_seed(config.seed)
    if config.model.from_scratch:
        return AutoModelForCausalLM.from_config(shape, dtype=dtype, trust_remote_code=False)
    model = _with_weights(name, shape, dtype, quantize=config.adapter.kind is AdapterKind.qlora)
    _make_savable(model, name)
    return model if lora is None else add_adapter(model, lora)


def load_trained(folder: Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """A model that a run has left in `folder`, in full or as an adapter, on CPU and ready to generate.

    dtype: of the weights; "auto" takes that of the files, of an adapter's base model. An adapter lies around its base
    model, which is read from where the run read it. Raises ValueError naming the folder for one that is no model's,
    and for a base model that cannot be reached.
    """
    dtype = dtype if dtype == "auto" or isinstance(dtype, torch.dtype) else getattr(torch, dtype)
    if not (folder / ADAPTER_CONFIG).is_file():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder}: no trained model, it has neither config.json nor {ADAPTER_CONFIG}")
        with named_errors(str(folder), key=None):
            return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False).eval()

    def load_base(name: str) -> PreTrainedModel:
        key = f"{folder / ADAPTER_CONFIG}: base_model_name_or_path"
        ask_hub(name, "model", key, "write the folder of that model there")
        with named_errors(name, key):
            shape = AutoConfig.from_pretrained(place(name), trust_remote_code=False)
            return _from_files(name, shape, dtype)[0]

    model = with_adapter(folder, load_base)
    if (folder / "generation_config.json").is_file():
        unwrapped(model).generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def _tiny(config: ModelConfig, seed: int, vocab_size: int) -> PreTrainedModel:
    sizes = dataclasses.asdict(config.tiny)
    del sizes["words"]  # of the tokenizer
    return build_model(seed, vocab_size=vocab_size, **sizes)


def weightless_model(config: ModelConfig, vocab_size: int) -> PreTrainedModel:
    """The model's modules without weights (on the meta device), with its generation config, for checks that need none.
    Dropout on attention is set to 0 with a warning.

    Raises ValueError, naming the key, when its configuration cannot be reached, is no causal language model's, does not
    belong to a tokenizer of `vocab_size`, or could not be saved again.
    """
    if config.kind is ModelKind.tiny:
        return _tiny(config, 0, vocab_size)
    name = config.name_or_path
    with named_errors(name):
        shape = AutoConfig.from_pretrained(place(name), trust_remote_code=False)
        refuse_other_models(shape)
        if config.from_scratch and hasattr(shape, "quantization_config"):
            del shape.quantization_config  # of the files, which are not read
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(shape, trust_remote_code=False)
        if not config.from_scratch:
            with contextlib.suppress(OSError):  # not every model has one
                model.generation_config = GenerationConfig.from_pretrained(place(name))
    if vocab_size > (rows := model.get_input_embeddings().num_embeddings):
        raise ValueError(
            f"model.name_or_path={name}: its tokenizer has {vocab_size:,} tokens, its embedding only {rows:,}; the two "
            "do not belong together"
        )
    _without_random_attention(model.config, name)
    if not config.from_scratch:
        _make_savable(model, name)
    return model


def adapter_for(model: PreTrainedModel, adapter: AdapterConfig, config: ModelConfig):
    """The adapter that is trained around a model, None where its own weights are; `model` needs no weights.

    Raises ValueError, naming the key, for an adapter that does not fit it, and for quantized weights without one.
    """
    shape = model.config
    if adapter.kind is AdapterKind.qlora and _is_mxfp4(shape):
        raise ValueError(
            f"adapter=qlora: {config.name_or_path} has weights in 4 bits of another kind ({_quantization(shape)}), "
            "which are read as plain ones to be adapted; choose adapter=lora"
        )
    if adapter.kind is not AdapterKind.none:
        return lora_config(model, adapter)
    if getattr(shape, "quantization_config", None) is not None:
        raise ValueError(
            f"model.name_or_path={config.name_or_path}: its weights are quantized ({_quantization(shape)}) and "
            "cannot be trained; train an adapter with adapter=lora, or give a folder of plain weights"
        )
    return None


def branching_note(model: torch.nn.Module) -> str:
    """One line on the layers whose state branches with the tree; empty where there are none."""
    layers = branching_layers(model)
    kinds = ", ".join(sorted({layer.partition(" ")[2].strip("()") for layer in layers}))
    return f"state branches with the tree in {len(layers)} layers ({kinds})" if layers else ""


def layers_of(model: PreTrainedModel) -> str:
    """How many layers of which attention, and its reach, as the config has it."""
    text = model.config.get_text_config()
    kinds = [f"{n} x {kind}" for kind, n in Counter(getattr(text, "layer_types", None) or ()).items()]
    reach = {key: getattr(text, key, None) for key in ("sliding_window", "attention_chunk_size")}
    sizes = [f"{key} {size:,}" for key, size in reach.items() if size]
    return ", ".join([*(kinds or [str(getattr(text, "num_hidden_layers", "unknown"))]), *sizes])


def _without_random_attention(shape: PreTrainedConfig, name: str) -> None:
    for setting in random_settings(text := shape.get_text_config()):
        warnings.warn(f"model.name_or_path={name}: {setting} is set to 0", stacklevel=3)
        owner, _, key = setting.partition("=")[0].rpartition(".")
        setattr(attrgetter(owner)(text) if owner else text, key, 0.0)


def _quantization(shape: PreTrainedConfig) -> str:
    found = shape.quantization_config
    method = found.get("quant_method") if isinstance(found, dict) else found.quant_method
    return str(getattr(method, "value", method))


def _is_mxfp4(shape: PreTrainedConfig) -> bool:
    """Whether experts are stored in MXFP4 (gpt-oss)."""
    return getattr(shape, "quantization_config", None) is not None and _quantization(shape) == "mxfp4"


def _from_files(
    name: str, shape: PreTrainedConfig, dtype: torch.dtype | str, quantization: Any = None
) -> tuple[PreTrainedModel, dict]:
    """The pretrained weights in a model of this shape, and what transformers says of loading them. Experts in MXFP4 are
    read as plain weights, whatever kernels are installed: no gradients flow through those."""
    plain = _is_mxfp4(shape)
    model, found = AutoModelForCausalLM.from_pretrained(
        place(name),
        config=shape,
        dtype=dtype,
        quantization_config=Mxfp4Config(dequantize=True) if plain else quantization,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if plain:
        # Else transformers (5.23) would save the plain weights under the names of those in 4 bits.
        del model._weight_conversions
    return model, found


def _with_weights(name: str, shape: PreTrainedConfig, dtype: torch.dtype, quantize: bool) -> PreTrainedModel:
    """The pretrained weights in a model of this shape, each of them from a file."""
    quantization = four_bits(dtype) if quantize and getattr(shape, "quantization_config", None) is None else None
    with named_errors(name):
        model, found = _from_files(name, shape, dtype, quantization)
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"model.name_or_path={name}: its files lack {len(missing):,} of the weights that its config.json asks for "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}), which would be random; give a model "
            "whose files are complete"
        )
    for module in model.modules():
        # On a CPU, bitsandbytes (0.50) repacks weights in 4 bits when it first runs in evaluation mode, as for
        # held-out losses during training, for a kernel through which no gradients flow.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _make_savable(model: PreTrainedModel, name: str) -> None:
    """Whatever transformers refuses to save is found before training, not after it."""
    generation = model.generation_config
    try:
        generation.validate(strict=True)
    except ValueError:
        # transformers saves no file with a temperature and without the sampling that would use it.
        if not generation.do_sample:
            generation.do_sample = True
            warnings.warn(
                f"model.name_or_path={name}: its generation_config.json sets how to sample but not do_sample; the "
                "trained model gets do_sample=true",
                stacklevel=3,
            )
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = "generation_config.json"
            generation.validate(strict=True)  # saving one that nobody has changed does not look so closely
            generation.save_pretrained(folder)
            file = "config.json"
            model.config.save_pretrained(folder)
        except Exception as error:
            raise ValueError(
                f"model.name_or_path={name}: its {file} could not be saved again with the trained model; correct it in "
                f"the folder: {error}"
            ) from error
