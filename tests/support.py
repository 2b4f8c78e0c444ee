"""Write docs/support.md from test results: what the tests of model families and chat templates recorded.

    make support                                           runs those tests and writes the file
    python tests/support.py --check RESULTS.xml [...]      fails if the file says something else than the tests

A test leaves a property "support" in pytest's JUnit file: one JSON object a family or template. Results of tests that
failed are refused, so nothing stands in the file that did not pass.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from xml.etree import ElementTree

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "support.md"
HEAD = """\
# What is supported

Written by `make support` from test results; do not edit. Every line is a test that passed with transformers
{transformers}, torch {torch} and the chat templates of trl {trl}.

## Models trained in one pass

A tiny random model of each family, all of its kinds of attention active, float64: total loss and every parameter's
gradient of one pass over packed trees against per-turn training with transformers' own attention. Differences are
relative; the tests ask for at most 1e-12 (loss) and 1e-11 (gradient). Two controls must be wrong for each: a plain
causal mask, and positions counted by index.

| family | class | attention | loss difference | gradient difference |
|---|---|---|---|---|
{exact}

For experts, the load-balancing loss of the router is switched off with a warning: it is no sum over passes.

## Hybrid models trained in one pass, their state branching with the tree

Some of their layers carry a state from token to token, which no attention mask can hide: it branches with the tree
instead (`flexmask/model/state_branches.py`). Tested as above, over packs, splits and single rows, with nodes shorter
than a convolution and random deep trees; the tests ask for at most 1e-12 (loss) and 1e-10 (gradient). Three controls
must be wrong for each: masks alone, states that start from the node in front, and states that start from nothing.

| family | class | layers | state branches in | loss difference | gradient difference |
|---|---|---|---|---|---|
{state_branches}

## Models refused in one pass, and trained one pass a turn

Their layers carry a state in ways that do not branch here. `duplication=per_turn` trains them with one pass a row and
one row a pack, as exactly as above; a test for each shows that packing them would be wrong.

| family | class | layers | carries state | loss difference | gradient difference |
|---|---|---|---|---|---|
{per_turn}

Detection is by what modules are (convolutions over tokens, parameters of a recurrence), not by this list.
Any other model is tried on a small row before training and refused if a token's loss or a parameter's gradient is not
that of its passes.

## Chat templates

The {count} stock templates that trl {trl} ships, each under a real tokenizer. For each, every pass of random
conversations is token for token what `apply_chat_template` gives at inference, then exactly what the model must
generate, up to the end-of-turn token.

"With thinking" and "without" are assistant turns; "declared" means that the template does not render thinking, so that
`data.thinking_format` says how it is generated (by default a `<think>` block, with a warning). "Copies" is the share of
plain copies in the row of one conversation of 14 short turns, some without thinking: a template that keeps thinking may
still drop the empty scaffold of a turn without, which duplicates that turn. "Work" is what is tokenized for 64 turns
over that for 8, a token: 1.0 is linear, 8 would be quadratic; prompts are rendered whole, one a turn.

| template | tokenizer | with thinking | without | tool calls | copies | work |
|---|---|---|---|---|---|---|
{templates}

## More chat templates

{surveyed} more, all that axolotl and llama.cpp ship, under tokenizers of bytes with the special tokens that each
writes. Conversations of two turns: plain, with a system message, with thinking in both turns, in the first alone; and
of two exchanges with a tool call, its result and an answer each. Prompts are token for token those of inference; what
is generated is what the template itself writes behind them, or stands written out in tests/survey.py. "Exact with"
names the arguments of the template (`data.template_kwargs`) that the error without them advises.

| template | plain | system | thinking | some thinking | calls |
|---|---|---|---|---|---|
{survey}
"""


def records(path: Path) -> list[dict]:
    """What the tests recorded. Raises ValueError naming a test that did not pass."""
    found = []
    for case in ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        if any(case.find(bad) is not None for bad in ("failure", "error", "skipped")):
            raise ValueError(f"{name} did not pass, so there is nothing to write; run make support again when it does")
        found += [json.loads(one.get("value")) for one in case.iter("property") if one.get("name") == "support"]
    return found


def document(found: list[dict]) -> str:
    from importlib.metadata import version

    from packages import TRL

    # By name: tests that run side by side end in any order.
    models = sorted((one for one in found if one["kind"] == "model"), key=lambda one: one["family"].lower())
    templates: dict[str, dict] = {}
    for one in found:
        if one["kind"] == "template":
            templates.setdefault(one["name"], {}).update(one)
    survey: dict[str, dict[str, str]] = {}
    for one in found:
        if one["kind"] == "survey":
            survey.setdefault(one["name"], {})[one["chat"]] = one["verdict"]
    chats = ("plain", "system", "thinking", "some thinking", "calls")
    return HEAD.format(
        surveyed=len(survey),
        survey=_lines((f"`{name}`", *(verdicts[chat] for chat in chats)) for name, verdicts in sorted(survey.items())),
        exact=_lines(
            (m["family"], f"`{m['model_class']}`", m["attention"], *_differences(m))
            for m in models
            if m["verdict"] == "exact"
        ),
        **{
            verdict.replace(" ", "_"): _lines(
                (m["family"], f"`{m['model_class']}`", m["attention"], f"`{m['why']}`", *_differences(m))
                for m in models
                if m["verdict"] == verdict
            )
            for verdict in ("state branches", "per turn")
        },
        templates=_lines(
            (
                f"`{name}`",
                t["tokenizer"],
                t["thinking"],
                t["plain"],
                t["tools"],
                f"{t['duplicated_share']:.0%}",
                f"{t['work']:.1f}",
            )
            for name, t in sorted(templates.items())
        ),
        count=len(templates),
        trl=TRL.partition("==")[2],
        torch=version("torch").partition("+")[0],
        transformers=version("transformers"),
    )


def _lines(rows) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _differences(model: dict) -> tuple[str, str]:
    return _below(model["loss_difference"]), _below(model["gradient_difference"])


def _below(value: float) -> str:
    """The power of ten that a difference is below: its digits are another machine's rounding."""
    return f"< 1e{max(-14, math.ceil(math.log10(max(value, 1e-300)))):d}"


def _without_differences(text: str) -> list[str]:
    """Lines without the powers of ten, which may differ between processors by rounding."""
    return [" | ".join(cell for cell in line.split(" | ") if not cell.startswith("< 1e")) for line in text.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="JUnit files of pytest")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the document is out of date")
    arguments = parser.parse_args()
    try:
        text = document([record for path in arguments.results for record in records(path)])
    except ValueError as error:
        sys.exit(f"error: {error}")
    if not arguments.check:
        DOCUMENT.write_text(text, encoding="utf-8")
        print(DOCUMENT.relative_to(Path.cwd()))
    elif _without_differences(DOCUMENT.read_text(encoding="utf-8")) != _without_differences(text):
        sys.exit("error: docs/support.md does not say what the tests found; run make support")


if __name__ == "__main__":
    main()
