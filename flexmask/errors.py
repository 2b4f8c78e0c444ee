"""What a model is refused with, wherever it shows: in its layers, its masks, its positions or its losses."""


class UnsupportedModelError(ValueError):
    """The model has layers, or the pack positions, that an attention mask cannot make exact."""
