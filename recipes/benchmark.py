"""What one pass costs beside its baselines: the same dialogues, the same model, forward and backward of the same loss.

    make bench                                    on CPU, a few minutes
    make bench DEVICE=cuda                        Qwen3-0.6B's sizes with random weights, compiled FlexAttention
    make bench ARGS="sections=[attention,mask]"   any override of conf/benchmark.yaml

Leaves in the run folder: benchmark.json (every figure), benchmark.md (the tables it prints), speedup.png, breakdown.png
and memory.png. Stops with an error when an exact arm's loss or gradients are not those of the others, or when one pass
computes more tokens than there are distinct prefixes. Prints the run folder on its last line.
"""

import os
import platform
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import hydra
from omegaconf import DictConfig

from recipes.benchmarking.config import BenchmarkConfig, Section, to_benchmark
from recipes.configuration import CONF_DIR
from recipes.run.environment import device_name, git_commit
from recipes.run.folder import write_json
from recipes.terminal.command import command


@hydra.main(version_base="1.3", config_path=CONF_DIR, config_name="benchmark")
@command
def main(composed: DictConfig) -> None:
    benchmark(to_benchmark(composed))


def benchmark(config: BenchmarkConfig) -> dict:
    """Run the sections, print their tables, and write everything to `config.output_dir`; returns benchmark.json."""
    # torch's profiler, which measures memory on CPU, prints its own progress below this level; read with torch.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    import torch

    from recipes.benchmarking.arms import VARLEN_ATTENTION, make_arms
    from recipes.benchmarking.grid import grid
    from recipes.benchmarking.parts import (
        attention,
        calls,
        loss,
        mask,
        packing,
        plans,
        preparation,
        recompiles,
        sharing,
        state,
    )
    from recipes.benchmarking.paths import varlen_kernel
    from recipes.benchmarking.plots import save_plots
    from recipes.benchmarking.tables import GRID_HEADER, TABLES, cell_lines, markdown, targets

    parts = {
        Section.packing: packing,
        Section.attention: attention,
        Section.mask: mask,
        Section.loss: loss,
        Section.preparation: preparation,
        Section.recompiles: recompiles,
        Section.state: state,
        Section.plans: plans,
        Section.sharing: sharing,
        Section.calls: calls,
    }

    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: torch sees no CUDA device; leave it out to run on CPU")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    arms, left_out = make_arms(config)
    result: dict = {
        "config": asdict(config),
        "environment": {
            "device": device_name(torch.device(config.device)),
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("flexmask", "torch", "transformers", "numpy")}
            | {"python": platform.python_version(), "cuda": torch.version.cuda},
            "git_commit": git_commit(),
        },
        "arms_left_out": left_out,
        "varlen_kernel": varlen_kernel(torch.device(config.device))[0]
        if VARLEN_ATTENTION in {arm.attention for arm in arms}
        else None,
    }
    text = [f"{result['environment']['device']}, {result['environment']['processor']}, torch {torch.__version__}"]
    text += [f"arm left out: {name}: {reason}" for name, reason in left_out.items()]
    print("\n".join(text), flush=True)

    for section in config.sections:
        if section is Section.grid:
            print(f"\n{GRID_HEADER}", flush=True)
            result["grid"] = []
            for cell in grid(config):
                result["grid"].append(cell)
                write_json(folder / "benchmark.json", result)  # what is measured stays, whatever comes after it
                print(cell_lines(cell), flush=True)
        else:
            result[section] = parts[section].measure(config)
            write_json(folder / "benchmark.json", result)
        table = TABLES[section](result[section])
        text.append(f"## {section}\n\n{table}")
        print(f"\n{text[-1]}", flush=True)
    result["targets"] = [dict(zip(("target", "value", "met"), row, strict=True)) for row in targets(result)]
    text.append("## targets\n\n" + markdown(["target", "value", "met"], targets(result)))
    print(f"\n{text[-1]}")

    result["seconds"] = time.perf_counter() - started
    write_json(folder / "benchmark.json", result)
    (folder / "benchmark.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    if "grid" in result:
        save_plots(result["grid"], folder)
    print(f"\n{result['seconds']:.0f} s in all")
    print(folder)
    return result


def processor() -> str:
    """The processor's own name where /proc tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
