"""Real chat templates of the field, taken by name from the packages that ship them, and tokenizers to try them under.

Every template that axolotl and llama.cpp ship, but for those that are the same but for white space. Most come without a
tokenizer, so each gets one of bytes whose special tokens are those that the template writes.
"""

import functools
import re

from packages import axolotl_templates, llamacpp_templates
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flexmask.text.control_tokens import literal_text

# Texts in the form of a special token: <|im_end|>, <end_of_turn>, [INST], </s>, [|user|], <SPECIAL_12>, ]~b], ...
SPECIAL = re.compile(
    r"<[|｜][^\s<>|｜]{1,40}[|｜]>|<\|[a-z_]+>|<[a-z_]+\|>|<\|\"\|>|\[/?[A-Z_]+\]|\[\|[a-z]+\|\]|</?s>|<sep>|<seed:\w+>"
    r"|<(?:start|end)_of_\w+>|<(?:ctrl|unused|SPECIAL_)\d+>|</?(?:user|assistant|system)>|\]~!?b\]|\[e~\["
)
ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|eot|>", "</s>", "<|END_OF_TURN_TOKEN|>"),
    *("<｜end▁of▁sentence｜>", "<|end_of_text|>", "[e~[", "[|endofturn|]", "<|end_of_msg|>", "<｜hy_eos:opensource｜>"),
    "<seed:eos>",
)
CHAT = [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}, {"role": "user", "content": "why"}]


@functools.cache
def templates() -> dict[str, str]:
    """The source of each template, by package and name."""
    found, seen = {}, set()
    for package, folder in (("axolotl", axolotl_templates()), ("llama.cpp", llamacpp_templates())):
        for path in sorted(folder.glob("*.jinja")):
            source = path.read_text(encoding="utf-8")
            if (same := "".join(source.split())) not in seen:
                seen.add(same)
                found[f"{package}/{path.stem}"] = source
    return found


def tokenizer_of(source: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with the special tokens that a template writes."""
    written = literal_text(source)
    try:
        written += _tokenizer(source, [], "<eos>").apply_chat_template(CHAT, tokenize=False)
    except Exception:  # what it rejects, its tests say
        pass
    special = sorted(set(SPECIAL.findall(written)))
    return _tokenizer(source, special, next((end for end in ENDS if end in special), "<eos>"))


def _tokenizer(source: str, special: list[str], eos: str) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in {*special, eos, "<bos>"}])
    core.add_tokens([AddedToken(one, special=False, normalized=False) for one in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, bos_token="<bos>", chat_template=source)


# What must be generated, of turns that think and of those that do not, where it is not what the template writes behind
# the prompt once the turn stands: the prompt opens or closes a thought, or goes on in words of its own.
THINK = "<think>\n{thinking}\n</think>\n\n"
CLOSED = "\n</think>\n\n"
OTHERWISE = {
    "axolotl/gemma4": "{answer}<turn|>",
    "axolotl/mistral_v2v3": " {answer}<eos>",
    "axolotl/mistral_v3_tekken": "{answer}<eos>",
    "axolotl/pixtral": "{answer}<eos>",
    "llama.cpp/Apertus-8B-Instruct": "{answer}<|assistant_end|>",
    "llama.cpp/Apriel-1.6-15b-Thinker-fixed": "\n[BEGIN FINAL RESPONSE]\n{answer}\n<|end|>",
    "llama.cpp/Cohere2MoE": "<|END_THINKING|><|START_TEXT|>{answer}<|END_TEXT|><|END_OF_TURN_TOKEN|>",
    "llama.cpp/CohereForAI-c4ai-command-r7b-12-2024-tool_use": (
        "<|START_RESPONSE|>{answer}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"
    ),
    "llama.cpp/GLM-4.6": "\n<think></think>\n{answer}<|user|>",
    "llama.cpp/GLM-4.7-Flash": "</think>{answer}<|user|>",
    "llama.cpp/MiniMax-M2": CLOSED + "{answer}[e~[",
    "llama.cpp/NVIDIA-Nemotron-Nano-v2": CLOSED + "{answer}\n<SPECIAL_12>",
    "llama.cpp/CohereForAI-c4ai-command-r-plus-tool_use": "{answer}<|END_OF_TURN_TOKEN|>",
    "llama.cpp/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "</think>{answer}<|im_end|>",
    "llama.cpp/NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "{answer}<|im_end|>",
    "llama.cpp/Qwen-QwQ-32B": "{answer}<|im_end|>",
    "llama.cpp/Spark2.5": "</think>{answer}<｜end▁of▁sentence｜>",
    "llama.cpp/deepseek-ai-DeepSeek-R1-Distill-Llama-8B": CLOSED + "{answer}<｜end▁of▁sentence｜>",
    "llama.cpp/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "{answer}<｜end▁of▁sentence｜>",
    "llama.cpp/deepseek-ai-DeepSeek-V3.2": "{answer}<｜end▁of▁sentence｜>",
    "llama.cpp/google-gemma-4-31B-it": "{answer}<turn|>",
    "llama.cpp/google-gemma-4-31B-it-interleaved": "{answer}<turn|>",
    "llama.cpp/llama-cpp-deepseek-r1": CLOSED + "{answer}<｜end▁of▁sentence｜>",
    "llama.cpp/mistralai-Mistral-Nemo-Instruct-2407": "{answer}<eos>",
    "llama.cpp/tencent-Hy3": "{answer}<｜hy_eos:opensource｜>",
}
OTHERWISE_THINKING = {
    "axolotl/exaone4": "{thinking}\n</think>\n\n{answer}[|endofturn|]",
    "axolotl/gemma4": "<|channel>thought\n{thinking}\n<channel|>{answer}<turn|>",
    "axolotl/qwen3": "{thinking}" + CLOSED + "{answer}<|im_end|>",
    "axolotl/qwen3_5": "{thinking}" + CLOSED + "{answer}<|im_end|>",
    "llama.cpp/Apertus-8B-Instruct": THINK + "{answer}<|assistant_end|>",
    "llama.cpp/Apriel-1.6-15b-Thinker-fixed": "{thinking}\n[BEGIN FINAL RESPONSE]\n{answer}\n<|end|>",
    "llama.cpp/CohereForAI-c4ai-command-r7b-12-2024-tool_use": (
        "<|START_THINKING|>{thinking}<|END_THINKING|><|START_RESPONSE|>{answer}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"
    ),
    "llama.cpp/GLM-4.6": "\n<think>{thinking}</think>\n{answer}<|user|>",
    "llama.cpp/GLM-4.7-Flash": "{thinking}</think>{answer}<|user|>",
    "llama.cpp/Kimi-K2-Thinking": "<think>{thinking}</think>{answer}<|im_end|>",
    "llama.cpp/NVIDIA-Nemotron-Nano-v2": "{thinking}" + CLOSED + "{answer}\n<SPECIAL_12>",
    "llama.cpp/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "{thinking}</think>{answer}<|im_end|>",
    "llama.cpp/poolside-Laguna-XS-2.1": "{thinking}</think>\n{answer}\n</assistant>",
    "llama.cpp/poolside-Laguna-XS.2": "{thinking}</think>\n{answer}\n</assistant>",
    "llama.cpp/Qwen-QwQ-32B": "{thinking}" + CLOSED + "{answer}<|im_end|>",
    "llama.cpp/Qwen-Qwen3-0.6B": THINK + "{answer}<|im_end|>",
    "llama.cpp/deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "{thinking}" + CLOSED + "{answer}<｜end▁of▁sentence｜>",
    "llama.cpp/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "{thinking}" + CLOSED + "{answer}<｜end▁of▁sentence｜>",
    "llama.cpp/deepseek-ai-DeepSeek-V3.1": "{thinking}</think>{answer}<｜end▁of▁sentence｜>",
    "llama.cpp/google-gemma-4-31B-it": "<|channel>thought\n{thinking}\n<channel|>{answer}<turn|>",
    "llama.cpp/google-gemma-4-31B-it-interleaved": "<|channel>thought\n{thinking}<channel|>{answer}<turn|>",
    "llama.cpp/llama-cpp-deepseek-r1": "{thinking}" + CLOSED + "{answer}<｜end▁of▁sentence｜>",
    "llama.cpp/tencent-Hy3": "{thinking}</think:opensource>{answer}<｜hy_eos:opensource｜>",
    "llama.cpp/openbmb-MiniCPM5-1B": THINK + "{answer}<|im_end|>",
}
