"""What a run says of itself beside its settings and figures, kept in run.json of its folder: its first lines, every
warning, what it runs on, and why it stopped. Its report is made from that, and so is the report of one that failed."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from recipes.distributed import ranks
from recipes.run.folder import SAID, write_json
from recipes.terminal.command import in_settings


class Said:
    """Context manager: hears the warnings of a run from its beginning, before it has a folder. Each is shown as before,
    and in a sweep once a job."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self._folder: Path | None = None
        self._values: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._filters = warnings.catch_warnings()  # leaving it also forgets which warnings were shown
        self._filters.__enter__()
        self._shown = warnings.showwarning
        warnings.showwarning = self._hear
        return self

    def __exit__(self, *raised: Any) -> None:
        self._filters.__exit__(*raised)

    def _hear(self, message: Warning | str, category: type[Warning], *place: Any, **named: Any) -> None:
        self._shown(message, category, *place, **named)
        text = in_settings(str(message))
        if issubclass(category, UserWarning) and text not in self.warnings:
            self.warnings.append(text)
            self._write()

    def begin(self, folder: Path, values: Mapping[str, Any]) -> None:
        """The run has its folder: write down what is known of it."""
        self._folder, self._values = folder, {**values, "stopped": None}
        self._write()

    def stop(self, reason: str) -> None:
        """Write down why the run ends without a result."""
        self._values["stopped"] = reason
        self._write()

    def _write(self) -> None:
        if self._folder is not None and ranks.rank() == 0:
            write_json(self._folder / SAID, {**self._values, "warnings": self.warnings})
