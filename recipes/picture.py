"""Draw the README's picture: a short conversation token by token, and the blocks of a long one.

    make picture        (python -m recipes.picture [FILE])

Needs nothing but the embedded tokenizer.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from flexmask import Conversation, OnePassCollator, Pack, Pass, Role, build_block_mask, lay_out, render_passes
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


def main(path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 7.3), layout="constrained")

    plot_token_mask(one_pack(render_passes(SHORT, build_tokenizer()), block_size=16), left)
    left.set_title("The second turn sees the copy of the first answer, not its thinking")

    long = one_pack(long_passes(), block_size=128)
    block_mask = build_block_mask(long.visible_until)
    plot_block_mask(block_mask, right)
    right.set_title(f"{TURNS} turns, {len(long):,} tokens: {block_mask.sparsity():.0f}% of the area is not computed")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    print(path)


def one_pack(passes: list[Pass], block_size: int) -> Pack:
    collator = OnePassCollator(8192, block_size=block_size)
    (pack,) = collator([lay_out(passes, "one_pass").rows])["packs"]
    return pack


def long_passes() -> list[Pass]:
    """Passes of a made-up conversation: every token is its own id, so that nothing but the history is shared."""
    passes, history, fresh = [], np.empty(0, dtype=np.int64), iter(range(10**6))
    for turn in range(TURNS):
        question, thinking, answer = (
            np.fromiter(fresh, dtype=np.int64, count=count) for count in (QUESTION, THINKING, ANSWER)
        )
        prompt = np.concatenate([history, question])
        roles = np.repeat([Role.PROMPT, Role.THINKING, Role.ANSWER], [len(prompt), THINKING, ANSWER]).astype(np.int8)
        ids = np.concatenate([prompt, thinking, answer])
        passes.append(Pass("long", turn, len(prompt), ids, roles, (roles != Role.PROMPT).astype(np.float32)))
        history = np.concatenate([prompt, answer])
    return passes


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/block_mask.png"))
