"""Functions that settings name: one of ours by its name, or anybody's as `package.module:function`."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from flexmask.importing import function_at, is_import_path
from recipes.configuration.rules import ConfigError


def named_function(
    key: str, name: str, own: Mapping[str, Callable[..., Any]], *takes: tuple[str, ...]
) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """The function that a setting names, looked for in the current folder as well, and the first of `takes`, lists of
    arguments, that it can be called with. A function in C that does not tell its signature is taken at the first.

    key: of the setting. own: our functions by name, which take the first list. Raises ConfigError with the key where
    there is no such function, or it can be called with none of the lists.
    """
    if name in own:
        return own[name], takes[0]
    if not is_import_path(name):
        what = key.rpartition(".")[2].replace("_", " ")
        raise ConfigError(
            f"{key}={name}: no such {what}; choose {', '.join(own)}, or give a function package.module:function"
        )
    try:
        function = function_at(name)
    except ValueError as error:
        raise ConfigError(f"{key}={name}: {error}") from error
    try:
        signature = inspect.signature(function)
    except ValueError:
        return function, takes[0]
    for arguments in takes:
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return function, arguments
    forms = ", nor with ".join(f"({', '.join(arguments)})" for arguments in takes)
    raise ConfigError(f"{key}={name}: cannot be called with {forms}; its arguments are {signature}")
