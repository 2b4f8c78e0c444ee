"""Draw the pictures of the documentation.

    make picture                                                 all of them, into docs/images
    make picture ARGS="--sweep SWEEP_FOLDER --benchmark RUN"     after measuring again: with what these folders hold

    block_mask.png       who sees whom in a short conversation, and the blocks of a long one
    context_<rule>.png   an episode of four calls under a context rule, each text a token: the row, and who sees whom
    state_branches.png   the order in which the state of layers that carry one runs through a conversation's tree
    layouts.png          the layouts compared, from a sweep (make sweep)
    speedup.png          one pass against packed per-turn training, from a benchmark (make bench)

These need nothing but the embedded tokenizer. What the last two draw was measured: it is kept in data/ beside
them, and replaced by --sweep and --benchmark.
"""

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from flexmask import Conversation, OnePassCollator, Pack, Pass, Role, build_block_mask, lay_out, render_passes
from flexmask.conversations.contexts import RULES, calls_of
from flexmask.text.rendering import is_generated
from flexmask.tree.segments import ROLE_COLORS, ROLE_LABELS, segments
from flexmask.viz import plot_block_mask, plot_token_mask
from recipes import compare
from recipes.benchmarking.plots import plot_speedup
from recipes.models.tiny import build_tokenizer
from recipes.run.folder import write_json
from recipes.terminal.command import command

SHORT = Conversation(
    "example",
    (
        {"role": "user", "content": "Mia has 27 apples and finds 15 more."},
        {"role": "assistant", "content": "Mia has 42 apples.", "reasoning_content": "27+15\n7+5=12"},
        {"role": "user", "content": "Tom has 30 more."},
        {"role": "assistant", "content": "Tom has 72 apples.", "reasoning_content": "42+30\n4+3=7"},
    ),
)
EPISODE = (
    {"role": "user", "content": "task"},
    {"role": "assistant", "reasoning_content": "think 1", "content": "call 1"},
    {"role": "tool", "content": "result 1"},
    {"role": "assistant", "reasoning_content": "think 2", "content": "call 2"},
    {"role": "tool", "content": "result 2"},
)
WITH_RESULTS = (
    *EPISODE,
    {"role": "assistant", "reasoning_content": "think 3", "content": "call 3"},
    {"role": "tool", "content": "result 3"},
    {"role": "assistant", "reasoning_content": "think 4", "content": "answer"},
)
SUMMED_UP = (
    {"role": "system", "content": "system"},
    *EPISODE,
    {"role": "user", "content": "sum up"},
    {"role": "assistant", "reasoning_content": "think 3", "content": "summary"},
    {"role": "user", "content": "go on"},
    {"role": "assistant", "reasoning_content": "think 4", "content": "answer"},
)
# The picture of each rule: its episode, its arguments, and what is to be seen.
CONTEXTS: dict[str, tuple[Sequence[dict[str, str]], dict[str, Any], str]] = {
    "keep_last_tool_results": (
        WITH_RESULTS,
        {"keep": 1, "placeholder": "cleared"},
        "keep=1: each call sees the last result, and that older ones were cleared",
    ),
    "clear_tool_results": (
        WITH_RESULTS,
        {"threshold": 6, "keep": 1, "placeholder": "cleared"},
        "threshold=6, keep=1: the third call sees both results, the fourth was too long",
    ),
    "last_observations": (
        WITH_RESULTS,
        {"keep": 2, "placeholder": "omitted"},
        "keep=2: the last two observations stay",
    ),
    "compact": (
        SUMMED_UP,
        {"instruction": "sum up", "introduction": "so far:"},
        "the summary is trained on all before it, and stands in its place behind it",
    ),
    "keep_thinking_of_last": (WITH_RESULTS, {"keep": 1}, "keep=1: the thinking of the call before stays"),
}
TURNS, QUESTION, THINKING, ANSWER = 8, 100, 400, 150  # the long conversation, lengths in tokens


@command
def main(folder: Path, sweep: Path | None = None, benchmark: Path | None = None) -> None:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    layouts, speedup = (folder / "data" / f"{name}.json" for name in ("layouts", "speedup"))
    if sweep is not None:
        write_json(layouts, results_of_sweep(sweep))
    if benchmark is not None:
        write_json(speedup, results_of_benchmark(benchmark))
    drawn = {"block_mask": draw_masks, "state_branches": draw_state_branches}
    drawn |= {f"context_{name}": functools.partial(draw_context, name) for name in CONTEXTS}
    measured = {"layouts": (layouts, compare.plot, "--sweep"), "speedup": (speedup, plot_speedup, "--benchmark")}
    for name, (data, plot, option) in measured.items():
        if data.is_file():
            drawn[name] = functools.partial(plot, json.loads(data.read_text(encoding="utf-8")))
        else:
            print(f"{name}.png stays as it is: no {data}, which {option} FOLDER makes", file=sys.stderr)
    for name, draw in drawn.items():
        figure = draw()
        figure.savefig(folder / f"{name}.png", dpi=110 if name in measured else 100)
        plt.close(figure)
        print(folder / f"{name}.png")


def results_of_sweep(folder: Path) -> dict[str, list[dict]]:
    """What `recipes.compare` draws of a sweep, by what differs. Raises ValueError as `read_runs` does."""
    keys = ("seed", "answer_accuracy", "tokens_computed", "curve")
    runs = compare.by_name(compare.read_runs(folder))
    return {name: [{key: run[key] for key in keys} for run in some] for name, some in runs.items()}


def results_of_benchmark(folder: Path) -> list[dict]:
    """What `recipes.benchmark` draws of its grid, a dict a cell. Raises ValueError for a folder without one."""
    path = folder / "benchmark.json"
    grid = json.loads(path.read_text(encoding="utf-8")).get("grid") if path.is_file() else None
    if not grid:
        raise ValueError(f"--benchmark {folder}: no benchmark.json with the section grid; make bench leaves one")
    ratios = ("measured_ratio", "predicted_ratio", "needed_ratio")
    return [
        {key: cell[key] for key in ("mix", "turns", "turns_mean")}
        | {"arms": {"per_turn_packed": {key: round(cell["arms"]["per_turn_packed"][key], 3) for key in ratios}}}
        for cell in grid
    ]


def draw_masks() -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 7.3), layout="compressed")

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


def draw_context(name: str) -> Figure:
    """Each text is a token, with itself as its label. A prompt holds no thinking but where the rule keeps it."""
    messages, arguments, title = CONTEXTS[name]
    rule = functools.partial(RULES[name], **arguments)
    calls = calls_of(Conversation("episode", tuple(messages)), rule, count=len, require_thinking=lambda shown: None)
    labels: list[str] = []
    passes = []
    for number, call in enumerate(calls.calls):
        assert call.conversation is not None  # of messages
        *shown, answer = call.conversation.messages
        pieces = [piece for message in shown for piece in _pieces(message, name == "keep_thinking_of_last")]
        prompt_length = len(pieces)
        pieces += [(answer["reasoning_content"], Role.THINKING), (answer["content"], Role.ANSWER)]
        labels += [text for text, _ in pieces if text not in labels]
        ids = np.array([labels.index(text) for text, _ in pieces])
        roles = np.array([role for _, role in pieces], dtype=np.int8)
        passes.append(Pass(name, number, prompt_length, ids, roles, is_generated(roles).astype(np.float32)))
    pack = one_pack(passes, block_size=16)
    figure, axes = plt.subplots(figsize=(7.5, 7.2), layout="compressed")
    plot_token_mask(pack, axes, [labels[token] for token in pack.input_ids[0].tolist()])
    axes.set_title(title, fontsize=10)
    return figure


def _pieces(message: dict[str, Any], thinks: bool) -> list[tuple[str, Role]]:
    """The texts of a message in a prompt, and what they are there."""
    role = Role.COPY if message["role"] == "assistant" else Role.PROMPT
    thought = [(message["reasoning_content"], role)] if thinks and "reasoning_content" in message else []
    return [*thought, (message["content"].replace("\n\n", " "), role)]


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
    parser = argparse.ArgumentParser(prog="python -m recipes.picture", description="Draw the documentation's pictures.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs/images"), help="where to (docs/images)")
    parser.add_argument("--sweep", type=Path, help="folder of a sweep, for layouts.png")
    parser.add_argument("--benchmark", type=Path, help="folder of a benchmark, for speedup.png")
    main(**vars(parser.parse_args()))
