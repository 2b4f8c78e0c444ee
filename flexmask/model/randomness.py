"""What a model draws at random while it trains: what must not be drawn at all, and what turns of one pass share."""

import re
import warnings
from collections.abc import Iterator, Sequence

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

# Settings under which transformers' models (5.23) drop attention, or add noise to routers, at random.
_RANDOM = (
    "attention_dropout",
    "attn_pdrop",
    "attention_probs_dropout_prob",
    "router_jitter_noise",
    "input_jitter_noise",
    "moe_jitter_eps",
)
# Names of other dropout, without that of heads for classification.
_OTHER_DROPOUT = re.compile(r"^(?!.*(classif|summary)).*drop")
# Parts of a config that hold settings of a decoder's layers (DBRX).
_NESTED = ("attn_config", "ffn_config")


def random_settings(config: PreTrainedConfig) -> list[str]:
    """Those of a config's settings that make attention or routing random, each as "key=value".

    The key of a setting in a nested config is its path ("ffn_config.moe_jitter_eps").
    """
    return [s for s in _positive_settings(config) if s.partition("=")[0].rpartition(".")[2] in _RANDOM]


def shared_draws(model: PreTrainedModel) -> list[str]:
    """The dropout of a model outside of attention, each as "name=value": of its config, and of its active adapters."""
    settings = _positive_settings(model.config.get_text_config())
    return [setting for setting in settings if _OTHER_DROPOUT.search(setting)] + _adapter_dropout(model)


def warn_of_shared_draws(name: str, draws: Sequence[str], stacklevel: int) -> None:
    """Say once what the turns of one pass draw together; `name` is the model's, `draws` are as "name=value"."""
    if draws:
        warnings.warn(
            f"{name}: {', '.join(draws)}: turns of one pass share one draw of this noise in their common context, "
            "where one pass a turn draws for each; to have the same loss, set it to 0",
            stacklevel=stacklevel + 1,
        )


def _positive_settings(config: PreTrainedConfig) -> Iterator[str]:
    for key, value in vars(config).items():
        if isinstance(value, float) and value > 0:
            yield f"{key}={value}"
        elif key in _NESTED and isinstance(value, PreTrainedConfig):
            yield from (f"{key}.{setting}" for setting in _positive_settings(value))


def _adapter_dropout(model: nn.Module) -> list[str]:
    """Dropout modules in layers of peft: those have `active_adapters`, and a module of each adapter under its name."""
    found: dict[str, None] = {}
    for layer in model.modules():
        active = getattr(layer, "active_adapters", None)
        if not isinstance(active, list):
            continue
        for path, module in layer.named_modules():
            owner, _, adapter = path.rpartition(".")
            if adapter in active and isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
                found[f"{owner.rpartition('.')[2]}={module.p}"] = None
    return list(found)
