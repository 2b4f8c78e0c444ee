"""Draw the pictures of the documentation: who sees whom in a short conversation, the blocks of a long one, and the
order in which the state of layers that carry one runs through a conversation's tree.

    make picture        (python -m recipes.picture [FOLDER])

Needs nothing but the embedded tokenizer.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from flexmask import Conversation, OnePassCollator, Pack, Pass, Role, build_block_mask, lay_out, render_passes
from flexmask.rendering import is_generated
from flexmask.segments import ROLE_COLORS, ROLE_LABELS, segments
from flexmask.viz import plot_block_mask, plot_token_mask
from recipes.tiny import build_tokenizer

SHORT = Conversation(
    "example",
    (
        {"role": "user", "content": "Mia has 27 apples and finds 15 more."},
        {"role": "assistant", "content": "Mia has 42 apples.", "reasoning_content": "27+15\n7+5=12"},
        {"role": "user", "content": "Tom has 30 more."},
        {"role": "assistant", "content": "Tom has 72 apples.", "reasoning_content": "42+30\n4+3=7"},
    ),
)
TURNS, QUESTION, THINKING, ANSWER = 8, 100, 400, 150  # the long conversation, lengths in tokens


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in (("block_mask", draw_masks), ("state_branches", draw_state_branches)):
        figure = draw()
        figure.savefig(folder / f"{name}.png", dpi=100)
        print(folder / f"{name}.png")


def draw_masks() -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 7.3), layout="constrained")

    plot_token_mask(one_pack(render_passes(SHORT, build_tokenizer()), block_size=16), left)
    left.set_title("The second turn sees the copy of the first answer, not its thinking")

    long = one_pack(made_up_passes(TURNS), block_size=128)
    block_mask = build_block_mask(long.visible_until)
    plot_block_mask(block_mask, right)
    right.set_title(f"{TURNS} turns, {len(long):,} tokens: {block_mask.sparsity():.0f}% of the area is not computed")
    return figure


def draw_state_branches() -> Figure:
    """Four turns: each node of the tree along the positions of its tokens, below it the nodes that continue it."""
    (row,) = lay_out(made_up_passes(turns=4), "one_pass").rows
    depth: list[int] = []
    for parent in row.node_parent.tolist():
        depth.append(0 if parent < 0 else depth[parent] + 1)
    last = max(depth)
    leaf = [node not in row.node_parent for node in range(len(depth))]
    step = [last if leaf[node] else depth[node] for node in range(len(depth))]
    figure, axes = plt.subplots(figsize=(11, 4.2), layout="constrained")
    lane = {node: step[node] + 0.2 * sum(leaf[node + 1 :]) * leaf[node] for node in range(len(depth))}
    for one in segments(row):
        node = int(np.searchsorted(row.node_start, one.start, side="right")) - 1
        axes.barh(lane[node], len(one), left=one.position, height=0.16, color=ROLE_COLORS[one.role], edgecolor="white")
    for node, parent in enumerate(row.node_parent.tolist()):
        if parent >= 0:
            ends = [(row.position_ids[row.node_start[node]], lane[of]) for of in (node, parent)]
            axes.annotate("", *ends, arrowprops={"arrowstyle": "->", "color": "#444444"})
    axes.set_yticks(range(last + 1), [*(f"{n + 1}" for n in range(last)), f"{last + 1}, all side by side"])
    axes.set_ylabel("step of the recurrence")
    axes.set_xlabel("position (tokens)")
    axes.invert_yaxis()
    axes.legend(handles=[Patch(color=ROLE_COLORS[role], label=ROLE_LABELS[role]) for role in Role], loc="upper right")
    return figure


def one_pack(passes: list[Pass], block_size: int) -> Pack:
    collator = OnePassCollator(8192, block_size=block_size)
    (pack,) = collator([lay_out(passes, "one_pass").rows])["packs"]
    return pack


def made_up_passes(turns: int) -> list[Pass]:
    """Passes of a made-up conversation: every token is its own id, so that nothing but the history is shared."""
    passes, history, fresh = [], np.empty(0, dtype=np.int64), iter(range(10**6))
    context: list[Role] = []
    for turn in range(turns):
        question, thinking, answer = (
            np.fromiter(fresh, dtype=np.int64, count=count) for count in (QUESTION, THINKING, ANSWER)
        )
        prompt = np.concatenate([history, question])
        context += [Role.PROMPT] * QUESTION
        roles = np.array(context + [Role.THINKING] * THINKING + [Role.ANSWER] * ANSWER, dtype=np.int8)
        ids = np.concatenate([prompt, thinking, answer])
        passes.append(Pass("long", turn, len(prompt), ids, roles, is_generated(roles).astype(np.float32)))
        history = np.concatenate([prompt, answer])
        context += [Role.COPY] * ANSWER
    return passes


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images"))
