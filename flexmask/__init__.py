"""flexmask: exact one-pass fine-tuning of reasoning models on multi-turn conversations.

Conversation -> passes -> prefix tree -> row -> pack -> BlockMask -> model -> loss; one stage a module.

A module is imported when one of its names is first asked for, so that `import flexmask` costs nothing and a script that
only prepares conversations or builds masks loads neither transformers nor its Trainer.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flexmask.arguments import OnePassConfig
    from flexmask.conversation import Conversation
    from flexmask.end_of_turn import align_end_of_turn
    from flexmask.loss import TokenLosses, token_losses
    from flexmask.masks import build_block_mask, dense_mask, visible_until_mask_mod, visible_until_score_mod
    from flexmask.models import UnsupportedModelError, prepare_model
    from flexmask.packing import Pack, pack
    from flexmask.rendering import Pass, Role, render_passes
    from flexmask.training import NonFiniteLossError, OnePassTrainer
    from flexmask.training_data import OnePassCollator, prepare_conversation
    from flexmask.tree import LaidOut, Row, keep_thinking, lay_out, one_pass, per_turn

__all__ = [
    "Conversation",
    "LaidOut",
    "NonFiniteLossError",
    "OnePassCollator",
    "OnePassConfig",
    "OnePassTrainer",
    "Pack",
    "Pass",
    "Role",
    "Row",
    "TokenLosses",
    "UnsupportedModelError",
    "align_end_of_turn",
    "build_block_mask",
    "dense_mask",
    "keep_thinking",
    "lay_out",
    "one_pass",
    "pack",
    "per_turn",
    "prepare_conversation",
    "prepare_model",
    "render_passes",
    "token_losses",
    "visible_until_mask_mod",
    "visible_until_score_mod",
]

# The module of each public name; type checkers read the same from the imports above.
_HOMES = {
    "arguments": ["OnePassConfig"],
    "conversation": ["Conversation"],
    "end_of_turn": ["align_end_of_turn"],
    "loss": ["TokenLosses", "token_losses"],
    "masks": ["build_block_mask", "dense_mask", "visible_until_mask_mod", "visible_until_score_mod"],
    "models": ["UnsupportedModelError", "prepare_model"],
    "packing": ["Pack", "pack"],
    "rendering": ["Pass", "Role", "render_passes"],
    "training": ["NonFiniteLossError", "OnePassTrainer"],
    "training_data": ["OnePassCollator", "prepare_conversation"],
    "tree": ["LaidOut", "Row", "keep_thinking", "lay_out", "one_pass", "per_turn"],
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value  # asked for once only
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
