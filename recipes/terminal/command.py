"""What every command does alike: its errors are sentences, its warnings lines, and an interruption is no crash."""

import functools
import logging
import os
import re
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from recipes.configuration import FROM_WHEEL
from recipes.distributed.ranks import count, rank

# The library names its arguments as a script gives them. In a run they are settings, which have longer names.
_SETTINGS = {
    "control_tokens": "data",
    "thinking_format": "data",
    "template_kwargs": "data",
    "thinking_tags": "data",
    "not_shown": "data",
    "pack_length": "duplication",
    "too_long": "duplication",
    "turns": "duplication",
    "layout": "duplication",
}
# In the library's words: `pack_length=8`, `control_tokens="escape"`.
_ARGUMENT = re.compile(rf"""(?<![\w.])({"|".join(_SETTINGS)})=(?:"(\w*)")?""")


# Seconds in which a launcher notices that a process has ended, and stops the others.
_UNTIL_STOPPED = 5.0


class Interrupted(BaseException):
    """The run was asked to stop by a signal, and has: `signal` is its number, the message says how to go on.

    Like KeyboardInterrupt no Exception, so that no library on the way takes it for an error of its own.
    """

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


def command(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a command's main function: what a user can cause ends in one message and an exit code, with no
    traceback. HYDRA_FULL_ERROR=1 shows it all the same. What nobody foresaw keeps its traceback.
    """

    @functools.wraps(main)
    def guarded(*arguments: Any, **named: Any) -> Any:
        if (outside := signal.getsignal(signal.SIGINT)) is signal.SIG_DFL:  # see recipes/__init__.py
            signal.signal(signal.SIGINT, signal.default_int_handler)
        warnings.formatwarning = lambda message, *_: f"warning: {in_settings(str(message))}\n"  # no source line
        if rank() > 0:  # the first process of a run speaks for all
            sys.stdout = open(os.devnull, "w")
            warnings.showwarning = lambda *_, **__: None
            logging.disable(logging.WARNING)
        try:
            return main(*arguments, **named)
        except Interrupted as stopped:
            if rank() == 0:
                print(stopped, file=sys.stderr)
            sys.exit(128 + stopped.signal)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            if rank() > 0:
                # What ends the first process mostly ends all, and it has said so; then this one is stopped meanwhile.
                time.sleep(_UNTIL_STOPPED)
                print(f"process {rank()} of {count()}:", file=sys.stderr)
            message = explained(error)
            if message is None or os.environ.get("HYDRA_FULL_ERROR"):
                raise
            sys.exit(f"error: {message}\n(HYDRA_FULL_ERROR=1 shows where)")
        finally:
            if outside is signal.SIG_DFL:
                signal.signal(signal.SIGINT, outside)

    return guarded


def typed(recipe: str, *words: object, processes: int = 1) -> str:
    """How a user starts a recipe: with make in the repository, with the command that a wheel installs elsewhere.

    words: places and overrides; quoted where a shell or make would take them apart. processes: that run it together.
    """
    quoted = shlex.join(map(str, words))
    if FROM_WHEEL:
        launched = f"torchrun --nproc-per-node={processes} -m recipes.{recipe}"
        return f"{launched if processes > 1 else f'flexmask {recipe}'} {quoted}"
    if processes > 1:
        return f"NPROC={processes} {typed(recipe, *words)}"
    for_make = quoted.replace("$", "$$")
    if set(for_make) & set('"$`\\'):
        return f"make {recipe} {shlex.quote(f'ARGS={for_make}')}"
    return f'make {recipe} ARGS="{for_make}"'


def explained(error: Exception) -> str | None:
    """The message for what a user, a disk or a device can cause; None for an error that only the program can have made.

    A ValueError is what settings and data raise everywhere, so it counts as the former.
    """
    if type(error).__name__ == "OutOfMemoryError":  # torch's: this module does not import torch
        return (
            f"out of memory: {str(error).splitlines()[0]}\nMemory follows duplication.pack_length, the most tokens of "
            "one forward pass: lower it. model.gradient_checkpointing=true, adapter=lora and a smaller "
            "evaluation.batch_size save more"
        )
    if isinstance(error, RuntimeError) and "inline_container" in str(error):  # how torch.save fails on a full disk
        return f"a file could not be written whole: is the disk full? ({str(error).splitlines()[0]})"
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):  # torch's words
        return (
            "a process that prepares packs was killed, probably for want of memory; lower trainer.loader_workers "
            f"({str(error).splitlines()[0].strip()})"
        )
    if type(error).__name__ == "SafetensorError":  # this module does not import safetensors
        return f"a file of weights could not be written or read: {str(error).splitlines()[0]}"
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or _own_words(error)}"
    if type(error).__module__.startswith("hydra."):  # which says what it could not do, and why in the cause
        why = f": {str(error.__cause__).splitlines()[0]}" if str(error.__cause__ or "") else ""
        word = f"{override}: " if (override := getattr(error, "override", None)) else ""
        return in_settings(f"{word}{error}{why}")
    if isinstance(error, (ValueError, FloatingPointError)):
        return in_settings(_own_words(error))
    return None


def _own_words(error: Exception) -> str:
    """What an error says, without the traceback that torch puts in front of those of a DataLoader's processes."""
    found = re.match(r"Caught (\w+) in DataLoader worker process \d+\.\nOriginal Traceback", str(error))
    return re.split(rf"\n(?:\w+\.)*{found[1]}: ", str(error))[-1].strip() if found else str(error)


def in_settings(text: str) -> str:
    """What the library says, with its arguments named as the settings that they are in a run."""
    return _ARGUMENT.sub(lambda found: f"{_SETTINGS[found[1]]}.{found[1]}={found[2] or ''}", text)
