"""Pictures of packs: nothing is cut off, whatever the pack, and what is drawn is the mask."""

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from factories import random_passes

from flexmask import OnePassCollator, lay_out
from flexmask.attention.masks import dense_mask
from flexmask.viz import MOST_DRAWN, plot_pack, plot_token_mask
from recipes.picture import made_up_passes


def one_pack(*conversations, length=16384):
    rows = [lay_out(passes, "one_pass").rows for passes in conversations]
    (pack,) = OnePassCollator(length, block_size=128)(rows)["packs"]
    return pack


PACKS = {
    "short": lambda: one_pack(random_passes(0, turns=1)),
    "one row": lambda: one_pack(random_passes(0, turns=3)),
    "rows of one screen": lambda: one_pack(*(random_passes(seed, turns=3) for seed in range(4))),
    "many rows": lambda: one_pack(*(random_passes(seed, turns=4) for seed in range(80))),
    "a long row": lambda: one_pack(made_up_passes(turns=8)),
    "long rows": lambda: one_pack(made_up_passes(turns=3), made_up_passes(turns=8)),
}


@pytest.fixture(params=PACKS)
def pack(request):
    return PACKS[request.param]()


def test_nothing_is_cut_off(pack):
    # Broken by the constrained layout, which left no room for the titles of some packs.
    figure = plot_pack(pack)
    figure.canvas.draw()
    drawn = figure.get_tightbbox().extents
    left, right = (axes.get_tightbbox() for axes in figure.axes)
    assert (drawn[:2] >= 0).all() and (drawn[2:] <= figure.get_size_inches()).all()
    assert left.x1 <= right.x0  # nor does one picture run into the other
    plt.close(figure)


def test_labels_do_not_overlap(pack):
    figure = plot_pack(pack)
    figure.canvas.draw()
    for axes in figure.axes:
        ticks = [label.get_window_extent() for label in axes.get_yticklabels() if label.get_text()]
        heights = sorted((box.y0, box.y1) for box in ticks)
        assert all(below[1] <= above[0] for below, above in zip(heights[:-1], heights[1:], strict=True))
        assert all(
            float(tick).is_integer()
            for axis in (figure.axes[1].xaxis, figure.axes[1].yaxis)
            for tick in axis.get_ticklocs()
        )
    plt.close(figure)


@pytest.mark.parametrize("name", ["one row", "a long row"])
def test_the_picture_is_the_mask(name):
    """Every n-th token of a long pack, whole: the mask of all tokens, read at every n-th."""
    pack = PACKS[name]()
    figure, axes = plt.subplots()
    step = plot_token_mask(pack, axes)
    assert (step > 1) == (len(pack) > MOST_DRAWN)
    drawn = np.asarray(axes.images[0].get_array())
    assert max(drawn.shape[:2]) <= MOST_DRAWN
    seen = dense_mask(pack.visible_until)[0, 0, ::step, ::step].numpy()
    assert (drawn.min(axis=-1) < 1).tolist() == seen.tolist()
    plt.close(figure)


def test_the_first_rows_are_drawn_whole():
    # Broken by drawing the first tokens: of a long row they are its trunk, in which nothing is hidden.
    for name, part in (
        ("a long row", "1 conversation: 6,250 tokens, every 7th drawn"),
        ("one row", "1 conversation: "),
    ):
        figure = plot_pack(PACKS[name]())
        assert part in figure.axes[0].get_title()
        plt.close(figure)
    pack = PACKS["many rows"]()
    figure = plot_pack(pack)
    title, end = figure.axes[0].get_title(), round(figure.axes[0].get_xlim()[1] + 0.5)
    assert title == f"80 conversations: the first {end:,} of {len(pack):,} tokens"
    assert pack.previous[0, end] == -1 and end <= MOST_DRAWN  # the next token begins a row
    plt.close(figure)
