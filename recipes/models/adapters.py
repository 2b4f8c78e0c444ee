"""Adapters of peft around a model: which of its weights get one, and what peft's own errors mean for the settings."""

import contextlib
import copy
import dataclasses
import importlib.util
import json
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from recipes.configuration.schema import AdapterConfig, AdapterKind

ADAPTER_CONFIG = "adapter_config.json"
ALL_LINEAR = "all-linear"
_PACKAGES = {AdapterKind.lora: ("peft",), AdapterKind.qlora: ("peft", "bitsandbytes")}


def lora_config(model: PreTrainedModel, adapter: AdapterConfig):
    """peft's LoraConfig for a model. The adapters are tried on `model` itself, which is modified: pass a copy without
    weights (on the meta device).

    `target_modules: all-linear` are all linear layers but the head that makes logits, and the fused weights of experts;
    routers, convolutions and embeddings have no adapter. What of it peft cannot adapt is left out with a warning.
    Raises ValueError naming the key: of a package that is not installed, a name that no module has, a layer that peft
    does not adapt, a token that the model does not have.
    """
    _check_installed(adapter.kind)
    _check_names(model, adapter)
    targets = _all_linear(model, adapter) if adapter.target_modules == ALL_LINEAR else _named(model, adapter)
    parameters = sorted(targets.parameters) or None
    config = _peft_config(model, adapter, target_modules=targets.modules, target_parameters=parameters)
    with _named_by_key(adapter):
        add_adapter(model, config, low_cpu_mem_usage=True)
    return config


def add_adapter(model: PreTrainedModel, config, low_cpu_mem_usage: bool = False) -> nn.Module:
    """The model with fresh adapters around it, which alone are trained."""
    import peft

    with _without_peft_noise():
        return peft.get_peft_model(model, copy.deepcopy(config), low_cpu_mem_usage=low_cpu_mem_usage)


def with_adapter(folder: Path, load_base: Callable[[str], PreTrainedModel]) -> nn.Module:
    """The adapter that lies in `folder` around its base model, which `load_base` reads from the name that peft saved.

    Raises ValueError naming the folder.
    """
    _check_installed(AdapterKind.lora)
    import peft

    try:
        name = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / ADAPTER_CONFIG}: names no base model ({type(error).__name__}: {error})") from error
    base = load_base(name)
    try:
        with _without_peft_noise():
            return peft.PeftModel.from_pretrained(base, folder)
    except Exception as error:
        raise ValueError(
            f"{folder}: the adapter does not load into its base model {name}: {type(error).__name__}: {error}"
        ) from error


def four_bits(dtype: torch.dtype):
    """QLoRA's quantization of a base model: NF4 with quantized constants, computed in `dtype`."""
    from transformers import BitsAndBytesConfig

    _check_installed(AdapterKind.qlora)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=torch.uint8,
    )


@dataclass(frozen=True)
class _Targets:
    """What gets an adapter: modules as peft's `target_modules`, and parameters by their paths."""

    modules: set[str] | str
    parameters: set[str]


def _all_linear(model: PreTrainedModel, adapter: AdapterConfig) -> _Targets:
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    head, modules = model.get_output_embeddings(), set()
    without: dict[str, list[str]] = {}  # what has no adapter, by the reason
    for path, module in model.named_modules():
        if module is head or not _is_linear(module):
            continue
        try:
            # Fused kernels of Mamba read a weight past its adapter.
            _check_lora_target_modules_mamba(_peft_config(model, adapter), model, path.rpartition(".")[2])
            modules.add(path)
        except ValueError:
            without.setdefault("peft does not adapt them", []).append(path)
    config = _converted(model, _peft_config(model, adapter, target_modules=set(modules)))
    experts = {path for path, owner, parameter in _parameters(model) if _is_fused(owner, parameter)}
    # Those that peft loses in its conversion get an adapter on their weight.
    lost = {f"{path}.weight" for path in modules - config.target_modules}
    for parameters in (experts, lost):
        if parameters and (reason := _no_parameters(adapter, quantized=parameters is lost)):
            without.setdefault(reason, []).extend(sorted(parameters))
            parameters.clear()
    for reason, paths in without.items():
        warnings.warn(
            f"adapter.target_modules={ALL_LINEAR}: {_kinds(paths)} have no adapter and stay as they are: {reason}",
            stacklevel=4,
        )
    return _Targets(config.target_modules, experts | lost)


def _named(model: PreTrainedModel, adapter: AdapterConfig) -> _Targets:
    """Modules and parameters by the names of `adapter.target_modules`: a list, or a pattern for whole paths."""
    from peft.tuners.tuners_utils import check_target_module_exists

    given, wanted = f"adapter.target_modules={adapter.target_modules}", adapter.target_modules
    paths = [path for path, _ in model.named_modules() if path]
    fused: set[str] = set()
    if not isinstance(wanted, str):
        fused = {name for name in wanted if any(_ends(path, name) for path, *_ in _parameters(model))}
        alone = {name for name in fused if not any(_ends(path, name) for path in paths)}
        wanted = set(wanted) - alone
    config = _peft_config(model, adapter, target_modules=wanted)
    modules = {path for path in paths if check_target_module_exists(config, path)}
    if found := sorted(modules & _tied(model)):
        raise ValueError(
            f"{given}: {' and '.join(sorted(_tied(model)))} are one and the same weight in this model, and an adapter "
            f"on {found[0]} could not be merged; train it with adapter.modules_to_save or "
            "adapter.trainable_token_indices"
        )
    with _named_by_key(adapter):
        config = _converted(model, config)
    experts = fused | set(config.target_parameters or ())
    if isinstance(wanted, str):
        unknown = [] if modules or experts else [f"{wanted}, a pattern for whole paths (names stand in a list)"]
    else:  # a name that peft has taken for the fused weights of experts is in its config no more
        unknown = [name for name in wanted & config.target_modules if not any(_ends(path, name) for path in modules)]
    if unknown:
        raise ValueError(
            f"{given}: no layer of {type(model).__name__} is named {', '.join(sorted(unknown))}; its linear layers are "
            f"{_kinds(_linear(model))}"
        )
    lost = {f"{path}.weight" for path in modules if not check_target_module_exists(config, path)}
    for parameters in (experts, lost):
        if parameters and (why := _no_parameters(adapter, quantized=parameters is lost)):
            raise ValueError(f"{given}: {_kinds(sorted(parameters))} cannot have an adapter: {why}; leave them out")
    return _Targets(config.target_modules, experts | lost)


def _peft_config(model: PreTrainedModel, adapter: AdapterConfig, **targets):
    """The settings under peft's names, which `adapter` has, but for what gets an adapter."""
    import peft

    settings = dataclasses.asdict(adapter)
    for name in ("kind", "target_modules"):
        del settings[name]
    embeddings = _tied(model)
    tied = any(_ends(path, name) for path in embeddings for name in adapter.modules_to_save)
    return peft.LoraConfig(
        **{name: value for name, value in settings.items() if value != []},
        **targets,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        ensure_weight_tying=tied,  # else embedding and head would part, and the merged model have one of them
    )


def _converted(model: PreTrainedModel, config):
    """What peft makes of a config when it meets the model.

    transformers 5 fuses experts; peft (0.21) then takes every projection named like an expert's for the fused weight,
    also those of shared experts and dense layers, which would silently get no adapter.
    """
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = copy.deepcopy(config)
    convert_peft_config_for_transformers(config, model, None)
    return config


def _is_linear(module: nn.Module) -> bool:
    """A layer that is a matrix product and nothing else: some routers are subclasses that return more (Llama 4)."""
    return type(module).forward in (nn.Linear.forward, Conv1D.forward) or hasattr(
        getattr(module, "weight", None), "quant_state"
    )


def _is_fused(owner: nn.Module, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 3 and not isinstance(owner, nn.modules.conv._ConvNd)


def _linear(model: PreTrainedModel) -> list[str]:
    return [path for path, module in model.named_modules() if _is_linear(module)]


def _parameters(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Parameters that are no layer's `weight` or `bias`: path, owner and the parameter."""
    for path, owner in model.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if name not in ("weight", "bias"):
                yield f"{path}.{name}", owner, parameter


def _no_parameters(adapter: AdapterConfig, quantized: bool) -> str | None:
    """Why peft (0.21) has no adapter for a bare parameter under these settings; None where it has one.

    quantized: whether QLoRA quantizes the parameter.
    """
    if adapter.use_dora or adapter.lora_dropout:
        setting = "use_dora" if adapter.use_dora else "lora_dropout"
        return f"peft adapts the weights of experts, and of layers named like them, only without adapter.{setting}"
    if quantized and adapter.kind is AdapterKind.qlora:
        return (
            "peft adapts layers that are named like those of experts only where they are not quantized (adapter=lora)"
        )
    return None


def _tied(model: PreTrainedModel) -> set[str]:
    """The paths of embedding and head where they share one weight."""
    both = [model.get_input_embeddings(), model.get_output_embeddings()]
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return set()
    return {path for path, module in model.named_modules() if any(module is one for one in both)}


def _check_names(model: PreTrainedModel, adapter: AdapterConfig) -> None:
    paths = [path for path, _ in model.named_modules() if path]
    for name in adapter.modules_to_save:
        if not any(_ends(path, name) for path in paths):
            own = sorted({path.rpartition(".")[2] for path in paths if not path.rpartition(".")[2].isdigit()})
            raise ValueError(
                f"adapter.modules_to_save={adapter.modules_to_save}: no module of {type(model).__name__} is named "
                f"{name}; it has {', '.join(own)}"
            )
    rows = model.get_input_embeddings().num_embeddings
    if beyond := [index for index in adapter.trainable_token_indices if not 0 <= index < rows]:
        raise ValueError(
            f"adapter.trainable_token_indices={adapter.trainable_token_indices}: the model has the tokens 0 to "
            f"{rows - 1:,}, and no {beyond[0]:,}"
        )


def _ends(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _kinds(paths) -> str:
    """Paths without their layers' numbers, each once."""
    kinds = dict.fromkeys(".".join(part for part in path.split(".")[-3:] if not part.isdigit()) for path in paths)
    return ", ".join(kinds)


def _check_installed(kind: AdapterKind) -> None:
    if missing := [name for name in _PACKAGES[kind] if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"adapter={kind}: needs {' and '.join(missing)}, not installed here: pip install {' '.join(missing)} (or "
            f"the extra of this project: pip install -e '.[{kind}]')"
        )


@contextlib.contextmanager
def _named_by_key(adapter: AdapterConfig) -> Iterator[None]:
    try:
        with _without_peft_noise():
            yield
    except (ValueError, TypeError, NotImplementedError) as error:
        said = re.sub(r"(Target module \w+)\(.*\) is", r"\1 is", str(error), flags=re.DOTALL)  # without all its layers
        raise ValueError(
            f"adapter.target_modules={adapter.target_modules} with adapter={adapter.kind}: {said}"
        ) from error


@contextlib.contextmanager
def _without_peft_noise() -> Iterator[None]:
    """peft (0.21) reads a name of transformers that is to go, and says so on every run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
