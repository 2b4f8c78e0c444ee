"""How much of recipes/ the journeys reach, counted in the processes that they start.

    python tests/journeys/reach.py              run the journeys under coverage, then report
    python tests/journeys/reach.py --report     report what was recorded last

Prints a line a file, the functions that no journey reaches, and the share of all lines on the last line. Hydra takes
coverage for a debugger and shows its tracebacks, so the four journeys of errors that it finds fail here and only here.
What runs in processes that prepare data, and what only the wheel's own environment runs, is not counted.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / ".cache" / "coverage"


def main(report_only: bool) -> int:
    environment = os.environ | {"COVERAGE_FILE": str(RECORDED / "data")}
    code = 0
    if not report_only:
        RECORDED.mkdir(parents=True, exist_ok=True)
        coverage("erase", environment=environment)
        journeys = ["pytest", "-n", "2", "--dist", "loadgroup", "-m", "journey", str(ROOT / "tests/journeys")]
        code = coverage("run", "-m", *journeys, environment=environment)
    coverage("combine", "--quiet", environment=environment)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        coverage("json", "--quiet", "-o", str(path), environment=environment)
        report(json.loads(path.read_text()))
    return code


def coverage(*words: str, environment: dict[str, str]) -> int:
    return subprocess.run([sys.executable, "-m", "coverage", *words], cwd=ROOT, env=environment).returncode


def report(found: dict) -> None:
    """`found`: what `coverage json` writes (coverage 7.17)."""
    unreached = []
    for name, file in sorted(found["files"].items()):
        print(f"{file['summary']['percent_covered']:6.1f}%  {name}")
        for function, inside in file["functions"].items():
            if function and inside["summary"]["num_statements"] and not inside["summary"]["covered_lines"]:
                unreached.append(f"{name}:{inside['start_line']} {function}")
    print(f"\n{len(unreached)} functions that no journey reaches")
    print(*unreached, sep="\n")
    print(f"\n{found['totals']['percent_covered']:.1f}% of the lines of recipes/ are reached by journeys")


if __name__ == "__main__":
    sys.exit(main("--report" in sys.argv))
