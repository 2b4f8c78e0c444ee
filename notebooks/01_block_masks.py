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
# # From a conversation to its block mask
#
# What one forward pass over a multi-turn reasoning conversation looks like: the passes that per-turn training would
# feed, the row that holds all of them, who sees whom in it, and which blocks of the attention matrix are computed.
#
# Everything drawn here comes from `flexmask`; the notebook has no logic of its own. It runs on a CPU in seconds.

# %%
# %matplotlib inline
import matplotlib.pyplot as plt

from flexmask import (
    Conversation,
    OnePassCollator,
    Role,
    build_block_mask,
    lay_out,
    read_conversation,
    render_passes,
)
from flexmask.viz import plot_block_mask, plot_pack, plot_token_mask, token_texts
from recipes.models.tiny import build_tokenizer
from recipes.sources import tutoring

tokenizer = build_tokenizer()

# %% [markdown]
# ## A conversation
#
# Three turns. Two of them think before they answer, one answers at once.

# %%
conversation = Conversation(
    "example",
    (
        {"role": "user", "content": "Mia has 27 apples and finds 15 more."},
        {"role": "assistant", "content": "Mia has 42.", "reasoning_content": "27+15\n7+5=12"},
        {"role": "user", "content": "Tom has 30 more."},
        {"role": "assistant", "content": "Tom has 72.", "reasoning_content": "42+30\n4+3=7"},
        {"role": "user", "content": "What is your last answer?"},
        {"role": "assistant", "content": "Tom has 72."},
    ),
)

# %% [markdown]
# ## Its passes
#
# Pass *k* is what the chat template shows at inference before turn *k*, followed by what the model must generate.
# Thinking of earlier turns is gone from the prompt: the template drops it.

# %%
passes = render_passes(conversation, tokenizer)
for one in passes:
    prompt = tokenizer.decode(one.input_ids[: one.prompt_length])
    generated = tokenizer.decode(one.input_ids[one.prompt_length :])
    print(f"turn {one.turn}: {one.prompt_length} tokens of prompt, {len(one) - one.prompt_length} trained")
    print(f"   prompt    ...{prompt[-60:]!r}")
    print(f"   generated {generated!r}")

# %% [markdown]
# ## Its row
#
# Merged by common prefix the passes are a tree; in depth-first order the tree is one row. A node is a run of tokens
# between two branch points. `visible_until` is where a token's subtree ends: that one number is the mask.

# %%
(row,) = lay_out(passes, "one_pass").rows
print(f"{sum(len(one) for one in passes)} tokens in {len(passes)} passes, {len(row)} in one row\n")
print("node  parent  positions  visible_until  text")
for node, (start, end, parent) in enumerate(zip(row.node_start, row.node_end, row.node_parent, strict=True)):
    text = tokenizer.decode(row.input_ids[start:end])
    positions = f"{row.position_ids[start]}-{row.position_ids[end - 1]}"
    print(f"{node:>4}  {parent:>6}  {positions:>9}  {row.visible_until[start]:>13}  {text[:70]!r}")

# %% [markdown]
# ## Who sees whom
#
# Each line is a query token, each column a key. A visible key has the colour of its role. Read down the columns of a
# thinking block: only its own turn sees it. Later turns see the plain copy of the answer instead.

# %%
collator = OnePassCollator(512, block_size=16)
(pack,) = collator([[row]])["packs"]
figure, axes = plt.subplots(figsize=(13, 13), layout="constrained")
plot_token_mask(pack, axes, token_texts(pack, tokenizer))
plt.show()

# %% [markdown]
# ## What is computed
#
# The kernel works in blocks. A block without any visible pair is skipped, one that is visible throughout needs no
# mask, and only the rest is masked token by token.

# %%
figure, axes = plt.subplots(figsize=(6, 6), layout="constrained")
plot_block_mask(build_block_mask(pack.visible_until, block_size=16), axes)
plt.show()

# %% [markdown]
# ## A full pack
#
# Many conversations end to end in one pack, as in training. Packed rows do not see each other either: nothing
# but `visible_until` says so.

# %%
records = tutoring.generate(64, seed=0, split="train")
conversations = [read_conversation(record, f"tutoring:{i}") for i, record in enumerate(records)]
rows = [lay_out(render_passes(one, tokenizer), "one_pass").rows for one in conversations]
packs = OnePassCollator(4096)(rows)["packs"]
plot_pack(packs[0])
plt.show()

# %%
roles = packs[0].roles[0]
for role in Role:
    print(f"{role.name.lower():<9}{(roles == role).sum().item():>6,} tokens")
