"""One thread a test process: several run side by side, and oversubscribed OpenMP threads are many times slower."""

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the processes that tests start
os.environ["HF_HUB_OFFLINE"] = "1"
# No test may find what an earlier run has cached, nor leave anything in the user's cache.
_cache = tempfile.mkdtemp(prefix="flexmask-test-cache-")
os.environ["HF_DATASETS_CACHE"] = _cache
atexit.register(shutil.rmtree, _cache, ignore_errors=True)

import forked  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Path:
    """The socket of a Python that has the libraries ready."""
    path = tmp_path_factory.mktemp("server") / "socket"
    process = forked.start(path, forked.clean_environment())
    yield path
    process.stdin.close()
    process.wait(timeout=60)


# Before xdist deals items out: one of its workers has them all, so that one server is started.
def pytest_itemcollected(item):
    if "python" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.xdist_group("python"))


@pytest.fixture(scope="session")
def python(tmp_path_factory, server) -> forked.Python:
    return forked.Python(tmp_path_factory.mktemp("python"), server)


def pytest_collection_finish():
    """The million objects of the libraries that are imported by now never become garbage. The Trainer (accelerate)
    collects it whenever a run starts, which took a third of the time of the tests that train."""
    gc.collect()
    gc.freeze()
