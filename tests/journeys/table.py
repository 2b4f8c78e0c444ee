"""Every command that README.md, CONTRIBUTING.md, docs/, `make help` and conf/ tell a user, and how a journey runs it.

A command runs with the same words: `replace` puts the user's own in the places that stand for it, `args` goes behind
the command's ARGS to make it small. What runs otherwise says why. tests/journeys/test_commands.py runs the table, and
fails when the documentation tells a command that does not stand here.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class How:
    replace: dict[str, str] = field(default_factory=dict)
    args: str = ""
    shows: tuple[str, ...] = ()  # words it prints
    leaves: tuple[str, ...] = ()  # patterns of files that are there afterwards
    needs: str = ""  # "finished", "interrupted" or "adapted": the run that must be there before, as runs/one
    runs_in: str = ""  # the file of tests/journeys that runs it instead, or ".ci/run"
    why: str = ""  # the reason for `runs_in`, or for running it otherwise than it stands


TINY = (
    "model.tiny.layers=1 model.tiny.hidden_size=32 trainer.steps=6 trainer.warmup_steps=1 trainer.save_every=2 "
    "trainer.conversations_per_step=2 data.train_conversations=12 data.heldout_conversations=2 "
    "evaluation.conversations=2 evaluation.max_new_tokens=8"
)
FINETUNE = "trainer.steps=4 evaluation.max_new_tokens=8"
FEW_HELD_OUT = f"{FINETUNE} data.heldout_conversations=2 evaluation.conversations=2"
BENCH = (
    "grid.turns=[2] grid.mixes=[balanced] grid.repeats=1 grid.cell_seconds=1 grid.conversation_tokens=512 "
    "create_block_mask=false pack_length=1024"
)
RUN = ("runs/*/result.json", "runs/*/config.yaml", "runs/*/metrics.jsonl", "runs/*/model/model.safetensors")
TINY_MODEL = (
    "model.tiny.layers=1 model.tiny.hidden_size=32 trainer.steps=3 trainer.warmup_steps=0 evaluation.max_new_tokens=8"
)
MIX = "'data.sources={mine:{path:my.jsonl},maths:{kind:gsm8k_socratic,path:gsm8k.jsonl,weight:0.5}}'"
OWN_FILE = "data=jsonl data.path=my.jsonl"
NO_HUB = {"Qwen/Qwen3-1.7B": "models/dense"}
ONE = {"<folder>": "one"}
DENSE = {"<folder>": "models/dense"}
JOBLIB = "hydra/launcher=joblib hydra.launcher.n_jobs=2"
ADAPTER = ("runs/*/result.json", "runs/*/model/adapter_config.json", "runs/*/model/adapter_model.safetensors")
MERGED = ("runs/one/merged/config.json", "runs/one/merged/model.safetensors", "runs/one/merged/tokenizer.json")
LOCAL_MODEL = "model.name_or_path=models/dense"

OWN_MODEL = f"model=hub model.name_or_path=Qwen/Qwen3-1.7B trainer=finetune {OWN_FILE}"
TWO, CORES = {"NPROC=8": "NPROC=2"}, "there are not so many processors"

TABLE = {
    # first steps
    "make help": How(shows=("make train", "make test", "make inspect")),
    "make install": How(),
    "make lock": How(runs_in="test_lock.py", why="on a copy: it writes a file of the project"),
    "make licences": How(shows=("| torch | Apache-2.0",)),
    "make train": How(args=TINY, leaves=(*RUN, "runs/*/block_mask.png", "runs/*/report.html")),
    "make test": How(runs_in=".ci/run", why="the tests themselves"),
    'make train ARGS="seed=1 wandb=off"': How(args=TINY, leaves=RUN),
    'make train ARGS="duplication=per_turn seed=1"': How(args=TINY, leaves=RUN),
    'make train ARGS="duplication=per_turn seed=1 wandb=off"': How(args=TINY, leaves=RUN),
    'make train ARGS="duplication=per_turn trainer.steps=300 seed=1"': How(args=TINY, leaves=RUN),
    'make train ARGS="data=careless_tutoring data.train_conversations=2100 trainer.steps=700"': How(
        args=TINY, leaves=RUN
    ),
    'make evaluate ARGS="runs/<folder> data.kind=tutoring data.train_conversations=10 '
    'data.heldout_conversations=100"': How(runs_in="test_preferences.py", why="behind the run that it is for"),
    'make train ARGS="experiment=tutoring_preferences model.name_or_path=runs/<folder>/model"': How(
        runs_in="test_preferences.py", why="behind the run whose model it takes"
    ),
    'make train ARGS="model=hub model.name_or_path=Qwen/Qwen3-1.7B trainer=finetune objective=dpo data=jsonl '
    'data.path=pairs.jsonl"': How(runs_in="test_preferences.py", why="on pairs"),
    "python -m recipes.on_policy": How(shows=("step   1   mean reward", "step  20   mean reward")),
    'make train ARGS="experiment=short"': How(args=TINY, leaves=RUN),
    'make train ARGS="experiment=parcels"': How(args=TINY, leaves=RUN, shows=("of episodes succeeded",)),
    # context rules
    f'make train ARGS="{OWN_FILE} context=keep_last_tool_results context.arguments.keep=3"': How(
        args=TINY_MODEL, leaves=RUN, shows=("keep_last_tool_results(keep=3) shows it",)
    ),
    f'make inspect ARGS="my.jsonl:12 {OWN_FILE} context=keep_last_tool_results"': How(
        shows=("call 2 (message 5)", "seen by", "the context rule keep_last_tool_results changes nothing")
    ),
    # own data, own model
    f'make train ARGS="{OWN_FILE} data.heldout_conversations=1 trainer.steps=20"': How(args=TINY_MODEL, leaves=RUN),
    f'make train ARGS="model=hub model.name_or_path=Qwen/Qwen3-1.7B trainer=finetune {OWN_FILE}"': How(
        replace=NO_HUB, args=FINETUNE, leaves=RUN
    ),
    'make inspect ARGS="my.jsonl:1 data=jsonl data.path=my.jsonl model=hub model.name_or_path=Qwen/Qwen3-0.6B"': How(
        replace={"Qwen/Qwen3-0.6B": "models/dense"}, shows=("my.jsonl:1", "plain copy", "trained answer")
    ),
    f'make train ARGS="model=hub model.name_or_path=Qwen/Qwen3-1.7B adapter=lora trainer=lora {OWN_FILE}"': How(
        replace=NO_HUB, args=FINETUNE, leaves=ADAPTER
    ),
    f'make train ARGS="model=hub model.name_or_path=<folder> adapter=lora trainer=lora {OWN_FILE}"': How(
        replace=DENSE, args=FINETUNE, leaves=ADAPTER
    ),
    f'make train ARGS="model=hub model.name_or_path=<folder> adapter=qlora trainer=lora {OWN_FILE}"': How(
        replace=DENSE, args=FINETUNE, leaves=ADAPTER
    ),
    f'make train ARGS="model=hub model.name_or_path=Qwen/Qwen3-1.7B trainer=finetune data=mix {MIX}"': How(
        replace=NO_HUB, args=FINETUNE, leaves=RUN, shows=("mine", "maths")
    ),
    f'make train ARGS="data=mix {MIX.replace("my.jsonl", "a.jsonl").replace("gsm8k.jsonl", "b.jsonl")}"': How(
        replace={"a.jsonl": "my.jsonl", "b.jsonl": "gsm8k.jsonl"}, args=TINY_MODEL, leaves=RUN, why="other names"
    ),
    'make train ARGS="data=mix data.sources.mine.path=a.jsonl data.sources.maths.kind=gsm8k_socratic"': How(
        replace={"a.jsonl": "my.jsonl", "data.sources.maths": "data.sources.maths.path=gsm8k.jsonl data.sources.maths"},
        args=TINY_MODEL,
        leaves=RUN,
        why="the problems are on the hub",
    ),
    **{
        f'make inspect ARGS="my.jsonl:1 {OWN_FILE}{more}"': How(shows=("my.jsonl:1", "plain copy", "trained answer"))
        for more in ("", " data.empty_thinking=context")
    },
    f'make inspect ARGS="--full my.jsonl:1 {OWN_FILE}"': How(shows=("<think>", "You have 2 pens.", "trained answer")),
    'make inspect ARGS="rollouts.jsonl:1 data=jsonl data.path=rollouts.jsonl"': How(
        shows=("read as token ids of rollouts", "7 tokens computed in layout one_pass, 3 trained")
    ),
    'make inspect ARGS="data=parcels context=parcels model.tiny.words=parcels"': How(
        args="data.train_conversations=8", shows=("one pass a turn computes", "later calls see it no longer")
    ),
    "make inspect": How(
        args="data.train_conversations=20", shows=("tutoring/train[0]", "plain copy", "trained answer")
    ),
    "make explore": How(
        args="data.train_conversations=20",
        shows=("tutoring/train[0]: ", "1 of the data's 120 conversations"),
        leaves=("runs/explorer/tutoring_train_0.html",),
    ),
    'make explore ARGS="my.jsonl:1 data=jsonl data.path=my.jsonl model=hub model.name_or_path=Qwen/Qwen3-0.6B"': How(
        replace={"Qwen/Qwen3-0.6B": "models/dense"},
        shows=("my.jsonl:1: ", "1 of the data's 12 conversations"),
        leaves=("runs/explorer/my.jsonl_1.html",),
    ),
    f'make explore ARGS="my.jsonl:1 my.jsonl:2 {OWN_FILE}"': How(
        shows=("my.jsonl:1: ", "my.jsonl:2: ", "2 of the data's 12 conversations"),
        leaves=("runs/explorer/my.jsonl_1_and_1_more.html",),
    ),
    'make train ARGS="experiment=qwen3_0_6b_mathchatsync"': How(
        args=f"{LOCAL_MODEL} data.path=my.jsonl {FINETUNE} evaluation.max_new_tokens=8", leaves=RUN
    ),
    'NPROC=4 make train ARGS="experiment=qwen3_4b_mathchatsync"': How(
        replace={"NPROC=4": "NPROC=2"}, args=f"{LOCAL_MODEL} data.path=my.jsonl {FINETUNE}", leaves=RUN, why=CORES
    ),
    'make train ARGS="experiment=qwen3_30b_a3b_lora_mathchatsync"': How(
        runs_in="test_experiments.py", why="merged too"
    ),
    'make train ARGS="experiment=gpt_oss_20b_lora_mathchatsync"': How(runs_in="test_experiments.py", why="merged too"),
    'make train ARGS="experiment=qwen3_4b_tau2"': How(
        runs_in="test_experiments.py", why="what is left out is looked at"
    ),
    'make train ARGS="experiment=programs"': How(args=TINY, leaves=RUN),
    'make train ARGS="experiment=documents"': How(args=TINY, leaves=RUN),
    'make train ARGS="experiment=smollm2_study model.name_or_path=<folder> data.path=<file>"': How(
        replace=DENSE | {"<file>": "gsm8k.jsonl"}, args=FEW_HELD_OUT, leaves=RUN, why="a small model"
    ),
    'make train ARGS="experiment=smollm2_gsm8k"': How(
        args=f"{LOCAL_MODEL} data.path=gsm8k.jsonl {FINETUNE}", leaves=RUN
    ),
    'make train ARGS="experiment=smollm2_gsm8k model.name_or_path=<folder> data.path=<file>"': How(
        runs_in="test_real_weights.py", why="with the real weights"
    ),
    "python -m recipes.convert_gguf SOURCE.gguf OUT_DIR": How(
        runs_in="test_real_weights.py", why="with the real weights"
    ),
    "python -m recipes.loop": How(shows=("step   1   loss", "step  40   loss")),
    # runs
    'make train ARGS="resume=runs/<folder>"': How(replace=ONE, needs="interrupted", leaves=RUN),
    'make evaluate ARGS="runs/<folder> test.jsonl"': How(
        replace=ONE | {"test.jsonl": "my.jsonl"},
        args="evaluation.conversations=2",
        needs="finished",
        shows=('"chatted_conversations": 2', "answer_accuracy"),
        why="the journeys' own file",
    ),
    'make evaluate ARGS="runs/<folder>"': How(
        replace=ONE, needs="finished", shows=("answer_accuracy", "conversation_accuracy")
    ),
    "make evaluate": How(args="runs/one", needs="finished", shows=("answer_accuracy",)),
    'make evaluate ARGS="runs/<folder> evaluation.history=both evaluation.matcher=number"': How(
        replace=ONE, needs="finished", shows=("answer_accuracy", "teacher_answer_accuracy")
    ),
    "make report": How(args="runs/one", needs="interrupted", leaves=("runs/one/report.html",)),
    'make report ARGS="runs/<folder>"': How(runs_in="test_report.py", why="what it says is looked at"),
    "make merge": How(args="runs/one", needs="adapted", leaves=MERGED),
    'make merge ARGS="runs/<folder>"': How(replace=ONE, needs="adapted", leaves=MERGED),
    'make inspect ARGS="data=jsonl data.path=my.jsonl data.filter=[equations,result]"': How(shows=("left out",)),
    f'make train ARGS="model=hub model.name_or_path=<folder> trainer=finetune {OWN_FILE} data.filter=[thinks] '
    'evaluation.probe=last_number evaluation.matcher=number"': How(replace=DENSE, args=FINETUNE, leaves=RUN),
    "make replay": How(runs_in="test_replay.py", why="after a step that was not finite"),
    'make replay ARGS="runs/<folder>"': How(runs_in="test_replay.py", why="after a step that was not finite"),
    "make sweep": How(args=TINY, leaves=("runs/sweep/*/comparison.md", "runs/sweep/*/report.html")),
    r'''make sweep ARGS="hydra.sweeper.params.seed=\'0\'"''': How(args=TINY, leaves=("runs/sweep/*/comparison.md",)),
    'make sweep ARGS="duplication=one_pass trainer.learning_rate=1e-3,3e-3 seed=0,1"': How(
        args=TINY, leaves=("runs/sweep/*/comparison.md",), shows=("| learning_rate | seed |",)
    ),
    "make sweep SWEEP=context": How(
        args=TINY, leaves=("runs/sweep/*/comparison.md",), shows=("| rule |", "| episodes succeeded |")
    ),
    "make sweep SWEEP=other_data": How(
        args=f"{TINY} experiment=programs duplication=one_pass,last_turn seed=0",
        leaves=("runs/sweep/*/comparison.md",),
        shows=("| one_pass |", "| last_turn |"),
    ),
    "make sweep SWEEP=reasoning_quality": How(
        args=f"{TINY} duplication.thinking_weight=1 data.flaws={{}},{{missing:0.5}}",
        leaves=("runs/sweep/*/comparison.md",),
        shows=("| missing 0.5 |", "| none |"),
    ),
    f'OMP_NUM_THREADS=1 make sweep SWEEP=other_data ARGS="{JOBLIB}"': How(
        args=f"{TINY} experiment=documents duplication=one_pass,last_turn seed=0",
        leaves=("runs/sweep/*/comparison.md",),
        shows=("| one_pass |", "| last_turn |"),
    ),
    f'make sweep SWEEP=reasoning_quality ARGS="duplication.thinking_weight=1 {JOBLIB}"': How(
        args=f"{TINY} data.flaws={{}},{{shuffled:0.5}}",
        leaves=("runs/sweep/*/comparison.md",),
        shows=("| shuffled 0.5 |",),
    ),
    'make sweep SWEEP=reasoning_quality ARGS="duplication.thinking_weight=1 '
    'data.filter=[recipes.sources.tutoring_results:contradicts]"': How(
        args=f"{TINY} data.flaws={{irrelevant:0.25}},{{irrelevant:0.5}}",
        leaves=("runs/sweep/*/comparison.md",),
        shows=("| irrelevant 0.5 |",),
    ),
    'make sweep SWEEP=real_model ARGS="model.name_or_path=<folder> data.path=<file>"': How(
        replace=DENSE | {"<file>": "gsm8k.jsonl"},
        args=f"{FEW_HELD_OUT} experiment=smollm2_study,smollm2_study_keep_thinking",
        leaves=("runs/sweep/*/comparison.md",),
        shows=("| keep_thinking |",),
        why="a small model",
    ),
    'make sweep ARGS="experiment=qwen3_0_6b_mathchatsync duplication=one_pass,keep_thinking,last_turn seed=0"': How(
        args=f"{LOCAL_MODEL} data.path=my.jsonl {FEW_HELD_OUT} trainer.epochs=null",
        leaves=("runs/sweep/*/comparison.md",),
        shows=("| keep_thinking |",),
        why="a small model",
    ),
    'make sweep ARGS="experiment=qwen3_4b_tau2 duplication=one_pass,last_turn seed=0"': How(
        args=f"{LOCAL_MODEL} data.path=tau2.jsonl {FEW_HELD_OUT} trainer.epochs=null",
        leaves=("runs/sweep/*/comparison.md",),
        shows=("| last_turn |",),
        why="a small model",
    ),
    "make sweep SWEEP=real_model": How(
        args=f"{LOCAL_MODEL} data.path=gsm8k.jsonl {FEW_HELD_OUT} experiment=smollm2_study,smollm2_study_last_turn",
        leaves=("runs/sweep/*/comparison.md",),
        shows=("| last_turn |",),
    ),
    "make sweep SWEEP=search": How(
        args=f"{TINY} hydra.sweeper.n_trials=2",
        leaves=("runs/sweep/*/optimization_results.yaml",),
        shows=("Best value",),
    ),
    f'make sweep SWEEP=search ARGS="hydra.sweeper.n_trials=30 model=hub model.name_or_path=<folder> trainer=finetune '
    f'{OWN_FILE} data.heldout_conversations=50"': How(
        replace=DENSE | {"n_trials=30": "n_trials=2", "conversations=50": "conversations=2"},
        args=FINETUNE,
        leaves=("runs/sweep/*/comparison.md",),
        why="thirty take long",
    ),
    'make sweep ARGS="hydra/launcher=joblib hydra.launcher.n_jobs=2"': How(
        args=f"{TINY} seed=0 duplication=one_pass,per_turn", leaves=("runs/sweep/*/comparison.md",)
    ),
    'make sweep ARGS="hydra/launcher=submitit_slurm hydra.launcher.partition=gpu hydra.launcher.gpus_per_node=1"': How(
        replace={"submitit_slurm hydra.launcher.partition=gpu hydra.launcher.gpus_per_node=1": "submitit_local"},
        args=f"{TINY} seed=0 duplication=one_pass,per_turn",
        leaves=("runs/sweep/*/comparison.md",),
        why="there is no SLURM; its own local executor starts the jobs",
    ),
    # measuring
    "make bench": How(args=f"sections=[grid] {BENCH}", leaves=("runs/bench/*/*",)),
    'make bench ARGS="threads=1"': How(args=f"sections=[packing] {BENCH}", leaves=("runs/bench/*/*",)),
    'make bench ARGS="sections=[preparation] threads=1"': How(args=BENCH, leaves=("runs/bench/*/*",)),
    'make bench ARGS="sections=[recompiles] threads=1"': How(
        args=BENCH, leaves=("runs/bench/*/*",), shows=("graphs compiled",)
    ),
    'make bench ARGS="sections=[attention,mask]"': How(args=BENCH, leaves=("runs/bench/*/*",)),
    'make bench ARGS="sections=[grid] arms=[one_pass,per_turn_packed,one_pass_paths,one_pass_compiled]"': How(
        replace={",one_pass_compiled": ""},
        args=BENCH,
        leaves=("runs/bench/*/*",),
        shows=("one_pass_paths",),
        why="compiling takes minutes; tests/recipes/test_benchmark.py runs that arm with a quick compiler",
    ),
    'make bench ARGS="sections=[state] threads=1"': How(args=BENCH, leaves=("runs/bench/*/*",)),
    'make bench ARGS="sections=[plans] threads=1"': How(
        args=BENCH, leaves=("runs/bench/*/*",), shows=("a call costs as much as",)
    ),
    **{
        f'make bench ARGS="sections=[calls] pack_length=131072{threads} grid.repeats=2"': How(
            replace={"[calls] pack_length=131072": "[packing] pack_length=1024"},
            args=BENCH,
            leaves=("runs/bench/*/*",),
            why="it takes 15 minutes; tests/recipes/test_benchmark.py runs that section with short calls",
        )
        for threads in ("", " threads=1")
    },
    "python tests/gpu_kernels.py": How(
        replace={"kernels.py": "kernels.py --help"}, shows=("--fit",), why="it needs a CUDA build of torch"
    ),
    'make bench DEVICE=cuda ARGS="shape=qwen3_4b dtype=bfloat16 gradient_checkpointing=true pack_length=131072"': How(
        replace={"DEVICE=cuda": "DEVICE=cpu", "shape=qwen3_4b": "shape=small", "dtype=bfloat16": "dtype=float32"},
        args=f"sections=[grid] {BENCH}",
        leaves=("runs/bench/*/*",),
        why="it needs a GPU",
    ),
    'make bench ARGS="sections=[sharing]"': How(args=BENCH, leaves=("runs/bench/*/*",), shows=("pack length",)),
    # several processes
    f'NPROC=8 make train ARGS="model=hub model.name_or_path=Qwen/Qwen3-1.7B trainer=finetune {OWN_FILE}"': How(
        replace=NO_HUB | TWO, args=FINETUNE, leaves=RUN, why=CORES
    ),
    f'NPROC=8 make train ARGS="parallel=fsdp model=hub model.name_or_path=<folder> {OWN_FILE}"': How(
        replace=DENSE | TWO, args=f"{FINETUNE} trainer.warmup_steps=0", leaves=RUN, why=CORES
    ),
    f"torchrun --nproc-per-node=8 -m recipes.train {OWN_MODEL}": How(
        replace=NO_HUB | {"node=8": "node=2", OWN_FILE: f"{OWN_FILE} {FINETUNE}"}, leaves=RUN, why=CORES
    ),
    f"accelerate launch --multi_gpu --num_processes=8 -m recipes.train {OWN_MODEL}": How(
        replace=NO_HUB | {"processes=8": "processes=2", OWN_FILE: f"{OWN_FILE} {FINETUNE}"}, leaves=RUN, why=CORES
    ),
    "NPROC=8 make evaluate": How(replace=TWO, args="runs/one", needs="finished", shows=("answer_accuracy",), why=CORES),
    # documentation and house
    "make picture": How(leaves=("docs/images/block_mask.png", "docs/images/state_branches.png")),
    "make notebook": How(runs_in="test_notebooks.py", why="what they show is looked at"),
    "make docs": How(runs_in=".ci/run", why="the whole checkout, not a copy"),
    'make docs ARGS="-b linkcheck"': How(
        replace={"make": "make --dry-run"}, shows=("-b linkcheck",), why="links lead out of here"
    ),
    'make test ARGS="tests/flexmask/test_masks.py"': How(
        args="--collect-only", shows=("test_masks.py",), why="the tests themselves, which make test runs"
    ),
    "make browser-test": How(runs_in=".ci/run", why="the tests themselves"),
    "make check": How(runs_in=".ci/run", why="the whole checkout, not a copy"),
    "make network-test": How(runs_in=".ci/run", why="the tests themselves"),
    "make journeys": How(runs_in=".ci/run", why="these tests themselves"),
    "make mutations": How(args="exclusive", shows=("1 of 1 faults noticed",)),
    'make mutations ARGS="exclusive"': How(shows=("1 of 1 faults noticed",)),
    "make gpu-test": How(
        args="--collect-only tests/flexmask/test_attention.py", shows=("test_attention.py",), why="it needs a GPU"
    ),
    "make support": How(
        runs_in=".ci/run", why="its tests are those of make test and make network-test; CI checks what it would write"
    ),
    "make clean": How(
        replace={"make clean": "make clean && test ! -e .venv && test -e runs"},
        needs="finished",
        why="it is looked at afterwards",
    ),
    # without the repository
    "pip wheel --no-deps -w dist .": How(runs_in="test_wheel.py", why="of a copy: it leaves a folder behind"),
    "pip install dist/*.whl": How(runs_in="test_wheel.py", why="into an environment of its own"),
    "flexmask train model=hub model.name_or_path=Qwen/Qwen3-1.7B trainer=finetune data=jsonl data.path=my.jsonl": How(
        runs_in="test_wheel.py", why="in an environment with the wheel"
    ),
    "flexmask --help": How(runs_in="test_wheel.py", why="in an environment with the wheel"),
    # these would install another environment than the one that all tests share: make says what it would do
    "make train CONSTRAINTS=my.txt": How(
        replace={"make": "cp constraints.txt my.txt && make --dry-run"},
        shows=("-c my.txt", "recipes.train"),
        why="it would install anew",
    ),
    "UV_TORCH_BACKEND=auto make train": How(
        replace={"make": "make --dry-run"}, shows=("recipes.train",), why="it would install anew"
    ),
}
# What stands for a command in .ci/run, where that is not the command itself.
IN_CI = {"make support": ".venv/bin/python tests/support.py --check"}
