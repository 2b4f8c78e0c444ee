"""A function that a setting names by its import path."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any


def is_import_path(name: str) -> bool:
    """Whether a name has the form of `package.module:function`."""
    module, colon, path = name.partition(":")
    return bool(module and colon and path)


def function_at(name: str) -> Callable[..., Any]:
    """The function of `package.module:function`, which is looked for in the current folder as well.

    Raises ValueError, without the name, where it cannot be imported or called.
    """
    module, _, path = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        function = attrgetter(path)(importlib.import_module(module))
    except Exception as error:  # a module of the user's may raise anything
        raise ValueError(
            f"cannot be imported ({type(error).__name__}: {error}); give the import path of a function, which "
            "may stand in a file of the current folder"
        ) from error
    if not callable(function):
        raise ValueError(f"is a {type(function).__name__}, which cannot be called; give the import path of a function")
    return function


def code_of(function: Callable[..., Any]) -> Path | None:
    """Where the code of a function stands: the file of its module, or the folder of the package that it is in. None for
    code that stands in no file."""
    module = inspect.getmodule(getattr(function, "func", function))
    file = getattr(sys.modules.get(module.__name__.partition(".")[0]) if module else None, "__file__", None)
    if file is None:
        return None
    return Path(file).parent if Path(file).name == "__init__.py" else Path(file)
