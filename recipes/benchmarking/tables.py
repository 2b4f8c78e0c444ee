"""The benchmark's tables, and its targets."""

from collections.abc import Iterator, Sequence

from recipes.benchmarking.config import Section


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that reads well in a terminal and in Markdown: the first column to the left, the others to the right."""
    lines = [list(map(str, line)) for line in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def joined(line: Sequence[str]) -> str:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        return f"| {' | '.join(cells)} |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([joined(lines[0]), joined(rule), *map(joined, lines[1:])])


def cell_name(cell: dict) -> str:
    turns = f"{cell['turns']} turns" if cell["turns"] else f"{cell['turns_mean']:.1f} turns on average"
    return f"{cell['mix']}, {turns}"


# Of one arm in one cell: heading, width, format, value. The last three say how many times one pass it takes: by the
# operations that are needed, by those that are computed, and by the clock.
ARM_COLUMNS = (
    ("seconds", 9, ".3f", lambda arm: arm["seconds"]),
    ("tokens", 9, ",", lambda arm: arm["tokens_computed"]),
    ("trained", 9, ",", lambda arm: arm["tokens_trained"]),
    ("visible", 13, ",", lambda arm: arm["visible_pairs"]),
    ("computed", 13, ",", lambda arm: arm["computed_pairs"]),
    ("GFLOP", 9, ",.0f", lambda arm: sum(arm["flops"].values()) / 1e9),
    ("MiB", 8, ",.0f", lambda arm: arm["peak_memory"] / 2**20),
    ("prep ms", 8, ".1f", lambda arm: arm["preparation_seconds"] * 1000),
    ("mask ms", 8, ".1f", lambda arm: arm["mask_seconds"] * 1000),
    ("graphs", 7, "", lambda arm: arm["graphs_compiled"]),
    ("needed", 7, ".2f", lambda arm: arm["needed_ratio"]),
    ("predicted", 10, ".2f", lambda arm: arm["predicted_ratio"]),
    ("measured", 9, ".2f", lambda arm: arm["measured_ratio"]),
)
GRID_HEADER = f"{'arm':<18}" + "".join(f"{heading:>{width}}" for heading, width, _, _ in ARM_COLUMNS)


def cell_lines(cell: dict) -> str:
    """The figures of one cell, an arm a line."""
    lines = [f"{cell_name(cell)}: {cell['dialogues']} dialogues, {cell['distinct_prefixes']:,} distinct prefixes"]
    for name, arm in cell["arms"].items():
        values = [f"  {arm['status']}"]
        if arm["status"] == "ok":
            values = [f"{value(arm):>{width}{form}}" for _, width, form, value in ARM_COLUMNS]
        lines.append(f"{name:<18}{''.join(values)}")
    return "\n".join(lines)


def grid_table(cells: Sequence[dict]) -> str:
    others = [name for name in cells[0]["arms"] if name not in ("one_pass", "per_turn_packed")]
    header = ["dialogues", "tokens, one pass", "per turn", "needed", "predicted", "measured", "measured / predicted"]
    rows = []
    for cell in cells:
        ours, packed = (cell["arms"][name] for name in ("one_pass", "per_turn_packed"))
        rows.append(
            [
                f"{cell_name(cell)}",
                f"{ours['tokens_computed']:,}",
                f"{packed['tokens_computed']:,}",
                f"{packed['needed_ratio']:.2f}x",
                f"{packed['predicted_ratio']:.2f}x",
                f"{packed['measured_ratio']:.2f}x",
                f"{packed['measured_ratio'] / packed['predicted_ratio']:.2f}",
                *(ratio_or_status(cell["arms"][name]) for name in others),
            ]
        )
    text = (
        "Speed-up of one pass over packed per-turn by the operations that are needed (tokens, visible pairs), by those "
        "that are computed (whole blocks), and measured; then how many times one pass each other arm takes."
    )
    return f"{text}\n\n{markdown([*header, *others], rows)}"


def ratio_or_status(arm: dict) -> str:
    return f"{arm['measured_ratio']:.2f}x" if arm["status"] == "ok" else arm["status"].split(":")[0]


def packing_table(results: Sequence[dict]) -> str:
    blocks = list(results[0]["computed_over_visible"])
    header = [
        "mix",
        "dialogues",
        "tokens",
        "packs",
        "fewest",
        "unfilled",
        "padding computed",
    ]
    rows = [
        [
            one["mix"],
            one["dialogues"],
            f"{one['tokens']:,}",
            one["packs"],
            one["fewest_packs"],
            f"{one['unfilled']:.2%}",
            f"{one['padding']:.2%}",
            *(f"{one['computed_over_visible'][block]:.2f}" for block in blocks),
        ]
        for one in results
    ]
    text = "One pass in packs of 8,192 tokens, and pairs computed in blocks of each size for one that is visible."
    return f"{text}\n\n{markdown([*header, *(f'blocks of {block}' for block in blocks)], rows)}"


def attention_table(result: dict) -> str:
    rows = [
        [name, f"{seconds:.3f} s", f"{seconds / result['seconds']['ours']:.2f}x"]
        for name, seconds in result["seconds"].items()
    ]
    return f"{result['tokens']:,} tokens, forward and backward:\n\n" + markdown(["attention", "time", "of ours"], rows)


def mask_table(result: dict) -> str:
    rows = [
        [
            f"build_block_mask, {one['tokens']:,} tokens",
            f"{one['seconds'] * 1000:.1f} ms",
            f"{one['peak_memory'] / 2**20:.1f} MiB",
        ]
        for one in result["built"]
    ]
    theirs, name = result["create_block_mask"], f"create_block_mask, {result['built'][0]['tokens']:,} tokens"
    if theirs["status"] == "ok":
        rows.append([name, f"{theirs['seconds'] * 1000:,.0f} ms", f"{theirs['peak_memory'] / 2**20:,.0f} MiB"])
    else:
        rows.append([name, theirs["status"], ""])
    return markdown(["mask", "time", "peak extra memory"], rows)


def loss_table(results: Sequence[dict]) -> str:
    rows = [
        [
            one["loss"],
            f"{one['row_tokens']:,}",
            f"{one['trained_tokens']:,}",
            f"{one['peak_memory'] / 2**20:,.0f} MiB",
        ]
        for one in results
    ]
    return markdown(["loss", "tokens of the row", "trained", "peak memory"], rows)


def preparation_table(results: Sequence[dict]) -> str:
    rows = [
        [
            f"{one['turns']} turns",
            f"{one['row_tokens']:,}",
            *(f"{one['seconds'][name] * 1000:.1f} ms" for name in ("ours", "plain", "every_turn")),
            f"{one['over_plain']:.2f}x",
        ]
        for one in results
    ]
    return markdown(
        ["conversation", "tokens of the row", "to a row", "rendered once", "each turn rendered", "of once"], rows
    )


def recompiles_table(result: dict) -> str:
    what = "forward and backward" if result["backward"] else "forward, traced only"
    return markdown(
        ["packs", "tokens of each", "graphs compiled", "of"],
        [[result["packs"], result["pack_length"], result["graphs_compiled"], what]],
    )


def state_table(results: Sequence[dict]) -> str:
    layouts = {"one_pass": "one pass", "per_turn": "per turn"}
    header = [
        "layers",
        *(f"{what}, {layout}" for what in ("tokens", "steps", "seconds") for layout in layouts.values()),
    ]
    rows = [
        [
            one["layers"],
            *(f"{one['tokens'][layout]:,}" for layout in layouts),
            *(one["steps"][layout] if one["steps"] else "none" for layout in layouts),
            *(f"{one['seconds'][layout]:.3f}" for layout in layouts),
            f"{one['ratio']:.2f}x",
        ]
        for one in results
    ]
    text = (
        "Models with three layers that carry state and one of full attention: tokens computed, calls of a layer's "
        "recurrence that wait for each other, forward and backward, and how many times one pass packed per-turn takes."
    )
    return f"{text}\n\n{markdown([*header, 'ratio'], rows)}"


def plans_table(results: Sequence[dict]) -> str:
    plans = ("level by level", "path by path")
    header = ["layers", "turns", "tokens", *(f"{what}, {plan}" for what in ("run", "calls", "ms") for plan in plans)]
    rows = [
        [
            one["layers"],
            one["turns"],
            one["tokens"],
            *(one["tokens_run"][plan] for plan in plans),
            *(one["calls"][plan] for plan in plans),
            *(f"{1000 * one['seconds'][plan]:.1f}" for plan in plans),
            one["chosen"],
            "yes" if one["right"] else "NO",
        ]
        for one in results
    ]
    calls = "; ".join(
        f"{layers}: a call costs as much as {call:.0f} tokens"
        for layers, call in {one["layers"]: one["call_in_tokens"] for one in results}.items()
    )
    return f"{markdown([*header, 'chosen', 'right'], rows)}\n\n{calls}"


def sharing_table(result: dict) -> str:
    spreads = markdown(
        ["mix", "conversations a step", "shared out", "worst step", "dealt out", "packs divided"],
        [
            [
                one["mix"],
                one["conversations"],
                *(f"{one[key]:.3f}" for key in ("shared", "shared_worst", "dealt", "divided")),
            ]
            for one in result["spreads"]
        ],
    )
    splits = markdown(
        ["one conversation", "pack length", "packs", "tokens computed", "cost"],
        [
            [
                f"{one['tokens']:,} tokens, {one['mix']}",
                f"{one['pack_length']:,}",
                one["packs"],
                f"{one['tokens_ratio']:.2f}x",
                f"{one['cost_ratio']:.2f}x",
            ]
            for one in result["splits"]
        ],
    )
    parts = markdown(
        ["that conversation over", "tokens of a process", "most over mean"],
        [[f"{one['processes']} processes", f"{one['tokens']:,}", f"{one['spread']:.3f}"] for one in result["parts"]],
    )
    return f"{spreads}\n\n{splits}\n\n{parts}"


def calls_table(results: Sequence[dict]) -> str:
    header = ["mix", "calls", "longest", "distinct prefixes", "tokens, one pass", "tokens, a sample a call"]
    rows = [
        [
            one["mix"],
            one["calls"],
            f"{one['longest']:,}",
            f"{one['distinct_prefixes']:,}",
            *(f"{one['tokens'][layout]:,}" for layout in ("one_pass", "per_turn")),
            *(f"{one['seconds'][layout]:.2f}" for layout in ("one_pass", "per_turn")),
            f"{one['ratio']:.2f}x",
            f"{one['loss_difference']:.0e}",
        ]
        for one in results
    ]
    return markdown([*header, "seconds", "seconds, samples", "ratio", "loss differs by"], rows)


TABLES = {
    Section.grid: grid_table,
    Section.packing: packing_table,
    Section.attention: attention_table,
    Section.mask: mask_table,
    Section.loss: loss_table,
    Section.preparation: preparation_table,
    Section.recompiles: recompiles_table,
    Section.state: state_table,
    Section.plans: plans_table,
    Section.sharing: sharing_table,
    Section.calls: calls_table,
}


def targets(result: dict) -> list[tuple[str, str, str]]:
    """Each target of the sections that ran, its value here, and whether it is met."""
    return [
        (f"{name} {sign} {limit:g}{unit}", f"{value:.4g}{unit}", met(value, sign, limit))
        for name, value, sign, limit, unit in _targets(result)
    ]


def met(value: float, sign: str, limit: float) -> str:
    return "yes" if {"<=": value <= limit, ">=": value >= limit, "=": value == limit}[sign] else "NO"


def _targets(result: dict) -> Iterator[tuple[str, float, str, float, str]]:
    cells = result.get("grid", [])
    for cell in cells:
        packed = cell["arms"]["per_turn_packed"]
        if cell["turns"] in (8, 16):
            share = packed["measured_ratio"] / packed["predicted_ratio"]
            yield f"measured / predicted speed-up, {cell_name(cell)}", share, ">=", 0.85, ""
        yield f"speed-up over packed per-turn, {cell_name(cell)}", packed["measured_ratio"], ">=", 1, ""
    if cells:
        ratios = [cell["arms"]["one_pass"]["tokens_computed"] / cell["distinct_prefixes"] for cell in cells]
        yield "tokens computed over distinct prefixes, worst cell", max(ratios), "=", 1, ""
    for one in result.get("packing", []):
        if one["mix"] == "mathchatsync":
            yield "room unfilled in packs, mathchatsync at 8,192", 100 * one["unfilled"], "<=", 2, "%"
    if attention := result.get("attention"):
        yield "attention: dense-mask SDPA over ours", attention["over_dense"], ">=", 3, ""
        yield "attention: ours over SDPA for each node's path", attention["over_per_node"], "<=", 1.5, ""
        yield "attention: ours over causal SDPA of the same area", attention["over_same_area"], "<=", 1.5, ""
    if mask := result.get("mask"):
        small, large = mask["built"]
        yield f"mask at {small['tokens']:,} tokens", small["seconds"] * 1000, "<=", 20, " ms"
        yield f"mask at {large['tokens']:,} tokens", large["seconds"] * 1000, "<=", 150, " ms"
        yield f"mask memory at {large['tokens']:,} tokens", large["peak_memory"] / 1e6, "<=", 50, " MB"
        if mask["create_block_mask"]["status"] == "ok":
            yield "create_block_mask over build_block_mask", mask["create_block_mask"]["ratio"], ">=", 500, ""
    if recompiles := result.get("recompiles"):
        yield f"graphs compiled for {recompiles['packs']} packs", recompiles["graphs_compiled"], "=", 1, ""
    for one in result.get("sharing", {}).get("spreads", []):
        if one["mix"] == "mathchatsync" and one["conversations"] >= 32:
            name = f"most over mean of {result['sharing']['processes']} processes, {one['conversations']} conversations"
            yield name, one["shared"], "<=", 1.05, ""
    if plans := result.get("plans"):
        share = sum(one["right"] for one in plans) / len(plans)
        yield "plans of recurrences that are the faster one, or as fast", 100 * share, ">=", 80, "%"
    for one in result.get("state", []):
        yield f"state: one pass over packed per-turn, {one['layers']}", one["ratio"], ">=", 1, ""
    for one in result.get("calls", []):
        limit = 4 if one["mix"] == "short results" else 1
        yield f"calls: one pass over packed samples, {one['mix']}", one["ratio"], ">=", limit, ""
