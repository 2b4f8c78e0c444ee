"""Whether the Hugging Face hub answers at all, asked once before much else is: its libraries try for minutes."""

import warnings
from pathlib import Path

SECONDS_TO_ANSWER = 10


def ask_hub(hub_id: str, kind: str, key: str, instead: str) -> None:
    """Ask the hub for a model or data set (`kind`). Where it cannot be reached, this process asks it no more: its
    libraries then take what is in their cache, or say at once that it is not there. Every other answer is left to them.

    key: the setting, instead: what else may be given, for the error. Raises ValueError naming both when the hub takes
    the question and says nothing.
    """
    import datasets
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE or Path(hub_id).expanduser().exists():
        return
    endpoint = huggingface_hub.constants.ENDPOINT
    try:
        huggingface_hub.HfApi().repo_info(hub_id, repo_type=kind, timeout=SECONDS_TO_ANSWER)
    except Exception as error:
        # Of the HTTP library, which is another one from version to version.
        if "Timeout" in type(error).__name__:
            raise ValueError(
                f"{key}={hub_id}: {endpoint} does not answer. HF_HUB_OFFLINE=1 before the command takes what was "
                f"loaded before; or {instead}"
            ) from error
        if "Connect" in type(error).__name__:
            warnings.warn(f"{key}={hub_id}: {endpoint} cannot be reached, so only its cache is looked at", stacklevel=3)
            huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
