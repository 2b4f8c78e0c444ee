"""flexmask: exact one-pass fine-tuning of reasoning models on multi-turn conversations.

Record -> Conversation -> passes -> prefix tree -> row -> pack -> BlockMask -> model -> loss; one stage a module.

A module is imported when one of its names is first asked for, so that `import flexmask` costs nothing and a script that
only prepares conversations or builds masks loads neither transformers nor its Trainer.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flexmask.attention.masks import build_block_mask, dense_mask, visible_until_mask_mod, visible_until_score_mod
    from flexmask.conversations.contexts import calls_of, load_rule
    from flexmask.conversations.conversation import Conversation
    from flexmask.conversations.model_calls import Call, Calls
    from flexmask.conversations.reading import read_conversation
    from flexmask.conversations.records import read_record
    from flexmask.errors import NonFiniteLossError, UnsupportedModelError
    from flexmask.model.end_of_turn import align_end_of_turn
    from flexmask.model.loss import TokenLosses, token_losses
    from flexmask.model.support import prepare_model
    from flexmask.text.rendering import Pass, Role, render_passes
    from flexmask.training.arguments import OnePassConfig
    from flexmask.training.collator import OnePassCollator
    from flexmask.training.data import prepare_conversation
    from flexmask.training.trainer import OnePassTrainer
    from flexmask.tree.layouts import LaidOut, Row, keep_thinking, lay_out, one_pass, per_turn
    from flexmask.tree.packing import Pack, pack

__all__ = [
    "Call",
    "Calls",
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
    "calls_of",
    "dense_mask",
    "keep_thinking",
    "lay_out",
    "load_rule",
    "one_pass",
    "pack",
    "per_turn",
    "prepare_conversation",
    "prepare_model",
    "read_conversation",
    "read_record",
    "render_passes",
    "token_losses",
    "visible_until_mask_mod",
    "visible_until_score_mod",
]

# The module of each public name; type checkers read the same from the imports above.
_HOMES = {
    "training.arguments": ["OnePassConfig"],
    "conversations.contexts": ["calls_of", "load_rule"],
    "conversations.conversation": ["Conversation"],
    "conversations.model_calls": ["Call", "Calls"],
    "conversations.records": ["read_record"],
    "conversations.reading": ["read_conversation"],
    "model.end_of_turn": ["align_end_of_turn"],
    "model.loss": ["TokenLosses", "token_losses"],
    "attention.masks": ["build_block_mask", "dense_mask", "visible_until_mask_mod", "visible_until_score_mod"],
    "errors": ["NonFiniteLossError", "UnsupportedModelError"],
    "model.support": ["prepare_model"],
    "tree.packing": ["Pack", "pack"],
    "text.rendering": ["Pass", "Role", "render_passes"],
    "training.trainer": ["OnePassTrainer"],
    "training.collator": ["OnePassCollator"],
    "training.data": ["prepare_conversation"],
    "tree.layouts": ["LaidOut", "Row", "keep_thinking", "lay_out", "one_pass", "per_turn"],
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
