"""Every file in conf/ is composed and started: a run with it ends with its result."""

import itertools
import json
import shlex
from pathlib import Path

import pytest
from journeys.workshop import ROOT

CONF = ROOT / "conf"
# The files that are no choice of a group: composed by every run of train, and by every run of make bench.
ROOTS = {"config.yaml": "make train", "benchmark.yaml": "make bench"}
SMALL = [
    "trainer.steps=3", "trainer.warmup_steps=0", "trainer.conversations_per_step=2", "trainer.save_every=0",
    "trainer.evaluate_every=0", "data.heldout_conversations=2", "evaluation.conversations=2",
    "evaluation.max_new_tokens=8", "evaluation.batch_size=2",
]  # fmt: skip
TINY = ["model.tiny.layers=1", "model.tiny.hidden_size=32"]
ARMS = ("parcels", "parcels_per_call", "parcels_uncut", "parcels_last_call")
REAL = ["model.name_or_path=models/dense", "data.path=gsm8k.jsonl"]
REAL_ARMS = ("smollm2_study", *(f"smollm2_study_{arm}" for arm in ("untrained", "keep_thinking", "last_turn")))
FEWER_FLAWS = "data.flaws={},{wrong_step:1},{irrelevant:1},{shuffled:1},{truncated:1},{missing:1}"
DENSE = ["model=hub", "model.name_or_path=models/dense"]
# What a choice needs beside it, where the hub or a user's own is meant.
BESIDE = {
    "model/tiny": TINY,
    "model/*": ["model.name_or_path=models/dense", "data=jsonl", "data.path=my.jsonl"],
    "data/tutoring": [*TINY, "data.train_conversations=8"],
    "data/careless_tutoring": [*TINY, "data.train_conversations=8"],
    "data/tutoring_pairs": [*TINY, "objective=dpo", "data.train_conversations=8"],
    "data/parcels": [*TINY, "model.tiny.words=parcels", "data.train_conversations=8"],
    "data/gsm8k_socratic": [*DENSE, "data.path=gsm8k.jsonl"],
    "data/tau2": [*DENSE, "data.path=tau2.jsonl"],
    "data/mix": [*DENSE, "data.sources={mine: {path: my.jsonl}}"],
    "data/hub": [*DENSE, "data.path=my.jsonl", "data.hub_id=nobody/nothing"],
    "data/*": [*DENSE, "data.path=my.jsonl"],
    "adapter/none": TINY,
    "adapter/*": [*DENSE, "data=jsonl", "data.path=my.jsonl"],
    "experiment/short": [*TINY, "data.train_conversations=8"],
    **{f"experiment/{name}": [*TINY, "data.train_conversations=8"] for name in ARMS},
    "data/programs": [*TINY, "model.tiny.words=programs", "data.train_conversations=8"],
    "data/documents": [*TINY, "model.tiny.words=documents", "data.train_conversations=8"],
    "experiment/programs": [*TINY, "data.train_conversations=8"],
    "experiment/documents": [*TINY, "data.train_conversations=8"],
    **{f"experiment/{name}": REAL for name in ("smollm2_gsm8k", *REAL_ARMS)},
    "sweep/real_model": REAL,
    "sweep/reasoning_quality": [*TINY, "data.train_conversations=8", "duplication.thinking_weight=1,0.3", FEWER_FLAWS],
    "experiment/tutoring_preferences": ["model.name_or_path=models/dense", "data.train_conversations=8"],
    "experiment/qwen3_4b_tau2": ["model.name_or_path=models/dense", "data.path=tau2.jsonl"],
    "experiment/qwen3_30b_a3b_lora_mathchatsync": ["model.name_or_path=models/experts", "data.path=my.jsonl"],
    "experiment/gpt_oss_20b_lora_mathchatsync": ["model.name_or_path=models/gpt_oss", "data.path=my.jsonl"],
    "experiment/*": ["model.name_or_path=models/dense", "data.path=my.jsonl"],
    "objective/sft": [*TINY, "data.train_conversations=8"],
    "objective/*": [*TINY, "data=tutoring_pairs", "data.train_conversations=8"],
    "context/compact": [
        *TINY,
        "data.train_conversations=8",
        "context.arguments.instruction=Sum",
        "context.arguments.introduction=So far:",
    ],
    "context/keep_thinking_of_last": [
        *TINY,
        "data.train_conversations=8",
        "data.template_kwargs={preserve_thinking: true}",
    ],
    "context/*": [*TINY, "data.train_conversations=8"],
    "*": [*TINY, "data.train_conversations=8"],
}


def choices() -> dict[str, list[str]]:
    groups = {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in CONF.iterdir() if folder.is_dir()
    }
    return dict(sorted(groups.items()))


def beside(choice: str) -> list[str]:
    group = choice.partition("/")[0]
    return next(BESIDE[name] for name in (choice, f"{group}/*", "*") if name in BESIDE)


def starts() -> list[list[str]]:
    """Choices to start in one run each. Those that need nothing of their own stand together, one of each group."""
    free = [group for group in choices() if f"{group}/*" not in BESIDE and group != "sweep"]
    together = itertools.zip_longest(*([f"{group}/{name}" for name in choices()[group]] for group in free))
    alone = [
        [f"{group}/{name}"]
        for group, names in choices().items()
        if group not in free and group != "sweep"
        for name in names
    ]
    return [[one for one in some if one] for some in together] + alone


def test_every_file_is_started_somewhere():
    files = {str(path.relative_to(CONF)) for path in CONF.rglob("*.yaml")}
    started = {f"{choice}.yaml" for some in starts() for choice in some}
    started |= {f"sweep/{name}.yaml" for name in choices()["sweep"]} | ROOTS.keys()
    assert files == started


@pytest.mark.parametrize("chosen", starts(), ids="+".join)
def test_a_run_with_it_ends_with_its_result(workshop, chosen):
    words = [*(one.replace("/", "=") for one in chosen), *beside(chosen[0]), *SMALL]
    sharded = any("fsdp" in (CONF / f"{one}.yaml").read_text(encoding="utf-8") for one in chosen)
    by = "torchrun --standalone --nproc-per-node=1 -m" if sharded else "python -m"
    done = workshop.run(f"{by} {shlex.join(['recipes.train', *words])}")
    folder = workshop.folder / done.last_line
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 3
    for choice in chosen:
        group, _, name = choice.partition("/")
        if group == "duplication":
            assert result["layout"] == name
        if choice == "wandb/off":
            assert not Path(folder / "wandb").exists()


@pytest.fixture(scope="module", params=choices()["sweep"])
def swept(workshop, request):
    few = ["hydra.sweeper.n_trials=2"] if request.param == "search" else []
    # Steps are those of the arms, which differ.
    small = [word for word in SMALL if not (request.param == "real_model" and word.startswith("trainer.steps"))]
    words = " ".join(map(shlex.quote, [*small, *beside(f"sweep/{request.param}"), *few, "wandb=off"]))
    folder = f"runs/sweep/{request.param}"
    done = workshop.run(f'make sweep SWEEP={request.param} SWEEP_DIR={folder} ARGS="{words}"', timeout=600)
    return workshop.folder / folder, done


def test_a_sweep_ends_in_a_table_and_a_plot(swept):
    folder, done = swept
    results = [json.loads(path.read_text()) for path in folder.glob("*/result.json")]
    assert len(results) >= 2
    assert (folder / "comparison.png").stat().st_size > 10_000
    table = (folder / "comparison.md").read_text()
    assert len(table.splitlines()) >= 2 + len(results)
    if folder.name == "layouts":
        assert all(f"| {result['layout']} | {result['seed']} |" in table for result in results)
    assert table.strip() in done.out


# Breaks if an arm fails, is measured otherwise than the others, or does not run its tool.
def test_the_table_of_context_rules_has_every_cell(swept):
    folder = swept[0]
    if folder.name != "context":
        return
    header, _, *lines = (folder / "comparison.md").read_text().splitlines()
    columns = [column.strip() for column in header.strip("|").split("|")]
    for wanted in ("episodes succeeded", "answers right", "held-out loss", "tokens computed", "training seconds"):
        assert wanted in columns
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len(cells) == 4 and all(len(some) == len(columns) for some in cells)
    thinking = columns.index("tokens of thinking")  # "-" where a model of few steps closed none
    assert not any(cell in ("", "-") for some in cells for at, cell in enumerate(some) if at != thinking)
    arms = {(some[columns.index("layout")], some[columns.index("rule")]) for some in cells}
    rule = "recipes.sources.parcels:harness"
    assert arms == {("one_pass", rule), ("per_turn", rule), ("last_turn", rule), ("one_pass", "None")}


def number_of_job(result):
    return int(result.parent.name.partition("_")[0])


def cells_of(folder):
    """The columns of a sweep's table, and the cells of each line that is a run."""
    header, _, *lines = [line for line in (folder / "comparison.md").read_text().splitlines() if line.startswith("|")]
    columns = [column.strip() for column in header.strip("|").split("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return columns, [some for some in cells if "mean of" not in some[columns.index("seed")]]


# What the pages of docs/studies show: a column that must be there, and the arms by the columns that name them.
STUDIES = {
    "other_data": (
        ("answers right", "held-out loss", "tokens computed", "training seconds"),
        ("kind", "layout", "seed"),
        itertools.product(("programs", "documents"), ("one_pass", "per_turn", "keep_thinking", "last_turn"), "012"),
    ),
    "reasoning_quality": (
        ("answers right", "thinking right", "held-out loss"),
        ("flaws", "thinking_weight"),
        itertools.product(
            ("none", *(f"{flaw} 1" for flaw in ("wrong_step", "irrelevant", "shuffled", "truncated", "missing"))),
            ("1", "0.3"),
        ),
    ),
    "real_model": (
        ("answers right", "held-out loss", "tokens computed", "training seconds", "steps"),
        ("layout",),
        [("one_pass",), ("one_pass",), ("keep_thinking",), ("last_turn",)],
    ),
}


# Breaks if an arm fails, is not measured, or is not told apart from another.
def test_the_table_of_a_study_has_every_cell(swept):
    folder = swept[0]
    if folder.name not in STUDIES:
        return
    wanted, names, arms = STUDIES[folder.name]
    columns, cells = cells_of(folder)
    assert set(wanted) <= set(columns)
    assert not any(some[columns.index(column)] in ("", "-") for some in cells for column in wanted)
    assert sorted(tuple(some[columns.index(name)] for name in names) for some in cells) == sorted(arms)


# Breaks if a run of one layout is not the same training as another's: the table would compare unlike things.
def test_the_layouts_of_a_sweep_are_the_same_training(workshop, swept):
    folder = swept[0]
    if folder.name == "search":
        assert (folder / "optimization_results.yaml").exists()
        return
    if folder.name in ("real_model", "reasoning_quality"):
        return  # has no arm of one pass a turn
    one_pass, per_turn = (
        json.loads(min(folder.glob(f"*_{layout}_seed0/result.json"), key=number_of_job).read_text())
        for layout in ("one_pass", "per_turn")
    )
    assert one_pass["loss_last"] == pytest.approx(per_turn["loss_last"], rel=1e-4)
    assert one_pass["tokens_computed"] < per_turn["tokens_computed"]
    assert one_pass["tokens_trained"] == per_turn["tokens_trained"]


def test_a_sweep_that_has_not_ended_is_not_compared(workshop, swept):
    unfinished = next(swept[0].glob("0_*"))
    (unfinished / "result.json").unlink()
    done = workshop.run(f"python -m recipes.compare {swept[0]}", code=None)
    assert f"no result in {unfinished.name}" in done.err and "resume=" in done.err
