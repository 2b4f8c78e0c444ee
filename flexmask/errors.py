"""What a model is refused with, wherever it shows (layers, masks, positions, losses), and what ends a training."""

from pathlib import Path


class UnsupportedModelError(ValueError):
    """The model has layers, or the pack positions, that an attention mask cannot make exact."""


class NonFiniteLossError(FloatingPointError):
    """A pack's loss, or the gradient of a step, is NaN or infinite; raised before the optimizer moves.

    file: of the packs (`flexmask.training.nonfinite`), which the message names; None where none could be written.
    """

    def __init__(self, message: str, file: Path | None = None) -> None:
        super().__init__(message)
        self.file = file
