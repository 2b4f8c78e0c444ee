"""What imports of flexmask cost beside `import torch`: CPU time and peak memory, medians of interleaved processes.

    .venv/bin/python tests/import_weight.py

prints a table. Peak memory is Linux's VmHWM: the one of `getrusage` begins with that of the process that started it.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# Where tests/flexmask does not stand in front of flexmask.
ROOT = Path(__file__).parents[1]

TORCH = "import torch"
FLEXMASK = "import flexmask"
# What a script uses that prepares conversations or builds masks, and no model of transformers.
WITHOUT_MODEL = (
    "from flexmask import Conversation, build_block_mask, lay_out, pack, prepare_conversation, render_passes"
)
EVERYTHING = "from flexmask import *"

_REPORT = """
import json, re, time
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
print(json.dumps([time.process_time(), int(peak) / 1024]))
"""


def weights(statements: Sequence[str], rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds of CPU time and MiB of peak memory of a process that runs one statement, for each of them."""
    # One thread: the pools of numeric libraries, which start with the import, would count too.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    found: dict[str, list[tuple[float, float]]] = {statement: [] for statement in statements}
    for _ in range(rounds):
        for statement in statements:
            command = [sys.executable, "-c", statement + _REPORT]
            done = subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True)
            found[statement].append(tuple(json.loads(done.stdout)))
    return {
        statement: tuple(statistics.median(values) for values in zip(*measured, strict=True))
        for statement, measured in found.items()
    }


def main() -> None:
    measured = weights([TORCH, FLEXMASK, WITHOUT_MODEL, EVERYTHING], rounds=3)
    seconds_of_torch, memory_of_torch = measured[TORCH]
    print("  seconds  of torch      MiB  of torch")
    for statement, (seconds, memory) in measured.items():
        ratios = seconds / seconds_of_torch, memory / memory_of_torch
        print(f"{seconds:9.2f} {ratios[0]:9.2f} {memory:8.0f} {ratios[1]:9.2f}  {statement}")


if __name__ == "__main__":
    main()
