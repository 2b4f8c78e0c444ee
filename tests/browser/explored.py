"""Pages of the explorer, what is lit on them, and what the library's own mask says of the same rows."""

import json
import random
import time

import numpy as np
import torch
from factories import random_conversation

from flexmask import dense_mask, prepare_conversation
from flexmask.tree.layouts import LAYOUTS
from recipes.configuration.compose import compose
from recipes.explore import explore
from recipes.models.load import load_tokenizer
from recipes.preparation.rows import settings_of
from recipes.sources.load import choose, load_data

HOSTILE = (
    "</script><script>window.hit = 1</script><img src=x onerror='window.hit = 1'>"
    " <!--<script> &lt;b&gt; caf\u00e9 \U0001f389 \u200b\u202e\t\x07 end"
)
# Tokens that the page has lit in a style, with the text under the light.
LIT = """(style) => [...(CSS.highlights.get(style) ?? [])].flatMap((range) => {
    const run = text.runOf.get(range.startContainer);
    const tokens = [];
    for (let i = run.start; i < run.end; i++)
        if (text.offset[i] >= range.startOffset && text.endOffset(run, i) <= range.endOffset) tokens.push(i);
    return [[tokens, run.node.data.slice(range.startOffset, range.endOffset)]];
})"""
PLACE = """(token) => {
    text.reveal(token);
    const [box] = text.rects(token);
    return [box.left + box.width / 2, box.top + box.height / 2];
}"""


IN_SIGHT = """(token) => {
    const [[box], { top, bottom }] = [text.rects(token), text.scroller.getBoundingClientRect()];
    return box.top >= top && box.bottom <= bottom;
}"""


class Shown:
    """A page, and the rows that it shows as the library makes them."""

    def __init__(self, path, config, names):
        self.path, self.names = path, names
        tokenizer, data = load_tokenizer(config.model), load_data(config.data)
        explore(config, names, path)
        settings = settings_of(config.data, config.duplication, config.context)
        self.tokenizer, self.laid_out = tokenizer, []
        for name in names:
            one = choose(data, name)
            of_layouts = {}
            for layout in LAYOUTS:
                try:
                    of_layouts[layout] = prepare_conversation(one, tokenizer, **settings | {"layout": layout})
                except ValueError:
                    assert layout == "keep_thinking"
            self.laid_out.append(of_layouts)

    def row(self, conversation=0, layout="one_pass", number=0):
        return self.laid_out[conversation][layout].rows[number]


def visible(row):
    """Bool [S, S]: the library's mask of a row, query by key."""
    return dense_mask(torch.from_numpy(row.visible_until)[None])[0, 0].numpy()


def calls(seed):
    """A record of calls whose history changes: the third is shown a summary in place of the beginning."""
    rng = random.Random(seed)
    say = lambda role, words: {"role": role, "content": " ".join(rng.choices("add the two then one".split(), k=words))}  # noqa: E731
    answers = [say("assistant", 4) | {"reasoning_content": "one two"} for _ in range(3)]
    first, second, summary = say("user", 9), say("user", 5), say("user", 7)
    plain = {key: answers[0][key] for key in ("role", "content")}
    prompts = [[first], [first, plain, second], [summary, second]]
    return {
        "calls": [
            {"prompt": prompt, "completion": answer, "weight": weight, "name": f"step {number}"}
            for number, (prompt, answer, weight) in enumerate(zip(prompts, answers, (1, 0.5, 1), strict=True))
        ]
    }


def until(page, said, arg=None):
    """Waits until an expression or function is true. `page.wait_for_function` evaluates text within the page, which its
    policy forbids."""
    deadline = time.monotonic() + 10
    while not page.evaluate(said, arg):
        assert time.monotonic() < deadline, said
        page.wait_for_timeout(20)


def lit(page, style):
    return [token for tokens, _ in page.evaluate(LIT, style) for token in tokens]


def lit_text(page, style):
    return "".join(some for _, some in page.evaluate(LIT, style))


def assert_lit(page, row, token):
    """Breaks if the page's rule is not the library's: in one comparison, in an end of a stretch, or in a token's
    place in the text."""
    mask = visible(row)
    assert lit(page, "seen") == np.flatnonzero(mask[token]).tolist()
    assert lit(page, "seers") == [q for q in np.flatnonzero(mask[:, token]).tolist() if q != token]
    assert lit(page, "chosen") == [token]
    before = int(row.previous[token])
    assert lit(page, "parent") == ([before] if before >= 0 else [])


def shown_in(folder):
    """A page of three conversations, of which the last cannot be held in one row, and of a record of calls."""
    hostile = {
        "messages": [
            {"role": "user", "content": HOSTILE},
            {"role": "assistant", "reasoning_content": f"so {HOSTILE}", "content": HOSTILE},
            {"role": "user", "content": "then?"},
            {"role": "assistant", "reasoning_content": "one", "content": "two", "weight": 0.5},
        ]
    }
    records = [
        {"messages": list(random_conversation(3, turns=4).messages)},
        hostile,
        calls(0),
        {"messages": list(random_conversation(5, turns=9).messages)},
    ]
    file = folder / "my.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in records))
    overrides = ["data=jsonl", f"data.path={file}", "trainer.epochs=1", "attention.block_size=16"]
    split = compose([*overrides, "duplication.pack_length=700"])
    found = Shown(folder / "page.html", split, [f"my.jsonl:{n}" for n in (1, 2, 3, 4)])
    assert len(found.laid_out[3]["one_pass"].rows) > 1 and found.row(3).passes.turn.size > 1
    return found
