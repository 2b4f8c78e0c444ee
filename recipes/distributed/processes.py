"""Work in other processes, none of which outlives this one, however it ends."""

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from recipes.distributed import ranks

_function: Callable[[Any], Any]  # in a process of a pool: what it does


@contextmanager
def mapping(function: Callable[[Any], Any], processes: int) -> Iterator[Callable[[Iterable[Any]], Iterator[Any]]]:
    """Yields what maps `function` over items, in their order, in `processes` processes (1: in this one).

    Items are taken as results are: no more than a few for each process are under way. The processes are ended with
    the block: at once when it is left by an exception. Raises ValueError when one was killed, as happens for want of
    memory.
    """
    if processes == 1:
        yield lambda items: map(function, items)
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, initializer=_begin, initargs=(function,))
    try:
        yield lambda items: _in_order(pool, items, 2 * processes)
    except BrokenProcessPool as error:
        raise ValueError(
            "a process that prepares conversations was killed, probably for want of memory; lower data.processes"
        ) from error
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, items: Iterable[Any], most: int) -> Iterator[Any]:
    """The results of `items`, of which no more than `most` are in the pool: they may be more than memory holds."""
    remaining = iter(items)
    under_way = deque(pool.submit(_call, item) for item in itertools.islice(remaining, most))

    def results() -> Iterator[Any]:
        while under_way:
            result = under_way.popleft().result()
            under_way.extend(pool.submit(_call, item) for item in itertools.islice(remaining, 1))
            yield result

    return results()


def available_processors(wanted: int | None = None) -> int:
    """How many processes to start: `wanted`, or one a processor. One in a process of a run that is not the first on
    its machine, which only finds what that one has made."""
    if not ranks.is_first_on_machine():
        return 1
    return wanted or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _begin(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # several processes are parallel enough; and it warns after a fork
    # Handlers of the run are not for its worker processes: Ctrl-C reaches them too, and the run then ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _call(item: Any) -> Any:
    return _function(item)


def _end_with_parent() -> None:
    """A run that is killed cannot end its workers, so each waits for its parent and then exits."""
    parent = multiprocessing.parent_process()
    try:
        parent.join()
    except ValueError:  # a worker that joblib starts is not told when its parent ends
        while os.getppid() == parent.pid:
            time.sleep(1)
    os._exit(1)
