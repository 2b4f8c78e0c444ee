"""Passes: byte for byte what the template shows at inference, then what the model generates."""

import copy

import numpy as np
import pytest
from factories import chatml_tokenizer, random_conversation
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flexmask import Conversation, Role, render_passes
from flexmask.text.rendering import select_turns

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def conversation(*messages):
    return Conversation("data.jsonl:7", messages)


def user(text):
    return {"role": "user", "content": text}


def assistant(text, thinking=None, **more):
    return {"role": "assistant", "content": text, **({"reasoning_content": thinking} if thinking else {}), **more}


def with_template(template):
    tokenizer = chatml_tokenizer().__class__(
        tokenizer_object=chatml_tokenizer().backend_tokenizer, eos_token="<|im_end|>", chat_template=template
    )
    return tokenizer


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("seed", range(25))
def test_a_pass_is_the_inference_prompt_then_the_generated_turn(seed):
    tokenizer = chatml_tokenizer()
    source = random_conversation(seed)
    turns = [i for i, m in enumerate(source.messages) if m["role"] == "assistant"]
    for p, index in zip(render_passes(source, tokenizer), turns, strict=True):
        shown = tokenizer.apply_chat_template(
            list(source.messages[:index]), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert p.input_ids[: p.prompt_length].tolist() == shown  # the very ids that inference feeds
        whole = tokenizer.apply_chat_template(list(source.messages[: index + 1]), tokenize=False)
        assert decoded(tokenizer, p.input_ids) == whole.removesuffix("\n")  # the newline behind is not generated
        assert p.input_ids[-1] == tokenizer.eos_token_id
        assert np.array_equal(p.loss_weights > 0, np.arange(len(p)) >= p.prompt_length)


def test_roles_of_a_turn():
    tokenizer = chatml_tokenizer()
    _, p = render_passes(
        conversation(user("add 12 and 34"), assistant("46", "carry"), user("then add 1"), assistant("47", "46 + 1")),
        tokenizer,
        thinking_weight=0.25,
        answer_weight=2.0,
    )
    text = {role: decoded(tokenizer, p.input_ids[p.roles == role]) for role in Role}
    assert text[Role.THINKING] == "<think>\n46 + 1\n</think>\n\n"
    assert text[Role.ANSWER] == "47<|im_end|>"
    assert text[Role.COPY] == "46"
    weights = {role: set(p.loss_weights[p.roles == role].tolist()) for role in Role}
    assert weights == {Role.PROMPT: {0}, Role.COPY: {0}, Role.THINKING: {0.25}, Role.ANSWER: {2.0}}


# The scaffold around no thinking is generated too; the answer starts behind it, even an empty one.
@pytest.mark.parametrize("answer", ["46", ""])
def test_roles_of_a_turn_without_thinking(answer):
    tokenizer = chatml_tokenizer()
    (p,) = render_passes(conversation(user("add 12 and 34"), assistant(answer)), tokenizer)
    assert decoded(tokenizer, p.input_ids[p.roles == Role.THINKING]) == "<think>\n\n</think>\n\n"
    assert decoded(tokenizer, p.input_ids[p.roles == Role.ANSWER]) == f"{answer}<|im_end|>"


# Breaks if an answer is looked for among the letters of the think tags.
@pytest.mark.parametrize("thinking, answer", [("take n", "n"), ("t", "k"), ("hi", "think")])
def test_short_texts_are_not_found_inside_the_think_tags(thinking, answer):
    tokenizer = chatml_tokenizer()
    (p,) = render_passes(conversation(user("add"), assistant(answer, thinking)), tokenizer)
    inside = thinking.strip()
    assert decoded(tokenizer, p.input_ids[p.roles == Role.THINKING]) == f"<think>\n{inside}\n</think>\n\n"
    assert decoded(tokenizer, p.input_ids[p.roles == Role.ANSWER]) == f"{answer}<|im_end|>"


def test_all_that_is_generated_without_thinking_is_answer():
    tokenizer = with_template(PLAIN)
    (p,) = render_passes(conversation(user("add"), assistant("  46 ")), tokenizer, thinking_weight=0.0)
    assert decoded(tokenizer, p.input_ids[p.loss_weights > 0]) == "  46 <|im_end|>"


def test_template_arguments_reach_the_template():
    tokenizer = chatml_tokenizer()
    source = conversation(user("add"), assistant("46"))
    (p,) = render_passes(source, tokenizer, template_kwargs={"enable_thinking": False})
    assert decoded(tokenizer, p.input_ids[: p.prompt_length]).endswith("assistant\n<think>\n\n</think>\n\n")
    assert decoded(tokenizer, p.input_ids[p.prompt_length :]) == "46<|im_end|>"


@pytest.mark.parametrize(
    "turns, expected",
    [("all", {0, 1, 2, 3}), ("-1", {3}), ("1:", {1, 2, 3}), ("0,2", {0, 2}), ("::2", {0, 2}), ("9", set())],
)
def test_select_turns(turns, expected):
    assert select_turns(turns, 4) == expected


@pytest.mark.parametrize("turns", ["", "last", "1;2", "1:2:3:4", "0,,1"])
def test_select_turns_names_what_it_cannot_read(turns):
    with pytest.raises(ValueError, match=r'turns=".*neither an index nor a slice'):
        select_turns(turns, 4)


# Breaks if a turn that is not trained is rendered as one to generate: here it could not be, for it never ends.
def test_a_turn_that_is_not_trained_is_context_only():
    source = conversation(user("a"), assistant("b"), user("d"), assistant("e", weight=0), user("f"), assistant("g"))
    template = PLAIN.replace("<|im_end|>\n{% endfor", "{{ '' if m.content in 'eg' else '<|im_end|>' }}\n{% endfor")
    tokenizer = with_template(template)
    (only,) = render_passes(source, tokenizer, turns="0,1")
    assert only.turn == 0 and only.is_trained
    whole = render_passes(source, chatml_tokenizer(), turns="0,1", untrained=True)
    assert [p.is_trained for p in whole] == [True, False, False]


# Two user messages after a copy would merge across the seam; the prompt's own tokenization wins, as at inference.
def test_a_merge_across_the_seam_keeps_the_prompts_tokens():
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = with_template(template)
    source = conversation(user("a"), assistant("\n\nthe sum"))
    prompt = tokenizer.apply_chat_template([source.messages[0]], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(list(source.messages), return_dict=False)
    assert whole[: len(prompt)] != prompt, "no merge across the seam: the test shows nothing"
    (p,) = render_passes(source, tokenizer)
    assert p.input_ids[: p.prompt_length].tolist() == prompt
    assert decoded(tokenizer, p.input_ids[p.prompt_length :]) == "\n\nthe sum<|im_end|>"


def test_a_template_without_thinking_gets_the_declared_format_and_says_so():
    tokenizer = with_template(PLAIN)
    source = conversation(user("add"), assistant("46", "carry"), user("more"), assistant("47", "one"))
    with pytest.warns(UserWarning, match="renders no thinking; it is trained as '<think>"):
        _, p = render_passes(source, tokenizer)
    assert decoded(tokenizer, p.input_ids[p.prompt_length :]) == "<think>\none\n</think>\n\n47<|im_end|>"
    assert "carry" not in decoded(tokenizer, p.input_ids)


# The newlines behind the thinking and those in front of the answer are one token, which carries the answer's first
# characters. Breaks if its weight is that of the thinking.
@pytest.mark.filterwarnings("ignore:.*renders no thinking")
def test_a_token_of_both_thinking_and_answer_is_of_the_answer():
    tokenizer = with_template(PLAIN)
    (p,) = render_passes(conversation(user("add"), assistant("\n\n\nthe sum", "carry")), tokenizer)
    text = {role: decoded(tokenizer, p.input_ids[p.roles == role]) for role in (Role.THINKING, Role.ANSWER)}
    assert text == {Role.THINKING: "<think>\ncarry\n</think>", Role.ANSWER: "\n\n\n\n\nthe sum<|im_end|>"}


# Breaks if thinking counts as rendered because the answer, or a tool call, quotes it.
@pytest.mark.parametrize("answer", [assistant("the sum 12", "12"), assistant("12", "12"), assistant("", "12")])
def test_thinking_that_the_answer_quotes_is_not_rendered_thinking(answer):
    template = PLAIN.replace("{{ m.content }}", "{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}")
    if not answer["content"]:
        answer["tool_calls"] = [{"type": "function", "function": {"name": "add", "arguments": {"x": "12"}}}]
    tokenizer = with_template(template)
    with pytest.warns(UserWarning, match="renders no thinking"):
        (p,) = render_passes(conversation(user("add"), answer), tokenizer)
    generated = decoded(tokenizer, p.input_ids[p.prompt_length :])
    assert generated.startswith("<think>\n12\n</think>\n\n")
    assert decoded(tokenizer, p.input_ids[p.roles == Role.THINKING]) == "<think>\n12\n</think>\n\n"


def test_a_template_without_thinking_is_refused_when_no_format_is_declared():
    source = conversation(user("add"), assistant("46", "carry"))
    with pytest.raises(ValueError, match=r"data.jsonl:7: assistant turn 0 .*does not render it; declare"):
        render_passes(source, with_template(PLAIN), thinking_format=None)


# DeepSeek and Kimi K2: history shows an empty block where inference thinks, in the prompt's words or the turn's.
def test_thinking_stands_in_the_empty_block_that_the_template_shows_in_its_place():
    source = conversation(user("add"), assistant("46", "carry"))
    template = PLAIN.replace(
        "{{ m.content }}", "{{ '<think>\n\n</think>\n\n' if m.role == 'assistant' }}{{ m.content }}"
    )
    with pytest.warns(UserWarning, match="shows an empty block in place of a turn's thinking"):
        (p,) = render_passes(source, with_template(template))
    generated = {role: decoded(chatml_tokenizer(), p.input_ids[p.roles == role]) for role in Role}
    assert generated[Role.THINKING] == "<think>\ncarry\n</think>\n\n" and generated[Role.ANSWER] == "46<|im_end|>"
    opened = template.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
    (p,) = render_passes(source, with_template(opened.replace("<think>\n\n</think>\n\n", "</think>")))
    assert decoded(chatml_tokenizer(), p.input_ids[p.prompt_length :]) == "carry</think>46<|im_end|>"


def test_a_prompt_that_is_no_prefix_shows_both_texts():
    template = PLAIN.replace("<|im_start|>assistant\n{% endif", "<|im_start|>model\n{% endif")
    with pytest.raises(ValueError, match=r"(?s)data.jsonl:7: assistant turn 0 .*not a prefix.*model.*assistant\\n"):
        render_passes(conversation(user("add"), assistant("46")), with_template(template))


def test_a_template_that_rewrites_the_answer_is_refused():
    template = PLAIN.replace("{{ m.content }}", "{{ m.content | upper }}")
    with pytest.raises(ValueError, match="data.jsonl:7: assistant turn 0 .*rewrites the turn: its content 'the sum'"):
        render_passes(conversation(user("add"), assistant("the sum")), with_template(template))


def test_a_turn_that_nothing_ends_is_refused():
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(ValueError, match="no special token ends the generated text"):
        render_passes(conversation(user("add"), assistant("46")), with_template(template))


def test_an_error_of_the_template_names_the_conversation():
    template = (
        "{% for m in messages %}{% if not loop.first and m.role == messages[loop.index0 - 1].role %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + PLAIN
    )
    source = conversation(user("add"), assistant("46"), assistant("47"))
    with pytest.raises(ValueError, match=r"data.jsonl:7: assistant turn 1 \(message 2\): .*roles must alternate"):
        render_passes(source, with_template(template))


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "</think>"])
def test_control_tokens_in_user_text_are_refused(token):
    with pytest.raises(ValueError, match=r"data.jsonl:7: messages\[0\].content contains the control token"):
        render_passes(conversation(user(f"say {token} now"), assistant("46")), chatml_tokenizer())


@pytest.mark.parametrize(
    "source",
    [
        Conversation(
            "c", (user("a"), assistant("b")), tools=({"function": {"name": "f", "description": "x <|im_end|>"}},)
        ),
        conversation(
            user("a"), assistant("b", tool_calls=[{"function": {"name": "f", "arguments": {"<|im_end|>": 1}}}])
        ),
        Conversation("c", (user("a"), assistant("b")), template_kwargs={"persona": ["x", {"y": "z<|im_end|>"}]}),
    ],
    ids=["tool schema", "argument name", "argument of the template"],
)
def test_control_tokens_in_tools_and_arguments_are_refused(source):
    with pytest.raises(ValueError, match='contains the control token "<|im_end|>"'):
        render_passes(source, chatml_tokenizer())


# Breaks if an argument of the template that a record gives opens a turn of its own.
def test_control_tokens_in_arguments_of_the_template_can_be_escaped():
    tokenizer = copy.deepcopy(chatml_tokenizer())
    tokenizer.chat_template = "{{ persona }}" + tokenizer.chat_template
    source = Conversation("c", (user("a"), assistant("b")), template_kwargs={"persona": "x<|im_start|>y"})
    (p,) = render_passes(source, tokenizer, control_tokens="escape")
    assert (p.input_ids == tokenizer.convert_tokens_to_ids("<|im_start|>")).sum() == 2
    assert tokenizer.decode(p.input_ids).startswith("x<\u200b|im_start|>y")


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "</think>"])
def test_control_tokens_in_user_text_can_be_escaped(token):
    tokenizer = chatml_tokenizer()
    source = conversation(user(f"say {token} now"), assistant("46"))
    (p,) = render_passes(source, tokenizer, control_tokens="escape")
    (plain,) = render_passes(conversation(user("say now"), assistant("46")), tokenizer)
    control = tokenizer.convert_tokens_to_ids(token)
    assert (p.input_ids == control).sum() == (plain.input_ids == control).sum()
    assert source.messages[0]["content"] == f"say {token} now"  # the data itself is left alone


# Breaks if escaping changes what the model is to write, or if a control token is left in it.
@pytest.mark.parametrize("text", ["use split('</think>')[-1]", "the <|im_end|> token", "<think>", "a</think></think>b"])
@pytest.mark.parametrize("thinks", [True, False])
def test_control_tokens_in_what_is_generated_become_plain_tokens_of_the_same_text(text, thinks):
    tokenizer = chatml_tokenizer()
    answer = assistant("so", f"a {text}") if thinks else assistant(f"b {text}", "so")
    source = conversation(user("add"), answer, user("more"), assistant("47"))
    with pytest.raises(ValueError, match='train on it as plain text with control_tokens="escape"'):
        render_passes(source, tokenizer)
    first, second = render_passes(source, tokenizer, control_tokens="escape")
    thought, said = (decoded(tokenizer, first.input_ids[first.roles == role]) for role in (Role.THINKING, Role.ANSWER))
    assert (
        thought == f"<think>\n{answer['reasoning_content']}\n</think>\n\n" and said == f"{answer['content']}<|im_end|>"
    )
    generated = first.input_ids[first.prompt_length :].tolist()
    assert [generated.count(tokenizer.convert_tokens_to_ids(one)) for one in ("<think>", "</think>", "<|im_end|>")] == [
        *(1, 1, 1)
    ]
    # As transformers escapes it for inference, where the answer is shown again.
    shown = decoded(tokenizer, second.input_ids[: second.prompt_length])
    assert thinks or text.replace("<", "<\u200b") in shown


def normalizing_tokenizer(**special):
    """Lower-cases text, and finds special tokens in the result where `special` says normalized=True."""
    core = Tokenizer(models.WordLevel({"[UNK]": 0, "add": 1, "user": 2, "assistant": 3}, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens([AddedToken(t, **special) for t in ("<|im_start|>", "<|im_end|>")])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", chat_template=PLAIN)


# Breaks if only the raw text is looked at: the tokenizer makes a control token of another spelling.
def test_a_control_token_that_the_normalizer_makes_is_refused():
    tokenizer = normalizing_tokenizer(normalized=True)
    with pytest.raises(ValueError, match=r"data.jsonl:7: messages\[0\].content becomes a control token"):
        render_passes(conversation(user("add <|IM_END|>"), assistant("add")), tokenizer)
    render_passes(conversation(user("add <|IM_END|>"), assistant("add")), normalizing_tokenizer(normalized=False))


def test_a_control_token_of_one_character_cannot_be_escaped():
    tokenizer = copy.deepcopy(chatml_tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": ["~"]})
    with pytest.raises(ValueError, match='contains the control token "~", a single character'):
        render_passes(conversation(user("a ~ b"), assistant("46")), tokenizer, control_tokens="escape")


# Breaks if the end of a turn is checked as text only: a token that must stand as a word of its own is cut to pieces.
def test_an_end_of_turn_that_is_not_one_token_is_refused():
    tokenizer = copy.deepcopy(chatml_tokenizer())
    tokenizer.add_tokens([AddedToken("END", special=True, single_word=True)])
    tokenizer.chat_template = PLAIN.replace("<|im_end|>\n", "END\n")
    with pytest.raises(ValueError, match="the end-of-turn token at the end of '46END' is not tokenized as one token"):
        render_passes(conversation(user("add"), assistant("46")), tokenizer)


# A prompt and a render that both end with the opening of the block: it must not be opened twice.
def test_a_thinking_block_that_the_prompt_opens_is_opened_once():
    template = PLAIN.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}").replace(
        "{{ m.content }}", "{{ '<think>\n' if m.role == 'assistant' and loop.last }}{{ m.content }}"
    )
    source = conversation(user("add"), assistant("46", "carry"), user("more"), assistant("47"))
    with pytest.warns(UserWarning, match="renders no thinking"):
        first, second = render_passes(source, with_template(template))
    assert decoded(chatml_tokenizer(), first.input_ids).endswith("<think>\ncarry\n</think>\n\n46<|im_end|>")
    assert decoded(chatml_tokenizer(), second.input_ids).endswith("<think>\n\n</think>\n\n47<|im_end|>")
    with pytest.raises(ValueError, match="the prompt opens a thinking block .* nothing closes"):
        render_passes(conversation(user("add"), assistant("46")), with_template(template), thinking_format=None)


@pytest.mark.parametrize("declared", ["<think></think>", "{thinking}{thinking}"])
def test_a_thinking_format_holds_the_thinking_once(declared):
    with pytest.raises(ValueError, match="thinking_format=.*must hold {thinking} once"):
        render_passes(conversation(user("a"), assistant("b", "c")), chatml_tokenizer(), thinking_format=declared)


# A switch far back in the conversation decides how the prompt ends: no short render shows it.
@pytest.mark.parametrize("turns", [10, 40])
def test_a_switch_in_the_middle_of_a_long_conversation(turns):
    switched = (
        "{% set ns = namespace(on=true) %}{% for m in messages %}"
        "{% if '/quiet' in m.content %}{% set ns.on = false %}{% endif %}"
        "{% if '/loud' in m.content %}{% set ns.on = true %}{% endif %}{% endfor %}"
    )
    template = switched + PLAIN.replace(
        "assistant\n{% endif %}", "assistant\n{{ '' if ns.on else 'quiet\n' }}{% endif %}"
    )
    template = template.replace(
        "{{ m.content }}", "{{ 'quiet\n' if loop.last and m.role == 'assistant' and not ns.on }}{{ m.content }}"
    )
    messages = [m for i in range(turns) for m in (user(f"ask {i}"), assistant(f"tell {i}"))]
    messages[2 * (turns // 2)] = user("/quiet ask")
    messages[2 * (turns // 2) + 8] = user("/loud ask")
    tokenizer = with_template(template)
    for i, p in enumerate(render_passes(conversation(*messages), tokenizer)):
        shown = tokenizer.apply_chat_template(messages[: 2 * i + 1], add_generation_prompt=True, return_dict=False)
        assert p.input_ids[: p.prompt_length].tolist() == shown
