"""What a user gives OnePassTrainer: every form of data trains as rows do, and what cannot is refused before a step."""

import copy
import json

import datasets
import pytest
import torch
from factories import chatml_tokenizer, random_conversation, tiny_qwen3
from trainers import Stream
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, TrainingArguments, pipeline

from flexmask import (
    Conversation,
    OnePassCollator,
    OnePassConfig,
    OnePassTrainer,
    UnsupportedModelError,
    prepare_conversation,
)

TOKENIZER = chatml_tokenizer()
CONVERSATIONS = [random_conversation(seed, turns=1 + seed % 4) for seed in range(16)]
RECORDS = [{"messages": list(one.messages)} for one in CONVERSATIONS]
ROWS = [prepare_conversation(one, TOKENIZER, pack_length=1024).rows for one in CONVERSATIONS]
UNTRAINED = Conversation(
    "untrained", ({"role": "user", "content": "add"}, {"role": "assistant", "content": "3", "weight": 0})
)


def table(records):
    """Messages of a table: what one lacks is null."""
    keys = ("role", "content", "reasoning_content")
    rows = [[{key: message.get(key) for key in keys} for message in one["messages"]] for one in records]
    return datasets.Dataset.from_dict({"messages": rows, "id": list(range(len(rows)))})


def tiny():
    return tiny_qwen3(len(TOKENIZER), torch.float32)


def config(tmp_path, **changes):
    settings = dict(
        output_dir=str(tmp_path / "out"),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        pack_length=1024,
        block_size=16,
        train_sampling_strategy="sequential",
    )
    return OnePassConfig(**settings | changes)


# The tiny model names no ends yet: alignment has something to say.
SAYS = pytest.mark.filterwarnings("ignore:turns end with")


def trainer(tmp_path, data=None, *, model=None, tokenizer=TOKENIZER, args=None, **arguments):
    made = OnePassTrainer(
        tiny() if model is None else model,
        args or config(tmp_path),
        train_dataset=RECORDS if data is None else data,
        processing_class=copy.deepcopy(tokenizer),
        **arguments,
    )
    return made


def losses(made):
    made.train()
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


# Breaks if a form of data loses a message, a null counts as text, or a stream is read in another order.
@SAYS
@pytest.mark.parametrize(
    "data",
    [RECORDS, CONVERSATIONS, table(RECORDS), Stream(RECORDS), Stream(ROWS), table(RECORDS).to_iterable_dataset()],
    ids=["records", "conversations", "table", "stream", "stream of rows", "stream of a table"],
)
def test_every_form_of_data_trains_as_its_rows_do(tmp_path, data):
    assert losses(trainer(tmp_path, data)) == losses(trainer(tmp_path, ROWS))


@SAYS
def test_settings_of_the_arguments_reach_the_rows(tmp_path):
    settings = dict(turns="-1", layout="per_turn", thinking_weight=0.5)
    rows = [prepare_conversation(one, TOKENIZER, pack_length=1024, **settings).rows for one in CONVERSATIONS]
    assert losses(trainer(tmp_path, args=config(tmp_path, **settings))) == losses(trainer(tmp_path, rows))


@pytest.fixture
def folder(tmp_path):
    """A base model on disk: its end of sequence is not that of its chat template."""
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.eos_token, tokenizer.pad_token = "<|endoftext|>", None
    tiny().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@SAYS
def test_a_model_by_name_brings_its_tokenizer_and_both_are_saved_ready_to_chat(tmp_path, folder):
    made = OnePassTrainer(str(folder), config(tmp_path, save_strategy="steps", save_steps=2), train_dataset=RECORDS)
    assert losses(made) == losses(trainer(tmp_path, ROWS))
    made.save_model()
    for place in (tmp_path / "out", tmp_path / "out" / "checkpoint-2"):
        saved = json.loads((place / "config.json").read_text())
        assert saved["eos_token_id"] == TOKENIZER.eos_token_id and saved["use_cache"]
        assert "flexmask" not in (place / "config.json").read_text()
        assert AutoTokenizer.from_pretrained(place).eos_token == "<|im_end|>"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    answer = pipeline("text-generation", loaded, tokenizer=AutoTokenizer.from_pretrained(tmp_path / "out"))
    chat = answer([{"role": "user", "content": "add"}], max_new_tokens=4)[0]["generated_text"]
    assert chat[-1]["role"] == "assistant"


# Breaks if a model by name keeps half precision: most of its small updates would be lost without a word.
@SAYS
def test_a_model_by_name_is_trained_in_float32_unless_told_otherwise(tmp_path, folder):
    tiny().to(torch.bfloat16).save_pretrained(folder)
    assert OnePassTrainer(str(folder), config(tmp_path), train_dataset=RECORDS).model.dtype == torch.float32
    half = config(tmp_path, model_init_kwargs={"dtype": "bfloat16"})
    assert OnePassTrainer(str(folder), half, train_dataset=RECORDS).model.dtype == torch.bfloat16


def test_several_gpus_in_one_process_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(OnePassConfig, "n_gpu", 2)
    with pytest.raises(ValueError, match="2 GPUs in one process: .* CUDA_VISIBLE_DEVICES=0"):
        trainer(tmp_path)


@SAYS
def test_a_model_that_is_made_by_a_function(tmp_path):
    made = OnePassTrainer(
        args=config(tmp_path), model_init=tiny, train_dataset=RECORDS, processing_class=copy.deepcopy(TOKENIZER)
    )
    assert losses(made) == losses(trainer(tmp_path, ROWS))
    assert made.model.config.eos_token_id == TOKENIZER.eos_token_id


# A whole script, no longer than the one of README, which tests/journeys runs as it stands there.
EXAMPLE = """
from datasets import load_dataset
from flexmask import OnePassConfig, OnePassTrainer

trainer = OnePassTrainer(
    MODEL,
    OnePassConfig("out", num_train_epochs=1, per_device_train_batch_size=8, pack_length=8192),
    train_dataset=load_dataset("json", data_files="my.jsonl", split="train"),
)
trainer.train()
trainer.save_model()
"""


@SAYS
def test_a_script_of_ten_lines_prints_a_loss_and_leaves_a_model(tmp_path, folder, monkeypatch, capsys):
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(one) + "\n" for one in RECORDS))
    monkeypatch.chdir(tmp_path)
    exec(EXAMPLE.replace("MODEL", repr(str(folder))), {})
    assert "'loss': " in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained("out").config.eos_token_id == TOKENIZER.eos_token_id


@SAYS
def test_conversations_without_a_trained_turn_are_left_out_with_one_warning(tmp_path):
    with pytest.warns(UserWarning, match="2 of 18 conversations have no turn to train and are left out$"):
        made = trainer(tmp_path, [*CONVERSATIONS, UNTRAINED, UNTRAINED])
    assert len(made.train_dataset) == 16
    with pytest.warns(UserWarning, match=r"train_dataset\[0\] has no turn to train; nothing is said of others like it"):
        streamed = trainer(tmp_path, Stream([UNTRAINED, *CONVERSATIONS, UNTRAINED]))
        assert len(list(streamed.train_dataset)) == 16


@SAYS
def test_turns_longer_than_a_pack_are_counted_or_refused(tmp_path):
    with pytest.raises(ValueError, match="has [0-9]+ tokens, pack_length is 100; raise it"):
        trainer(tmp_path, args=config(tmp_path, pack_length=100))
    with pytest.warns(UserWarning, match="; [0-9]+ turns are longer than a pack and were dropped"):
        trainer(tmp_path, args=config(tmp_path, pack_length=100, too_long="drop"))


@SAYS
def test_the_callers_arguments_and_collator_stay_as_they_are(tmp_path):
    args = TrainingArguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    collator = OnePassCollator(1024, block_size=16)
    before = dict(vars(args))
    made = trainer(tmp_path, args=args, data_collator=collator)
    made.data_collator.one_row_per_pack = True
    assert vars(args) == before and not collator.one_row_per_pack


# Breaks if a run that goes on in its second epoch, or another process, has another order.
@SAYS
def test_conversations_of_like_length_together(tmp_path):
    args = config(tmp_path, train_sampling_strategy="group_by_length", num_train_epochs=1, max_steps=-1)

    def epoch(number):
        loader = trainer(tmp_path, args=args).get_train_dataloader()
        loader.set_epoch(number)
        return [name for batch in loader for name in batch["figures"].rows]

    assert sorted(epoch(0)) == sorted(f"train_dataset[{i}]" for i in range(len(RECORDS)))
    torch.rand(7)
    assert epoch(1) == epoch(1) != epoch(0)


BAD = [{"messages": [{"role": "user", "content": "a"}]}, {"messages": [{"role": "user", "content": "<|im_end|>"},
       {"role": "assistant", "content": "b"}]}]  # fmt: skip


# Breaks if the run ends at the first, or one that is left out is not named: one cannot be read, one not rendered.
@SAYS
def test_conversations_that_cannot_be_trained_are_all_named_or_left_out(tmp_path):
    data = [BAD[0], *RECORDS, BAD[1]]
    both = r"2 of 18 conversations cannot be prepared:\ntrain_dataset\[0\]: .*\ntrain_dataset\[17\]: "
    with pytest.raises(ValueError, match=both):
        trainer(tmp_path, data)
    with pytest.warns(UserWarning, match=f"train_dataset: left out: {both}"):
        made = trainer(tmp_path, data, args=config(tmp_path, on_invalid="drop"))
    assert losses(made) == losses(trainer(tmp_path, ROWS))
    with pytest.warns(UserWarning, match=r"left out: train_dataset\[0\]: "):
        made = trainer(tmp_path, Stream(data), args=config(tmp_path, on_invalid="drop"))
        assert losses(made) == losses(trainer(tmp_path, ROWS))


@SAYS
def test_a_stream_of_which_nothing_is_trained_is_refused(tmp_path):
    made = trainer(tmp_path, Stream([UNTRAINED, UNTRAINED]))
    with pytest.raises(ValueError, match="^train_dataset: none of its conversations has a turn to train"):
        made.train()


@SAYS
def test_keys_of_records_that_nothing_reads_are_named(tmp_path):
    with pytest.warns(UserWarning, match=r"train_dataset: keys of records that are not read.*'persona' \(16\)"):
        trainer(tmp_path, [{**one, "persona": "p"} for one in RECORDS])


@SAYS
def test_thinking_tags_reach_the_reader(tmp_path):
    """Breaks if thinking in delimiters of one's own is trained as the answer."""

    def tagged(message):
        thinking = message.get("reasoning_content")
        inside = f"<t>{thinking}</t>" if thinking else ""
        keys = {key: value for key, value in message.items() if key != "reasoning_content"}
        return {**keys, "content": inside + message["content"]}

    data = [{"messages": list(map(tagged, one["messages"]))} for one in RECORDS]
    made = trainer(tmp_path, data, args=config(tmp_path, thinking_tags=["<t>", "</t>"]))
    assert losses(made) == losses(trainer(tmp_path, ROWS))


NO_TEMPLATE = copy.deepcopy(TOKENIZER)
NO_TEMPLATE.chat_template = None

REFUSED = {
    "no chat template": (dict(tokenizer=NO_TEMPLATE), "processing_class has no chat_template; set one"),
    "tokens of others": (
        dict(model=tiny_qwen3(100, torch.float32)),
        r"train_dataset\[0\]: row train_dataset\[0\] has token \d+, and Qwen3ForCausalLM has embeddings for 100",
    ),
    "no model of transformers": (dict(model=torch.nn.Linear(2, 2)), "Linear neither is nor holds a model"),
    "arguments of no run": (dict(args={"max_steps": 1}), "args is a dict; give OnePassConfig"),
    "no tokenizer": (dict(tokenizer=None), r"train_dataset\[0\] is a record, and there is no tokenizer"),
    "a file name": (dict(data="my.jsonl"), "train_dataset is the string 'my.jsonl'; give the data itself"),
    "a dict": (dict(data={"train": RECORDS}), r"train_dataset is a dict with the keys \['train'\]"),
    "read once": (dict(data=iter(RECORDS)), "train_dataset is a list_iterator, which can be read only once"),
    "nothing": (dict(data=[]), "train_dataset is empty"),
    "texts": (dict(data=["a", "b"]), r"train_dataset\[0\] is a str; give a record with 'messages'"),
    "other columns": (dict(data=[{"prompt": "a"}]), r"train_dataset\[0\]: found keys \['prompt'\]"),
    "nothing trained": (dict(data=[UNTRAINED]), "none of its 1 conversations has a turn to train"),
    "no rows": (dict(data=[ROWS[0], ()]), r"1 conversations have no rows .*\(indices 1\)"),
    "records among rows": (dict(data=[ROWS[0], RECORDS[0]]), r"train_dataset\[1\] is a dict among rows"),
    "an empty eval_dataset": (dict(eval_dataset=[]), "eval_dataset is empty"),
    "eval_dataset of texts": (dict(eval_dataset={"math": ["a"]}), r"eval_dataset\['math'\]\[0\] is a str"),
    "compute_metrics": (dict(compute_metrics=print), "compute_metrics: it needs logits"),
    "tokenizer twice": (dict(peft_config=1), "peft_config: wrap the model"),
    "model and model_init": (dict(model_init=tiny), "either a model .* or model_init"),
    "a collator of others": (dict(data_collator=print), "data_collator is a builtin_function_or_method; give an One"),
    "two pack lengths": (dict(data_collator=OnePassCollator(512)), "pack_length is 512 in data_collator and 1024"),
}


@SAYS
@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained_with_is_refused_by_name(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **arguments)


@SAYS
@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        (dict(max_steps=-1), Stream(RECORDS), "max_steps has to be specified"),
        (dict(gradient_accumulation_steps=2), Stream(RECORDS), "gradient_accumulation_steps=2 with a stream"),
        (dict(label_smoothing_factor=0.1), RECORDS, "label_smoothing_factor=0.1: is not part of the loss"),
        (dict(auto_find_batch_size=True), RECORDS, "auto_find_batch_size=True: memory follows pack_length"),
        (dict(bf16_full_eval=True), RECORDS, "bf16_full_eval=True: evaluation is computed as training is"),
        (dict(include_num_input_tokens_seen="all"), RECORDS, "run_totals counts tokens"),
    ],
)
def test_settings_that_would_fail_or_be_ignored_are_refused(tmp_path, changes, data, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, data, args=config(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(pack_length=0), "pack_length=0 must be positive"),
        (dict(date="31.1.2026"), "date='31.1.2026': .*; write it as 2026-01-31"),
        (dict(template_kwargs=["a"]), r"template_kwargs is \['a'\] \(list\), not names with values"),
        (dict(template_kwargs={"tools": []}), "template_kwargs has 'tools', which rendering sets itself"),
    ],
)
def test_arguments_that_are_wrong_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


# Breaks if a row beyond a model's positions is only found when its batch comes, in the middle of a run.
def test_a_row_beyond_the_models_positions_is_found_at_the_start(tmp_path):
    sizes = dict(n_positions=64, n_embd=32, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(TOKENIZER), **sizes))
    found = r"train_dataset\[\d+\]: row train_dataset\[\d+\]: gpt2 has max_position_embeddings=64 .*pack_length=64 or"
    with pytest.raises(UnsupportedModelError, match=found):
        trainer(tmp_path, model=model)


# Breaks if rows are only compared with the length of a pack when their batch comes, steps later.
def test_a_row_longer_than_the_collators_pack_is_found_at_the_start(tmp_path):
    args = TrainingArguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True)
    longest = max(len(row) for rows in ROWS for row in rows)
    with pytest.raises(
        ValueError, match=rf"train_dataset\[\d+\]: row random:\d+ has {longest:,} tokens, and pack_leng"
    ):
        trainer(tmp_path, ROWS, args=args, data_collator=OnePassCollator(longest - 1))
    with pytest.raises(ValueError, match="args is a TrainingArguments, which has no pack_length"):
        trainer(tmp_path, ROWS, args=args)
