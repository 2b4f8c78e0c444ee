"""Settings for a pretrained model in a folder, and a few steps with it."""

from journeys import assets
from transformers import TrainingArguments

from flexmask import OnePassCollator, OnePassTrainer, prepare_conversation
from flexmask.conversations.reading import read_conversation
from recipes.configuration.schema import AdapterConfig, AdapterKind, MixedPrecision, ModelConfig, ModelKind, TrainConfig

NONE = AdapterConfig(kind=AdapterKind.none)


def config_of(folder, adapter=NONE, mixed=MixedPrecision.auto, **settings) -> TrainConfig:
    config = TrainConfig(model=ModelConfig(kind=ModelKind.hub, name_or_path=str(folder), **settings), adapter=adapter)
    config.trainer.mixed_precision = mixed
    return config


def train(model, tokenizer, folder, steps=6):
    records = enumerate(assets.conversations(8))
    conversations = [read_conversation(record, f"{number}") for number, record in records]
    rows = [prepare_conversation(one, tokenizer, pack_length=512).rows for one in conversations]
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=5e-3, logging_steps=1,
        report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = OnePassTrainer(model, arguments, OnePassCollator(512), train_dataset=rows)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
