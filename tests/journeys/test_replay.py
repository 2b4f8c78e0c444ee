"""A run whose numbers are not finite ends in front of the step, and a command names the layer that it begins in:

make replay ARGS="runs/<folder>"
"""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

OWN = [
    "model=hub", "trainer=finetune", "data=jsonl", "data.path=my.jsonl", "trainer.steps=4", "trainer.warmup_steps=0",
    "trainer.conversations_per_step=2", "evaluation.conversations=0", "wandb=off",
]  # fmt: skip
DOWN, MIXER = "model.layers.1.mlp.down_proj", "model.layers.0.linear_attn.out_proj"


def broken(models: Path, kind: str, module: str, value: float, to: Path) -> None:
    """A model in which one weight is `value`."""
    shutil.copytree(models / kind, to)
    weights = load_file(to / "model.safetensors")
    weights[f"{module}.weight"][3, 5] = value
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})


# Breaks if packs are not kept, if they are those of another step, or if what the model does in front of the layer, or
# the modules around it, are named in its place.
@pytest.mark.parametrize(
    ("kind", "module", "value", "settings"),
    [
        ("dense", DOWN, float("nan"), []),
        ("dense", DOWN, float("inf"), ["model.dtype=bfloat16"]),
        ("hybrid", MIXER, float("nan"), ["trainer.mixed_precision=bf16", "duplication.pack_length=256"]),
        ("dense", DOWN, float("nan"), ["adapter=lora", "trainer=lora"]),
    ],
    ids=["float32", "bfloat16", "hybrid in mixed precision", "adapter"],
)
def test_the_layer_is_named(workshop, models, request, kind, module, value, settings):
    name = request.node.callspec.id.replace(" ", "_")
    broken(models, kind, module, value, workshop.folder / name)
    done = workshop.train(*OWN, f"model.name_or_path={name}", *settings, f"output_dir=runs/{name}", code=None)
    (file,) = workshop.folder.glob(f"runs/{name}/checkpoints/nonfinite/step-1.pt")
    assert "step 1: the loss is nan in a pack with the rows my.jsonl:" in done.err
    assert str(file.relative_to(workshop.folder)) in done.err
    assert f'make replay ARGS="runs/{name}"' in done.err

    said = workshop.run(f'make replay ARGS="runs/{name}"')
    assert said.last_line.startswith(f"it begins in {module}"), said
    assert "the model that the run began with" in said.out
    assert f"{module}.weight: 1 of its" in said.out or "base_layer.weight: 1 of its" in said.out
    assert " of my.jsonl:" in said.out and "»" in said.out


# What a run learns may break it later: the newest checkpoint is what is looked at.
def test_a_model_that_broke_in_training_is_that_of_its_checkpoint(workshop):
    model, breaks = "model.name_or_path=models/dense", ["trainer.learning_rate=1e30", "trainer.save_every=1"]
    workshop.train(*OWN, model, *breaks, "output_dir=runs/later", code=None)
    (file,) = workshop.folder.glob("runs/later/checkpoints/nonfinite/step-*.pt")
    assert file.stem == "step-2"
    said = workshop.run('make replay ARGS="runs/later"')
    assert "the checkpoint of step 1" in said.out and "are not finite\n" in said.out
    assert said.last_line.startswith("it begins in model.layers.0.self_attn."), said


# Breaks if what several processes computed together cannot be computed by one, or nobody keeps it.
@pytest.mark.parametrize("parallel", ["parallel.context_parallel=true", "parallel=fsdp"])
def test_a_run_of_two_processes_is_replayed_in_one(workshop, models, parallel):
    name = parallel.partition("=")[0].replace(".", "_")
    broken(models, "dense", DOWN, float("nan"), workshop.folder / name)
    words = [*OWN, f"model.name_or_path={name}", parallel, "attention.block_size=16", f"output_dir=runs/{name}"]
    process = workshop.start(f'NPROC=2 make train ARGS="{" ".join(words)}"')
    out, err = process.communicate(timeout=200)
    assert process.returncode and f'make replay ARGS="runs/{name}"' in err, out + err
    said = workshop.run(f'make replay ARGS="runs/{name}"')
    assert said.last_line.startswith(f"it begins in {DOWN}"), said
