"""What a recipe can be told: the settings of a run as dataclasses, with types, units and defaults.

The YAML files in conf/ fill them (`recipes.configuration.compose`); what types cannot say is checked in
`recipes.configuration.rules`. A new setting is a field here, with a comment that says its unit and its special values.
What it means for rows stands in `recipes.preparation.rows.settings_of`, for the Trainer in `recipes.run.arguments`;
`flexmask.OnePassConfig` has the same as an argument for scripts where it shapes rows. One that does not change what is
trained is left out of `recipes.run.folder.settings_of_training`, by which resume=auto knows a run.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from omegaconf import MISSING


class ModelKind(StrEnum):
    tiny = "tiny"  # built in-process with its tokenizer, random weights
    hub = "hub"  # a Hugging Face hub id or a local folder


class Dtype(StrEnum):
    auto = "auto"  # float32 for weights that are trained; a frozen base under an adapter in bfloat16 on CUDA
    float32 = "float32"
    bfloat16 = "bfloat16"
    float64 = "float64"


class AdapterKind(StrEnum):
    none = "none"  # all weights are trained
    lora = "lora"
    qlora = "qlora"  # LoRA on a base model in 4 bits


class DataKind(StrEnum):
    tutoring = "tutoring"  # generated, no download
    careless_tutoring = "careless_tutoring"  # of a tutor who forgets to carry
    tutoring_pairs = "tutoring_pairs"  # turns of such dialogues with a right answer and a careless one
    parcels = "parcels"  # generated episodes with tool calls
    programs = "programs"  # generated sessions in which a small program is changed
    documents = "documents"  # generated sessions in which a document is edited
    gsm8k_socratic = "gsm8k_socratic"
    records = "records"  # conversations in any accepted format: a file, a folder, a glob, or data of the hub
    mix = "mix"  # several of the others, in data.sources


GENERATED = frozenset(
    (
        DataKind.tutoring,
        DataKind.careless_tutoring,
        DataKind.tutoring_pairs,
        DataKind.parcels,
        DataKind.programs,
        DataKind.documents,
    )
)  # without end: a number says how many


class Words(StrEnum):
    """The generated data sets that the tiny model's tokenizer can be made for."""

    tutoring = "tutoring"
    parcels = "parcels"
    programs = "programs"
    documents = "documents"


class Flaw(StrEnum):
    """What may be wrong with thinking, while the answer is right: `recipes.sources.flaws`."""

    wrong_step = "wrong_step"
    irrelevant = "irrelevant"
    shuffled = "shuffled"
    truncated = "truncated"
    missing = "missing"


class ControlTokens(StrEnum):
    refuse = "refuse"  # an error that names them
    escape = "escape"  # they become plain text: of what is generated the same characters in plain tokens


class NotShown(StrEnum):
    error = "error"
    warn = "warn"  # a warning with its count, and training goes on without it


class EmptyThinking(StrEnum):
    train = "train"  # the model learns to write it
    context = "context"  # without loss


class OnInvalid(StrEnum):
    error = "error"  # that names all of them
    drop = "drop"  # left out, counted, and written with its reason into left_out.jsonl


class Layout(StrEnum):
    one_pass = "one_pass"  # a tree in one row: exact
    per_turn = "per_turn"  # a row a turn: exact, the baseline
    keep_thinking = "keep_thinking"  # one row in which earlier thinking stays: the common mistake, as a control
    last_turn = "last_turn"  # only the last trained turn


class TooLong(StrEnum):
    error = "error"
    drop = "drop"  # left out and counted


class MixedPrecision(StrEnum):
    auto = "auto"  # bf16 on a CUDA device that has it, else none
    none = "none"
    bf16 = "bf16"


class ParallelKind(StrEnum):
    ddp = "ddp"  # every process holds all of the model
    fsdp = "fsdp"  # weights, gradients and optimizer state are divided over the processes (FSDP2)


class AttentionBackend(StrEnum):
    """The kernels of attention on CUDA: `flexmask.attention.kernels`."""

    auto = "auto"  # what torch chooses, Triton kernels today
    triton = "triton"
    flash = "flash"  # FlashAttention 4, from the package flash-attn-4, on Hopper and Blackwell


class ObjectiveKind(StrEnum):
    sft = "sft"  # cross-entropy of what is generated
    dpo = "dpo"  # pairs of a better and a worse answer


class PreferenceLoss(StrEnum):
    """`flexmask.objectives.preference`, with formulas and sources."""

    sigmoid = "sigmoid"  # DPO
    sigmoid_norm = "sigmoid_norm"  # DPO on means over the tokens of an answer
    ipo = "ipo"


class History(StrEnum):
    own = "own"  # the model's own earlier answers stand in the history, as with a real user
    teacher = "teacher"  # the data's earlier turns stand there, so that each turn is judged by itself
    both = "both"


class WandbMode(StrEnum):
    auto = "auto"  # online when an API key is configured, else offline
    online = "online"
    offline = "offline"
    off = "off"  # wandb is not even imported


SPLIT = "train"

# Where a default depends on what is chosen in conf/, it stands there and is MISSING here: each has one home.
# The dataclasses are not frozen: OmegaConf makes a frozen one read-only, and no YAML file could fill it.


@dataclass
class TinyConfig:
    """Sizes of the tiny Qwen3-architecture model, as `recipes.models.tiny.build_model` takes them."""

    words: Words = MISSING  # the data whose words the tokenizer knows
    hidden_size: int = MISSING  # numbers of a token's state between layers
    layers: int = MISSING  # decoder layers
    heads: int = MISSING  # of queries, in each layer
    kv_heads: int = MISSING  # of keys and values; heads is a multiple of it
    head_dim: int = MISSING  # numbers of a head
    intermediate_size: int = MISSING  # width of the feed-forward part of a layer


@dataclass
class ModelConfig:
    kind: ModelKind = MISSING
    name_or_path: str | None = None  # hub id or local folder; only with kind=hub
    from_scratch: bool = False  # random weights; with kind=hub in the shape of name_or_path
    dtype: Dtype = Dtype.auto  # of the weights in memory
    gradient_checkpointing: bool = False  # keep one layer's activations and compute the others anew in backward
    chat_template: str | None = None  # path of a Jinja file that replaces the tokenizer's template
    tiny: TinyConfig | None = None  # only with kind=tiny


@dataclass
class AdapterConfig:
    """The settings of peft's LoraConfig, under peft's names."""

    kind: AdapterKind = MISSING
    r: int = 16  # rank of an adapter
    lora_alpha: int = 32  # an adapter is scaled by lora_alpha / r
    lora_dropout: float = 0.0  # share of an adapter's inputs that training drops
    target_modules: Any = "all-linear"  # which modules get an adapter: all-linear, or a list of module names
    modules_to_save: list[str] = field(default_factory=list)  # trained in full beside the adapters
    trainable_token_indices: list[int] = field(default_factory=list)  # token ids whose embeddings are trained
    use_dora: bool = False  # DoRA: magnitude and direction of a weight are adapted apart
    use_rslora: bool = False  # scale by lora_alpha / sqrt(r)


@dataclass
class SourceConfig:
    """One source of a mix."""

    kind: DataKind = DataKind.records
    path: str | None = None  # a local file, folder or glob; taken in place of the hub
    hub_id: str | None = None  # owner/name of data of the hub
    hub_config: str | None = None  # which part of it, where it has several
    split: str = SPLIT  # of the hub's data
    train_conversations: int | None = None  # at most so many are trained; null: all that are not held out
    weight: float = 1.0  # how often each conversation stands in an epoch: 1 once, 0.5 a seeded half of them
    template_kwargs: dict[str, Any] = field(default_factory=dict)  # for this source, over those of the run


@dataclass
class DataConfig:
    kind: DataKind = MISSING
    path: str | None = None  # a local file, folder or glob; taken in place of the hub
    hub_id: str | None = None  # owner/name of data of the hub
    hub_config: str | None = None  # which part of it, where it has several
    split: str = SPLIT  # of the hub's data
    sources: dict[str, Any] = field(default_factory=dict)  # of a mix: by a name for each, the keys below
    train_conversations: int | None = None  # at most so many are trained; null: all that are not held out
    heldout_conversations: int | None = None  # so many are never trained; null: 5 percent, at most 200
    seed: int = 0  # of generation and of the held-out choice; not of the run
    control_tokens: ControlTokens = ControlTokens.refuse  # special tokens inside message text
    on_invalid: OnInvalid = OnInvalid.error  # a conversation that cannot be read or rendered
    # What delimits thinking inside the text of answers: auto knows those of many models and data sets; others are
    # [opening, closing]; null: no thinking is read from text.
    thinking_tags: Any = "auto"
    # Under which key records of calls have the id of their episode, whose calls become one record: auto looks in
    # records of one call each for episode_id, session_id, ... (docs/data.md); or keys, a.b for what stands inside; null
    # joins nothing.
    episode_key: Any = "auto"
    not_shown: NotShown = NotShown.error  # a message or tool that the template shows to no trained turn
    empty_thinking: EmptyThinking = EmptyThinking.train  # the empty block that a turn without thinking generates
    # How thinking is generated where the template does not render it, "{thinking}" standing for it. auto: as the
    # template writes it beside calls, or in a <think> block if it never reads thinking; null: it is refused.
    thinking_format: str | None = "auto"
    template_kwargs: dict[str, Any] = field(default_factory=dict)  # given to the chat template
    processes: int | None = None  # that render conversations; null: one a processor
    # Which answers are good enough to be trained: names of recipes/sources/filters.py (equations, result, thinks,
    # succeeded) or functions as package.module:function. The others stay in the history, counted; [] trains all.
    filter: list[str] = field(default_factory=list)
    # Of generated data: which share of what is thought is made worse for training, by flaw: {wrong_step: 0.25}. Flaws
    # are wrong_step, irrelevant, shuffled, truncated and missing (docs/studies/reasoning_quality.md).
    flaws: dict[str, float] = field(default_factory=dict)
    date: str = "${now:%Y-%m-%d}"  # year-month-day: what a template that writes today's date shows, in all of the run


@dataclass
class DuplicationConfig:
    """How the turns of a conversation are laid out for training, and what of them is trained."""

    layout: Layout = MISSING
    thinking_weight: float = 1.0  # loss weight of a thinking token
    answer_weight: float = 1.0  # loss weight of an answer token
    turns: str = "all"  # assistant turns that are trained: all, or indices and slices ("0,2", "1:", "-1")
    too_long: TooLong = TooLong.error  # a single pass that is longer than pack_length
    # Most tokens of one forward and backward pass. A step runs its packs one after the other, so the memory of a run
    # follows this number and not conversations_per_step: it does what a micro-batch does elsewhere.
    pack_length: int = 2048


@dataclass
class ContextConfig:
    """What a harness shows of a conversation that has grown long: `flexmask.conversations.contexts`."""

    # A rule of docs/contexts.md, or a function's "package.module:name"; null: what the chat template shows.
    rule: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)  # of that rule, by name


TEMPLATE = ContextConfig()


@dataclass
class TrainerConfig:
    epochs: float | None = MISSING  # times through the data; null: trainer.steps says how long
    steps: int | None = MISSING  # optimizer steps; null: trainer.epochs says how long
    conversations_per_step: int = MISSING  # that an optimizer step trains, of all processes together
    learning_rate: float = MISSING  # the highest that the schedule reaches
    schedule: str = MISSING  # a name of transformers' SchedulerType: linear, cosine, constant_with_warmup, ...
    schedule_args: dict[str, Any] = field(default_factory=dict)  # of that schedule: {min_lr: 1e-6}
    warmup_steps: float = MISSING  # over which the learning rate rises; below 1: that share of all steps
    optimizer: str = "auto"  # a name of transformers' OptimizerNames: adafactor, adamw_8bit, ...; auto: AdamW
    optimizer_args: dict[str, Any] = field(default_factory=dict)  # of that optimizer, as transformers' optim_args
    adam_beta1: float = MISSING  # of Adam: how much of the mean of gradients stays at each step
    adam_beta2: float = MISSING  # of Adam: how much of the mean of their squares stays
    weight_decay: float = MISSING  # share of a weight, times the learning rate, that a step takes away
    max_grad_norm: float = MISSING  # a longer gradient is shortened to this norm
    mixed_precision: MixedPrecision = MixedPrecision.auto
    torch_compile: bool = False  # compile each decoder layer
    # Processes that read and pack steps ahead; null: 2 where there is a GPU, else none.
    loader_workers: int | None = None
    neftune_noise_alpha: float | None = None  # noise on embeddings (NEFTune); null: none
    log_every: int = MISSING  # steps between lines of the log
    save_every: int = MISSING  # steps between checkpoints to resume from; 0: none
    keep_checkpoints: int = MISSING  # so many of the newest stay
    evaluate_every: int = 0  # steps between measurements of held-out loss; 0: at the end only
    keep_best: bool = False  # model/ is the checkpoint of the lowest held-out loss; save_every is then evaluate_every
    early_stopping: int | None = None  # measurements without a lower held-out loss after which a run ends; null: never
    report_to: list[str] = field(default_factory=list)  # loggers of transformers' Trainer: tensorboard, mlflow, ...


@dataclass
class ParallelConfig:
    """How the processes of a run train one model; with a single process there is nothing to divide."""

    kind: ParallelKind = MISSING
    # Of fsdp: give a layer's weights back once it has run forward, and gather them again for backward.
    reshard_after_forward: bool = True
    # All processes compute each pack together, a part of its tokens each, for conversations that one cannot hold.
    context_parallel: bool = False


@dataclass
class AttentionConfig:
    backend: AttentionBackend = AttentionBackend.auto
    block_size: int = MISSING  # tokens on a side of a block of the mask; flash has blocks of its own


@dataclass
class ObjectiveConfig:
    kind: ObjectiveKind = MISSING
    loss: PreferenceLoss = PreferenceLoss.sigmoid  # of dpo
    beta: float = 0.1  # of dpo: how near the model is held to the one that it was before; larger is nearer


@dataclass
class EvaluationConfig:
    """Chat with the trained model on held-out conversations."""

    conversations: int | None = 100  # at most so many are chatted with; null: all that are held out; 0: no evaluation
    history: History = History.own
    matcher: str = "exact"  # when an answer is right: exact, number, contains, or a function's "package.module:name"
    # When thinking is right, beside the data's: as matcher; null: it is not judged.
    thinking_matcher: str | None = None
    # Whether answers follow their thinking: last_number, or a function's "package.module:name", changes a number in it
    # and says which answer should come then (recipes/evaluation/probes.py); null: it is not tried.
    probe: str | None = None
    max_new_tokens: int = 256  # most tokens of a reply; one that is longer counts as wrong
    batch_size: int = 64  # conversations that are chatted with side by side
    # What the harness shows that the model is for, under which it is measured; null: as it is trained.
    context: Any = None


@dataclass
class WandbConfig:
    mode: WandbMode = MISSING
    project: str = "flexmask"  # under which the run stands
    name: str | None = None  # null: the run folder's name
    group: str | None = None  # under which runs stand together; null: in a sweep the name of its folder, else none
    tags: list[str] = field(default_factory=list)  # of the run
    chats: bool = False  # send sample chats, which hold text of held-out conversations; they are in chats.jsonl anyway


@dataclass
class TrainConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    duplication: DuplicationConfig = field(default_factory=DuplicationConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    seed: int = 0  # of the weights and the order of conversations
    resume: str | None = None  # folder of an interrupted run to go on with; auto: the newest of this configuration
    output_dir: str | None = None  # the run folder; null: a new one in runs/

    @property
    def deployed_context(self) -> ContextConfig:
        """What histories show where the model is used, and so where it is measured."""
        return self.evaluation.context or self.context
