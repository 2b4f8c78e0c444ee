"""What a model is refused with, wherever it shows (layers, masks, positions, losses), and what ends a training."""


class UnsupportedModelError(ValueError):
    """The model has layers, or the pack positions, that an attention mask cannot make exact."""


class NonFiniteLossError(FloatingPointError):
    """A pack's loss, or the gradient of a step, is NaN or infinite; raised before the optimizer moves.

    The packs are in a file that the message names (`flexmask.training.nonfinite`).
    """
