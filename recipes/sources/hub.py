"""Records of data on the Hugging Face hub."""

import sys
from collections.abc import Iterator
from pathlib import Path

from recipes.sources import Part
from recipes.sources.parts import parts_of_dataset

SECONDS_TO_ANSWER = 20


def read_hub(hub_id: str, hub_config: str | None, split: str, key: str) -> Iterator[Part]:
    """The records of a dataset on the Hugging Face hub (or in its cache), through `datasets.load_dataset`.

    Raises ValueError when it cannot be had, with what to do instead. key: before the settings' names, for errors.
    """
    import datasets
    import huggingface_hub

    if not sys.stderr.isatty():  # bars of downloads fill a log file
        datasets.disable_progress_bars()
        huggingface_hub.utils.disable_progress_bars()
    _refuse_silence(hub_id, key)
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


def _refuse_silence(hub_id: str, key: str) -> None:
    """Raise ValueError when the hub takes a question and does not answer: `datasets` (5.2) would ask for many minutes.

    Every other trouble is left to `datasets`, which may have the data in its cache.
    """
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE or Path(hub_id).exists():
        return
    try:
        huggingface_hub.HfApi().dataset_info(hub_id, timeout=SECONDS_TO_ANSWER)
    except Exception as error:
        if "Timeout" in type(error).__name__:  # of the HTTP library, which is another one from version to version
            raise ValueError(
                f"{key}.hub_id={hub_id}: {huggingface_hub.constants.ENDPOINT} does not answer. HF_HUB_OFFLINE=1 before "
                f"the command takes data that was loaded before; or give files with {key}.path=<file or folder>"
            ) from error
