"""Folders of models: what one holds in place of a causal language model."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig

GGUF_MAGIC = b"GGUF"
LFS_POINTER = b"version https://git-lfs"


def place(name_or_path: str) -> str:
    """A local folder as an absolute path, so that what is saved of it holds from everywhere; a hub id as it is."""
    path = Path(name_or_path).expanduser()
    return str(path.resolve()) if path.exists() else name_or_path


@contextlib.contextmanager
def named_errors(name: str, key: str | None = "model.name_or_path") -> Iterator[None]:
    """Whatever reading a model raises inside becomes a ValueError that names `key` and the model and says what it is.

    A want of memory stays what it is.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        whose = f"{key}={name}" if key else name
        path = Path(name).expanduser()
        raise ValueError(f"{whose}: {_other_than_a_model(path) or _said(error, path)}") from error


def refuse_other_models(shape: PreTrainedConfig) -> None:
    """Raise ValueError for a configuration of an encoder, alone or with a decoder behind it."""
    if getattr(shape, "is_encoder_decoder", False):
        raise ValueError(
            f"{shape.model_type} is an encoder with a decoder behind it, not a causal language model; give a chat model"
        )
    # Only encoders that can be run as decoders have the setting (BERT and its kin).
    if getattr(shape, "is_decoder", None) is False:
        raise ValueError(
            f"{shape.model_type} is an encoder, whose tokens see what stands behind them (is_decoder=false), not a "
            "causal language model; give a chat model"
        )


def _other_than_a_model(path: Path) -> str | None:
    """What lies at a local path that is not the folder of a model; None where it could be one, and for a hub id."""
    if path.is_file():
        with path.open("rb") as file:
            gguf = file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
        return _convert(path) if gguf else "is a file; give the folder of the model"
    if not path.is_dir():
        is_path = str(path).startswith((".", "/")) or len(path.parts) > 2  # a hub id has at most one slash
        return "no such folder" if is_path else None
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        return (
            f"is an adapter, not a model; merge it into its base model first: python -m recipes.merge {path} OUT_DIR, "
            "and give OUT_DIR"
        )
    if not (path / "config.json").is_file():
        if (path / "model").is_dir():
            return f"is a run folder; its model is in it: model.name_or_path={path / 'model'}"
        if gguf := sorted(path.glob("*.gguf")):
            return _convert(gguf[0])
        return "is not the folder of a model: it has no config.json"
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                return f"{file.name} is a pointer of Git LFS, not the weights; run git lfs pull in that folder"
    return None


def _convert(file: Path) -> str:
    return (
        f"is a GGUF file; make a folder of it with: python -m recipes.convert_gguf {file} OUT_DIR, and give OUT_DIR in "
        "its place"
    )


def _said(error: Exception, path: Path) -> str:
    """The reason that a library gives, in a sentence, with what to do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    if "trust_remote_code" in str(error):
        return (
            "needs Python code that comes with the model (auto_map in its config.json), which is not run here; give a "
            "model of a type that transformers has"
        )
    if isinstance(error, SafetensorError):
        return f"a file of its weights is damaged or cut off; fetch it again ({first})"
    if "Unrecognized configuration class" in first:
        return "is no causal language model (AutoModelForCausalLM has no class for its config); give a chat model"
    if "ignore_mismatched_sizes" in first:
        return "weights in its files have other shapes than its config.json says; the table above names them"
    if isinstance(error, OSError) and "no file named" in first:
        return "its folder has a config.json but no weights (model.safetensors); copy them into it"
    if isinstance(error, OSError) and not path.exists():
        return (
            "cannot be read, neither as a local folder nor from the hub; without network give a local folder with "
            f"model.name_or_path=<folder> ({first})"
        )
    if type(error) in (ValueError, OSError):
        return f"cannot be read: {first}"
    return f"cannot be read: {type(error).__name__}: {' '.join(lines) or first}"
