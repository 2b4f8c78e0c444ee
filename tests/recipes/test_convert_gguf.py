"""A GGUF file written here, converted, gives back the model and tokenizer that it was written from."""

import json
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from recipes.convert_gguf import convert, main

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ĊĊ"]


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tiny_llama():
    """Grouped-query heads, so that a wrong head permutation shows."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def as_stored(name, weight, config):
    """GGUF's name and layout of a weight: rotary halves of the query and key heads are interleaved."""
    for ours, theirs in GGUF_NAMES.items():
        name = name.replace(ours, theirs)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for part, count in heads.items():
        if part in name:
            rows, columns = weight.shape
            weight = weight.reshape(count, 2, rows // count // 2, columns).transpose(1, 2).reshape(rows, columns)
    return name, weight.detach().contiguous().numpy()


def write_gguf(path, model, template=TEMPLATE, split="smollm"):
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))  # control tokens, then text
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    if template:
        writer.add_chat_template(template)
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":  # tied
            writer.add_tensor(*as_stored(name, weight, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    model = tiny_llama()
    out = convert(write_gguf(folder / "tiny.gguf", model), folder / "out")
    return model, out


def test_the_converted_model_computes_what_the_original_does(converted):
    # Breaks if weights stay quantized or transposed, or heads stay in GGUF's order.
    model, out = converted
    loaded = AutoModelForCausalLM.from_pretrained(out)
    ids = torch.randint(0, len(TOKENS), (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    assert all(weight.dtype == torch.float32 for weight in load_file(out / "model.safetensors").values())
    assert "quantization_config" not in json.loads((out / "config.json").read_text())


def test_the_folder_has_the_files_own_chat_tokenizer(converted):
    _, out = converted
    tokenizer = AutoTokenizer.from_pretrained(out)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "1+1"}], tokenize=False)
    assert text == "<|im_start|>user\n1+1<|im_end|>\n"
    ids = tokenizer(text).input_ids
    assert (ids[0], ids[-2], tokenizer.eos_token) == (1, 2, "<|im_end|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\n1+1\n"


def test_digits_are_split_off_as_the_file_says(converted):
    # Breaks with transformers' fallback, GPT-2's rule: it keeps one newline for the word behind.
    _, out = converted
    assert AutoTokenizer.from_pretrained(out)("a\n\n12").tokens() == ["a", "ĊĊ", "1", "2"]


def test_nothing_half_written_is_left(converted):
    _, out = converted
    assert {path.name for path in out.parent.iterdir()} == {"tiny.gguf", "out"}


def test_an_unknown_split_rule_is_announced(tmp_path):
    source = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), split="mystery")
    with pytest.warns(UserWarning, match="splits text by the rule 'mystery'"):
        convert(source, tmp_path / "out")


def test_a_template_can_be_given_and_must_be_somewhere(tmp_path, capsys):
    source = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), template=None)
    with pytest.raises(SystemExit, match="^error: .*carries no chat template"):
        main([str(source), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    arguments = [str(source), str(tmp_path / "out"), "--chat-template", str(tmp_path / "chat.jinja")]
    main([*arguments, "--dtype", "bfloat16"])
    assert "4 query and 2 key-value heads" in capsys.readouterr().out
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == TEMPLATE
    weights = load_file(tmp_path / "out" / "model.safetensors").values()
    assert {weight.dtype for weight in weights} == {torch.bfloat16}


def no_file(folder: Path) -> str:
    return "no such file"


def no_gguf(folder: Path) -> str:
    (folder / "tiny.gguf").write_bytes(b"PK\x03\x04")
    return "begins with b'PK\\x03\\x04', not b'GGUF'"


def out_has_content(folder: Path) -> str:
    (folder / "tiny.gguf").write_bytes(b"GGUF")
    (folder / "out").mkdir()
    (folder / "out" / "model.safetensors").touch()
    return "already exists; remove it, or choose another"


def interrupted_before(folder: Path) -> str:
    (folder / "tiny.gguf").write_bytes(b"GGUF")
    (folder / "out.partial").mkdir()
    (folder / "out.partial" / "config.json").touch()
    return "out.partial: already exists"


@pytest.mark.parametrize("prepare", [no_file, no_gguf, out_has_content, interrupted_before])
def test_refusals_come_before_any_work(tmp_path, prepare):
    expected = prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError) as raised:
        convert(tmp_path / "tiny.gguf", tmp_path / "out")
    assert expected in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before
