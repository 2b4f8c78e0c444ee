"""No text of a conversation becomes a control token, under any real chat template: it is refused, or escaped."""

import html
import json
import random
import re
import warnings
from collections import Counter

import pytest
from every_template import control_tokens, load, names

from flexmask import Conversation
from flexmask.text.control_tokens import ZERO_WIDTH_SPACE
from flexmask.text.rendering import render_conversation

pytestmark = pytest.mark.network
SHAPES = ("system tools thinking", "tools thinking", "tools", "system thinking", "thinking", "")
STAND_IN = "w0w{}w0w"  # harmless text in place of a control token
# No turn of these is trained: why, says the survey.
UNTRAINABLE = {
    "axolotl/llava",
    "llama.cpp/CohereForAI-c4ai-command-r-plus-tool_use",
    "llama.cpp/fireworks-ai-llama-3-firefunction-v2",
    "llama.cpp/llama-cpp-rwkv-world",
}
# It writes `&lt;` in the name of a call, which is refused, so the richest shape is not tried.
SIMPLER = {"llama.cpp/mistralai-Ministral-3-14B-Reasoning-2512": "system thinking"}


def shaped(shape: str, held: str) -> tuple[list[dict], tuple[dict, ...] | None]:
    """Messages and tools whose every text, name and key holds `held`."""
    thought = {"reasoning_content": f"I {held} see"} if "thinking" in shape else {}
    messages = [{"role": "system", "content": f"be {held} brief"}] if "system" in shape else []
    messages += [
        {"role": "user", "content": f"what {held}"},
        {"role": "assistant", "content": f"that {held} is{held}", **thought},
        {"role": "user", "content": f"{held} then?"},
    ]
    if "tools" not in shape:
        return [*messages, {"role": "assistant", "content": f"so {held}.", **thought}], None
    function = {"name": f"f{held}", "arguments": {f"k{held}": f"v {held}", "n": [{"m": f"{held}"}]}}
    messages += [
        {"role": "assistant", "content": "", **thought}
        | {"tool_calls": [{"id": "call00001", "type": "function", "function": function}]},
        {"role": "tool", "name": f"f{held}", "tool_call_id": "call00001", "content": f"r {held} r"},
        {"role": "assistant", "content": f"so {held}.", **thought},
    ]
    properties = {f"k{held}": {"type": "string", "description": f"a {held} key"}, "n": {"type": "array"}}
    parameters = {"type": "object", "properties": properties, "required": [f"k{held}"]}
    tool = {"name": f"f{held}", "description": f"does {held} this", "parameters": parameters}
    return messages, ({"type": "function", "function": tool},)


def rendered(name: str, shape: str, held: str, **settings):
    messages, tools = shaped(shape, held)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = Conversation(name, tuple(messages), tools)
        return render_conversation(source, load(name), not_shown="warn", **settings).passes


def shape_of(name: str) -> str | None:
    """The richest shape that a template takes."""
    for shape in [SIMPLER[name]] if name in SIMPLER else SHAPES:
        try:
            rendered(name, shape, "plain")
        except ValueError:
            continue
        return shape
    return None


def some(name: str, most: int) -> list[str]:
    """Control tokens of a template: those of thinking, and others, the same in every run."""
    found = control_tokens(load(name))
    rest = [one for one in found if one not in ("<think>", "</think>")]
    random.Random(name).shuffle(rest)
    return [one for one in ("<think>", "</think>", *rest)][:most]


def each_place(value, where: str = ""):
    """For every text and key in a value, the value with `HELD` there alone."""
    if isinstance(value, str):
        yield where, "HELD" if where.endswith(("name", "key")) else f"{value} HELD"
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("role", "type", "id", "tool_call_id"):
                yield from ((f"{at}", value | {key: one}) for at, one in each_place(inner, f"{where}.{key}"))
            if where.endswith(("arguments", "properties")):
                yield f"{where}, a key", {("HELD" if k == key else k): v for k, v in value.items()}
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from ((at, [*value[:i], one, *value[i + 1 :]]) for at, one in each_place(inner, f"{where}[{i}]"))


# Breaks if a place is not looked at, or a token that only the template makes one of meaning.
@pytest.mark.parametrize("name", names())
def test_a_control_token_is_refused_wherever_it_stands(name):
    messages, tools = shaped("system tools thinking", "text")
    places = list(each_place({"messages": messages, "tools": list(tools)}))
    assert len(places) >= 20
    for number, token in enumerate(some(name, 40)):
        for at, source in places if number < 4 else places[number % len(places) :][:1]:
            # A thought at the beginning of an answer is another error.
            text = json.dumps(source).replace("HELD", json.dumps(token)[1:-1])
            held = json.loads(text)
            conversation = Conversation("data.jsonl:7", tuple(held["messages"]), tuple(held["tools"]))
            with pytest.raises(
                ValueError, match=r"^data.jsonl:7: (messages|tools|a key of).* control token"
            ) as refused:
                render_conversation(conversation, load(name))
            assert token in str(refused.value) or any(one in token for one in control_tokens(load(name))), at


def counted(name: str, ids) -> Counter:
    tokenizer = load(name)
    control = {tokenizer.convert_tokens_to_ids(token) for token in control_tokens(tokenizer)}
    return Counter(index for index in ids.tolist() if index in control - {None, tokenizer.unk_token_id})


# Breaks if an escaped token opens a role, closes a thought or becomes one token, in a prompt or in what is generated,
# and if what the author wrote is changed: in prompts by more than a space of no width, in a turn at all.
@pytest.mark.parametrize("name", names())
def test_an_escaped_token_is_plain_text(name):
    tokenizer, shape = load(name), shape_of(name)
    assert (shape is None) == (name in UNTRAINABLE)
    if shape is None:
        return
    for number, token in enumerate(one for one in some(name, 8) if len(one) > 1 and '"' not in one):
        stand_in = STAND_IN.format(number)
        passes = rendered(name, shape, token, control_tokens="escape")
        harmless = rendered(name, shape, stand_in)
        assert len(passes) == len(harmless) > 0
        for p, other in zip(passes, harmless, strict=True):
            prompts = p.input_ids[: p.prompt_length], other.input_ids[: other.prompt_length]
            turns = p.input_ids[p.prompt_length :], other.input_ids[other.prompt_length :]
            for (ids, expected), written in ((prompts, escaped(tokenizer, token)), (turns, token)):
                assert counted(name, ids) == counted(name, expected), token
                texts = [tokenizer.decode(one.tolist(), clean_up_tokenization_spaces=False) for one in (ids, expected)]
                assert as_written(texts[0]) == as_written(texts[1].replace(stand_in, written)), token


def as_written(text: str) -> str:
    """Without what some templates write for `<` in schemas and in arguments; and two take `/think` out of messages."""
    return html.unescape(text).replace("<![CDATA[", "").replace("]]>", "").replace("/think", "")


def escaped(tokenizer, token: str) -> str:
    """With a space of no width in it, until it holds no control token."""
    pattern = re.compile("|".join(map(re.escape, sorted(control_tokens(tokenizer), key=len, reverse=True))))
    while pattern.search(token):
        token = pattern.sub(lambda found: found.group()[0] + ZERO_WIDTH_SPACE + found.group()[1:], token)
    return token
