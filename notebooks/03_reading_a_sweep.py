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
# # Reading a sweep
#
# `make sweep` trains the same model on the same conversations in several layouts and ends in a table and a plot. This
# notebook runs a small one (three layouts, one seed, 30 steps in place of 1,400: too few to learn the task) and reads
# what it leaves, figure by figure. To read a sweep of your own, set `folder` to its folder and leave the first cell
# out.

# %%
import subprocess
import sys
import tempfile
from pathlib import Path

folder = Path(tempfile.mkdtemp()) / "sweep"
words = [
    "sweep=layouts",
    "hydra.sweeper.params.seed='0'",
    f"hydra.sweep.dir={folder}",
    "trainer.steps=30",
    "trainer.warmup_steps=5",
    "trainer.log_every=1",
    "trainer.evaluate_every=10",
    "data.train_conversations=90",
    "data.heldout_conversations=4",
    "evaluation.conversations=2",
    "wandb=off",
]
done = subprocess.run([sys.executable, "-m", "recipes.train", *words], capture_output=True, text=True)
assert done.returncode == 0, done.stderr[-2000:]

# %% [markdown]
# ## The table
#
# One line a variant; runs that differ in the seed only stand together, with their spread.
#
# - **answers right** is what matters: the model chats, its own answers go back into the history, and an answer counts
#   if it says the same as the data. After 30 steps there are hardly any.
# - **held-out loss** is per-turn loss on conversations that were not trained, whatever the layout of training: so it
#   can be compared between lines, and training losses of different layouts cannot.
# - **tokens computed** is what a layout costs, **tokens trained** how many of them had a loss. One pass and per turn
#   train the same tokens; per turn computes every history anew.

# %%
from IPython.display import Markdown

from recipes.compare import COLORS, markdown_table, read_runs

sweep = read_runs(folder)
Markdown(markdown_table(sweep))

# %% [markdown]
# ## Are one pass and per turn the same training?
#
# Exact means: the same loss at every step, until the rounding of float32 has grown. The first steps agree to seven
# digits. Later two runs part that are equally good. The third layout is another training from the first step on.

# %%
# %matplotlib inline
import matplotlib.pyplot as plt

curves = {" ".join(name): runs[0]["curve"] for name, runs in sweep.variants.items()}
exact = dict(curves["one_pass"])
figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4), layout="constrained")
for name, curve in curves.items():
    left.plot(*zip(*curve, strict=True), label=name, color=COLORS[name])
    if name != "one_pass":
        away = [max(abs(loss / exact[step] - 1), 1e-8) for step, loss in curve]
        right.plot(list(exact), away, label=name, color=COLORS[name])
left.set(xlabel="step", ylabel="training loss")
right.set(xlabel="step", ylabel="relative difference from one_pass (none: 1e-8)", yscale="log")
left.legend(), right.legend()
plt.show()
for step in (1, 5, 20):
    print(f"step {step:>3}: " + ", ".join(f"{name} {dict(curve)[step]:.7f}" for name, curve in curves.items()))
assert abs(dict(curves["per_turn"])[1] / exact[1] - 1) < 1e-5 < abs(dict(curves["keep_thinking"])[1] / exact[1] - 1)

# %% [markdown]
# ## What it cost

# %%
for name, runs in sweep.variants.items():
    result = runs[0]
    share = result["tokens_trained"] / result["tokens_computed"]
    print(
        f"{', '.join(map(str, name)):<16}{result['tokens_computed']:>9,} tokens computed, {share:.0%} of them trained"
    )

# %% [markdown]
# ## What to look at in a single run
#
# `chats.jsonl` has every reply of the evaluation: its thinking, its answer, what was expected. Whether thinking is
# valid (opened and closed once) and whether replies end by themselves is counted in `result.json`. A model that
# answers rightly and never ends its turn, or whose thinking runs on, shows there first.

# %%
import json

run = next(path.parent for path in sorted(folder.glob("*/result.json")))
result = json.loads((run / "result.json").read_text())
for key in ("steps", "loss_first", "loss_last", "heldout_loss", "answer_accuracy"):
    print(f"{key:<18}{result[key]}")
chat = json.loads((run / "chats.jsonl").read_text().splitlines()[0])
print({key: chat[key] for key in ("turn", "thinking", "answer", "expected", "correct", "ended")})
