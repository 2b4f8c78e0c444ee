"""Real chat templates under real tokenizers: every pass is what inference shows, then what the model must generate."""

import datetime
import json
import random
import warnings

import numpy as np
import pytest
from factories import Work
from packages import template_folder
from stock_templates import GEMMA_THOUGHT, STOCK, THINK, Stock

from flexmask import Conversation, Role, one_pass
from flexmask.text.rendering import render_conversation

pytestmark = pytest.mark.network
WORDS = "what is the sum of 3 and 4, then: carry 12\nover – naïve 東京 x² 😀 (add it) to \n\n1. a list\t- so".split(" ")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two numbers.",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "number", "description": "the first"},
                    "b": {"type": "number", "description": "the second"},
                },
                "required": ["a", "b"],
            },
        },
    }
]


@pytest.fixture(scope="module")
def loaded():
    """Tokenizers by template, each loaded once a process."""
    cache = {}

    def load(name):
        if name not in cache:
            cache[name] = STOCK[name].load(name)
        return cache[name]

    return load


def text(rng: random.Random, least: int = 1, most: int = 14) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(least, most))).strip() or "so"


def answer(rng: random.Random, thinking: bool, most: int = 14) -> dict:
    thought = {"reasoning_content": text(rng, most=most)} if thinking else {}
    return {"role": "assistant", "content": text(rng, most=most), **thought}


def chat(stock: Stock, seed: int, turns: int, most: int = 14) -> list[dict]:
    """Texts have up to `most` words."""
    rng = random.Random(seed)
    messages = [{"role": "system", "content": text(rng)}] if stock.system and rng.random() < 0.5 else []
    for _ in range(turns):
        thinks = stock.plain is None or (stock.turn is not None and rng.random() < 0.7)
        messages += [{"role": "user", "content": text(rng, most=most)}, answer(rng, thinks, most)]
    return messages


def tool_chat(stock: Stock, seed: int, exchanges: int, as_text: bool = False) -> list[dict]:
    """Every exchange calls a tool up to three times, with thinking in between, before the answer."""
    rng = random.Random(seed)
    messages = []
    for _ in range(exchanges):
        messages.append({"role": "user", "content": text(rng)})
        for _ in range(rng.randint(1, 3)):
            a, b = rng.randint(0, 99), rng.randint(0, 99)
            arguments = {"a": a, "b": b}
            name = f"call{rng.randrange(10**5):05d}"
            function = {"name": "add", "arguments": json.dumps(arguments) if as_text else arguments}
            call = {"id": name, "type": "function", "function": function}
            thinks = stock.plain is None or (stock.turn is not None and rng.random() < 0.7)
            messages.append(answer(rng, thinks) | {"content": "", "tool_calls": [call]})
            messages.append({"role": "tool", "name": "add", "tool_call_id": name, "content": str(a + b)})
        thinks = stock.plain is None or (stock.turn is not None and rng.random() < 0.7)
        messages.append(answer(rng, thinks))
    return messages


def render(name: str, stock: Stock, tokenizer, messages, tools=None, **settings):
    conversation = Conversation(name, tuple(messages), tools and tuple(tools))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return conversation, render_conversation(conversation, tokenizer, thinking_format=stock.format, **settings)


def shown(stock: Stock, messages) -> list[dict]:
    """The messages as a user of this template would pass them at inference."""
    if not stock.parts:
        return list(messages)
    return [message | {"content": [{"type": "text", "text": message["content"]}]} for message in messages]


def decoded(tokenizer, ids) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def paths(row) -> list[np.ndarray]:
    """The token ids of every path of the tree from a root to the last trained token of a branch."""
    parents = dict(enumerate(row.node_parent))
    found = []
    for leaf in range(len(parents)):
        nodes, node = [], leaf
        while node >= 0:
            nodes.append(row.input_ids[row.node_start[node] : row.node_end[node]])
            node = parents[node]
        found.append(np.concatenate(nodes[::-1]))
    return found


def check_prompts(stock, tokenizer, messages, passes, tools=None):
    """Each prompt, token for token and byte for byte, as apply_chat_template gives it at inference."""
    assistant = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for p, index in zip(passes, assistant, strict=True):
        history = shown(stock, messages[:index])
        ids = tokenizer.apply_chat_template(history, tools=tools, add_generation_prompt=True, return_dict=False)
        assert p.input_ids[: p.prompt_length].tolist() == ids
        prompt = tokenizer.apply_chat_template(history, tools=tools, add_generation_prompt=True, tokenize=False)
        assert decoded(tokenizer, ids) == prompt
        assert np.array_equal(p.loss_weights > 0, np.arange(len(p)) >= p.prompt_length)
        yield p, index, prompt, decoded(tokenizer, p.input_ids[p.prompt_length :])
    (row,) = one_pass(passes)
    tree = {path.tobytes() for path in paths(row)}
    # Every pass is a path of the tree, unless another goes on where it ends: then it is the beginning of that one.
    for p in passes:
        assert p.input_ids.tobytes() in tree or any(path.startswith(p.input_ids.tobytes()) for path in tree)


def test_every_stock_template_is_in_the_table():
    shipped = {path.stem for path in template_folder().glob("*.jinja") if not path.stem.endswith("_training")}
    assert shipped == set(STOCK) and len(STOCK) == 41


# Breaks if a prompt is put together wrongly, tokenization restarts at a wrong place, or a trained token is missing.
@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("seed", range(3))
def test_chats(name, seed, loaded, record_property):
    stock, tokenizer = STOCK[name], loaded(name)
    messages = chat(stock, seed, turns=(4, 7, 14)[seed])
    conversation, rendered = render(name, stock, tokenizer, messages)
    assert rendered.retokenized_texts <= stock.slow
    for p, index, _, generated in check_prompts(stock, tokenizer, messages, rendered.passes):
        message = messages[index]
        expected = stock.turn if "reasoning_content" in message else stock.plain
        assert generated == expected.format(thinking=message.get("reasoning_content"), answer=message["content"])
        assert message["content"] in decoded(tokenizer, p.input_ids[p.roles == Role.ANSWER])
    (row,) = one_pass(rendered.passes)
    thinks = sum("reasoning_content" in message for message in messages)
    if thinks == len(rendered.passes) > 1:
        assert row.is_chain == stock.kept
    if seed == 2:
        record_property("support", json.dumps(dict(kind="template", name=name, **verdict(stock, row))))


def verdict(stock: Stock, row) -> dict:
    """What the tests of this file assert of a template, in words."""
    if stock.turn is None:
        thinking = f"refused: {stock.refusal}"
    elif stock.format != "auto":
        thinking = f"exact with `thinking_format={stock.format!r}`"
    elif stock.declared:
        thinking = "exact in the form that it shows beside calls" if GEMMA_THOUGHT in stock.turn else "exact, declared"
    else:
        thinking = "exact, kept in the history" if stock.kept else "exact"
    return dict(
        tokenizer=stock.tokenizer + (" and its special tokens" if stock.special else ""),
        thinking=thinking,
        plain="exact" if stock.plain is not None else f"refused: {stock.refusal}",
        tools="exact" if stock.tools is None else f"refused: {stock.tools}",
        duplicated_share=float((row.roles == Role.COPY).mean()),
    )


# Breaks if more is tokenized of a turn the more turns stand before it; quadratic work is about five times as much here.
# Each prompt and each turn is rendered behind all that was said before, once; its form is learned from its exchange.
@pytest.mark.parametrize("name", STOCK)
def test_preparation_is_linear_in_the_text(name, loaded, record_property, monkeypatch):
    stock, tokenizer = STOCK[name], loaded(name)
    work = Work(tokenizer, monkeypatch)

    def per_token(turns):
        work.characters = work.messages = 0
        messages = chat(stock, 1, turns, most=100)
        _, rendered = render(name, stock, tokenizer, messages)
        prompts = sum(i for i, message in enumerate(messages) if message["role"] == "assistant")
        assert work.messages <= 2 * prompts + 31 * turns
        return work.characters / sum(map(len, one_pass(rendered.passes)))

    ratio = per_token(64) / per_token(8)
    record_property("support", json.dumps(dict(kind="template", name=name, work=ratio)))
    assert ratio <= 1.5


@pytest.mark.parametrize("name", [name for name, stock in STOCK.items() if stock.tools is None])
@pytest.mark.parametrize("seed", range(2))
def test_tool_calls(name, seed, loaded):
    stock, tokenizer = STOCK[name], loaded(name)
    messages = tool_chat(stock, seed, exchanges=(3, 6)[seed])
    conversation, rendered = render(name, stock, tokenizer, messages, TOOLS)
    assert rendered.retokenized_texts <= stock.slow
    for _, index, prompt, generated in check_prompts(stock, tokenizer, messages, rendered.passes, TOOLS):
        message = messages[index]
        thinking = message.get("reasoning_content")
        if "tool_calls" in message:
            # What the template itself writes behind the prompt, but for a declared thinking block in front of it, and a
            # header of its own that diffusion_gemma writes only in history.
            whole = tokenizer.apply_chat_template(shown(stock, messages[: index + 1]), tools=TOOLS, tokenize=False)
            block = (GEMMA_THOUGHT if name.startswith("gemma4") else THINK).format(thinking=thinking)
            if name.startswith("nemotron") and not thinking:  # the prompt opens a thought, with a newline
                whole = prompt + "</think>" + whole.rpartition("<think></think>")[2]
            if not whole.startswith(prompt + generated):
                whole = prompt + whole[len(prompt) :].removeprefix("<|turn>model\n")
            rendered_part = generated.removesuffix("<|observation|>")  # GLM-4 ends a call with the next message's token
            if stock.declared and thinking and not whole.startswith(prompt + generated):
                assert generated.startswith(block)
                rendered_part = rendered_part.removeprefix(block)
            assert whole.startswith(prompt + rendered_part) and not whole[len(prompt + rendered_part) :].strip()
            assert "add" in rendered_part
        else:
            expected = (stock.turn if thinking else stock.plain).format(thinking=thinking, answer=message["content"])
            # Some open the turn behind a tool result in the prompt, others not.
            assert generated.endswith(expected)
        assert thinking is None or thinking in generated


@pytest.mark.parametrize("name", [name for name, stock in STOCK.items() if stock.tools is not None])
def test_tool_calls_that_a_template_cannot_show_are_refused(name, loaded):
    stock = STOCK[name]
    with pytest.raises(ValueError, match=f"{name}: assistant turn .*(?s:.*){stock.tools}"):
        render(name, stock, loaded(name), tool_chat(stock, 0, exchanges=2), TOOLS)


# Its template concatenates the arguments, opens no assistant turn for a later call (those have no defined prompt), and
# shows no tools, which is an error unless it is said to be meant.
@pytest.mark.parametrize("as_text", [True, False])
def test_deepseek_v3_gets_tool_arguments_as_text_in_the_first_exchange(as_text, loaded):
    stock, tokenizer = STOCK["deepseekv3"], loaded("deepseekv3")
    messages = tool_chat(stock, 3, exchanges=1, as_text=as_text)[:2]
    with pytest.raises(ValueError, match='shows the tools to no turn that is trained .* not_shown="warn"'):
        render("deepseekv3", stock, tokenizer, messages, TOOLS)
    _, rendered = render("deepseekv3", stock, tokenizer, messages, TOOLS, not_shown="warn")
    arguments = messages[1]["tool_calls"][0]["function"]["arguments"]
    arguments = arguments if as_text else json.dumps(arguments)
    generated = decoded(tokenizer, rendered.passes[0].input_ids)
    assert "<｜tool▁call▁begin｜>function<｜tool▁sep｜>add" in generated and arguments in generated


# Breaks if arguments given as JSON text, as the OpenAI format has them, are quoted a second time.
@pytest.mark.parametrize("name", [name for name, stock in STOCK.items() if stock.tools is None])
def test_arguments_as_text_are_the_same_as_an_object(name, loaded):
    stock = STOCK[name]
    passes = [
        render(name, stock, loaded(name), tool_chat(stock, 1, exchanges=2, as_text=as_text), TOOLS)[1].passes
        for as_text in (True, False)
    ]
    for one, other in zip(*passes, strict=True):
        assert one.input_ids.tolist() == other.input_ids.tolist()


def turn_of(name, loaded, thinking=None, content="", calls=(), **settings):
    """All that is trained of one turn, its thinking and its answer."""
    message = {"role": "assistant", "content": content} | ({"reasoning_content": thinking} if thinking else {})
    if calls:
        function = [{"name": name, "arguments": arguments} for name, arguments in calls]
        message["tool_calls"] = [
            {"id": f"call{i:05d}", "type": "function", "function": f} for i, f in enumerate(function)
        ]
    _, rendered = render(name, STOCK[name], loaded(name), [{"role": "user", "content": "q"}, message])
    (p,) = rendered.passes
    parts = [p.input_ids[p.prompt_length :], *(p.input_ids[p.roles == role] for role in (Role.THINKING, Role.ANSWER))]
    return [decoded(loaded(name), ids) for ids in parts]


# Breaks if short texts are searched for: they stand in headers, in tags and in each other.
@pytest.mark.parametrize("name", [name for name, stock in STOCK.items() if stock.turn is not None])
@pytest.mark.parametrize(
    "thinking, content", [("end", "end"), ("a", "a"), ("option e is right", "e"), ("i", "id"), ("|", "<"), ("n", "")]
)
def test_short_texts_are_where_the_template_puts_them(name, thinking, content, loaded):
    whole, thought, answered = turn_of(name, loaded, thinking, content)
    before, _, behind = STOCK[name].turn.partition("{answer}")
    before = before.format(thinking=thinking)
    assert thought + answered == whole
    if content:  # some templates write less white space around an empty answer
        assert whole == before + content + behind
    # A token of a space and the first letters of the answer is the answer's.
    assert (thought.rstrip(), answered.lstrip()) == (before.rstrip(), content + behind)


# Breaks if a call in front of the content counts as thinking, and loses its weight with it.
@pytest.mark.parametrize("name", ["gemma4", "gemma4_v5", "diffusion_gemma", "qwen3", "glm4moe", "lfm2_2_5"])
def test_a_call_is_never_thinking(name, loaded):
    _, thought, answered = turn_of(name, loaded, "search it", "let me see", [("search", {"q": "a"})])
    assert "search" in answered and "let me see" in answered
    assert "search it" in thought and thought.count("search") == 1


DROPPED_CALLS = [
    ("phi3", "let me add it", [("add", {"a": 1})]),
    ("llama3", "let me add it", [("add", {"a": 1})]),
    ("gptoss", "", [("add", {"q": "how to add"}), ("add", {"q": "more"})]),
    ("gptoss", "", [("get_weather", {"q": "Rome"}), ("get", {"q": "Oslo"})]),
]


# Breaks if the name of a tool is searched for: it stands in the content, in arguments, or in a longer name.
@pytest.mark.parametrize("name, content, calls", DROPPED_CALLS)
def test_a_call_that_is_left_out_is_noticed(name, content, calls, loaded):
    with pytest.raises(ValueError, match=f"{name}: assistant turn 0 .*does not render each"):
        turn_of(name, loaded, None, content, calls)


# The content also stands in the arguments, and the template leaves it out beside a call.
@pytest.mark.parametrize("name", ["llama3_1", "llama3_2"])
def test_a_content_that_is_left_out_beside_a_call_is_noticed(name, loaded):
    with pytest.raises(ValueError, match=f"{name}: assistant turn 0 .*its content 'cats' does not stand"):
        turn_of(name, loaded, None, "cats", [("search", {"q": "cats"})])


# Breaks if the advice of the error does not work: it is followed here.
@pytest.mark.parametrize("name", [name for name, stock in STOCK.items() if stock.refusal])
def test_thinking_behind_a_prompt_that_has_closed_it_is_refused(name, loaded):
    stock, tokenizer = STOCK[name], loaded(name)
    conversation = Conversation(name, ({"role": "user", "content": "add"}, answer(random.Random(0), True)))
    with pytest.raises(ValueError, match=rf"{name}: assistant turn 0 .*{stock.refusal}") as refused:
        render_conversation(conversation, tokenizer)
    advised = json.loads(str(refused.value).partition("template_kwargs=")[2].partition("}")[0] + "}")
    (p,) = render_conversation(conversation, tokenizer, template_kwargs=advised).passes
    assert conversation.messages[1]["reasoning_content"] in decoded(tokenizer, p.input_ids[p.roles == Role.THINKING])


def test_a_system_message_that_the_template_refuses(loaded):
    messages = [{"role": "system", "content": "be brief"}, *chat(STOCK["gemma"], 0, 2)]
    with pytest.raises(ValueError, match="gemma: assistant turn .*System role not supported"):
        render("gemma", STOCK["gemma"], loaded("gemma"), messages)


# Breaks if a render asks the clock: two renders of one run could then differ.
@pytest.mark.parametrize(
    "name, written", [("gptoss", "2025-01-02"), ("llama3_2", "02 Jan 2025"), ("muse_glimmer", "2025-01-02")]
)
def test_the_date_is_the_one_that_was_given(name, written, loaded):
    tokenizer = loaded(name)
    messages = chat(STOCK[name] if name != "muse_glimmer" else STOCK["gemma"], 0, 5)
    conversation = Conversation(name, tuple(messages))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        passes = render_conversation(conversation, tokenizer, date=datetime.date(2025, 1, 2)).passes
    assert all(written in decoded(tokenizer, p.input_ids[: p.prompt_length]) for p in passes)


@pytest.mark.parametrize("name", ["qwen3", "glm4moe", "nemotron_3_nano"])
def test_thinking_switched_off_by_an_argument(name, loaded):
    tokenizer, kwargs = loaded(name), {"enable_thinking": False}
    messages = [{"role": "user", "content": "add"}, {"role": "assistant", "content": "46"}]
    (p,) = render_conversation(Conversation(name, tuple(messages)), tokenizer, template_kwargs=kwargs).passes
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False, **kwargs)
    assert decoded(tokenizer, p.input_ids[: p.prompt_length]) == prompt
    assert decoded(tokenizer, p.input_ids[p.prompt_length :]).lstrip("\n").startswith("46")
