"""The arguments of a training run: those of transformers, and those that turn conversations into packs."""

import datetime
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from flexmask.conversations.contexts import load_rule
from flexmask.conversations.conversation import check_template_kwargs
from flexmask.conversations.thinking import AUTO, tags_of

# What of the arguments `prepare_conversation` takes.
_PREPARATION = (
    "layout",
    "pack_length",
    "too_long",
    "turns",
    "thinking_weight",
    "answer_weight",
    "template_kwargs",
    "thinking_format",
    "control_tokens",
    "not_shown",
    "empty_thinking",
    "context",
)


@dataclass
class OnePassConfig(TrainingArguments):
    """`transformers.TrainingArguments` with what `OnePassTrainer` needs to prepare conversations itself.

    `per_device_train_batch_size` and `gradient_accumulation_steps` count conversations. Other defaults than
    transformers': a learning rate of 2e-5, a loss printed at the first and then every tenth step, and no report to
    anybody.

    pack_length: most tokens of one forward pass; packs are not padded, and memory follows it. A conversation that is
        longer is split without loss; a single turn that is longer with its history raises or is dropped, as `too_long`
        ("error", "drop") says.
    block_size: of the block mask.
    context_parallel: all processes compute each pack together, for packs that one alone cannot hold.
    backend: which kernels compute attention on CUDA, "auto", "triton" or "flash" (FlashAttention 4).
    layout, turns, thinking_weight, answer_weight, template_kwargs, thinking_format, control_tokens, not_shown,
        empty_thinking: as in `flexmask.prepare_conversation`. Held-out data is laid out as inference shows it also for
        layout "keep_thinking".
    thinking_tags: as in `flexmask.read_conversation`, for data given as records.
    context: what a harness shows of a long conversation, as in `flexmask.prepare_conversation`; None is what the chat
        template shows.
    on_invalid: what becomes of a conversation that cannot be read or rendered: "error" names all of them, "drop" leaves
        them out with a warning that does.
    date: what templates show as the current date, as a date or "2026-01-31"; None is today.
    model_init_kwargs: for `from_pretrained` where the model is given as a string, which is loaded in float32 unless
        `dtype` stands here.

    Raises ValueError naming the argument.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "template_kwargs", "model_init_kwargs", "context"]

    learning_rate: float = field(default=2e-5, metadata={"help": "The initial learning rate."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between logs; below 1 a share of all."})
    logging_first_step: bool = field(default=True, metadata={"help": "Whether the first step is logged."})
    # A loss that is not finite stops the run; it is never smoothed over.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Not used: such a loss stops the run."})
    report_to: None | str | list[str] = field(default="none", metadata={"help": "Where to report logs."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Not used: rows have no columns."})

    pack_length: int = field(default=8192, metadata={"help": "Most tokens of one forward pass."})
    block_size: int = field(default=128, metadata={"help": "Of the block mask."})
    context_parallel: bool = field(default=False, metadata={"help": "All processes compute each pack together."})
    backend: str = field(default="auto", metadata={"help": "Kernels of attention on CUDA: auto, triton or flash."})
    layout: str = field(default="one_pass", metadata={"help": "one_pass, per_turn, keep_thinking or last_turn."})
    turns: str = field(default="all", metadata={"help": 'Assistant turns that are trained: "all", "-1", "1:", ...'})
    thinking_weight: float = field(default=1.0, metadata={"help": "Loss weight of thinking."})
    answer_weight: float = field(default=1.0, metadata={"help": "Loss weight of answers."})
    too_long: str = field(default="error", metadata={"help": "A turn longer than a pack: error or drop."})
    template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of the chat template."}
    )
    thinking_format: str | None = field(
        default=AUTO, metadata={"help": "How thinking is generated where the template does not render it."}
    )
    thinking_tags: Any = field(default=AUTO, metadata={"help": "What delimits thinking inside the text of answers."})
    on_invalid: str = field(default="error", metadata={"help": "A conversation that cannot be read: error or drop."})
    control_tokens: str = field(default="refuse", metadata={"help": "Control tokens in text: refuse or escape."})
    not_shown: str = field(default="error", metadata={"help": "What the template leaves out: error or warn."})
    empty_thinking: str = field(default="train", metadata={"help": "An empty thinking block: train or context."})
    context: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "What a harness shows of a long conversation: rule and arguments."}
    )
    date: str | None = field(default=None, metadata={"help": "The date that templates show, 2026-01-31."})
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "For from_pretrained, where the model is a string."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pack_length <= 0:
            raise ValueError(f"pack_length={self.pack_length:,} must be positive")
        if self.on_invalid not in ("error", "drop"):
            raise ValueError(f'on_invalid={self.on_invalid!r}: write "error" or "drop"')
        tags_of(self.thinking_tags)
        check_template_kwargs(self.template_kwargs, "template_kwargs")
        load_rule(self.context)
        if isinstance(self.date, datetime.date):
            self.date = self.date.isoformat()  # as text, so that loggers can write the arguments down
        if self.date is not None:
            try:
                datetime.date.fromisoformat(self.date)
            except ValueError as error:
                raise ValueError(f"date={self.date!r}: {error}; write it as 2026-01-31") from error

    def preparation(self) -> dict[str, Any]:
        """The arguments of `prepare_conversation`."""
        date = None if self.date is None else datetime.date.fromisoformat(self.date)
        return {name: getattr(self, name) for name in _PREPARATION} | {"date": date}
