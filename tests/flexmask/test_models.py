"""Refusal by name, and the masks that a model asks for."""

import warnings

import pytest
import torch
import transformers as hf
from factories import TINY_MODELS, chatml_tokenizer, random_passes, random_weights, tiny_gemma3, tiny_qwen3
from families import FAMILIES
from peft import LoraConfig, get_peft_model
from reference import gradients, per_turn_loss, worst_gradient_difference
from stateful_families import BRANCHING
from torch import nn
from transformers.masking_utils import sliding_window_overlay

from flexmask import UnsupportedModelError, lay_out, pack, prepare_model, token_losses
from flexmask.attention.interface import ATTENTION_NAME, flexmask_mask, masks_given
from flexmask.attention.masks import build_block_mask
from flexmask.model.exactness import check_exact
from flexmask.model.randomness import random_settings
from flexmask.model.support import branching_layers, check_positions, unbranched_layers, unwrapped

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
LATENT = dict(
    num_key_value_heads=4,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_rope_head_dim=4,
    qk_nope_head_dim=8,
    v_head_dim=8,
    index_n_heads=2,
    index_head_dim=8,
    index_topk=4,
    n_routed_experts=4,
    moe_intermediate_size=16,
)
SPARSE = dict(
    head_dim=8,
    q_lora_rank=16,
    qk_rope_head_dim=4,
    o_lora_rank=8,
    o_groups=2,
    index_n_heads=2,
    index_head_dim=8,
    index_topk=4,
    n_routed_experts=4,
    moe_intermediate_size=16,
    layer_types=["heavily_compressed_attention", "compressed_sparse_attention"] * 2,
)
PASSES = random_passes(3)
SAME_SHAPE = (23, 70)  # seeds of conversations with as many tokens, trained ones and rows


def one_pack():
    return pack(lay_out(PASSES, "one_pass").rows, 512)[0]


# Layers that choose keys by themselves, or add keys: under a mask that looks like any other, they would mix branches.
@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (hf.DeepseekV32Config, LATENT, "DeepseekV32ForCausalLM fails over a few tokens .*'BlockMask'"),
        (
            hf.DeepseekV4Config,
            SPARSE,
            r"DeepseekV4Attention\): (\d+) queries and \d+ keys, but the BlockMask was built for \1 tokens",
        ),
    ],
)
def test_a_layer_that_does_more_than_mask_is_refused(config, settings, message):
    torch.manual_seed(0)
    model = prepare_model(hf.AutoModelForCausalLM.from_config(config(**{**SMALL, **HEADS, **settings})))
    with pytest.raises(UnsupportedModelError, match=message):
        check_exact(model, 16)


# Layers of only a feed-forward network are listed among the layer types of Nemotron-H; they take no mask.
def test_layers_without_attention_need_no_mask_rule():
    sizes = dict(vocab_size=60, hidden_size=32, intermediate_size=48, head_dim=8)
    config = hf.NemotronHConfig(**sizes, **HEADS, layers_block_type=["attention", "mlp"])
    model = prepare_model(hf.NemotronHForCausalLM(config))
    check_exact(model, 16)


# The name of gpt-oss holds "ssm", and Kimi Linear's attention the words "linear attention".
def test_names_that_only_look_stateful():
    model = FAMILIES["gpt-oss"].build(torch.float32)
    assert branching_layers(model) == unbranched_layers(model) == []
    layers = branching_layers(BRANCHING["Kimi Linear"].build(torch.float32))
    assert layers == [f"model.layers.{i}.self_attn (KimiLinearDeltaAttention)" for i in (0, 2)]


# Voxtral's audio tower has convolutions, which text does not enter; the same layer in the decoder carries state.
def test_towers_are_not_searched_for_state():
    audio = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    with torch.device("meta"):
        text = hf.LlamaConfig(**{**SMALL, "num_hidden_layers": 1}, **HEADS)
        model = hf.VoxtralForConditionalGeneration(hf.VoxtralConfig(audio_config=audio, text_config=text))
        assert any(isinstance(module, nn.Conv1d) for module in model.modules())
        assert branching_layers(model) == unbranched_layers(model) == []
        model.get_decoder().layers[0].mixer = nn.Sequential(nn.Conv1d(32, 32, 4))
    assert unbranched_layers(model) == ["model.language_model.layers.0.mixer (Sequential)"]


# ---- Masks: the model's own code asks for them ----

FULL, SLIDING = ["full_attention"] * 4, ["sliding_attention"] * 4
UNREAD = {
    "left over": (hf.LlamaConfig, dict(sliding_window=7)),
    "layer types": (hf.LlamaConfig, dict(layer_types=SLIDING, sliding_window=7)),
    "mixed": (hf.LlamaConfig, dict(layer_types=SLIDING[:2] + FULL[:2], sliding_window=7)),
    "chunk": (hf.LlamaConfig, dict(layer_types=["chunked_attention"] * 4, attention_chunk_size=7)),
    "unknown": (hf.LlamaConfig, dict(layer_types=["indexed_attention"] * 4)),
    "everywhere": (hf.MistralConfig, dict(layer_types=FULL, sliding_window=7)),
    "ALiBi": (hf.BloomConfig, dict(sliding_window=7, n_layer=4, n_head=4, hidden_dropout=0.0)),
    "asked for and not used": (hf.Qwen2MoeConfig, dict(moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2)),
}


def unread(name, dtype):
    config, settings = UNREAD[name]
    config = config(**{**SMALL, **(HEADS if config is not hf.BloomConfig else {}), **settings})
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    return random_weights(hf.AutoModelForCausalLM.from_config(config).to(dtype))


# The config of each says something else than its code does. Breaks if a mask follows the config.
@pytest.mark.parametrize("name", UNREAD)
def test_what_a_model_does_not_read_in_its_config_changes_nothing(name):
    model = unread(name, torch.float64)
    reference = per_turn_loss(model, PASSES)
    expected = gradients(model, reference)
    mine = token_losses(prepare_model(model), one_pack(), 16).total
    assert abs(mine.item() / reference.item() - 1) < 1e-12
    assert worst_gradient_difference(expected, gradients(model, mine)) < 1e-11


# Layers run again in backward, when the pack is no longer at hand. Breaks if they then have another mask, or refuse.
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", UNREAD)
def test_gradient_checkpointing(name, reentrant):
    model = prepare_model(unread(name, torch.float32)).train()
    expected = gradients(model, token_losses(model, one_pack(), 16).total)
    model.activation_checkpointing_enable(dict(use_reentrant=reentrant))
    found = gradients(model, token_losses(model, one_pack(), 16).total)
    assert all(torch.equal(found[key], gradient) for key, gradient in expected.items())


# Breaks if layers, or layers that run again in backward, each have one made.
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_each_mask_of_a_pack_is_made_once(reentrant, monkeypatch):
    made = []

    def build(until, blocks, positions, window, *arguments, **more):
        made.append(window)
        return build_block_mask(until, blocks, positions, window, *arguments, **more)

    monkeypatch.setattr("flexmask.model.support.build_block_mask", build)
    model = prepare_model(tiny_gemma3(60, torch.float32, window=12)).train()
    if reentrant is not None:
        model.activation_checkpointing_enable(dict(use_reentrant=reentrant))
    for _ in range(2):
        token_losses(model, one_pack(), 16).total.backward()
    assert sorted(made, key=str) == [12, 12, None, None]
    made.clear()
    token_losses(prepare_model(hf.MistralForCausalLM(hf.MistralConfig(**SMALL, **HEADS, sliding_window=9))), one_pack())
    assert made == [9]


def hidden_from_afar(batch, head, query, key):
    return query - key < 10**9


def own_mask(create, **functions):
    return lambda *arguments, **more: create(*arguments, **more, **functions)


# Breaks if a restriction is told by its size or by trying short distances: this one hides nothing of any pack.
@pytest.mark.parametrize("kind", ["and_mask_function", "or_mask_function"])
def test_any_other_mask_function_is_refused_by_name(kind, monkeypatch):
    home = hf.models.qwen3.modeling_qwen3
    monkeypatch.setattr(home, "create_causal_mask", own_mask(home.create_causal_mask, **{kind: hidden_from_afar}))
    model = prepare_model(tiny_qwen3(60, torch.float32))
    message = "model of Qwen3Config asks for an attention mask that is neither .*causal_mask_function, hidden_from_afar"
    with pytest.raises(UnsupportedModelError, match=message):
        token_losses(model, one_pack(), 16)
    model(input_ids=one_pack().input_ids)  # as before where no pack is


# Breaks if a window is answered that does not hide what comes later.
def test_a_window_that_is_not_causal_is_refused():
    with masks_given(fail), pytest.raises(UnsupportedModelError, match="sliding_window_overlay"):
        flexmask_mask(mask_function=sliding_window_overlay(5))


# Text given to a model of images: blocks of images are asked for, and there are none. Breaks if one is taken for none.
@pytest.mark.parametrize("images", [False, True])
def test_blocks_of_images_of_which_there_are_none(images, monkeypatch):
    home = hf.models.gemma3.modeling_gemma3
    ids = torch.full((1, len(one_pack())), -1)
    ids[0, 3:5] = -1 + images
    for name in ("create_causal_mask", "create_sliding_window_causal_mask"):
        monkeypatch.setattr(home, name, own_mask(getattr(home, name), block_sequence_ids=ids))
    model = tiny_gemma3(60, torch.float64, window=12)
    monkeypatch.undo()
    reference = per_turn_loss(model, PASSES).item()
    for name in ("create_causal_mask", "create_sliding_window_causal_mask"):
        monkeypatch.setattr(home, name, own_mask(getattr(home, name), block_sequence_ids=ids))
    if images:
        with pytest.raises(UnsupportedModelError, match="blockwise_overlay"):
            token_losses(prepare_model(model), one_pack(), 16)
    else:
        mine = token_losses(prepare_model(model), one_pack(), 16).total.item()
        assert abs(mine / reference - 1) < 1e-12


# Breaks if a model that makes its mask itself trains with branches that see each other.
@pytest.mark.parametrize("mask", [None, torch.zeros(1)])
def test_a_model_that_does_not_ask_or_does_not_take_the_answer_is_refused(mask, monkeypatch):
    home = hf.models.qwen3.modeling_qwen3
    model = prepare_model(tiny_qwen3(60, torch.float32))
    monkeypatch.setattr(home, "create_causal_mask", lambda **_: mask)
    with pytest.raises(UnsupportedModelError, match=r"layer 0 \(Qwen3Attention\) attends under a mask of its own"):
        token_losses(model, one_pack(), 16)
    for layer in model.model.layers:  # and no attention of ours
        layer.forward = lambda states, **_: states
    with pytest.raises(UnsupportedModelError, match="Qwen3ForCausalLM does not ask transformers for its attention"):
        token_losses(model, one_pack(), 16)


# Breaks if the graph that a compiler keeps has another pack's masks, or none. Packs of one shape, SAME_SHAPE, share a
# graph; others have one of their own.
@pytest.mark.parametrize("family, seeds", [("gemma3", SAME_SHAPE), ("qwen3", (3, 4))])
def test_compiled_as_a_whole(family, seeds):
    model = prepare_model(TINY_MODELS[family](60, torch.float64))
    packs = [pack(lay_out(random_passes(seed), "one_pass").rows, 512)[0] for seed in seeds]
    shapes = {(len(one), int((one.loss_weights > 0).sum())) for one in packs}
    assert len(shapes) == (1 if seeds is SAME_SHAPE else 2)
    expected = [token_losses(model, one, 16).losses for one in packs]
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for one, losses in zip(packs, expected, strict=True):
        found = token_losses(compiled, one, 16)
        torch.testing.assert_close(found.losses, losses)
        found.total.backward()


# Breaks if preparing a model changes a mode or the random state.
def test_a_model_in_training_is_left_as_it_was():
    model = tiny_qwen3(60, torch.float32).train()
    model.gradient_checkpointing_enable()
    model.model.layers[0].eval()
    modes, random = [module.training for module in model.modules()], torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_model(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


def fail(*_, **__):
    raise KeyError("boxes")


# Breaks if the masks of a pack outlive it where the model fails.
def test_a_model_that_cannot_run_over_text_is_refused_with_its_own_error():
    model = prepare_model(tiny_qwen3(60, torch.float32)).train()
    ids = torch.arange(5)[None]
    before, forward = model(ids).logits, model.model.layers[1].forward
    model.model.layers[1].forward = fail
    with pytest.raises(UnsupportedModelError, match="Qwen3ForCausalLM fails .* KeyError: 'boxes'") as refusal:
        check_exact(model, 16)
    assert isinstance(refusal.value.__cause__, KeyError)
    assert model.training
    model.model.layers[1].forward = forward
    assert torch.equal(model(ids).logits, before)


def test_a_model_without_weights_is_prepared_without_running_it():
    with torch.device("meta"):
        model = hf.Qwen3ForCausalLM(hf.Qwen3Config(**SMALL, **HEADS))
    model.forward = fail
    prepare_model(model)


@pytest.mark.parametrize("setting", ["attention_dropout", "attn_pdrop"])
def test_dropout_on_attention_is_refused_before_training(setting):
    model = tiny_qwen3(60, torch.float32)
    setattr(model.config, setting, 0.1)
    with pytest.raises(ValueError, match=f"{setting}=0.1: attention and routing must not be random"):
        prepare_model(model)


# DBRX keeps these settings in configs of its own for attention and experts.
@pytest.mark.parametrize("path", ["attn_config.attn_pdrop", "ffn_config.moe_jitter_eps"])
def test_random_settings_of_nested_configs_are_found(path):
    part, setting = path.split(".")
    model = hf.DbrxForCausalLM(
        hf.DbrxConfig(
            d_model=32,
            n_heads=4,
            n_layers=1,
            vocab_size=60,
            attn_config=dict(kv_n_heads=2, rope_theta=1e4),
            ffn_config=dict(hidden_size=32, ffn_hidden_size=48, moe_num_experts=2, moe_top_k=1),
        )
    )
    assert random_settings(model.config) == []
    setattr(getattr(model.config, part), setting, 0.1)
    with pytest.raises(ValueError, match=f"{path}=0.1: attention and routing must not be random"):
        prepare_model(model)


# Breaks if it is refused, passed over in silence, or if GPT-2's dropout of a head that is not there is named with it.
def test_dropout_outside_of_attention_is_named_once():
    config = hf.GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=4, attn_pdrop=0.0, resid_pdrop=0.2)
    with pytest.warns(UserWarning) as seen:
        prepare_model(hf.GPT2LMHeadModel(config))
    (message,) = [str(one.message) for one in seen]
    assert "GPT2LMHeadModel: resid_pdrop=0.2, embd_pdrop=0.1: turns of one pass share one draw" in message


def with_lora(model, **settings):
    return get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **settings))


# Found in the layers themselves: breaks if peft's dropout, which config.json does not have, is passed over in silence,
# or if that of an adapter that is not active is named.
def test_dropout_of_adapters_is_named_as_other_dropout_is():
    with pytest.warns(UserWarning) as seen:
        prepare_model(with_lora(tiny_qwen3(60, torch.float32), lora_dropout=0.25))
    (message,) = [str(one.message) for one in seen if "lora" in str(one.message)]
    assert "Qwen3ForCausalLM: lora_dropout=0.25: turns of one pass share one draw" in message
    model = with_lora(tiny_qwen3(60, torch.float32), lora_dropout=0.25)
    model.add_adapter("other", LoraConfig(target_modules=["q_proj"]))
    model.set_adapter("other")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_model(model)
    # As transformers' own add_adapter puts them: no wrapper around the model.
    model = tiny_qwen3(60, torch.float32)
    model.add_adapter(LoraConfig(target_modules=["q_proj"], lora_dropout=0.5))
    with pytest.warns(UserWarning, match="lora_dropout=0.5"):
        prepare_model(model)


# Whatever wraps a model, its layers are found, refused and named as without.
def test_a_model_is_found_in_its_wrappers():
    wrapped = with_lora(BRANCHING["Kimi Linear"].build(torch.float32))
    assert branching_layers(wrapped) == branching_layers(wrapped.get_base_model()) != []
    assert unwrapped(torch.compile(wrapped)) is wrapped.get_base_model()
    assert prepare_model(wrapped) is wrapped
    stateful = get_peft_model(
        hf.MambaForCausalLM(hf.MambaConfig(num_hidden_layers=1, hidden_size=32, vocab_size=60)),
        LoraConfig(target_modules=["in_proj"]),
    )
    with pytest.raises(UnsupportedModelError, match=r"^MambaForCausalLM: backbone.layers.0.mixer \(MambaMixer\) carry"):
        prepare_model(stateful)
    with pytest.raises(UnsupportedModelError, match="Linear neither is nor holds a model of transformers"):
        prepare_model(nn.Linear(2, 2))


# The error of the table itself names neither the model nor the length; on a GPU it ends the process.
@pytest.mark.parametrize("config", [hf.GPT2Config(n_positions=16), hf.OPTConfig(max_position_embeddings=16)])
def test_positions_beyond_a_table_are_refused(config):
    longest = int(one_pack().position_ids.max()) + 1
    assert longest > 16
    with pytest.raises(
        UnsupportedModelError,
        match=f"max_position_embeddings=16 learned positions, .* at {longest}; give pack_length=16 or",
    ):
        check_positions(config, one_pack())
    # Rotary positions have no end.
    check_positions(hf.Qwen3Config(max_position_embeddings=16), one_pack())


# Breaks if the balancing loss enters the total: it would then depend on the layout and on how rows are packed.
def test_the_routers_balancing_loss_is_switched_off_with_a_message():
    model = FAMILIES["Qwen3-MoE"].build(torch.float64)
    without = token_losses(prepare_model(model), one_pack(), 16).total
    model.config.output_router_logits = True
    with pytest.warns(UserWarning, match=r"output_router_logits is switched off.*router_aux_loss_coef=0.001"):
        prepare_model(model)
    assert model.config.output_router_logits is False
    assert token_losses(model, one_pack(), 16).total == without


def test_a_prepared_model_still_generates():
    model = prepare_model(tiny_qwen3(len(chatml_tokenizer()), torch.float32))
    assert model.config._attn_implementation == ATTENTION_NAME
    ids = torch.tensor([[5, 6, 7], [0, 8, 9]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    new = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    model.set_attn_implementation("sdpa")
    assert torch.equal(new, model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False))
