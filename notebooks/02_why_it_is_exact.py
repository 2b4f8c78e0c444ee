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
# # Why one pass is exact, token by token
#
# One conversation, two ways: each turn in a pass of its own with the attention of transformers, and all turns in one
# row under the mask. First the loss of every token is compared. Then the row is broken, one rule at a time, to see
# what each rule is for and what its loss would have been taken for.

# %%
# %matplotlib inline
import dataclasses

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

from flexmask import Conversation, lay_out, pack, prepare_model, render_passes, token_losses
from flexmask.viz import plot_token_mask, token_texts
from recipes.models.tiny import build_model, build_tokenizer

tokenizer = build_tokenizer()
model = build_model(seed=0, vocab_size=len(tokenizer)).double().eval()

conversation = Conversation(
    "example",
    (
        {"role": "user", "content": "Mia has 27 apples and finds 15 more."},
        {"role": "assistant", "content": "Mia has 42.", "reasoning_content": "27+15\n7+5=12"},
        {"role": "user", "content": "Tom has 30 more."},
        {"role": "assistant", "content": "Tom has 72.", "reasoning_content": "42+30\n4+3=7"},
        {"role": "user", "content": "What is your last answer?"},
        {"role": "assistant", "content": "Tom has 72.", "reasoning_content": "72"},
    ),
)
passes = render_passes(conversation, tokenizer)
(row,) = lay_out(passes, "one_pass").rows
(one,) = pack([row], len(row))

# %% [markdown]
# ## Turn by turn
#
# The reference knows nothing of rows and masks: stock attention, and every token is predicted from the one before it.


# %%
def losses_of_a_pass(of) -> torch.Tensor:
    ids = torch.from_numpy(of.input_ids)[None]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0]
    losses = F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
    return losses[torch.from_numpy(of.loss_weights[1:]) > 0]


model.set_attn_implementation("sdpa")
turn_by_turn = [losses_of_a_pass(of) for of in passes]
reference = sum(losses.sum() for losses in turn_by_turn)
for of, losses in zip(passes, turn_by_turn, strict=True):
    print(f"turn {of.turn}: {len(of)} tokens computed, {len(losses)} trained, loss {losses.sum():.9f}")

# %% [markdown]
# ## In one pass
#
# `token_losses` gives the loss of each trained token, in the order of the row. In the row the last turn stands first
# and the branches of the earlier turns behind it, latest first, so the trained tokens come turn by turn from the
# back.

# %%
prepare_model(model)
with torch.no_grad():
    result = token_losses(model, one)
in_one_pass = torch.split(result.losses, [len(losses) for losses in reversed(turn_by_turn)])[::-1]
print(f"{'token':<14}{'its own pass':>18}{'one pass':>18}")
for of, left, right in zip(passes, turn_by_turn, in_one_pass, strict=True):
    print(f"-- turn {of.turn}")
    trained = of.input_ids[of.loss_weights > 0]
    for token, a, b in zip(trained, left.tolist(), right.tolist(), strict=True):
        print(f"{tokenizer.decode([token])!r:<14}{a:>18.12f}{b:>18.12f}")
furthest = max((a - b).abs().max() for a, b in zip(turn_by_turn, in_one_pass, strict=True))
print(f"\nsum {reference:.12f} and {result.total:.12f}; tokens differ by at most {furthest:.0e}")
assert furthest < 1e-12

# %% [markdown]
# ## Broken, one rule at a time
#
# Each of these is a mistake that somebody makes, and none of them crashes: the loss is a number like any other.
#
# - **Thinking stays in the history**: the plain causal mask over the row, so that later turns see everything before
#   them.
# - **The mask reaches one token too far**: `visible_until` is off by one.
# - **Positions are places in the row**, and not what they are at inference.
# - **Labels are shifted by one place**, as in every ordinary trainer: the first token of a branch is then predicted
#   from whatever stands in front of it in the row, which is another turn's.
# - **The layout `keep_thinking`**: an ordinary sequence of all turns with all thinking in it.


# %%
def loss_of(broken) -> float:
    with torch.no_grad():
        return token_losses(model, broken).total.item()


length = len(one)
before = torch.where(one.previous >= 0, torch.arange(length)[None] - 1, -1)
(kept,) = pack(lay_out(passes, "keep_thinking").rows, 4096)
variants = {
    "exact": one,
    "thinking stays": dataclasses.replace(one, visible_until=torch.full_like(one.visible_until, length)),
    "one token too far": dataclasses.replace(one, visible_until=(one.visible_until + 1).clamp_max(length)),
    "positions in the row": dataclasses.replace(one, position_ids=torch.arange(length)[None]),
    "labels shifted": dataclasses.replace(one, previous=before.to(one.previous)),
    "keep_thinking": kept,
}
losses = {name: loss_of(broken) for name, broken in variants.items()}
print(f"{'':<22}{'loss':>14}{'differs by':>12}")
for name, loss in losses.items():
    print(f"{name:<22}{loss:>14.6f}{abs(loss / reference.item() - 1):>12.0e}")
assert abs(losses.pop("exact") / reference.item() - 1) < 1e-12
assert all(abs(loss / reference.item() - 1) > 1e-6 for loss in losses.values())

# %% [markdown]
# ## What the broken masks show
#
# Left the mask as it is. In the middle the reach of one token too many: the first token of each branch sees the end
# of another. Right, the plain causal mask: whole thoughts are seen that inference will have dropped.

# %%
shown = ("exact", "one token too far", "thinking stays")
figure, axes = plt.subplots(1, 3, figsize=(18, 6.5), layout="constrained")
for name, axis in zip(shown, axes, strict=True):
    plot_token_mask(variants[name], axis)
    axis.set_title(name)
plt.show()

# %% [markdown]
# ## Which tokens are wrong
#
# Where labels are shifted, only the first token of each branch is: the opening of a thought, once a turn. In the
# layout of the paper's code, where the plain copy stands right before the trained answer, it is the first token of
# every answer. One token a turn is enough to teach a model to begin its answers wrongly, and too little to see it in
# a loss curve.

# %%
with torch.no_grad():
    shifted = token_losses(model, variants["labels shifted"]).losses
wrong = ((shifted - result.losses).abs() > 1e-9).nonzero()[:, 0]
texts = token_texts(one, tokenizer)
for i in result.indices[wrong].tolist():
    right, taken = one.previous[0, i].item(), before[0, i].item()
    print(f"token {i} {texts[i]!r}: predicted from {texts[taken]!r} ({taken}) in place of {texts[right]!r} ({right})")
figure, axis = plt.subplots(figsize=(13, 3), layout="constrained")
axis.bar(result.indices, (shifted - result.losses).abs(), width=1.0)
axis.set(xlabel="place in the row", ylabel="error of the loss", title="labels shifted by one place")
plt.show()

# %% [markdown]
# Gradients are compared in [notebook 05](05_the_method_in_a_hundred_lines.ipynb), in plain torch, and for each
# supported family of models in `tests/equivalence`.
