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
# # The whole method in a hundred lines of plain torch
#
# Nothing here imports flexmask. A reasoning model thinks before each answer, and the thinking is dropped from the
# history of later turns. Training on all turns of a conversation therefore takes one forward pass a turn, each with
# its own history. Below, all of them become one row of tokens and one forward pass, and the loss and every gradient
# come out the same to the last digits of float64. The code is complete: data, tree, mask, model, loss and check.

# %%
from functools import partial

import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

# %% [markdown]
# ## 1. The passes
#
# A turn is a question, a thought and an answer. The pass of a turn is what the model is given when it must generate
# that turn (earlier questions and answers, without their thoughts, and the question) and what it then generates
# (thought and answer). `trained` is how many tokens at the end of a pass are generated. Tokens are bytes.


# %%
def passes_of(conversation):
    passes, history = [], ""
    for question, thought, answer in conversation:
        prompt, generated = f"{history}Q:{question}\nA:", f"<{thought}>{answer}\n"
        passes.append((list((prompt + generated).encode()), len(generated.encode())))
        history = f"{prompt}{answer}\n"  # the thought is gone, the answer stays
    return passes


conversation = [
    ("What is 7 + 5?", "7 + 5 = 12", "It is 12."),
    ("And 9 more?", "12 + 9 = 21", "That makes 21."),
    ("Was the first one even?", "12 = 2 * 6, so yes", "Yes, 12 is even."),
]
passes = passes_of(conversation)
for tokens, trained in passes:
    print(repr(bytes(tokens[:-trained]).decode()), "->", repr(bytes(tokens[-trained:]).decode()))

# %% [markdown]
# ## 2. The tree
#
# Passes that begin alike share what they begin with. A tree of tokens holds every distinct beginning once: `parent`
# is the token that a token continues. An answer stands twice where its turn had a thought: behind the thought, where
# it is trained, and behind the question, where later turns find it.


# %%
def tree_of(passes):
    children, nodes = [{}], [None]  # node 0 is the root, which is no token of the row
    for tokens, trained in passes:
        at = 0
        for depth, token in enumerate(tokens):
            if token not in children[at]:
                children[at][token] = len(nodes)
                children.append({})
                nodes.append([token, at, depth, 0])  # what it is, what it continues, its position, its weight
            at = children[at][token]
            nodes[at][3] += depth >= len(tokens) - trained  # generated in two passes: both of their losses count
    return children, nodes


# %% [markdown]
# ## 3. The row
#
# Written in depth-first order, the tree is a row in which everything that continues token *k* stands in one stretch
# behind *k*: `row[k : until[k]]`. Four numbers a token say all there is to know: its parent, its depth (the position
# that it has at inference), where the stretch ends, and the weight of its loss.


# %%
def row_of(passes):
    children, nodes = tree_of(passes)
    order, stack = [], [*children[0].values()]
    while stack:
        order.append(stack.pop())
        stack.extend(children[order[-1]].values())
    place = {node: k for k, node in enumerate(order)} | {0: -1}
    token, parent, depth, weight = zip(*(nodes[node] for node in order), strict=True)
    parent, until = [place[node] for node in parent], [k + 1 for k in range(len(order))]
    for k in reversed(range(len(order))):
        if parent[k] >= 0:
            until[parent[k]] = max(until[parent[k]], until[k])
    return [torch.tensor(column) for column in (token, parent, depth, until, weight)]


token, parent, depth, until, weight = row_of(passes)
print(f"{sum(len(tokens) for tokens, _ in passes)} tokens in {len(passes)} passes, {len(token)} in one row")


# %% [markdown]
# ## 4. The mask
#
# Token *q* may see token *k* if *k* is *q* itself or one of those that *q* continues. In depth-first order that is
# one comparison more than the causal mask:


# %%
def mask_mod(batch, head, q, k):
    return (k <= q) & (q < until[k])


mask = mask_mod(None, None, torch.arange(len(token))[:, None], torch.arange(len(token)))

# %% [markdown]
# It is what FlexAttention takes. Blocks of the matrix in which no pair is visible are never computed:

# %%
block_mask = create_block_mask(mask_mod, None, None, len(token), len(token), device="cpu", BLOCK_SIZE=16)
print(f"{block_mask.sparsity():.0f} percent of the blocks are skipped")

# %% [markdown]
# ## 5. A model
#
# A small transformer: rotary positions, attention, a feed-forward layer. It takes positions and a mask; nothing else
# in it knows of trees. Attention is torch's own with a dense mask, whose gradients every CPU has; FlexAttention
# computes the same (checked below) and is what a GPU runs.


# %%
class Layer(nn.Module):
    def __init__(self, width=32, heads=2):
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.RMSNorm(width), nn.RMSNorm(width)
        sizes = ((1, 3), (1, 1), (1, 4), (4, 1))
        self.qkv, self.out, self.up, self.down = (nn.Linear(a * width, b * width) for a, b in sizes)

    def forward(self, x, positions, attend):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3)[:, None]
        attended = attend(rotate(q, positions), rotate(k, positions), v)
        x = x + self.out(attended[0].transpose(0, 1).flatten(1))
        return x + self.down(nn.functional.silu(self.up(self.norm2(x))))


def rotate(x, positions):
    angle = positions[:, None] * 100.0 ** -torch.linspace(0, 1, x.shape[-1] // 2)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).to(x)


class Model(nn.Module):
    def __init__(self, layers=3, width=32):
        super().__init__()
        self.embedding, self.head = nn.Embedding(256, width), nn.Linear(width, 256)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))

    def forward(self, tokens, positions, attend):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, positions, attend)
        return self.head(x)


torch.manual_seed(0)
model = Model().double()

# %% [markdown]
# ## 6. The loss, both ways
#
# Turn by turn: each pass alone, causal attention, each token predicted from the one before it. In one pass: the row
# under the mask, each token predicted from its *parent*. That is the only other change. The token before a trained
# answer in the row may well belong to another turn.


# %%
def loss_turn_by_turn():
    causal, total = partial(nn.functional.scaled_dot_product_attention, is_causal=True), 0
    for tokens, trained in passes:
        tokens = torch.tensor(tokens)
        logits = model(tokens, torch.arange(len(tokens)), causal)
        total += nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="none")[-trained:].sum()
    return total


def loss_in_one_pass(attend):
    logits, trained = model(token, depth, attend), weight > 0
    losses = nn.functional.cross_entropy(logits[parent[trained]], token[trained], reduction="none")
    return losses @ weight[trained].to(losses)


# %% [markdown]
# ## 7. The check

# %%
gradients = partial(torch.autograd.grad, inputs=list(model.parameters()))
reference = loss_turn_by_turn()
one_pass = loss_in_one_pass(partial(nn.functional.scaled_dot_product_attention, attn_mask=mask))
pairs = zip(gradients(reference), gradients(one_pass), strict=True)
difference = max((a - b).abs().max() / a.abs().max() for a, b in pairs)
print(f"loss {reference.item():.12f} turn by turn, {one_pass.item():.12f} in one pass; gradients to {difference:.0e}")
assert abs(reference - one_pass) < 1e-12 * reference and difference < 1e-11

# %% [markdown]
# The same under FlexAttention, compiled, which takes float32 on a CPU:

# %%
model.float().requires_grad_(False)
by_flex = loss_in_one_pass(partial(torch.compile(flex_attention), block_mask=block_mask))
print(f"loss {by_flex.item():.3f} under FlexAttention")
assert abs(by_flex - reference) < 1e-5 * reference

# %% [markdown]
# ## Why it had to come out
#
# In a causal transformer, what a token becomes depends on the tokens that it continues and on their positions, and on
# nothing else. Every token of the row continues exactly what it continues in its own pass, at the same positions. So
# its state is the same, its loss is the same, and a sum of the same terms has the same gradient. The tree has as many
# tokens as the passes have distinct beginnings; no exact method can compute fewer.
#
# ## What is left for a library
#
# Chat templates that rewrite history, in whichever way; histories that were cut, cleared or summarised; tokenizers
# that merge across borders; rows longer than memory; masks that are made without looking at pairs; models with
# windows, sinks, experts and recurrent states; many GPUs; and a check of the model at hand before it is trained. That
# is flexmask.
