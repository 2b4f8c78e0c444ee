"""Work in other processes, none of which outlives this one, however it ends."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

_function: Callable[[Any], Any]  # in a process of a pool: what it does


@contextmanager
def mapping(function: Callable[[Any], Any], processes: int) -> Iterator[Callable[[Iterable[Any]], Iterator[Any]]]:
    """Yields what maps `function` over items, in their order, in `processes` processes (1: in this one).

    They are ended with the block: at once when it is left by an exception. Raises ValueError when one was killed, as
    happens for want of memory.
    """
    if processes == 1:
        yield lambda items: map(function, items)
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, initializer=_begin, initargs=(function,))
    try:
        yield lambda items: pool.map(_call, items)
    except BrokenProcessPool as error:
        raise ValueError(
            "a process that renders conversations was killed, probably for want of memory; lower data.processes"
        ) from error
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def available_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    multiprocessing.parent_process().join()
    os._exit(1)
