"""Merge the adapter of a run into its base model: an ordinary model, for everything that knows no adapters.

    python -m recipes.merge RUN_FOLDER [OUT_DIR]
    make merge ARGS="runs/<folder>"

RUN_FOLDER may also be the folder of an adapter itself (adapter_config.json). OUT_DIR, by default RUN_FOLDER/merged,
gets config.json, generation_config.json, safetensors, tokenizer and chat template, in the dtype of the base model. It
appears only when everything is written: a killed merge leaves OUT_DIR.partial. Prints OUT_DIR on its last line.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from flexmask import align_end_of_turn
from recipes.models.adapters import ADAPTER_CONFIG
from recipes.models.files import named_errors
from recipes.models.load import load_trained
from recipes.run.folder import MODEL
from recipes.storage.whole import appears_whole
from recipes.terminal.command import command

# How far logits may move by merging, of their mean size: weights are rounded once more.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.1
_PROBE = 16  # tokens


def merge(run: Path, out: Path | None = None) -> Path:
    """Write the merged model of a run, or of an adapter's folder, to `out` and return it.

    Raises ValueError for a folder without an adapter, an `out` that has content, a base model that cannot be reached,
    and a merged model that would not give the logits of the adapter.
    """
    folder = run if (run / ADAPTER_CONFIG).is_file() else run / MODEL
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{run}: {_no_adapter(run, folder)}")
    out = run / "merged" if out is None else out
    with appears_whole(out) as partial:
        model, tokenizer = _merged(folder)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return out


def _merged(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with named_errors(str(folder), key=None):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    adapted = load_trained(folder)
    generation = adapted.generation_config
    before = _logits(adapted)
    merged = adapted.merge_and_unload()
    merged.tie_weights()  # as whoever loads the folder will
    moved = ((_logits(merged) - before).abs().mean() / before.abs().mean()).item()
    if not moved <= _TOLERANCE.get(merged.dtype, _HALF_TOLERANCE):
        raise ValueError(
            f"{folder}: the merged model's logits would be off by {moved:.1%} of the adapter's; use the adapter as it "
            "is, with peft. Its layers are in adapter_config.json"
        )
    merged.generation_config = generation
    if tokenizer.eos_token_id is not None:  # an adapter has no config.json to say where the trained turns end
        align_end_of_turn(merged, tokenizer, [tokenizer.eos_token_id])
    return merged, tokenizer


def _no_adapter(run: Path, folder: Path) -> str:
    if (folder / "config.json").is_file():
        return f"has no adapter: this run trained the whole model, which is in {folder}"
    if not run.is_dir():
        return "no such folder"
    return f"no run with a trained adapter: {folder / ADAPTER_CONFIG} is missing"


@torch.no_grad()
def _logits(model: torch.nn.Module) -> torch.Tensor:
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(rows, (1, _PROBE), generator=torch.Generator().manual_seed(0))
    return model(input_ids=ids, use_cache=False).logits.double()


@command
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.merge", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT_DIR")
    args = parser.parse_args(arguments)
    disable_progress_bar()
    out = merge(args.run, args.out)
    print(f"merged model, {sum(file.stat().st_size for file in out.iterdir()) / 1e6:,.0f} MB")
    print(out)


if __name__ == "__main__":
    sys.exit(main())
