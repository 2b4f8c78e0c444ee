"""The tiny tokenizer, its chat template, and the tiny model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from flexmask.conversations.contexts import calls_of
from flexmask.conversations.reading import read_conversation
from recipes.models.tiny import build_model, build_tokenizer
from recipes.sources import parcels
from recipes.sources.tutoring import NAMES, THINGS, generate

TOKENIZER = build_tokenizer()


def render(messages, **kwargs):
    return TOKENIZER.apply_chat_template(messages, tokenize=False, **kwargs)


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content} | more


def test_all_generated_text_round_trips():
    # Broken by a tokenizer that cleans up spaces or has an unknown token.
    for seed, split in ((11, "train"), (12, "heldout")):
        for record in generate(300, seed, split):
            text = render(record["messages"])
            assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_any_text_round_trips(text):
    # Broken by a vocabulary without all bytes.
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_every_word_of_a_dialogue_is_one_token_and_every_digit_is_one():
    # Broken when the sample that the vocabulary is taken from misses a word: it would fall apart into bytes.
    words = {f" {word}" for word in (*NAMES, *THINGS)}
    for record in generate(300, 21, "heldout"):
        for message in record["messages"]:
            words |= {f" {word.strip('.,?:')}" for word in message["content"].split()[1:] if word[0].isalpha()}
    assert {word for word in words if len(TOKENIZER.encode(word)) != 1} == set()
    assert TOKENIZER.convert_ids_to_tokens(TOKENIZER.encode(" 42")) == ["Ġ4", "2"]


def test_control_tokens_are_what_qwen3_has():
    for text in ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"):
        assert len(TOKENIZER.encode(text)) == 1
    assert (TOKENIZER.eos_token, TOKENIZER.pad_token) == ("<|im_end|>", "<|endoftext|>")
    ids = TOKENIZER.encode("<|im_start|><think>a</think><|im_end|>")
    # Broken when <think> is special: the evaluation could then not tell thinking from answer.
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "<think>a</think>"


def test_the_tokenizer_is_the_same_each_time_and_after_saving(tmp_path):
    assert build_tokenizer().get_vocab() == TOKENIZER.get_vocab()
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    record = generate(1, 5, "train")[0]
    assert loaded.apply_chat_template(record["messages"]) == TOKENIZER.apply_chat_template(record["messages"])
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_thinking_stays_only_behind_the_last_user_message():
    # Broken by a template that keeps thinking in the history, or adds the scaffold to it.
    messages = [
        user("q1"),
        assistant("a1", reasoning_content="t1"),
        user("q2"),
        assistant("a2", reasoning_content="t2"),
    ]
    assert render(messages) == (
        "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n<think>\nt2\n</think>\n\na2<|im_end|>\n"
    )
    assert render(messages[:3], add_generation_prompt=True) == (
        "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_last_answer_without_thinking_has_an_empty_scaffold():
    assert render([user("q"), assistant("a")]).endswith("assistant\n<think>\n\n</think>\n\na<|im_end|>\n")


def test_inline_thinking_renders_like_reasoning_content():
    inline = [user("q"), assistant("<think>\nt\n</think>\n\na")]
    assert render(inline) == render([user("q"), assistant("a", reasoning_content="t")])
    # Without a question behind it, inline thinking in the history is dropped as well.
    assert "<think>" not in render([*inline, user("q2")])


def test_thinking_can_be_switched_off_in_the_generation_prompt():
    prompts = {on: render([user("q")], add_generation_prompt=True, enable_thinking=on) for on in (True, False)}
    assert prompts[True] == render([user("q")], add_generation_prompt=True)
    assert prompts[False] == prompts[True] + "<think>\n\n</think>\n\n"


def test_system_messages_stand_first_or_in_place():
    text = render([{"role": "system", "content": "s"}, user("q"), {"role": "system", "content": "s2"}, user("r")])
    assert text == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
        "<|im_start|>system\ns2<|im_end|>\n<|im_start|>user\nr<|im_end|>\n"
    )


def test_thinking_stays_between_tool_calls():
    # A tool's response is no new question. Broken by counting it as one: t1 would vanish.
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
    messages = [
        user("q"),
        assistant("", reasoning_content="t1", tool_calls=[call]),
        {"role": "tool", "content": "2"},
        {"role": "tool", "content": "3"},
        assistant("a", reasoning_content="t2"),
    ]
    text = render(messages)
    assert "<think>\nt1\n</think>" in text and "<think>\nt2\n</think>" in text
    assert '<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call><|im_end|>\n' in text
    assert (
        "<|im_start|>user\n<tool_response>\n2\n</tool_response>\n<tool_response>\n3\n</tool_response><|im_end|>\n"
        in text
    )
    assert "<think>" not in render([*messages, user("q2")])


def test_tools_are_listed_in_the_system_message():
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    text = render([{"role": "system", "content": "s"}, user("q")], tools=tools)
    assert text.startswith("<|im_start|>system\ns\n\n") and '"name": "add"' in text
    assert text.count("<|im_start|>system") == 1


def test_an_unknown_role_is_refused():
    with pytest.raises(TemplateError, match="unknown role narrator"):
        render([{"role": "narrator", "content": "x"}])


def test_the_model_follows_its_seed_and_leaves_the_global_state_alone():
    # Broken by seeding the global generator: data order would then hang on the model's size.
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (build_model(seed, vocab_size=len(TOKENIZER)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_the_default_model_is_small_float32_and_tied():
    model = build_model(0, vocab_size=len(TOKENIZER))
    assert 0.7e6 < sum(p.numel() for p in model.parameters()) < 1e6
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_sizes_can_be_overridden():
    sizes = dict(hidden_size=48, layers=2, heads=6, kv_heads=3, head_dim=8, intermediate_size=64)
    config = build_model(0, vocab_size=300, **sizes).config
    assert (config.hidden_size, config.num_hidden_layers, config.head_dim) == (48, 2, 8)
    assert (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size) == (6, 3, 64)


# Broken when a word of episodes, harness or chat template is in no sample: it would fall apart into bytes.
def test_every_word_of_an_episode_and_its_harness_is_one_token():
    tokenizer = build_tokenizer("parcels")
    for i, record in enumerate(parcels.generate(50, 21, "heldout")):
        for call in calls_of(read_conversation(record, f"{i}"), parcels.harness).calls:
            text = tokenizer.apply_chat_template(list(call.conversation.messages), tokenize=False)
            tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode(text))
            assert not [one for one in tokens if len(one) == 1 and one.isascii() and one.isalpha()]
    tags = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
    assert all(len(tokenizer.encode(tag)) == 1 and len(TOKENIZER.encode(tag)) > 1 for tag in tags)


# Broken by words of another data set in the vocabulary: the default model would begin with other weights.
def test_the_tokenizer_of_the_dialogues_is_what_it_was():
    assert build_tokenizer("tutoring").get_vocab() == TOKENIZER.get_vocab()
    assert len(TOKENIZER) == 407
