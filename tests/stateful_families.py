"""A tiny random model of every family with layers that carry state from token to token.

Those of BRANCHING have stateful layers on both sides of attention, and chunks that the passes of the tests cross.
"""

import transformers as hf
from families import EXPERTS, HEADS, SIZES, TOKENS, Family

THREE = SIZES | dict(num_hidden_layers=3)
LINEAR = ["linear_attention", "full_attention", "linear_attention"]
DELTA = dict(
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    linear_conv_kernel_dim=4,
)
MAMBA = dict(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1, mamba_d_conv=4, mamba_expand=2)
GQA = dict(num_key_value_heads=2)

# Their state branches with the tree.
BRANCHING = {
    "Qwen3-Next": Family(
        "Gated DeltaNet and full, experts",
        lambda: hf.Qwen3NextConfig(
            **THREE, **HEADS, **DELTA, **EXPERTS, layer_types=LINEAR, num_experts=4, shared_expert_intermediate_size=16
        ),
    ),
    "Qwen3.5": Family(
        "Gated DeltaNet and full", lambda: hf.Qwen3_5TextConfig(**THREE, **HEADS, **DELTA, layer_types=LINEAR)
    ),
    "Qwen3.5-MoE": Family(
        "Gated DeltaNet and full, experts",
        lambda: hf.Qwen3_5MoeTextConfig(
            **THREE, **HEADS, **DELTA, **EXPERTS, layer_types=LINEAR, num_experts=4, shared_expert_intermediate_size=16
        ),
    ),
    "OLMo hybrid": Family(
        "Gated DeltaNet and full", lambda: hf.OlmoHybridConfig(**THREE, **GQA, **DELTA, **TOKENS, layer_types=LINEAR)
    ),
    "Kimi Linear": Family(
        "Kimi delta attention and latent",
        lambda: hf.KimiLinearConfig(
            **THREE,
            **TOKENS,
            num_key_value_heads=4,
            layer_types=LINEAR,
            linear_num_heads=2,
            linear_head_dim=8,
            kv_lora_rank=16,
            qk_nope_head_dim=8,
            qk_rope_head_dim=4,
            v_head_dim=8,
            num_local_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
        ),
    ),
    "Bailing hybrid": Family(
        "Kimi delta attention and latent, experts",
        lambda: hf.BailingHybridConfig(
            **THREE,
            **TOKENS,
            **EXPERTS,
            num_key_value_heads=4,
            head_dim=8,
            layer_types=LINEAR,
            kv_lora_rank=16,
            qk_nope_head_dim=8,
            qk_rope_head_dim=4,
            v_head_dim=8,
            num_local_experts=4,
            n_group=2,
            topk_group=1,
            first_k_dense_replace=1,
        ),
    ),
    "Nemotron-H": Family(
        "Mamba-2 and full",
        lambda: hf.NemotronHConfig(
            **{k: v for k, v in SIZES.items() if k != "num_hidden_layers"},
            **HEADS,
            **TOKENS,
            layers_block_type=["mamba", "attention", "mlp", "mamba"],
            mamba_num_heads=4,
            mamba_head_dim=16,
            ssm_state_size=8,
            n_groups=2,
            chunk_size=16,
            expand=2,
        ),
    ),
    "Granite hybrid": Family(
        "Mamba-2 and full, experts",
        lambda: hf.GraniteMoeHybridConfig(
            **THREE,
            **GQA,
            **MAMBA,
            mamba_chunk_size=16,
            **TOKENS,
            layer_types=["mamba", "attention", "mamba"],
            num_local_experts=4,
            num_experts_per_tok=2,
            shared_intermediate_size=16,
        ),
    ),
    "Bamba": Family(
        "Mamba-2 and full",
        lambda: hf.BambaConfig(**THREE, **GQA, **MAMBA, mamba_chunk_size=16, **TOKENS, attn_layer_indices=[1]),
    ),
    "Falcon-H1": Family(
        "Mamba-2 beside full",
        lambda: hf.FalconH1Config(**SIZES, **GQA, **MAMBA, mamba_chunk_size=16, **TOKENS, mamba_d_ssm=64),
    ),
    "Zamba2": Family(
        "Mamba-2 and full",
        lambda: hf.Zamba2Config(**SIZES, **TOKENS, layers_block_type=["mamba", "hybrid"], chunk_size=16),
    ),
    "LFM2": Family(
        "short convolution and full",
        lambda: hf.Lfm2Config(**THREE, **GQA, layer_types=["conv", "full_attention", "conv"]),
    ),
    "LFM2-MoE": Family(
        "short convolution and full, experts",
        lambda: hf.Lfm2MoeConfig(
            **THREE, **GQA, **EXPERTS, layer_types=["conv", "full_attention", "conv"], num_experts=4, num_dense_layers=1
        ),
    ),
    "LFM3": Family(
        "short convolution, full and window",
        lambda: hf.Lfm3Config(
            **(SIZES | dict(num_hidden_layers=4)),
            **HEADS,
            **TOKENS,
            sliding_window=12,
            layer_types=["conv", "full_attention", "sliding_attention", "conv"],
        ),
    ),
}

# Refused in one pass.
UNBRANCHED = {
    "Mamba": Family("state space", lambda: hf.MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2)),
    "Mamba-2": Family(
        "state space",
        lambda: hf.Mamba2Config(
            vocab_size=60, hidden_size=32, num_hidden_layers=2, num_heads=4, head_dim=16, state_size=8, n_groups=1
        ),
    ),
    "Jamba": Family(
        "Mamba and full, experts",
        lambda: hf.JambaConfig(
            **SIZES,
            **GQA,
            **TOKENS,
            num_experts=2,
            num_experts_per_tok=1,
            use_mamba_kernels=False,
            attn_layer_period=2,
            attn_layer_offset=1,
        ),
    ),
    "RWKV": Family(
        "recurrence",
        lambda: hf.RwkvConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32),
    ),
    "RecurrentGemma": Family(
        "recurrence and window",
        lambda: hf.RecurrentGemmaConfig(
            **SIZES,
            num_key_value_heads=1,
            lru_width=32,
            attention_window_size=12,
            block_types=["recurrent", "attention"],
        ),
    ),
    "MiniMax": Family(
        "lightning attention and full, experts",
        lambda: hf.MiniMaxConfig(
            **SIZES, **HEADS, layer_types=LINEAR[:2], num_local_experts=4, num_experts_per_tok=2, block_size=16
        ),
    ),
}
