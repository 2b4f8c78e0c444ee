# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own data in ten lines
#
# A file of conversations, one a line, becomes a trained model. Here the file is written first and the model is the
# small embedded one, so that the notebook runs anywhere in seconds; for your own, put its hub id or folder in the
# place of `base`.

# %%
import json
import tempfile
from pathlib import Path

from recipes.models.tiny import build_model, build_tokenizer

folder = Path(tempfile.mkdtemp())
turns = [("What is 6 times 7?", "6 * 7 = 42", "It is 42."), ("And half of that?", "42 / 2 = 21", "That is 21.")]
messages = []
for question, thinking, answer in turns:
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "reasoning_content": thinking, "content": answer})
(folder / "my.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
print((folder / "my.jsonl").read_text())

base = str(folder / "base")  # yours: "Qwen/Qwen3-0.6B"
tokenizer = build_tokenizer()
model = build_model(seed=0, vocab_size=len(tokenizer))
model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
tokenizer.save_pretrained(base)
model.save_pretrained(base)

# %% [markdown]
# ## The ten lines
#
# Any accepted format will do: `reasoning_content`, `<think>` in the text, ShareGPT, tool calls, calls of a model,
# pairs (docs/data.md). Nothing is dropped in silence: a record that cannot be trained as it is raises an error that
# names it.

# %%
from flexmask import OnePassConfig, OnePassTrainer

records = [json.loads(line) for line in open(folder / "my.jsonl")]
config = OnePassConfig(
    str(folder / "out"), max_steps=20, learning_rate=3e-3, logging_steps=5, save_strategy="no", disable_tqdm=True
)
trainer = OnePassTrainer(base, config, train_dataset=records)
trainer.train()
trainer.save_model(folder / "model")

# %% [markdown]
# ## What was trained
#
# The row of the first record, as a person reads it: which text, what role, and how many of its tokens are trained.
# Every token that the model must generate is trained once; the answer of the first turn stands a second time as plain
# copy, which the second turn sees in place of the one behind the thinking.

# %%
from flexmask import prepare_conversation, read_record
from flexmask.tree.segments import ROLE_LABELS, segments

prepared = prepare_conversation(read_record(records[0], "my.jsonl:1"), tokenizer)
for row in prepared.rows:
    for one in segments(row):
        text = tokenizer.decode(row.input_ids[one.start : one.end])
        print(f"{ROLE_LABELS[one.role]:<15}{len(one):>4} tokens, {one.trained:>2} trained   {text!r}")

# %% [markdown]
# ## What came out
#
# A folder that plain transformers loads. It has learned its one conversation by heart.

# %%
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
tokenizer = AutoTokenizer.from_pretrained(folder / "model")
prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=True, return_tensors="pt")
reply = model.generate(**prompt, max_new_tokens=40, do_sample=False)
print(tokenizer.decode(reply[0, prompt["input_ids"].shape[1] :]))
print("losses:", [round(entry["loss"], 3) for entry in trainer.state.log_history if "loss" in entry])

# %% [markdown]
# From a terminal the same is `make train ARGS="model=hub model.name_or_path=<id> trainer=finetune data=jsonl
# data.path=my.jsonl"`, with an evaluation by chatting, checkpoints and resume; and `make inspect` with the same words
# shows all of the above before anything is trained.
