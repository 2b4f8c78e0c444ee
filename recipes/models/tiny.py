"""The embedded default model: a tokenizer and a Qwen3-architecture model, both built in-process.

Nothing is downloaded. The tokenizer is a byte-level one whose vocabulary is the words of a generated data set, the
tutoring dialogues (`recipes.sources.tutoring`) or those of another module of recipes/sources: every word of theirs is
one token, every digit is one token, and any other text is its bytes, so all text round-trips. Its chat template drops
earlier thinking the way Qwen3's does.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from flexmask.conversations.thinking import THINK_CLOSE, THINK_OPEN
from recipes.sources import documents, parcels, programs, tutoring

_SOURCES = {"tutoring": tutoring, "parcels": parcels, "programs": programs, "documents": documents}

TOOL_TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# A piece is a word, a digit or a run of other signs, each with the one space before it, or a run of newlines or spaces.
# So " 42" is " 4" and "2": a number's first digit and its second are different tokens.
_PIECES = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\n+|[^\S\n]+"

# The same behaviour as Qwen3's template, in our own words:
# - `question` is the index of the last real user message (a tool's response is not one); thinking stands only
#   in assistant messages after it, so answering a new question hides all earlier thinking;
# - the last message always has the thinking scaffold, even around nothing; an earlier one after the question
#   (a tool call) has it only around some thinking;
# - thinking is read from `reasoning_content`, or split off the content when it stands inline.
CHAT_TEMPLATE = """\
{%- set scan = namespace(question=messages | length - 1, found=false) -%}
{%- for message in messages | reverse -%}
  {%- set wrapped = message.content is string and message.content.startswith('<tool_response>')
      and message.content.endswith('</tool_response>') -%}
  {%- if message.role == 'user' and not scan.found and not wrapped -%}
    {%- set scan.found = true -%}
    {%- set scan.question = messages | length - 1 - loop.index0 -%}
  {%- endif -%}
{%- endfor -%}
{%- set lead = messages[0].content if messages[0].role == 'system' else '' -%}
{%- if tools -%}
  {{- '<|im_start|>system\\n' + (lead + '\\n\\n' if lead else '') + 'Tools:\\n' -}}
  {%- for tool in tools -%}{{- tool | tojson + '\\n' -}}{%- endfor -%}
  {{- 'Call one with <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\\n' -}}
{%- elif messages[0].role == 'system' -%}
  {{- '<|im_start|>system\\n' + lead + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- set content = message.content if message.content is string else '' -%}
  {%- if message.role == 'system' and loop.first -%}
  {%- elif message.role in ('system', 'user') -%}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' -}}
  {%- elif message.role == 'assistant' -%}
    {%- set thinking = '' -%}
    {%- if message.reasoning_content is string -%}
      {%- set thinking = message.reasoning_content -%}
    {%- elif '</think>' in content -%}
      {%- set thinking = content.split('</think>')[0].split('<think>')[-1] -%}
      {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
    {%- endif -%}
    {{- '<|im_start|>assistant\\n' -}}
    {%- if (preserve_thinking and thinking) or (loop.index0 > scan.question and (loop.last or thinking)) -%}
      {{- '<think>\\n' + thinking.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') -}}
    {%- else -%}
      {{- content -}}
    {%- endif -%}
    {%- for call in message.tool_calls or [] -%}
      {%- set call = call.function or call -%}
      {{- '\\n' if content or not loop.first -}}
      {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' -}}
      {{- (call.arguments if call.arguments is string else call.arguments | tojson) + '}\\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\\n' -}}
  {%- elif message.role == 'tool' -%}
    {{- '<|im_start|>user' if loop.first or messages[loop.index0 - 1].role != 'tool' -}}
    {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' -}}
    {{- '<|im_end|>\\n' if loop.last or messages[loop.index0 + 1].role != 'tool' -}}
  {%- else -%}
    {{- raise_exception('unknown role ' + message.role | string) -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
  {{- '<think>\\n\\n</think>\\n\\n' if enable_thinking is defined and not enable_thinking -}}
{%- endif -%}
"""


def build_tokenizer(words: str = "tutoring") -> PreTrainedTokenizerFast:
    """The tokenizer of a generated data set; the same on every call and in every process.

    words: "tutoring", "programs", "documents", or "parcels", which has tokens for the tags around calls as well.

    `decode(encode(text)) == text` for any text. `<|im_end|>` is the end-of-sequence token, `<|endoftext|>` pads,
    `<think>` and `</think>` are added but not special (as in Qwen3), so they survive `skip_special_tokens`.
    `save_pretrained` writes the Hugging Face format, chat template included.
    """
    pieces, vocabulary = _pieces(), _vocabulary(words)
    # With `ignore_merges` a piece that is in the vocabulary is one token; with no merges any other is its bytes.
    core = Tokenizer(models.BPE({piece: index for index, piece in enumerate(vocabulary)}, [], ignore_merges=True))
    core.pre_tokenizer = pieces
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (PAD, START, END)])
    tags = (THINK_OPEN, THINK_CLOSE, *(TOOL_TAGS if words == "parcels" else ()))
    core.add_tokens([AddedToken(text, special=False, normalized=False) for text in tags])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=4096,
    )


def _pieces() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@functools.cache  # the runs of a sweep share a process
def _vocabulary(words: str) -> tuple[str, ...]:
    """Every byte, and every word of the sample texts."""
    pieces, single = _pieces(), sorted(pre_tokenizers.ByteLevel.alphabet())
    found = {piece for text in _sample_texts(words) for piece, _ in pieces.pre_tokenize_str(text)}
    return (*single, *sorted(found - set(single)))


def _sample_texts(words: str) -> Iterator[str]:
    """Text that holds every word a dialogue can have, plus the template's own words."""
    yield "system\n\nuser\n\nassistant\n"
    source = _SOURCES[words]
    for record in source.generate(400, seed=0, split="train"):
        for message in record["messages"]:
            yield message["content"]
            yield message.get("reasoning_content", "")
            yield from (json.dumps(call["function"]) for call in message.get("tool_calls", ()))
    yield from getattr(source, "HARNESS", ())


def build_model(
    seed: int,
    *,
    vocab_size: int,
    hidden_size: int = 128,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    intermediate_size: int = 384,
) -> Qwen3ForCausalLM:
    """A Qwen3 model with fresh float32 weights drawn from `seed` (about 0.85M parameters by default).

    The global random state is left as it was.
    """
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        # For dialogues of some hundred tokens and about a thousand steps: larger weights than the usual 0.02 and
        # shorter rotary periods let attention tell words and distances apart from the first steps on.
        initializer_range=0.1,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config).float()
