"""Pictures of rows and masks. Needs matplotlib; nothing else in the library imports this module."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedTokenizerBase

from flexmask.attention.masks import block_kinds, build_block_mask, dense_mask
from flexmask.text import tokenization
from flexmask.text.rendering import Role
from flexmask.tree.packing import Pack
from flexmask.tree.segments import ROLE_COLORS, ROLE_LABELS

LEAST_LABELLED = 0.035  # of the picture's height: a stretch of one role that is shorter has no room for its label
MOST_DRAWN = 1024  # tokens along a side: a screen shows no more, and the picture grows with their square
BLOCK_COLORS = ("#F4F4F4", "#9ECAE1", "#08519C")  # skipped, partial, full


def plot_token_mask(pack: Pack, axes: Axes, tokens: list[str] | None = None, end: int | None = None) -> int:
    """Who sees whom, token by token: rows are queries, columns keys, a visible key in the colour of its role.

    tokens: their texts, written along both axes; for packs short enough to read. Without them the queries are
        labelled by role, where most stretches of one role are long enough for it.
    end: draw the tokens before this one; None for all.
    Returns n where every n-th token is drawn, because there are more than MOST_DRAWN: 1 for all of them.
    """
    size = len(pack) if end is None else end
    step = -(-size // MOST_DRAWN)
    # Token q of the drawn ones is token q * step, and q * step < until just where q < until / step, rounded up.
    until = -(-pack.visible_until[:, :size:step].cpu() // step)
    visible = dense_mask(until)[0, 0].numpy()
    roles = pack.roles[0, :size:step].cpu().numpy()
    colors = np.array([to_rgb(ROLE_COLORS[Role(role)]) for role in roles])
    image = np.where(visible[:, :, None], colors[None, :, :], 1.0)
    axes.imshow(image, interpolation="nearest", extent=(-0.5, size - 0.5, size - 0.5, -0.5))
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    if tokens is not None:
        _label_tokens(axes, tokens[:size], pack.roles[0, :size].cpu().numpy())
    else:
        _label_roles(axes, roles, step)
    axes.legend(
        handles=[Patch(color=color, label=ROLE_LABELS[role]) for role, color in ROLE_COLORS.items()],
        loc="upper right",
        fontsize=8,
    )
    return step


def _label_roles(axes: Axes, roles: np.ndarray, step: int) -> None:
    """The role of each stretch of one role, unless there are many too short for a label: then numbers stay."""
    runs = _runs(roles)
    long = [run for run in runs if run[1] - run[0] >= LEAST_LABELLED * len(roles)]
    if len(long) < 2 / 3 * len(runs):
        return
    axes.set_yticks(
        [((start + end) * step - 1) / 2 for start, end, _ in long], [ROLE_LABELS[role] for *_, role in long]
    )
    axes.set_xticks([])


def _label_tokens(axes: Axes, tokens: list[str], roles: np.ndarray) -> None:
    for axis, turn in ((axes.xaxis, 90), (axes.yaxis, 0)):
        axis.set_ticks(range(len(tokens)), tokens, rotation=turn, fontsize=7)
        for label, role in zip(axis.get_ticklabels(), roles, strict=True):
            red, green, blue = to_rgb(ROLE_COLORS[Role(role)])
            label.set_color((0.7 * red, 0.7 * green, 0.7 * blue))
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")


def _runs(roles: np.ndarray) -> list[tuple[int, int, Role]]:
    """Stretches of one role: (start, end, role)."""
    cuts = [0, *(np.flatnonzero(np.diff(roles)) + 1).tolist(), len(roles)]
    return [(start, end, Role(roles[start])) for start, end in zip(cuts[:-1], cuts[1:], strict=True)]


def plot_block_mask(block_mask: BlockMask, axes: Axes) -> None:
    """What the kernel computes: blocks it skips, blocks it masks token by token, blocks it computes whole."""
    image = block_kinds(block_mask)
    axes.imshow(image, cmap=ListedColormap(BLOCK_COLORS), vmin=0, vmax=2, interpolation="nearest")
    axes.set_xlabel(f"key block ({block_mask.BLOCK_SIZE[1]} tokens)")
    axes.set_ylabel(f"query block ({block_mask.BLOCK_SIZE[0]} tokens)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    areas = [int((image == value).sum()) for value in range(3)]
    axes.legend(
        handles=[
            Patch(facecolor=color, edgecolor="gray", label=f"{label}: {count:,}")
            for color, label, count in zip(BLOCK_COLORS, ("skipped", "partial", "full"), areas, strict=True)
        ],
        loc="upper right",
        fontsize=8,
    )


def token_texts(pack: Pack, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each token of a pack, white space made visible (see `flexmask.text.tokenization.token_texts`)."""
    texts = tokenization.token_texts(tokenizer, pack.input_ids[0].tolist(), pack.previous[0].tolist())
    return [text.replace("\n", "\u21b5").replace(" ", "\u00b7") for text in texts]


def _end_of_first_rows(pack: Pack) -> int:
    """Where the last row ends that lies within MOST_DRAWN tokens, or the first one, which may be longer."""
    starts = (pack.previous[0] < 0).nonzero()[:, 0].tolist()
    ends = [*starts[1:], len(pack)]
    return max((end for end in ends if end <= MOST_DRAWN), default=ends[0])


def plot_pack(pack: Pack, block_size: int = 128) -> Figure:
    """Token mask and block mask of one pack, side by side: of the tokens the first rows, of the blocks all."""
    # "compressed" is the layout for pictures of fixed shape: others leave no room for titles where ticks are short.
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 7), layout="compressed")
    end = _end_of_first_rows(pack)
    step = plot_token_mask(pack, left, end=end)
    conversations = len(set(pack.rows))
    tokens = f"{len(pack):,} tokens" if end == len(pack) else f"the first {end:,} of {len(pack):,} tokens"
    sampled = f", every {step}th drawn" if step > 1 else ""
    left.set_title(f"{conversations} conversation{'s'[: conversations > 1]}: {tokens}{sampled}")
    block_mask = build_block_mask(pack.visible_until.cpu(), block_size)
    plot_block_mask(block_mask, right)
    right.set_title(f"{block_mask.sparsity():.0f}% of the attention area is not computed")
    return figure
