"""Random inputs for the tests, all from seeds: conversations, passes, rows, a tokenizer with real merges, models."""

import contextlib
import functools
import random
from unittest import mock

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from flexmask import Conversation, Pass, Role
from recipes.models.tiny import CHAT_TEMPLATE

WORDS = (
    "the sum of two small numbers is 12 34 567 so add them then carry one and check it again tutor\n\n - + = , .".split(
        " "
    )
)


def chatml_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges over words and newlines, and the ChatML template that drops earlier thinking. All
    tests share it."""
    tokenizer = _chatml_tokenizer()
    assert tokenizer.chat_template == CHAT_TEMPLATE, "a test has changed the tokenizer that all share; copy it first"
    return tokenizer


@functools.cache
def _chatml_tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=50)) + "\n\n\n\n" for _ in range(50)]
    texts += ["<think>\n\n</think>\n\nassistant\n\n user\n system\n"] * 20
    specials = [AddedToken(t, special=True, normalized=False) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


def template_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """That tokenizer with another template."""
    core = chatml_tokenizer().backend_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", chat_template=template)


def random_conversation(seed: int, turns: int | None = None, name: str | None = None) -> Conversation:
    """1 to 9 turns; with and without thinking, empty to long answers, sometimes a system prompt."""
    rng = random.Random(seed)

    def text(least: int, most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))

    messages = [{"role": "system", "content": text(1, 8)}] if rng.random() < 0.4 else []
    for _ in range(turns or rng.randint(1, 9)):
        messages.append({"role": "user", "content": text(1, 15)})
        answer = {"role": "assistant", "content": text(0, 0) if rng.random() < 0.15 else text(1, 20)}
        if rng.random() < 0.7:
            answer["reasoning_content"] = text(1, 30)
        messages.append(answer)
    return Conversation(name or f"random:{seed}", tuple(messages))


def random_passes(seed: int, turns: int | None = None, vocab: int = 60) -> list[Pass]:
    """Passes of a made-up template: random token segments, no tokenizer. Answers of earlier turns are copies."""
    rng = np.random.default_rng(seed)
    history = rng.integers(0, vocab, rng.integers(0, 4))
    passes = []
    for turn in range(turns or int(rng.integers(1, 10))):
        question = rng.integers(0, vocab, rng.integers(1, 12))
        thinking = rng.integers(0, vocab, rng.integers(1, 15) if rng.random() < 0.7 else 0)
        answer = rng.integers(0, vocab, rng.integers(1, 10))
        prompt = np.concatenate([history, question])
        ids = np.concatenate([prompt, thinking, answer])
        roles = np.array(
            [Role.PROMPT] * len(prompt) + [Role.THINKING] * len(thinking) + [Role.ANSWER] * len(answer), dtype=np.int8
        )
        weights = (roles != Role.PROMPT).astype(np.float32)
        passes.append(Pass(f"random:{seed}", turn, len(prompt), ids.astype(np.int64), roles, weights))
        history = np.concatenate([prompt, answer])
    return passes


def random_candidates(seed: int, count: int, rewards, vocab: int = 40) -> list[Pass]:
    """Passes of `count` rollouts behind one prompt, of one to three turns. Completions may begin alike, a later prompt
    leaves out what was thought, and tokens weigh 0, 0.5 or 1: also where another rollout shares them."""
    rng = random.Random(seed)
    ids = lambda least, most: [rng.randrange(vocab) for _ in range(rng.randint(least, most))]  # noqa: E731
    prompt, first, passes = ids(5, 30), (ids(4, 12), ids(3, 9)), []
    for candidate in range(count):
        history = list(prompt)
        for turn in range(rng.randint(1, 3)):
            thinking, answer = (ids(1, 12), ids(2, 9)) if turn else (list(one) for one in first)
            if turn == 0:  # as the first candidate begins
                kept = rng.randrange(len(thinking) + 1)
                thinking = thinking[:kept] + (ids(1, 8) if candidate else thinking[kept:])
            tokens = [*history, *thinking, *answer]
            roles = [Role.PROMPT] * len(history) + [Role.THINKING] * len(thinking) + [Role.ANSWER] * len(answer)
            weights = [0.0] * len(history) + [rng.choice((0.0, 0.5, 1.0, 1.0)) for _ in [*thinking, *answer]]
            weights[-1] = 1.0
            passes.append(
                Pass(
                    name=f"record {seed}",
                    turn=len(passes),
                    prompt_length=len(history),
                    input_ids=np.array(tokens),
                    roles=np.array(roles, dtype=np.int8),
                    loss_weights=np.array(weights, dtype=np.float32),
                    candidate=candidate,
                    reward=rewards[candidate],
                )
            )
            history += [*answer, *ids(1, 6)]
    return passes


def tiny_qwen3(vocab: int, dtype: torch.dtype, seed: int = 0) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=False,
    )
    return _random_model(Qwen3ForCausalLM, config, dtype, seed)


def tiny_gemma3(vocab: int, dtype: torch.dtype, seed: int = 0, window: int = 12) -> Gemma3ForCausalLM:
    """Every other layer has a sliding window short enough that conversations of the tests cross it."""
    config = Gemma3TextConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=window,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=8,
        pad_token_id=0,
    )
    return _random_model(Gemma3ForCausalLM, config, dtype, seed)


def random_weights(model):
    """Weights large enough that attention is far from uniform: a mask that is wrong must change the loss."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.25 if "embed" not in name and "lm_head" not in name else 0.5)
            elif "sinks" in name:
                parameter.normal_(0, 1)
    if model.dtype == torch.float64:
        model.forward = in_double()(model.forward)
    return model.eval()


@contextlib.contextmanager
def in_double():
    """float32 means float64 inside.

    transformers (5.23) computes norms, routers and the softmax of eager attention in float32, whatever the dtype of the
    weights, and that rounding alone moves float64 gradients by 1e-7: enough to hide a small mistake.
    """
    with (
        mock.patch.object(torch, "float32", torch.float64),
        mock.patch.object(torch, "float", torch.float64),
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        yield


def _random_model(cls, config, dtype, seed):
    torch.manual_seed(seed)
    return random_weights(cls(config).to(dtype))


TINY_MODELS = {"qwen3": tiny_qwen3, "gemma3": tiny_gemma3}


class Work:
    """Counts the characters that a tokenizer tokenizes, and the messages that it renders."""

    def __init__(self, tokenizer, monkeypatch):
        self.characters = self.messages = 0
        self.tokenize, self.render = type(tokenizer).__call__, type(tokenizer).apply_chat_template
        monkeypatch.setattr(type(tokenizer), "__call__", lambda *args, **kwargs: self.tokenized(*args, **kwargs))
        monkeypatch.setattr(type(tokenizer), "apply_chat_template", lambda *args, **more: self.rendered(*args, **more))

    def tokenized(self, tokenizer, text, **kwargs):
        self.characters += len(text)
        return self.tokenize(tokenizer, text, **kwargs)

    def rendered(self, tokenizer, messages, **kwargs):
        self.messages += len(messages)
        return self.render(tokenizer, messages, **kwargs)
