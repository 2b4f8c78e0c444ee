"""Draw the README's picture: the mask of a short conversation token by token, and the block mask of a full pack.

    make picture        (python -m recipes.picture [FILE])

Needs nothing but the embedded tokenizer and generator.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from flexmask import Conversation, OnePassCollator, build_block_mask, prepare_conversation
from flexmask.viz import plot_block_mask, plot_token_mask, token_texts
from recipes import tutoring
from recipes.tiny import build_tokenizer

EXAMPLE = Conversation(
    "example",
    (
        {"role": "user", "content": "Mia has 27 apples and finds 15 more."},
        {"role": "assistant", "content": "Mia has 42.", "reasoning_content": "27+15\n7+5=12"},
        {"role": "user", "content": "Tom has 30 more."},
        {"role": "assistant", "content": "Tom has 72.", "reasoning_content": "42+30\n4+3=7"},
    ),
)


def main(path: Path) -> None:
    tokenizer = build_tokenizer()
    figure, (left, right) = plt.subplots(1, 2, figsize=(17, 8.5), layout="constrained")

    (short,) = OnePassCollator(512, block_size=16, fixed_length=False)([prepare_conversation(EXAMPLE, tokenizer).rows])[
        "packs"
    ]
    plot_token_mask(short, left, token_texts(short, tokenizer))
    left.set_title("Two turns in one row: the second turn sees the copy of the first answer, not its thinking")

    records = tutoring.generate(64, seed=0, split="train")
    conversations = [Conversation.from_record(record, f"tutoring:{i}") for i, record in enumerate(records)]
    full = OnePassCollator(8192)([prepare_conversation(c, tokenizer).rows for c in conversations])["packs"][0]
    block_mask = build_block_mask(full.visible_until)
    plot_block_mask(block_mask, right)
    right.set_title(
        f"{len(full.rows)} conversations in one pack of {len(full):,} tokens: "
        f"{block_mask.sparsity():.0f}% of the area is not computed"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/block_mask.png"))
