"""Tokenizer, config and generation config agree on the end of turn that is trained, and nothing else changes."""

import copy
import logging
from dataclasses import replace

import peft
import pytest
import torch
from factories import chatml_tokenizer, random_conversation, tiny_qwen3
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_utils import align_special_tokens

from flexmask import align_end_of_turn, prepare_conversation

CONVERSATIONS = [random_conversation(seed, turns=1 + seed % 4) for seed in range(12)]
# For templates that render no thinking.
PLAIN = [
    replace(one, messages=tuple({key: m[key] for key in ("role", "content")} for m in one.messages))
    for one in CONVERSATIONS
]
# As Phi-3's: what ends a text is the tokenizer's eos_token, what ends a turn is another token.
PHI = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# As GLM-4's: nothing stands behind an answer but the opening of the next message.
GLM = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def base_tokenizer(eos="<|endoftext|>", pad=None, template=None, extra=()):
    """As base models have it: the end of sequence is not what the chat template ends turns with."""
    tokenizer = copy.deepcopy(chatml_tokenizer())
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in extra])
    tokenizer.eos_token, tokenizer.pad_token = eos, pad
    tokenizer.chat_template = template or tokenizer.chat_template
    return tokenizer


def base_model(tokenizer, eos=None):
    model = tiny_qwen3(len(tokenizer), torch.float32)
    model.config.eos_token_id = model.generation_config.eos_token_id = eos
    return model


def ends_of(tokenizer, conversations=CONVERSATIONS):
    ends = {end for one in conversations for end in prepare_conversation(one, tokenizer).ends}
    return tuple(sorted(ends))


def ids(tokenizer, *tokens):
    return tokenizer.convert_tokens_to_ids(list(tokens))


def renders(tokenizer):
    """What the template writes for every prefix of every conversation."""
    return [
        tokenizer.apply_chat_template(list(one.messages[:k]), tokenize=False, add_generation_prompt=prompted)
        for one in CONVERSATIONS
        for k in range(1, len(one.messages) + 1)
        for prompted in (False, True)
    ]


# Breaks if the saved model would run on past the end of its turn, as base models fine-tuned to chat do.
def test_a_base_model_stops_where_it_learns_to(tmp_path):
    tokenizer = base_tokenizer()
    end, former = ids(tokenizer, "<|im_end|>", "<|endoftext|>")
    model = base_model(tokenizer, eos=former)
    said = align_end_of_turn(model, tokenizer, ends_of(tokenizer))
    assert said == (
        "turns end with '<|im_end|>': eos_token of the tokenizer is '<|im_end|>' (was '<|endoftext|>'); "
        "pad_token of the tokenizer is '<|endoftext|>' (was none); "
        f"eos_token_id of config is {end} (was {former}); "
        f"eos_token_id of generation_config is [{end}, {former}] (was {former})"
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, saved = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert saved.eos_token == "<|im_end|>" and saved.pad_token == "<|endoftext|>"
    assert loaded.config.eos_token_id == end and loaded.generation_config.eos_token_id == [end, former]
    assert loaded.config.pad_token_id == loaded.generation_config.pad_token_id == former
    assert renders(saved) == renders(base_tokenizer())


def test_a_second_time_nothing_changes_and_the_trainer_finds_nothing_to_align(caplog):
    tokenizer = base_tokenizer(eos=None)
    model = base_model(tokenizer)
    assert align_end_of_turn(model, tokenizer, ends_of(tokenizer))
    configs = [model.config.to_dict(), model.generation_config.to_dict()]
    assert align_end_of_turn(model, tokenizer, ends_of(tokenizer)) is None
    logger = logging.getLogger("transformers")
    logger.propagate, before = True, logger.propagate
    try:
        with caplog.at_level(logging.WARNING):
            align_special_tokens(model, tokenizer)
    finally:
        logger.propagate = before
    assert not caplog.records
    assert [model.config.to_dict(), model.generation_config.to_dict()] == configs


# Breaks if a run of a chat model says that something has changed: beginning and padding are only the tokenizer's.
def test_nothing_is_said_of_a_model_that_stops_there_already():
    tokenizer = copy.deepcopy(chatml_tokenizer())
    model = base_model(tokenizer, eos=tokenizer.eos_token_id)
    assert model.config.pad_token_id is None
    assert align_end_of_turn(model, tokenizer, ends_of(tokenizer)) is None
    assert model.config.pad_token_id == tokenizer.pad_token_id
    without = base_model(tokenizer)
    assert align_end_of_turn(without, tokenizer, ends_of(tokenizer)) == (
        f"turns end with '<|im_end|>': eos_token_id of config and generation_config is {tokenizer.eos_token_id} "
        "(was none)"
    )


def test_without_trained_turns_nothing_changes():
    tokenizer = base_tokenizer(eos=None)
    assert align_end_of_turn(base_model(tokenizer), tokenizer, ()) is None
    assert tokenizer.eos_token is None and tokenizer.pad_token is None


# Breaks if the template starts to write <|im_end|> a second time where it wrote the former end of sequence.
@pytest.mark.parametrize("before", ["", "\n", "  {% if true %}\n  {% endif %}\n"], ids=["", "newline", "indented"])
@pytest.mark.parametrize("eos", ["<|endoftext|>", None])
def test_a_template_that_writes_eos_token_writes_what_it_wrote(tmp_path, eos, before):
    tokenizer = base_tokenizer(eos=eos, template=before + PHI)
    expected, ends = renders(tokenizer), ends_of(tokenizer, PLAIN)
    rows = [prepare_conversation(one, tokenizer).rows for one in PLAIN]
    assert ends == tuple(ids(tokenizer, "<|im_end|>"))
    said = align_end_of_turn(base_model(tokenizer), tokenizer, ends)
    former = "none" if eos is None else repr(eos)
    assert f"eos_token of the tokenizer is '<|im_end|>' (was {former}, as the chat template still has it)" in said
    assert tokenizer.eos_token == "<|im_end|>" and renders(tokenizer) == expected
    tokenizer.save_pretrained(tmp_path)
    assert renders(AutoTokenizer.from_pretrained(tmp_path)) == expected
    for one, (former,) in zip(PLAIN, rows, strict=True):
        (row,) = prepare_conversation(one, tokenizer).rows
        assert row.input_ids.tolist() == former.input_ids.tolist()


def test_named_templates_are_kept_as_well():
    tokenizer = base_tokenizer(template={"default": PHI, "plain": GLM})
    align_end_of_turn(base_model(tokenizer), tokenizer, tuple(ids(tokenizer, "<|im_end|>")))
    assert tokenizer.chat_template["default"].endswith(PHI) and tokenizer.chat_template["plain"] == GLM
    assert renders(tokenizer) == renders(base_tokenizer(template=PHI))


def test_several_ends_are_all_kept_and_one_that_is_the_tokenizers_stays():
    tokenizer = base_tokenizer(eos="<|return|>", pad="<|endoftext|>", extra=["<|call|>", "<|return|>"])
    call, stop, other = ids(tokenizer, "<|call|>", "<|return|>", "<|im_start|>")
    model = base_model(tokenizer)
    model.config.eos_token_id, model.generation_config.eos_token_id = stop, [stop, other]
    align_end_of_turn(model, tokenizer, (call, stop))
    assert tokenizer.eos_token == "<|return|>"
    assert model.config.eos_token_id == [stop, call]
    assert model.generation_config.eos_token_id == [stop, call, other]


def test_a_turn_that_ends_with_the_opening_of_the_next():
    tokenizer = base_tokenizer(template=GLM, extra=["<|system|>", "<|user|>", "<|assistant|>"])
    ends = ends_of(tokenizer, PLAIN)
    user, former = ids(tokenizer, "<|user|>", "<|endoftext|>")
    assert ends == (user,)
    model = base_model(tokenizer, eos=[former, user])
    expected = renders(tokenizer)
    align_end_of_turn(model, tokenizer, ends)
    assert tokenizer.eos_token == "<|user|>" and renders(tokenizer) == expected
    assert model.config.eos_token_id == model.generation_config.eos_token_id == [former, user]


# A base model that names several ends: the first of them that is trained becomes the tokenizer's.
@pytest.mark.parametrize("order", [("<|call|>", "<|im_end|>"), ("<|im_end|>", "<|call|>")])
def test_the_first_known_end_becomes_the_tokenizers(order):
    tokenizer = base_tokenizer(extra=["<|call|>"])
    model = base_model(tokenizer, eos=ids(tokenizer, *order))
    align_end_of_turn(model, tokenizer, tuple(sorted(ids(tokenizer, *order))))
    assert tokenizer.eos_token == order[0]


# Breaks if a token without an embedding is chosen to pad with, which would fail in the first padded batch.
def test_padding_has_an_embedding():
    tokenizer = base_tokenizer(extra=["<pad>"])
    model = base_model(tokenizer)
    model.config.vocab_size = ids(tokenizer, "<pad>")[0]
    align_end_of_turn(model, tokenizer, ends_of(tokenizer))
    assert tokenizer.pad_token_id < model.config.vocab_size


# Breaks if padding is a trained end: whoever leaves padding out of the loss would then never train the end.
@pytest.mark.parametrize(
    ("config_pad", "extra", "expected"),
    [
        (None, [], "<|endoftext|>"),
        (None, ["<|finetune_right_pad_id|>"], "<|finetune_right_pad_id|>"),
        ("<|im_start|>", ["<pad>"], "<|im_start|>"),
        ("<|im_end|>", [], "<|endoftext|>"),
    ],
    ids=["former end", "made for it", "the model's", "not a trained end"],
)
def test_padding_is_no_trained_end(config_pad, extra, expected):
    tokenizer = base_tokenizer(extra=extra)
    model = base_model(tokenizer)
    model.config.pad_token_id = config_pad and ids(tokenizer, config_pad)[0]
    align_end_of_turn(model, tokenizer, ends_of(tokenizer))
    assert tokenizer.pad_token == expected
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_padding_that_the_tokenizer_has_stays():
    tokenizer = base_tokenizer(pad="<|im_start|>")
    align_end_of_turn(base_model(tokenizer), tokenizer, ends_of(tokenizer))
    assert tokenizer.pad_token == "<|im_start|>"


def test_a_model_wrapped_by_peft():
    tokenizer = base_tokenizer()
    model = base_model(tokenizer)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    align_end_of_turn(wrapped, tokenizer, ends_of(tokenizer))
    (end,) = ids(tokenizer, "<|im_end|>")
    assert model.config.eos_token_id == model.generation_config.eos_token_id == end
