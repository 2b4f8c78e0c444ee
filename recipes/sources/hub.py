"""Records of data on the Hugging Face hub."""

import sys
from collections.abc import Iterator

from recipes.sources import Part
from recipes.sources.parts import parts_of_dataset
from recipes.sources.reach import ask_hub


def read_hub(hub_id: str, hub_config: str | None, split: str, key: str) -> Iterator[Part]:
    """The records of a dataset on the Hugging Face hub (or in its cache), through `datasets.load_dataset`.

    Raises ValueError when it cannot be had, with what to do instead. key: before the settings' names, for errors.
    """
    import datasets
    import huggingface_hub

    if not sys.stderr.isatty():  # bars of downloads fill a log file
        datasets.disable_progress_bars()
        huggingface_hub.utils.disable_progress_bars()
    ask_hub(hub_id, "dataset", f"{key}.hub_id", f"give files with {key}.path=<file or folder>")
    try:
        table = datasets.load_dataset(hub_id, name=hub_config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        chosen = f"{key}.hub_config={hub_config}, " if hub_config else ""
        raise ValueError(
            f"{key}.hub_id={hub_id}: cannot be loaded from the Hugging Face hub with {chosen}{key}.split="
            f"{split}: {error}\n"
            f"Without a network, download the files elsewhere and give them with {key}.path=<file or folder>"
        ) from error
    yield from parts_of_dataset(table, f"{hub_id}/{split}")
