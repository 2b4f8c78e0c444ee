"""Convert a GGUF chat model to a folder that `AutoModelForCausalLM.from_pretrained` loads and trains.

    python -m recipes.convert_gguf SOURCE.gguf OUT_DIR [--chat-template FILE] [--dtype float32]

SOURCE.gguf is read by transformers (5.x) with `GgufConfig(dequantize=True)`: every quantized block is
unpacked into ordinary dense weights, so the result can be fine-tuned and saved. Without `dequantize` the
weights may stay packed and `save_pretrained` has nothing trainable to write. Reading GGUF needs the Python
package `gguf`.

OUT_DIR gets `config.json`, `generation_config.json`, `model.safetensors`, the tokenizer and
`chat_template.jinja`. It appears only when everything is written and has been read back: a killed conversion
leaves `OUT_DIR.partial`.
"""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerBase

from recipes.models.files import GGUF_MAGIC
from recipes.storage.whole import appears_whole
from recipes.terminal.command import command

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# How text is split before BPE, by the name that the file gives (tokenizer.ggml.pre). transformers 5.23 knows
# many but not these, and falls back on GPT-2's rule: "a\n\n1" would get other tokens than in pre-training.
MISSING_SPLITS = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    ),
}
GPT2_SPLITS = ("gpt-2", "default")
PROBE = [{"role": "user", "content": "What is 12 + 7?"}, {"role": "assistant", "content": "12 + 7 = 19"}]


def convert(source: Path, out_dir: Path, *, chat_template: str | None = None, dtype: str = "float32") -> Path:
    """Write `source` as safetensors, tokenizer and chat template to `out_dir`, and return `out_dir`.

    `chat_template` (Jinja text) replaces the template stored in the file; it is required when there is none.
    Raises ValueError for a path that is not a GGUF file, an `out_dir` that already has content, a missing
    template or tokenizer, and a folder that does not read back as it was written.
    """
    check_source(source)
    with appears_whole(out_dir) as partial:
        tokenizer = stored_tokenizer(source, chat_template)
        model = AutoModelForCausalLM.from_pretrained(
            str(source.parent),
            gguf_file=source.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=DTYPES[dtype],
            trust_remote_code=False,
        )
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        check_reads_back(partial, tokenizer, model.config)
    return out_dir


def check_source(source: Path) -> None:
    """Refuse what would fail late."""
    if not source.is_file():
        raise ValueError(f"{source}: no such file; give the path of a .gguf file")
    with source.open("rb") as file:
        magic = file.read(len(GGUF_MAGIC))
    if magic != GGUF_MAGIC:
        raise ValueError(f"{source}: begins with {magic!r}, not {GGUF_MAGIC!r}, so it is not a GGUF file")
    if importlib.util.find_spec("gguf") is None:
        raise ValueError("reading GGUF needs the Python package gguf; install it with: pip install gguf")


def stored_tokenizer(source: Path, chat_template: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer stored in the GGUF file, with the chat template that the folder will carry."""
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name, trust_remote_code=False)
    _restore_split(tokenizer, source)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if not tokenizer.chat_template:
        raise ValueError(
            f"{source}: carries no chat template (metadata key tokenizer.chat_template); "
            "pass one with --chat-template FILE"
        )
    return tokenizer


def _restore_split(tokenizer: PreTrainedTokenizerBase, source: Path) -> None:
    """Split text as the file says where transformers does not know how to; warn where we do not either."""
    from gguf import GGUFReader  # an optional extra, present if check_source passed

    field = GGUFReader(source).get_field("tokenizer.ggml.pre")
    split = field.contents() if field else "default"
    current = tokenizer.backend_tokenizer.pre_tokenizer
    is_fallback = isinstance(current, pre_tokenizers.ByteLevel) and current.use_regex
    if split in MISSING_SPLITS and is_fallback:
        tokenizer.backend_tokenizer.pre_tokenizer = MISSING_SPLITS[split]()
    elif is_fallback and split not in GPT2_SPLITS:
        warnings.warn(
            f"{source}: splits text by the rule {split!r}, which transformers does not know. It uses GPT-2's: "
            "some text may get other tokens than in pre-training. Compare with the original tokenizer",
            stacklevel=3,
        )


def check_reads_back(folder: Path, tokenizer: PreTrainedTokenizerBase, config: object) -> None:
    """The folder gives the same architecture, special tokens and chat token ids as the objects in memory."""
    saved_config, saved = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    pairs = {
        "model type": (config.model_type, saved_config.model_type),
        "special tokens": (tokenizer.special_tokens_map, saved.special_tokens_map),
        "chat token ids": (_probe_ids(tokenizer), _probe_ids(saved)),
    }
    for what, (written, read) in pairs.items():
        if written != read:
            raise ValueError(f"{folder}: {what} read back as {read!r}, written as {written!r}")


def _probe_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return tokenizer(tokenizer.apply_chat_template(PROBE, tokenize=False), add_special_tokens=False).input_ids


def describe(folder: Path) -> str:
    """One line for the terminal: sizes, heads and the tokens that end a turn."""
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    megabytes = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    return (
        f"{config.model_type}, {config.num_hidden_layers} layers of {config.hidden_size}, "
        f"{config.num_attention_heads} query and {config.num_key_value_heads} key-value heads, "
        f"{len(tokenizer):,} tokens, end of turn {tokenizer.eos_token}, {megabytes:,.0f} MB"
    )


@command
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.convert_gguf", description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, metavar="SOURCE.gguf")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    parser.add_argument("--chat-template", type=Path, metavar="FILE", help="Jinja file to use as chat template")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    args = parser.parse_args(arguments)
    template = args.chat_template.read_text(encoding="utf-8") if args.chat_template else None
    convert(args.source, args.out_dir, chat_template=template, dtype=args.dtype)
    print(describe(args.out_dir))
    print(args.out_dir)


if __name__ == "__main__":
    main()
