"""The benchmark: what it counts is right by hand, its arms train the same, and one that does not is caught."""

import functools
import json
import subprocess
import sys
import types
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_upper_left
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface

from flexmask import build_block_mask, lay_out, pack
from flexmask.attention.interface import attention_name, flexmask_attention
from flexmask.model.state_branches import CALL_IN_TOKENS, StateBranches
from recipes import benchmark
from recipes.benchmarking import arms, grid, measure, paper, paths, tables, workloads
from recipes.benchmarking.config import ArmName, to_benchmark
from recipes.benchmarking.parts import attention, calls, loss, mask, packing, plans, preparation, recompiles, state
from recipes.benchmarking.work import Size, Work, card_peak, needed_flops, predicted_flops
from recipes.benchmarking.workloads import Dialogue, Turn
from recipes.configuration import CONF_DIR
from recipes.configuration.rules import ConfigError

TINY = [
    "shapes.small={vocab_size:50,hidden_size:16,intermediate_size:24,layers:2,heads:2,kv_heads:1,head_dim:16}",
    "grid.turns=[2,3]",
    "grid.mixes=[answer_heavy,gsm8k_socratic]",
    "grid.turn_tokens=40",
    "grid.conversation_tokens=300",
    "grid.repeats=2",
    "block_size=16",
    "pack_length=1024",
]
CPU = torch.device("cpu")


def compose_benchmark(overrides=(), output_dir="runs/composed"):
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        return to_benchmark(compose("benchmark", overrides=[*overrides, f"output_dir='{output_dir}'"]))


def dialogue(*lengths: tuple[int, int, int]) -> Dialogue:
    """Every token another one."""
    fresh = iter(range(10**6))
    turns = (Turn(*(np.fromiter(fresh, np.int64, length) for length in turn)) for turn in lengths)
    return Dialogue("by hand", tuple(turns))


def tiny_model(config, seed=0):
    """Weights large enough that attention is far from uniform: a wrong mask must show."""
    model = grid.build_model(config.shapes["small"], torch.float32, CPU, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
        for layer in model.model.layers:
            layer.self_attn.q_norm.weight.mul_(3)
    return model


def tiny_dialogues(config, turns=3):
    return workloads.draw_dialogues(workloads.sampler_of(config, "answer_heavy", turns), 0, 50, 300)


# ---- configuration ----


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("grid.repeatz=1", "grid.repeatz"),
        ("+grid.repeatz=1", "grid.repeatz"),  # Hydra's + goes past the schema
        ("+shapes.small.depth=1", "shapes.small.depth"),
        ("grid.repeats=0", "grid.repeats=0: must be at least 1"),
        ("grid.turns=[2,0]", r"grid.turns[1]=0: must be at least 1"),
        ("mixes.balanced.answer=0", "mixes.balanced="),
        ("grid.mixes=[blended]", "grid.mixes: blended is neither one of mixes"),
        ("shape=huge", "shape=huge: is none of shapes: small, qwen3_0_6b, qwen3_4b"),
        ("arms=[one_pass]", "arms: per_turn_packed must be among them"),
        ("device=tpu", "device"),
        ("sections=[grids]", "sections"),
        ("gsm8k_path=none.jsonl", "gsm8k_path=none.jsonl: no such file"),
    ],
)
def test_a_wrong_override_is_named(override, named):
    with pytest.raises((HydraException, ConfigError)) as caught:
        compose_benchmark([override])
    assert named in f"{caught.value} {caught.value.__cause__}"


def test_the_device_chooses_what_the_command_line_does_not():
    config = compose_benchmark(["device=cuda", "pack_length=131072"])
    assert (config.shape, config.dtype, config.pack_length) == ("qwen3_0_6b", "bfloat16", 131072)
    assert compose_benchmark().shape == "small"


# Parameters of the models on the hub, which are known: 0.6B has 596M with its tied embedding, 4B has 4.02B.
@pytest.mark.parametrize(("shape", "parameters"), [("qwen3_0_6b", 596_049_920), ("qwen3_4b", 4_022_468_096)])
def test_the_shapes_are_those_of_qwen3(shape, parameters):
    model = grid.build_model(compose_benchmark().shapes[shape], torch.bfloat16, torch.device("meta"), 0)
    assert model.num_parameters() == parameters


def test_a_wrong_configuration_loads_nothing_heavy():
    code = "import sys; from recipes import benchmark; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- dialogues ----


def test_passes_are_those_of_per_turn_training():
    first, second = workloads.passes_of(dialogue((2, 1, 2), (1, 0, 1)))
    assert first.input_ids.tolist() == [0, 1, 2, 3, 4] and first.prompt_length == 2
    assert second.input_ids.tolist() == [0, 1, 3, 4, 5, 6] and second.prompt_length == 5
    assert first.loss_weights.tolist() == [0, 0, 1, 1, 1] and second.loss_weights.tolist() == [0, 0, 0, 0, 0, 1]


# With a vocabulary of three, segments often begin alike: prefixes are shared where no layout by roles would share them.
@pytest.mark.parametrize("seed", range(20))
def test_distinct_prefixes_are_a_set_of_tuples_and_the_tokens_of_one_pass(seed):
    sampler = workloads.share_lengths((1, 1, 1), 12, 4)
    (one,) = workloads.draw_dialogues(sampler, seed, 3, tokens=0)
    passes = workloads.passes_of(one)
    prefixes = {tuple(p.input_ids[:end].tolist()) for p in passes for end in range(1, len(p) + 1)}
    assert workloads.distinct_prefixes(one) == len(prefixes)
    assert sum(map(len, lay_out(passes, "one_pass").rows)) == len(prefixes)


def test_dialogues_fill_the_tokens_they_may_take():
    sampler = workloads.statistical_lengths(workloads.GSM8K_SOCRATIC)
    dialogues = workloads.draw_dialogues(sampler, 0, 10**9, tokens=5000)
    tokens = [workloads.distinct_prefixes(one) for one in dialogues]
    assert 4000 < sum(tokens) <= 5000
    again = workloads.draw_dialogues(sampler, 0, 10**9, tokens=5000)
    assert [one.turns[0].question.tolist() for one in again] == [one.turns[0].question.tolist() for one in dialogues]
    assert len(workloads.draw_dialogues(sampler, 0, 9, tokens=0)) == 1


@pytest.mark.parametrize(("statistics", "turns", "tokens"), [("GSM8K_SOCRATIC", 3.7, 247), ("MATHCHATSYNC", 6.0, 1700)])
def test_stored_lengths_have_the_means_of_the_data(statistics, turns, tokens):
    sampler = workloads.statistical_lengths(getattr(workloads, statistics))
    rng = np.random.default_rng(0)
    conversations = [sampler(rng) for _ in range(3000)]
    assert np.mean([len(one) for one in conversations]) == pytest.approx(turns, rel=0.05)
    assert np.mean([sum(map(sum, one)) for one in conversations]) == pytest.approx(tokens, rel=0.05)


def test_a_file_gives_its_own_lengths(tmp_path):
    problem = {
        "question": "Mia packs 4 boxes.",  # 5 pieces, and a newline before the sub-question
        "answer": "How many? ** She packs <<4=4>>4.\nAnd then? ** None.\n#### 4",
    }
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps(problem) + "\n")
    expected = [(5 + 1 + 3 + 8, 3 + 4, 4 + 2), (3 + 8, 0, 2 + 2)]
    assert workloads.file_lengths(str(path)) == [expected]
    config = compose_benchmark([f"gsm8k_path={path}"])
    assert workloads.sampler_of(config, "gsm8k_socratic", None)(np.random.default_rng(0)) == expected


# ---- what is counted ----


# q1 q1 t1 a1 | a1' q2 t2 t2 a2 in one pass: depths 1 2 3 4 | 3 4 5 6 7.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("one_pass", Work(1, 9, 5, 35, 6 * 16)),
        ("one_pass_paths", Work(1, 9, 5, 35, 35)),
        ("per_turn_packed", Work(2, 11, 5, 10 + 28, 4 * 16)),  # the passes begin with a block each
        ("per_turn_naive", Work(2, 11, 5, 10 + 28, 10 + 28)),
        ("paper_dense", Work(1, 10, 5, 35 + 5, 100)),  # a copy of a2 too, which sees 5 tokens
        ("keep_thinking", Work(1, 8, 5, 36, 3 * 16)),
    ],
)
def test_work_by_hand(name, expected):
    config = compose_benchmark(["block_size=4", "pack_length=64", f"arms=[{','.join(ArmName)}]"])
    (arm,) = [arm for arm in arms.make_arms(config)[0] if arm.name == name]
    items = arm.prepare([dialogue((2, 1, 1), (1, 2, 1))])
    works = [arm.work(item) for item in items]
    assert sum(works[1:], start=works[0]) == expected


# torch counts the products of one forward and backward over a dense square of pairs. Its unfused attention keeps the
# scores for the backward pass, so there it has one product fewer than the kernels here, which compute them again.
def test_predicted_flops_are_those_that_torch_counts():
    config = compose_benchmark(TINY)
    model = tiny_model(config)
    (arm,) = [arm for arm in arms.make_arms(config)[0] if arm.name == ArmName.paper_dense]
    (item,) = arm.prepare([dialogue((3, 5, 4), (2, 6, 3))])
    item = replace(item, input_ids=item.input_ids % 50, targets=item.targets % 50)
    predicted = predicted_flops(Size.of(model), arm.work(item))
    model.set_attn_implementation("sdpa")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        arm.loss(model, item).backward()
    assert counter.get_total_flops() == predicted["linear"] + predicted["logits"] + predicted["attention"] * 6 / 7


def test_needed_flops_leave_out_what_nobody_needs():
    size = Size(linear_weights=10, attention_width=4, output_weights=20)
    work = Work(1, tokens_computed=8, tokens_trained=5, visible_pairs=30, computed_pairs=64)
    assert predicted_flops(size, work) == {"linear": 480, "attention": 14 * 4 * 64, "logits": 600}
    assert predicted_flops(size, work, checkpointing=True) == {
        "linear": 640,
        "attention": 18 * 4 * 64,
        "logits": 600,
    }
    assert needed_flops(size, work) == 480 + 12 * 4 * 30 + 600


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40", None),  # neither an L4 nor an L40S
        ("NVIDIA L40S", 362e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Some Card", None),
    ],
)
def test_the_peak_of_a_card_is_found_by_its_name(name, peak):
    assert card_peak(name) == peak


def test_peak_memory_counts_what_is_held_at_once():
    def action():
        first = torch.empty(1 << 20, dtype=torch.uint8)
        del first
        second = torch.empty(3 << 20, dtype=torch.uint8)
        third = torch.empty(1 << 20, dtype=torch.uint8)
        return second[:1].clone(), third[:1].clone()

    _, peak = measure.peak_memory(action, CPU)
    assert (4 << 20) <= peak < (4 << 20) + 1024


def test_stages_add_up():
    watch = measure.Stopwatch(CPU)
    for label in ("forward", "backward", "forward"):
        watch.mark(label)
    (start, *_), end = [moment for _, moment in watch._marks], watch._marks[-1][1]
    seconds = watch.seconds()
    assert list(seconds) == ["forward", "backward"] and sum(seconds.values()) == pytest.approx(end - start)


# ---- the arms train the same, and one that does not is caught ----


def test_every_exact_arm_has_one_loss_and_one_gradient():
    config = compose_benchmark([*TINY, "dtype=float32"])
    cell = grid.measure_cell(config, tiny_model(config), arms.make_arms(config)[0], tiny_dialogues(config))
    exact = [arm for name, arm in cell["arms"].items() if name != "keep_thinking"]
    assert len(exact) == 4
    for arm in exact:
        assert arm["loss_difference"] < 1e-6 and arm["gradient_difference"] < 1e-4
        assert arm["loss"] == pytest.approx(exact[0]["loss"], rel=1e-6)
        assert arm["tokens_trained"] == exact[0]["tokens_trained"]
    floor = cell["arms"]["keep_thinking"]
    assert abs(floor["loss"] / exact[0]["loss"] - 1) > 1e-3  # it trains something else


# Also with conversations that are split over several rows.
@pytest.mark.parametrize("pack_length", [1024, 160])
def test_paths_are_exact_and_compute_visible_pairs_only(pack_length):
    names = "arms=[one_pass,per_turn_packed,one_pass_paths]"
    config = compose_benchmark([*TINY, names, f"pack_length={pack_length}", "dtype=float64"])
    cell = grid.measure_cell(config, tiny_model(config), arms.make_arms(config)[0], tiny_dialogues(config, turns=4))
    along, ours = cell["arms"]["one_pass_paths"], cell["arms"]["one_pass"]
    assert along["loss_difference"] < 1e-6 and along["gradient_difference"] < 1e-4
    assert along["computed_pairs"] == along["visible_pairs"] == ours["visible_pairs"] < ours["computed_pairs"]
    assert along["tokens_computed"] == ours["tokens_computed"]


# Aligned at the front instead of the end, as scaled_dot_product_attention's own is_causal.
def test_paths_aligned_at_the_front_are_caught(monkeypatch):
    monkeypatch.setattr(paths, "causal_lower_right", causal_upper_left)
    config = compose_benchmark([*TINY, "arms=[one_pass,per_turn_packed,one_pass_paths]"])
    with pytest.raises(measure.InexactError, match="one_pass_paths: .* do not train the same"):
        grid.measure_cell(config, tiny_model(config), arms.make_arms(config)[0], tiny_dialogues(config))


# Compiled by another backend than inductor, which takes a minute; `make journeys` trains with that one. What the run
# that is not timed compiles is found again, and the arms around it run without.
def test_compiled_layers_are_exact_and_compiled_before_they_are_timed(monkeypatch):
    torch._dynamo.reset()  # other tests compile the code of the same layers
    torch._dynamo.reset()  # other tests compile the same layers' code
    monkeypatch.setattr(
        torch.nn.Module, "compile", functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    )
    config = compose_benchmark([*TINY, "arms=[one_pass_compiled,one_pass,per_turn_packed]"])
    model = tiny_model(config)
    for turns in (2, 3, 4):
        cell = grid.measure_cell(config, model, arms.make_arms(config)[0], tiny_dialogues(config, turns))
        compiled = cell["arms"]["one_pass_compiled"]
        assert compiled["status"] == "ok" and compiled["gradient_difference"] < 1e-4
        assert compiled["graphs_compiled"] or turns > 2
        assert not any(arm["graphs_compiled_while_timed"] for arm in cell["arms"].values())
        assert cell["arms"]["one_pass"]["graphs_compiled"] == 0


def flat_shift(one: Dialogue):
    row = paper_row(one)
    trained = torch.isin(row.roles, torch.tensor([paper.THINKING, paper.RESPONSE_OUT])).nonzero().flatten()
    return replace(row, previous=trained - 1)


paper_row = paper.paper_row
BROKEN = {
    "the paper's flat label shift": ("paper_row", flat_shift),
    "a plain causal mask": ("paper_mask", lambda item: torch.ones(1, 1, *[item.input_ids.shape[1]] * 2).bool().tril()),
    "thinking left in the history": (
        "lay_out",
        lambda passes, layout, *rest: lay_out(passes, "keep_thinking" if layout == "per_turn" else layout, *rest),
    ),
    "turns left out": (
        "lay_out",
        lambda passes, layout, *rest: lay_out(passes, "last_turn" if layout == "per_turn" else layout, *rest),
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_an_arm_that_trains_something_else_is_caught(broken, monkeypatch):
    monkeypatch.setattr(arms, *BROKEN[broken])
    config = compose_benchmark(TINY)
    with pytest.raises(measure.InexactError, match="do not train the same"):
        grid.measure_cell(config, tiny_model(config), arms.make_arms(config)[0], tiny_dialogues(config))


# The right loss with wrong gradients: as fast as it may be, it would not train.
def test_gradients_that_differ_are_caught(monkeypatch):
    config = compose_benchmark(TINY)
    made = [
        replace(arm, loss=lambda model, item, arm=arm: arm.loss(model, item).detach() + 0 * model.lm_head.weight.sum())
        if arm.name == ArmName.per_turn_naive
        else arm
        for arm in arms.make_arms(config)[0]
    ]
    with pytest.raises(measure.InexactError, match="per_turn_naive: loss .* gradients differ by 1.0e\\+00"):
        grid.measure_cell(config, tiny_model(config), made, tiny_dialogues(config))


def test_tokens_beyond_the_distinct_prefixes_are_caught(monkeypatch):
    monkeypatch.setattr(arms, "lay_out", lambda passes, layout, *rest: lay_out(passes, "per_turn", *rest))
    config = compose_benchmark([*TINY, "arms=[one_pass,per_turn_packed]"])
    with pytest.raises(measure.InexactError, match="one_pass computes .* distinct prefixes"):
        grid.measure_cell(config, tiny_model(config), arms.make_arms(config)[0], tiny_dialogues(config))


def test_a_dialogue_longer_than_a_pack_is_split_and_still_exact():
    config = compose_benchmark([*TINY, "pack_length=160"])
    cell = grid.measure_cell(config, tiny_model(config), arms.make_arms(config)[0], tiny_dialogues(config, turns=4))
    ours = cell["arms"]["one_pass"]
    assert ours["rows"] > cell["dialogues"] and ours["tokens_computed"] > cell["distinct_prefixes"]


def test_an_arm_that_is_too_large_says_so():
    config = compose_benchmark([*TINY, "dense_mask_gib=0"])
    cell = grid.measure_cell(config, tiny_model(config), arms.make_arms(config)[0], tiny_dialogues(config))
    assert cell["arms"]["paper_dense"]["status"].startswith("too large: the mask of ")
    assert "too large: the mask of" in tables.cell_lines(cell | {"mix": "x", "turns": 3})
    assert "too large" in tables.grid_table([cell | {"mix": "x", "turns": 3}])


def test_gradient_checkpointing_costs_a_forward_and_saves_memory():
    # Few tokens are trained, so that activations and not the logits are what is held.
    settings = [*TINY, "grid.turns=[3]", "grid.mixes=[answer_heavy]", "mixes.answer_heavy.question=9"]
    plain, checkpointed = (
        next(grid.grid(compose_benchmark([*settings, f"gradient_checkpointing={on}"])))["arms"]["one_pass"]
        for on in ("false", "true")
    )
    assert checkpointed["flops"]["linear"] / plain["flops"]["linear"] == 8 / 6
    assert checkpointed["flops"]["attention"] / plain["flops"]["attention"] == 9 / 7
    assert checkpointed["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    assert checkpointed["peak_memory"] < plain["peak_memory"]


@pytest.mark.gpu
def test_the_grid_on_a_gpu():
    settings = ["device=cuda", "shape=small", "grid.turns=[3]", "grid.mixes=[balanced]", "pack_length=2048"]
    config = compose_benchmark([*settings, "grid.conversation_tokens=2000", "grid.turn_tokens=128"])
    (cell,) = grid.grid(config)
    assert {cell["arms"][name]["status"] for name in ("one_pass", "per_turn_packed", "per_turn_varlen")} == {"ok"}
    # One compile for a pack length: what one pass compiles, packed per-turn finds.
    assert cell["arms"]["one_pass"]["graphs_compiled"] == 1
    assert cell["arms"]["per_turn_packed"]["graphs_compiled"] == 0
    assert not any(arm["graphs_compiled_while_timed"] for arm in cell["arms"].values() if arm["status"] == "ok")
    assert recompiles.measure(replace(config, pack_length=1024))["graphs_compiled"] == 1


def out_of_memory(model, item):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nMore of it")


def test_an_arm_that_runs_out_of_memory_says_so():
    config = compose_benchmark(TINY)
    made = [
        replace(arm, loss=out_of_memory) if arm.name == ArmName.per_turn_naive else arm
        for arm in arms.make_arms(config)[0]
    ]
    cell = grid.measure_cell(config, tiny_model(config), made, tiny_dialogues(config))
    assert cell["arms"]["per_turn_naive"] == {"status": "CUDA out of memory. Tried to allocate 20 GiB."}
    made[0] = replace(made[0], loss=out_of_memory)
    with pytest.raises(ValueError, match="one_pass: CUDA out of memory.* lower pack_length"):
        grid.measure_cell(config, tiny_model(config), made, tiny_dialogues(config))


# Any error of a kernel that is not ours is reported; one of our own stops the run.
def test_a_foreign_kernel_may_refuse():
    def refuse(model, item):
        raise RuntimeError("no kernel for this card")

    config = compose_benchmark(TINY)
    first, *others = arms.make_arms(config)[0]
    foreign = replace(first, name=ArmName.one_pass_flash, loss=refuse, foreign=True)
    cell = grid.measure_cell(config, tiny_model(config), [first, foreign, *others], tiny_dialogues(config))
    assert cell["arms"]["one_pass_flash"] == {"status": "no kernel for this card"}
    with pytest.raises(RuntimeError, match="no kernel"):
        ours = replace(foreign, foreign=False)
        grid.measure_cell(config, tiny_model(config), [first, ours, *others], tiny_dialogues(config))


def test_arms_that_need_a_gpu_are_named():
    _, left_out = arms.make_arms(compose_benchmark([f"arms=[{','.join(ArmName)}]"]))
    assert left_out.keys() == {"one_pass_flash", "one_pass_liger", "per_turn_varlen"}
    assert all("CUDA" in why for why in left_out.values())


# torch compiles a checkpointed layer whole or, without a word, not at all.
def test_checkpointed_layers_are_not_called_compiled_on_cpu():
    names = "arms=[one_pass,per_turn_packed,one_pass_compiled]"
    _, left_out = arms.make_arms(compose_benchmark([names, "gradient_checkpointing=true"]))
    assert left_out == {
        "one_pass_compiled": "attention on CPU is not compiled, so checkpointed layers cannot be either"
    }


def test_liger_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(arms, "_missing", lambda module: True)
    config = compose_benchmark(["device=cuda", "arms=[one_pass,per_turn_packed,one_pass_liger]"])
    assert arms.make_arms(config)[1] == {"one_pass_liger": "liger_kernel is not installed; pip install liger-kernel"}


# ---- what only a GPU runs, with the kernel's place taken by a reference that has its signature ----


def causal_at_the_end(query, key, value, queries, keys, longest_queries, longest_keys, scale):
    """Sequence after sequence, the last query seeing all keys: query [S, H, D], key and value [T, K, D]."""
    outputs = []
    for borders, longest in ((queries, longest_queries), (keys, longest_keys)):
        assert longest == int(borders.diff().max()) and borders.dtype == torch.int32
    assert (int(queries[-1]), int(keys[-1])) == (len(query), len(key)) and query.is_contiguous() and key.is_contiguous()
    for i in range(len(queries) - 1):
        q, k, v = query[queries[i] : queries[i + 1]], key[keys[i] : keys[i + 1]], value[keys[i] : keys[i + 1]]
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        hidden = torch.ones(len(q), len(k)).triu(len(k) - len(q) + 1).bool()
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v))
    return torch.cat(outputs)


def check_gpu_arm(arm, config):
    """Against the arms of the CPU, as the grid does it."""
    model, made = tiny_model(config), arms.make_arms(config)[0]
    cell = grid.measure_cell(config, model, [made[0], arm, *made[1:]], tiny_dialogues(config))
    assert cell["arms"][arm.name]["gradient_difference"] < 1e-4
    return cell["arms"][arm.name]


VARLEN_ARMS = pytest.mark.parametrize(
    ("name", "layout"), [(ArmName.per_turn_varlen, "per_turn"), (ArmName.one_pass_paths, "one_pass")]
)


def check_varlen_arm(name, layout, kernel, monkeypatch):
    assert paths.varlen_kernel(torch.device("cuda"))[0] == kernel
    monkeypatch.setattr(arms, "varlen_kernel", lambda device: paths.flash_kernel())
    config = compose_benchmark(TINY)
    figures = check_gpu_arm(arms._varlen(name, layout, config, CPU), config)
    assert figures["computed_pairs"] == figures["visible_pairs"]


@VARLEN_ARMS
@pytest.mark.parametrize("package", ["flash_attn", "flash_attn_interface"])
def test_varlen_arms_give_each_node_to_the_flash_attn_packages(package, name, layout, monkeypatch):
    def flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale=None, causal=False):
        assert causal and len(q) <= len(k)
        return causal_at_the_end(q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale)

    module = types.ModuleType(package)
    module.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, package, module)
    check_varlen_arm(name, layout, package, monkeypatch)


@VARLEN_ARMS
def test_varlen_arms_give_each_node_to_torch(name, layout, monkeypatch):
    from torch.nn.attention import varlen

    def attend(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
        assert window_size == (-1, 0) and enable_gqa
        return causal_at_the_end(q, k, v, cu_q, cu_k, max_q, max_k, scale)

    monkeypatch.setattr(varlen, "varlen_attn", mock.create_autospec(varlen.varlen_attn, side_effect=attend))
    check_varlen_arm(name, layout, "torch.nn.attention.varlen", monkeypatch)


# Per-turn passes are given as they lie; a token of the trunk is a key of every node behind it.
def test_paths_by_hand():
    passes = workloads.passes_of(dialogue((2, 1, 1), (1, 2, 1)))
    one = paths.Paths.of(lay_out(passes, "one_pass").rows)
    trunk, last, branch = [0, 1], [0, 1, 2, 3, 4, 5, 6], [0, 1, 7, 8]
    assert one.queries.tolist() == [0, 2, 7, 9] and one.keys.tolist() == [0, 2, 9, 13] and one.longest == (5, 7)
    assert one.places.tolist() == [*trunk, *last, *branch]
    each = paths.Paths.of(lay_out(passes, "per_turn").rows)
    assert each.queries.tolist() == each.keys.tolist() == [0, 4, 11] and each.places is None


class LigerLoss:
    """The signature of Liger's (0.8.5), which takes the weight first."""

    def __init__(self, reduction="mean"):
        self.reduction = reduction

    def __call__(self, lin_weight, _input, target, bias=None):
        return F.cross_entropy(_input @ lin_weight.T, target, reduction=self.reduction)


@pytest.fixture
def liger(monkeypatch):
    module = types.ModuleType("liger_kernel.transformers.fused_linear_cross_entropy")
    module.LigerFusedLinearCrossEntropyLoss = LigerLoss
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for parent in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))


def test_liger_arm_gives_states_and_weights_to_the_fused_loss(liger):
    config = compose_benchmark(TINY)
    check_gpu_arm(arms._liger(ArmName.one_pass_liger, config, CPU), config)


# Its gradients of weighted tokens are right in new versions only, so it is not asked for them.
def test_liger_arm_refuses_weights(monkeypatch):
    def twice(*args):
        return [replace(one, loss_weights=2 * one.loss_weights) for one in pack(*args)]

    monkeypatch.setattr(arms, "pack", twice)
    config = compose_benchmark(TINY)
    with pytest.raises(arms.ArmError, match="Liger's sum has no weights"):
        arms._liger(ArmName.one_pass_liger, config, CPU).prepare(tiny_dialogues(config))


def test_flash_backend_arm_asks_for_that_backend(monkeypatch):
    calls = []

    def attention(*args, backend, **kwargs):
        calls.append(backend)
        return flexmask_attention(*args, **kwargs)

    name = attention_name("flash")
    monkeypatch.setitem(AttentionInterface._global_mapping, name, functools.partial(attention, backend="flash"))
    config = compose_benchmark(TINY)
    check_gpu_arm(arms._packed(ArmName.one_pass_flash, "one_pass", name, config, CPU), config)
    assert calls and set(calls) == {"flash"}


# ---- the sections ----


def test_same_lists_sees_a_block_too_few():
    mod = pack(lay_out(workloads.passes_of(dialogue((9, 9, 9), (9, 9, 9))), "one_pass").rows, 64)[0].visible_until
    ours = build_block_mask(mod, 16)
    theirs = create_block_mask(ours.mask_mod, None, None, 64, 64, device="cpu", BLOCK_SIZE=16)
    assert mask.same_lists(ours, theirs)
    causal = create_block_mask(lambda b, h, q, k: q >= k, None, None, 64, 64, device="cpu", BLOCK_SIZE=16)
    assert not mask.same_lists(ours, causal)


def test_attention_section_refuses_a_wrong_rival(monkeypatch):
    monkeypatch.setattr(attention, "ATTENTION_LENGTHS", (10, 20, 10))
    monkeypatch.setattr(attention, "path_mask", lambda path, own: torch.ones(own, path, dtype=torch.bool))
    with pytest.raises(measure.InexactError, match="attention per_node"):
        attention.measure(compose_benchmark(TINY))


def test_create_block_mask_is_left_out_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(mask.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=2**30))
    built = {"tokens": 32768, "seconds": 1.0}
    assert mask.compare_masks(compose_benchmark(), None, built)["status"] == (
        "too large: needs about 10 GiB, 1 GiB are free"
    )
    assert (
        "create_block_mask=false"
        in mask.compare_masks(compose_benchmark(["create_block_mask=false"]), None, built)["status"]
    )


class FromNodeInFront(StateBranches):
    """Rows are kept apart, but within a row a node starts from the node in front of it and not from its parent."""

    def __init__(self, previous, device):
        super().__init__(torch.where(previous < 0, -1, torch.arange(-1, previous.shape[1] - 1)), device)


@pytest.mark.parametrize("layers", state.STATE_MODELS)
def test_state_section_refuses_state_that_leaks_between_branches(layers, small_sections, monkeypatch):
    monkeypatch.setattr(state, "STATE_MODELS", {layers: state.STATE_MODELS[layers]})
    monkeypatch.setattr("flexmask.model.loss.StateBranches", FromNodeInFront)
    with pytest.raises(measure.InexactError, match=f"one_pass, {layers}: .* do not train the same"):
        state.measure(compose_benchmark(TINY))


@pytest.fixture
def small_sections(monkeypatch):
    for part, name, value in (
        (packing, "PACKING_TOKENS", 20_000),
        (attention, "ATTENTION_LENGTHS", (10, 20, 10)),
        (mask, "MASK_TOKENS", (4096, 8192)),
        (loss, "LOSS_VOCABULARY", 100_000),
        (loss, "LOSS_ROWS", (128, 256)),
        (loss, "LOSS_TRAINED", (16, 64)),
        (preparation, "PREPARED_TURNS", (2, 3)),
        (recompiles, "COMPILED_PACKS", 4),
        (recompiles, "COMPILED_LENGTH_ON_CPU", 128),
        (state, "STATE_TURNS", 3),
        (state, "STATE_SHARE", 2),
        (plans, "PLAN_LENGTHS", ((12, 2, 12, 1), (2, 60, 40, 10))),
        (plans, "PLAN_REPEATS", 1),
    ):
        monkeypatch.setattr(part, name, value)
    monkeypatch.setitem(CALL_IN_TOKENS, "cpu", -(10**9))  # else trees as small as these run path by path


# The history that each call is shown is told from the episode's rule. Breaks if results are not cleared, if a summary
# does not replace what was before, or if a target is printed that nothing measured.
def test_the_section_of_calls_is_what_a_harness_does(monkeypatch, tmp_path):
    mix = calls.Mix(system=20, thinking=4, answer=3, result=9)
    monkeypatch.setattr(calls, "MIXES", {"short results": mix})
    for name, value in (("CALLS", 8), ("COMPACTED", 5), ("SUMMARY", 6), ("PLACEHOLDER", 2), ("CUT", 0)):
        monkeypatch.setattr(calls, name, value)
    made = calls.episode(mix, 0, 50).calls
    assert [len(one.prompt_ids) for one in made] == [20, 32, 44, 56, 61, 26, 38, 50]
    assert {len(one.completion_ids) for one in made} == {7}
    (result,) = benchmark.benchmark(compose_benchmark([*TINY, "sections=[calls]"], tmp_path))["calls"]
    assert result["tokens"]["one_pass"] == result["distinct_prefixes"] < result["tokens"]["per_turn"] == 327 + 8 * 7
    assert result["loss_difference"] < 1e-6 and result["gradient_difference"] < 1e-4 and result["longest"] == 68
    assert "calls: one pass over packed samples, short results >= 4" in (tmp_path / "benchmark.md").read_text()


def test_a_whole_run(small_sections, tmp_path, capsys):
    result = benchmark.benchmark(compose_benchmark(TINY, tmp_path))
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == str(tmp_path)
    assert json.loads((tmp_path / "benchmark.json").read_text()) == json.loads(json.dumps(result))
    for name in ("speedup", "breakdown", "memory"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000

    assert [(cell["mix"], cell["turns"]) for cell in result["grid"]] == [
        ("answer_heavy", 2),
        ("answer_heavy", 3),
        ("gsm8k_socratic", None),
    ]
    for cell in result["grid"]:
        arm = cell["arms"]["one_pass"]
        assert arm["tokens_computed"] == cell["distinct_prefixes"]
        assert arm["measured_ratio"] == arm["predicted_ratio"] == 1 and len(arm["all_seconds"]) == 2
        assert arm["seconds"] == pytest.approx(arm["forward_seconds"] + arm["backward_seconds"], rel=0.5)
        packed = cell["arms"]["per_turn_packed"]
        assert packed["predicted_ratio"] == sum(packed["flops"].values()) / sum(arm["flops"].values())
        assert packed["graphs_compiled"] == 0 and packed["mfu"] is None
    assert result["mask"]["create_block_mask"]["same_index_lists"] is True
    # Logits only where a token is trained: a longer row costs no more, the usual loss much more.
    peaks = {(one["loss"], one["row_tokens"], one["trained_tokens"]): one["peak_memory"] for one in result["loss"]}
    assert peaks["ours", 256, 16] < 1.5 * peaks["ours", 128, 16]
    assert peaks["logits_everywhere", 128, 16] > 1.5 * peaks["ours", 128, 16]
    assert all(mix["padding"] == 0 < mix["unfilled"] < 1 for mix in result["packing"])
    assert result["recompiles"]["graphs_compiled"] == 1
    assert {row["target"]: row["met"] for row in result["targets"]}["graphs compiled for 4 packs = 1"] == "yes"
    assert [one["layers"] for one in result["state"]] == list(state.STATE_MODELS)
    for one in result["state"]:
        assert one["dialogues"] > 1
        assert one["tokens"]["one_pass"] == one["distinct_prefixes"] < one["tokens"]["per_turn"]
        assert one["loss_difference"] < 1e-6 and one["gradient_difference"] < 1e-4
        assert one["ratio"] == one["seconds"]["per_turn"] / one["seconds"]["one_pass"]
    # A dialogue's trunk is one node a turn, whatever the number of dialogues; passes of their own wait for nothing.
    assert [one["steps"] for one in result["state"]] == [{"one_pass": 3, "per_turn": 1}] * 2 + [None]
    text = (tmp_path / "benchmark.md").read_text()
    assert all(f"## {section}" in text for section in ("grid", "packing", "attention", "mask", "state", "targets"))


@pytest.mark.parametrize(("value", "sign", "verdict"), [(2.1, "<=", "NO"), (2, "<=", "yes"), (0.9, ">=", "NO")])
def test_a_target_that_is_missed_says_so(value, sign, verdict):
    assert tables.met(value, sign, {"<=": 2, ">=": 1}[sign]) == verdict


def test_cuda_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="device=cuda: torch sees no CUDA device"):
        benchmark.benchmark(compose_benchmark(["device=cuda"], tmp_path))
