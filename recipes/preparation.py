"""Load the conversations that `conf/data` names, and turn a whole data set into rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from flexmask import Conversation, Row, prepare_conversation
from recipes.config import DataConfig, TrainConfig
from recipes.data import LoadedData, load_conversations


@dataclass(frozen=True)
class PreparedData:
    """items: the rows of each conversation that trains anything, in order. The counts say what is not in them."""

    items: list[tuple[Row, ...]]
    dropped_turns: int  # longer than a pack, with too_long=drop
    without_rows: int  # conversations none of whose turns is trained


def load_data(data: DataConfig) -> LoadedData:
    """`data` as arguments of `load_conversations`; raises what that raises."""
    return load_conversations(
        data.kind,
        path=data.path,
        hub_id=data.hub_id,
        hub_config=data.hub_config,
        split=data.split,
        train_conversations=data.train_conversations,
        heldout_conversations=data.heldout_conversations,
        seed=data.seed,
        on_invalid=data.on_invalid,
    )


def prepare(
    conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, config: TrainConfig, layout: str
) -> PreparedData:
    """Render and lay out every conversation as `config.duplication` says, in `layout`.

    Raises ValueError (see `render_passes`, `lay_out`) naming the conversation.
    """
    duplication, data = config.duplication, config.data
    laid_out = [
        prepare_conversation(
            conversation,
            tokenizer,
            layout=layout,
            pack_length=duplication.pack_length,
            too_long=duplication.too_long,
            turns=duplication.turns,
            thinking_weight=duplication.thinking_weight,
            answer_weight=duplication.answer_weight,
            template_kwargs=data.template_kwargs,
            thinking_format=data.thinking_format,
            control_tokens=data.control_tokens,
        )
        for conversation in conversations
    ]
    items = [one.rows for one in laid_out if one.rows]
    return PreparedData(items, sum(len(one.dropped_turns) for one in laid_out), len(laid_out) - len(items))
