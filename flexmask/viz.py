"""Pictures of rows and masks. Needs matplotlib; nothing else in the library imports this module."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedTokenizerBase

from flexmask.masks import build_block_mask, dense_mask
from flexmask.packing import Pack
from flexmask.rendering import Role
from flexmask.segments import ROLE_COLORS, ROLE_LABELS

MOST_SEGMENT_LABELS = 24
BLOCK_COLORS = ("#F4F4F4", "#9ECAE1", "#08519C")  # skipped, partial, full


def plot_token_mask(pack: Pack, axes: Axes, tokens: list[str] | None = None, most: int = 1024) -> None:
    """Who sees whom, token by token: rows are queries, columns keys, a visible key in the colour of its role.

    tokens: their texts, written along both axes; for packs short enough to read. Without them the queries are
        labelled by role, where there are few enough stretches of one role.
    most: draw at most the first this many tokens; the picture grows with their square.
    """
    size = min(len(pack), most)
    visible = dense_mask(pack.visible_until[:, :size].cpu())[0, 0].numpy()
    roles = pack.roles[0, :size].cpu().numpy()
    colors = np.array([to_rgb(ROLE_COLORS[Role(role)]) for role in roles])
    image = np.where(visible[:, :, None], colors[None, :, :], 1.0)
    axes.imshow(image, interpolation="nearest")
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    if tokens is not None:
        _label_tokens(axes, tokens[:size], roles)
    elif len(runs := _runs(roles)) <= MOST_SEGMENT_LABELS:
        axes.set_yticks([(start + end - 1) / 2 for start, end, _ in runs], [ROLE_LABELS[role] for *_, role in runs])
        axes.set_xticks([])
    axes.legend(
        handles=[Patch(color=color, label=ROLE_LABELS[role]) for role, color in ROLE_COLORS.items()],
        loc="upper right",
        fontsize=8,
    )


def _label_tokens(axes: Axes, tokens: list[str], roles: np.ndarray) -> None:
    for axis, turn in ((axes.xaxis, 90), (axes.yaxis, 0)):
        axis.set_ticks(range(len(tokens)), tokens, rotation=turn, fontsize=7)
        for label, role in zip(axis.get_ticklabels(), roles, strict=True):
            label.set_color(np.array(to_rgb(ROLE_COLORS[Role(role)])) * 0.7)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")


def _runs(roles: np.ndarray) -> list[tuple[int, int, Role]]:
    """Stretches of one role: (start, end, role)."""
    cuts = [0, *(np.flatnonzero(np.diff(roles)) + 1).tolist(), len(roles)]
    return [(start, end, Role(roles[start])) for start, end in zip(cuts[:-1], cuts[1:], strict=True)]


def plot_block_mask(block_mask: BlockMask, axes: Axes) -> None:
    """What the kernel computes: blocks it skips, blocks it masks token by token, blocks it computes whole."""
    partial, full = block_mask.kv_num_blocks, block_mask.full_kv_num_blocks
    rows, columns = block_mask.kv_indices.shape[-2:]
    image = np.zeros((rows, columns), dtype=int)
    for value, counts, indices in ((1, partial, block_mask.kv_indices), (2, full, block_mask.full_kv_indices)):
        if counts is None:
            continue
        for i, count in enumerate(counts[0, 0].tolist()):
            image[i, indices[0, 0, i, :count].tolist()] = value
    axes.imshow(image, cmap=ListedColormap(BLOCK_COLORS), vmin=0, vmax=2, interpolation="nearest")
    axes.set_xlabel(f"key block ({block_mask.BLOCK_SIZE[1]} tokens)")
    axes.set_ylabel(f"query block ({block_mask.BLOCK_SIZE[0]} tokens)")
    counts = [int((image == value).sum()) for value in range(3)]
    axes.legend(
        handles=[
            Patch(facecolor=color, edgecolor="gray", label=f"{label}: {count}")
            for color, label, count in zip(BLOCK_COLORS, ("skipped", "partial", "full"), counts, strict=True)
        ],
        loc="upper right",
        fontsize=8,
    )


def token_texts(pack: Pack, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each token of a pack, white space made visible."""
    texts = [tokenizer.decode([token]) for token in pack.input_ids[0].tolist()]
    return [text.replace("\n", "\u21b5").replace(" ", "\u00b7") for text in texts]


def plot_pack(pack: Pack, block_size: int = 128) -> Figure:
    """Token mask and block mask of one pack, side by side."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6.5), layout="constrained")
    plot_token_mask(pack, left)
    shown = min(len(pack), 1024)
    left.set_title(f"the first {shown:,} of {len(pack):,} tokens, {len(set(pack.rows))} conversations in all")
    block_mask = build_block_mask(pack.visible_until.cpu(), block_size)
    plot_block_mask(block_mask, right)
    right.set_title(f"{block_mask.sparsity():.0f}% of the attention area is not computed")
    return figure
