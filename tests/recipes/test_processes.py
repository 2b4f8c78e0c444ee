"""Processes that help a run: they do what they are given, and end with it however it ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from recipes.distributed.processes import mapping

ROOT = Path(__file__).parents[2]


def where(item):
    return item, os.getpid()


def sleep(_):
    time.sleep(60)


def kill(_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("processes", [1, 2])
def test_items_are_mapped_in_their_order(processes):
    with mapping(where, processes) as mapped:
        results = list(mapped(range(20)))
    assert [item for item, _ in results] == list(range(20))
    assert ({process for _, process in results} == {os.getpid()}) == (processes == 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, GeneratorExit])
def test_whoever_leaves_early_leaves_nobody_behind(error):
    begun = time.monotonic()
    with pytest.raises(error), mapping(sleep, 2) as mapped:
        mapped(range(4))
        assert len(multiprocessing.active_children()) == 2
        raise error
    assert not multiprocessing.active_children()
    assert time.monotonic() - begun < 30  # and not until they have slept


# What a sweep with hydra/launcher=joblib does: its jobs are workers of joblib, which start workers of that kind.
# Broken by waiting for a parent as the standard library's workers do: a traceback for each of them, and no end.
def test_workers_of_a_worker_of_joblib_run_and_end():
    script = (
        "from joblib import Parallel, delayed\nfrom recipes.distributed.processes import mapping\n"
        "def job():\n    with mapping(len, 2) as mapped:\n        return list(mapped(['a', 'bb', 'ccc']))\n"
        "if __name__ == '__main__':\n    print(Parallel(2)([delayed(job)(), delayed(job)()]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[[1, 2, 3], [1, 2, 3]]"
    assert "Traceback" not in done.stderr, done.stderr


def test_a_process_that_was_killed_is_an_error_that_names_the_setting():
    with pytest.raises(ValueError, match="lower data.processes"), mapping(kill, 2) as mapped:
        list(mapped(range(4)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_of_a_killed_run_end(number):
    script = (
        "import multiprocessing, time\n"
        "from recipes.distributed.processes import mapping\n"
        "with mapping(time.sleep, 2) as mapped:\n"
        "    mapped([60, 60])\n"
        "    print(*(one.pid for one in multiprocessing.active_children()), flush=True)\n"
        "    time.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    helpers = [psutil.Process(int(pid)) for pid in run.stdout.readline().split()]
    assert len(helpers) == 2
    run.send_signal(number)
    run.communicate()
    gone, alive = psutil.wait_procs(helpers, timeout=30)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
