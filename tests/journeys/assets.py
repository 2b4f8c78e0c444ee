"""What a user brings: pretrained models in local folders, saved by plain transformers, and conversations in files.

The models are small and random: a journey trains them until they chat. Each has its own tokenizer, safetensors and
generation_config, as a folder from the hub has.
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast, set_seed

from recipes.models.tiny import CHAT_TEMPLATE

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SIZES = dict(
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
    initializer_range=0.1,
)
ROTARY = dict(rope_parameters={"rope_type": "default", "rope_theta": 500.0})
# The architectures, by the name of their folder. `base` is a base model: its own end of text is not the end of a turn.
KINDS = {
    "dense": lambda: transformers.Qwen3Config(**SIZES, **ROTARY, num_hidden_layers=2, head_dim=16),
    "experts": lambda: transformers.Qwen3MoeConfig(
        **SIZES,
        **ROTARY,
        num_hidden_layers=2,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
    ),
    "hybrid": lambda: transformers.Qwen3_5TextConfig(
        **SIZES,
        num_hidden_layers=2,
        head_dim=16,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_conv_kernel_dim=4,
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **SIZES | {"intermediate_size": 64},
        **ROTARY,
        num_hidden_layers=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=32,
    ),
    "base": lambda: transformers.LlamaConfig(**SIZES, **ROTARY, num_hidden_layers=2),
}


def save_models(folder: Path) -> None:
    """One folder a kind in `folder`, each what `from_pretrained` loads."""
    for kind, make in KINDS.items():
        tokenizer = _tokenizer(end=PAD if kind == "base" else END)
        config = make()
        config.vocab_size = 384  # more rows than tokens, as most models have
        config.pad_token_id = tokenizer.pad_token_id
        config.bos_token_id = None
        config.eos_token_id = tokenizer.eos_token_id
        set_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        model.generation_config = GenerationConfig(
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
        model.save_pretrained(folder / kind)
        if kind == "gpt_oss":
            _experts_in_four_bits(folder / kind)
        tokenizer.save_pretrained(folder / kind)


def _experts_in_four_bits(folder: Path) -> None:
    """Store experts as gpt-oss has them on the hub (MXFP4): two numbers a byte, and a power of two for each 32."""
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        groups = weights.pop(name).transpose(1, 2).unflatten(-1, (-1, 32))
        power = groups.abs().amax(-1).log2().floor() - 2
        codes = ((groups / 2 ** power[..., None]).abs()[..., None] - values).abs().argmin(-1) + 8 * (groups < 0)
        weights[f"{name}_blocks"] = (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8)
        weights[f"{name}_scales"] = (power + 127).to(torch.uint8)
    save_file(
        {name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def conversations(count: int, turns: int = 3) -> list[dict]:
    """Records of `turns` turns with thinking; the answer to a question needs the answer before it."""
    records = []
    for number in range(count):
        total, thing = 2 + number, ("pens", "cups", "eggs")[number % 3]
        messages = []
        for turn in range(turns):
            if turn == 0:
                asked, thought = f"I have {total} {thing}.", f"{total}"
            else:
                more = 1 + (number + turn) % 4
                asked, thought, total = f"{more} more.", f"{total}+{more}={total + more}", total + more
            messages += [
                {"role": "user", "content": asked},
                {"role": "assistant", "reasoning_content": thought, "content": f"You have {total} {thing}."},
            ]
        records.append({"messages": messages})
    return records


def inline(record: dict) -> dict:
    """The same record with its thinking in the text."""
    messages = [
        {"role": m["role"], "content": f"<think>\n{m['reasoning_content']}\n</think>\n\n{m['content']}"}
        if m["role"] == "assistant"
        else m
        for m in record["messages"]
    ]
    return {"messages": messages}


def sharegpt(record: dict) -> dict:
    """The same record as ShareGPT writes it."""
    turns = []
    for m in record["messages"]:
        if m["role"] == "assistant":
            turns.append({"from": "gpt", "value": m["content"], "reasoning": m["reasoning_content"]})
        else:
            turns.append({"from": "human", "value": m["content"]})
    return {"conversations": turns}


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def _tokenizer(end: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the conversations above under a ChatML template that drops earlier thinking."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    texts = [message["content"] for record in conversations(40) for message in record["messages"]]
    core.train_from_iterator(
        [*texts, *["user\nassistant\nsystem\n\n"] * 20],
        trainers.BpeTrainer(
            vocab_size=340,
            special_tokens=[AddedToken(text, special=True, normalized=False) for text in (PAD, START, END)],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    core.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=end, pad_token=PAD, chat_template=CHAT_TEMPLATE, model_max_length=2048
    )
