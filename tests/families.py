"""A tiny random model of every family that is trained in one pass: every shape of attention there is.

Windows and chunks are short enough that the conversations of the tests cross them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers as hf
from factories import random_weights

VOCAB = 60
SIZES = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
HEADS = dict(num_key_value_heads=2, head_dim=8)
EXPERTS = dict(num_experts_per_tok=2, moe_intermediate_size=16)
MIXED = ["sliding_attention", "full_attention"]
TOKENS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)


@dataclass(frozen=True)
class Family:
    attention: str  # what its attention has beside a causal mask
    config: Callable[[], hf.PreTrainedConfig]

    def build(self, dtype: torch.dtype, seed: int = 0) -> hf.PreTrainedModel:
        torch.manual_seed(seed)
        config = self.config()
        config._experts_implementation = "eager"  # the grouped product of transformers 5.23 takes no float64
        model = hf.AutoModelForCausalLM.from_config(config, dtype=dtype)
        return random_weights(model.to(dtype))


FAMILIES = {
    "Qwen2.5": Family("full", lambda: hf.Qwen2Config(**SIZES, num_key_value_heads=2)),
    "Qwen3": Family("full", lambda: hf.Qwen3Config(**SIZES, **HEADS)),
    "Qwen3-MoE": Family("full, experts", lambda: hf.Qwen3MoeConfig(**SIZES, **HEADS, **EXPERTS, num_experts=4)),
    "Llama 3": Family(
        "full, scaled rotary",
        lambda: hf.LlamaConfig(
            **SIZES,
            **HEADS,
            rope_parameters=dict(
                rope_type="llama3",
                rope_theta=1e4,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        ),
    ),
    "SmolLM3": Family(
        "full, every other layer without positions",
        lambda: hf.SmolLM3Config(**SIZES, **TOKENS, num_key_value_heads=2, no_rope_layers=[1, 0]),
    ),
    "Mistral": Family("window", lambda: hf.MistralConfig(**SIZES, **HEADS, sliding_window=12)),
    "Ministral": Family(
        "full and window", lambda: hf.MinistralConfig(**SIZES, **HEADS, sliding_window=12, layer_types=MIXED)
    ),
    "Ministral 3": Family(
        "full, scaled queries",
        lambda: hf.Ministral3Config(
            **SIZES,
            **HEADS,
            sliding_window=None,
            rope_parameters=dict(
                rope_type="yarn",
                rope_theta=1e4,
                factor=4.0,
                original_max_position_embeddings=16,
                llama_4_scaling_beta=0.5,
            ),
        ),
    ),
    "Gemma 2": Family(
        "full and window, soft-capped scores",
        lambda: hf.Gemma2Config(
            **SIZES, **HEADS, **TOKENS, sliding_window=12, attn_logit_softcapping=2.0, layer_types=MIXED
        ),
    ),
    "Gemma 3": Family(
        "full and window",
        lambda: hf.Gemma3TextConfig(**SIZES, **HEADS, **TOKENS, sliding_window=12, layer_types=MIXED),
    ),
    "Gemma 4": Family(
        "full and window, two head sizes, shared keys and values",
        lambda: hf.Gemma4TextConfig(
            **{**SIZES, "num_hidden_layers": 4},
            **HEADS,
            **TOKENS,
            global_head_dim=16,
            sliding_window=12,
            layer_types=MIXED * 2,
            num_kv_shared_layers=2,
            hidden_size_per_layer_input=4,
            vocab_size_per_layer_input=VOCAB,
        ),
    ),
    "gpt-oss": Family(
        "full and window, sinks, experts",
        lambda: hf.GptOssConfig(
            **SIZES,
            **HEADS,
            **TOKENS,
            sliding_window=12,
            num_local_experts=4,
            num_experts_per_tok=2,
            layer_types=MIXED,
            rope_parameters=dict(rope_type="default", rope_theta=1e4),
        ),
    ),
    "Phi-3": Family("window", lambda: hf.Phi3Config(**SIZES, **TOKENS, num_key_value_heads=2, sliding_window=12)),
    "OLMo 2": Family("full", lambda: hf.Olmo2Config(**SIZES, **TOKENS, num_key_value_heads=2)),
    "OLMo 3": Family(
        "full and window",
        lambda: hf.Olmo3Config(**SIZES, **TOKENS, num_key_value_heads=2, sliding_window=12, layer_types=MIXED),
    ),
    "Granite": Family("full", lambda: hf.GraniteConfig(**SIZES, **TOKENS, num_key_value_heads=2)),
    "GraniteMoe": Family(
        "full, experts",
        lambda: hf.GraniteMoeConfig(
            **SIZES, **TOKENS, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
        ),
    ),
    "GLM-4": Family("full, partial rotary", lambda: hf.Glm4Config(**SIZES, **HEADS, **TOKENS)),
    "GLM-4-MoE": Family(
        "full, partial rotary, experts",
        lambda: hf.Glm4MoeConfig(
            **SIZES, **HEADS, **TOKENS, **EXPERTS, n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1
        ),
    ),
    "Cohere 2": Family(
        "full without positions and window",
        lambda: hf.Cohere2Config(**SIZES, **TOKENS, num_key_value_heads=2, sliding_window=12, layer_types=MIXED),
    ),
    "Llama 4": Family(
        "full without positions and chunks, experts",
        lambda: hf.Llama4TextConfig(
            **SIZES,
            **HEADS,
            **TOKENS,
            intermediate_size_mlp=48,
            num_local_experts=4,
            attention_chunk_size=12,
            layer_types=["chunked_attention", "full_attention"],
            no_rope_layers=[1, 0],
        ),
    ),
    "DeepSeek-V3": Family(
        "full, latent: query and value heads of two sizes, experts",
        lambda: hf.DeepseekV3Config(
            **SIZES,
            **TOKENS,
            **EXPERTS,
            num_key_value_heads=4,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=4,
            qk_nope_head_dim=8,
            v_head_dim=6,
            n_routed_experts=4,
            n_shared_experts=1,
            n_group=2,
            topk_group=1,
            first_k_dense_replace=1,
        ),
    ),
    "GPT-NeoX": Family("full, partial rotary", lambda: hf.GPTNeoXConfig(**SIZES, **TOKENS)),
    "OPT": Family(
        "full, learned positions, embeddings of another size",
        lambda: hf.OPTConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            word_embed_proj_dim=16,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
            dropout=0.0,
            attention_dropout=0.0,
            enable_bias=False,  # a bias of keys has no gradient but rounding
            **TOKENS,
        ),
    ),
    "GPT-2": Family(
        "full, learned positions",
        lambda: hf.GPT2Config(
            vocab_size=VOCAB,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=512,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
        ),
    ),
    "Bloom": Family(
        "full, ALiBi",
        lambda: hf.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, hidden_dropout=0.0),
    ),
}
