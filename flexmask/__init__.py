"""flexmask: exact one-pass fine-tuning of reasoning models on multi-turn conversations.

Conversation -> passes -> prefix tree -> row -> pack -> BlockMask -> model -> loss; one stage a module.
"""

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
