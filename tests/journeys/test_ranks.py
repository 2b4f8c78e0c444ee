"""One run in several processes, from the command line: the same training, divided."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from journeys.test_stopping import losses
from journeys.workshop import wait_for
from safetensors.torch import load_file

SETTINGS = [
    "model=hub", "trainer=finetune", "trainer.epochs=null", "trainer.steps=8", "trainer.warmup_steps=1",
    "trainer.conversations_per_step=4", "trainer.log_every=1", "trainer.learning_rate=1e-3", "trainer.save_every=2",
    "data=jsonl", "data.path=my.jsonl", "data.heldout_conversations=3", "evaluation.max_new_tokens=8", "wandb=off",
]  # fmt: skip

# Gradients of a hybrid's gates are as small as what float32 leaves of another order of sums, and Adam makes steps of
# them that are as large as any.
SGD = ("trainer.optimizer=sgd", "trainer.learning_rate=0.1")
ACCELERATE = "accelerate launch --multi_gpu --num_machines=1 --num_processes=2 --mixed_precision=no --dynamo_backend=no"


def train(folder: str, model: str, *more: str, by: str = "make train") -> str:
    words = [*SETTINGS, f"model.name_or_path=models/{model}", f"output_dir=runs/{folder}", *more]
    return f'{by} ARGS="{" ".join(words)}"' if by.endswith("make train") else f"{by} {' '.join(words)}"


def trained(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "model").glob("*.safetensors")
    return load_file(file)


def assert_same(workshop, left: str, right: str) -> None:
    one, other = workshop.folder / "runs" / left, workshop.folder / "runs" / right
    assert losses(one).keys() == losses(other).keys()
    for step, loss in losses(one).items():
        assert losses(other)[step] == pytest.approx(loss, rel=1e-5), f"step {step}"
    weights, others = trained(one), trained(other)
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=0, atol=1e-5, msg=name)
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    for key in ("tokens_computed", "tokens_trained", "steps", "heldout_loss", "heldout_answer_loss", "replies_ended"):
        assert results[1][key] == pytest.approx(results[0][key], rel=1e-5), key
    assert len((other / "chats.jsonl").read_text().splitlines()) == len((one / "chats.jsonl").read_text().splitlines())


@pytest.fixture(scope="module")
def alone(workshop):
    """The names of runs of one process, with what they have beside SETTINGS."""
    runs = {"dense": (), "hybrid": SGD, "lora": ("adapter=lora",)}
    for name, more in runs.items():
        workshop.run(train(name, "dense" if name == "lora" else name, *more))
    return runs


# Breaks if what a process trains is not its share of a step, results are those of one process, or who prints, prepares
# and saves is not agreed upon. Three processes do not divide four conversations.
@pytest.mark.parametrize(
    ("like", "by", "more"),
    [
        ("dense", "NPROC=3 make train", ()),
        ("dense", "NPROC=2 make train", ("parallel=fsdp",)),
        ("hybrid", "torchrun --standalone --nproc-per-node=3 -m recipes.train", ("parallel=fsdp", *SGD)),
        ("dense", "NPROC=3 make train", ("parallel.context_parallel=true", "attention.block_size=16")),
        ("lora", f"{ACCELERATE} -m recipes.train", ("adapter=lora",)),
        ("lora", "NPROC=2 make train", ("adapter=lora", "parallel=fsdp")),
    ],
    ids=["three", "sharded", "sharded hybrid", "one pack in all", "lora by accelerate", "sharded lora"],
)  # fmt: skip
def test_the_run_of_one_process(workshop, alone, request, like, by, more):
    name = request.node.callspec.id.replace(" ", "_")
    done = workshop.run(train(name, "dense" if like == "lora" else like, *more, by=by))
    assert ("each pack divided over all" in done.out) is ("parallel.context_parallel=true" in more)
    assert done.last_line == f"runs/{name}" and done.out.count("run folder") == done.out.count("trained 8 steps") == 1
    assert_same(workshop, like, name)


# Breaks if what is killed leaves a checkpoint that only as many processes can read.
def test_what_is_killed_goes_on_in_another_number_of_processes(workshop, alone):
    process = workshop.start(train("killed", "dense", "parallel=fsdp", by="NPROC=2 make train"))
    folder = workshop.folder / "runs/killed"
    wait_for(lambda: (folder / "checkpoints/checkpoint-4/trainer_state.json").exists(), process)
    kill_all(workshop.folder)
    process.communicate()
    assert not (folder / "result.json").exists()
    workshop.run('NPROC=3 make train ARGS="resume=runs/killed"')
    assert_same(workshop, "dense", "killed")


def kill_all(folder: Path) -> None:
    """Every process that runs in the workshop: those that torchrun starts have sessions of their own."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                if (entry / "cwd").resolve() == folder.resolve():
                    os.kill(int(entry.name), signal.SIGKILL)
            except (OSError, ProcessLookupError):
                pass  # it has ended


# Breaks if one process stops behind another step than the others, each of which then waits for it forever.
def test_ctrl_c_ends_all_behind_the_same_step(workshop):
    process = workshop.start(train("stopped", "dense", "trainer.steps=4000", by="NPROC=2 make train"))
    folder = workshop.folder / "runs/stopped"
    wait_for(lambda: (folder / "checkpoints/checkpoint-2/trainer_state.json").exists(), process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert err.count("with a checkpoint of step") == 1 and "resume=runs/stopped" in err, err
    last = max(losses(folder))
    assert (folder / f"checkpoints/checkpoint-{last}/trainer_state.json").exists()


# Breaks if all processes say what is wrong, or none does.
def test_what_is_wrong_is_said_once(workshop):
    process = workshop.start(train("wrong", "dense", "duplication.pack_length=64", by="NPROC=2 make train"))
    out, err = process.communicate(timeout=120)
    assert process.returncode and (out + err).count("conversations cannot be prepared") == 1
    assert not (workshop.folder / "runs/wrong").exists()


def test_a_run_is_evaluated_in_several_processes(workshop, alone):
    one, two = (json.loads(workshop.run(f'{how}make evaluate ARGS="runs/dense"').last_line) for how in ("", "NPROC=2 "))
    assert one == two
