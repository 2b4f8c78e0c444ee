"""A survey of the field's chat templates: what each can be trained with, and that nothing is lost in silence."""

import json
import warnings

import pytest
from survey import OTHERWISE, OTHERWISE_THINKING, templates, tokenizer_of

from flexmask import Conversation, Role
from flexmask.text.rendering import render_conversation
from flexmask.text.template import ChatTemplate

pytestmark = pytest.mark.network
BLOCK = "<think>\n{thinking}\n</think>\n\n"  # of a template that shows no thinking


def user(text):
    return {"role": "user", "content": text}


def said(text, thinking=None, town=None):
    message = {"role": "assistant", "content": text} | ({"reasoning_content": thinking} if thinking else {})
    function = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"town": town}}}
    return message | ({"tool_calls": [function]} if town else {})


TOWN = {"type": "object", "properties": {"town": {"type": "string", "description": "its name"}}, "required": ["town"]}
TOOLS = ({"type": "function", "function": {"name": "weather", "description": "Of a town.", "parameters": TOWN}},)
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": "Twenty degrees"}
PLAIN = [user("Add two and two."), said("It makes four."), user("And one more."), said("Five then.")]
CHATS = {
    "plain": PLAIN,
    "system": [{"role": "system", "content": "Be rather brief."}, *PLAIN],
    "thinking": [
        user("Add two and two."),
        said("It makes four.", "Counting up."),
        user("More."),
        said("5", "One more."),
    ],
    "some thinking": [user("Add two and two."), said("It makes four.", "Counting up."), user("More."), said("Five.")],
    "calls": [
        *(user("Is it warm in Lund?"), said("", town="Lund"), RESULT, said("It is mild.")),
        *(user("And in Oslo?"), said("", town="Oslo"), RESULT, said("Mild as well.")),
    ],
}


def rendered(name, chat, tokenizer, **settings):
    conversation = Conversation(name, tuple(CHATS[chat]), TOOLS if chat == "calls" else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return render_conversation(conversation, tokenizer, **settings).passes


def attempt(name, chat, tokenizer):
    """(the passes or None, the arguments under which there are any, the error without them)."""
    try:
        return rendered(name, chat, tokenizer), {}, ""
    except ValueError as error:
        advice = str(error).partition("set template_kwargs=")[2].partition("}")[0]
        arguments = json.loads(advice + "}") if advice else {}
        return rendered(name, chat, tokenizer, template_kwargs=arguments) if advice else None, arguments, str(error)


# Breaks if a prompt is not that of inference, if a token of the turn is missing or too many, or if what an error
# advises does not work. The reference renders by itself, and what it cannot tell stands written out in survey.py.
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", templates())
def test_each_template(name, chat, record_property):
    tokenizer = tokenizer_of(templates()[name])
    passes, arguments, error = attempt(name, chat, tokenizer)
    verdict = f"exact with `{json.dumps(arguments)}`" if arguments else "exact"
    if passes is None:
        verdict = REFUSALS[next(words for words in REFUSALS if words in error)]
        assert error.startswith(f"{name}: ")
    record_property("support", json.dumps(dict(kind="survey", name=name, chat=chat, verdict=verdict)))
    if passes is None:
        return
    messages = CHATS[chat]
    template = ChatTemplate(
        tokenizer, Conversation(name, tuple(messages), TOOLS if chat == "calls" else None), arguments
    )
    indices = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for p, index in zip(passes, indices, strict=True):
        settings = dict(tools=list(TOOLS) if chat == "calls" else None, **arguments)
        history = template.messages[:index]
        ids = tokenizer.apply_chat_template(history, add_generation_prompt=True, return_dict=False, **settings)
        assert p.input_ids[: p.prompt_length].tolist() == ids
        prompt = tokenizer.apply_chat_template(history, add_generation_prompt=True, tokenize=False, **settings)
        whole = tokenizer.apply_chat_template(template.messages[: index + 1], tokenize=False, **settings)
        generated = tokenizer.decode(p.input_ids[p.prompt_length :])
        thinking, answer = messages[index].get("reasoning_content", ""), messages[index]["content"]
        # Where thinking has to be switched on, a turn without closes the thought that the prompt opens.
        otherwise = (OTHERWISE_THINKING if thinking or arguments else OTHERWISE).get(name, "")
        text = generated.removeprefix(BLOCK.format(thinking=thinking)) if thinking else generated
        if whole.startswith(prompt + text):
            behind = whole[len(prompt + text) :]
            assert thinking in generated and answer in text and (not answer or answer not in behind)
        elif not messages[index].get("tool_calls"):
            assert generated == otherwise.format(thinking=thinking, answer=answer)
        if thinking:
            assert thinking in tokenizer.decode(p.input_ids[p.roles == Role.THINKING])
        # What the prompt ends with is not generated once more.
        assert not generated.startswith(prompt[-12:])
        for call in messages[index].get("tool_calls", ()):
            assert "weather" in generated and generated.count(call["function"]["arguments"]["town"]) == 1


# Breaks if calls are only known by a probe in place of their names: these templates write some names in another way.
@pytest.mark.parametrize(
    "name, called, settings, written",
    [
        ("meetkai-functionary-medium-v3.1", "python", {}, '<|python_tag|>{"query": "cats"}<|eom_id|>'),
        (
            "meta-llama-Llama-3.1-8B-Instruct",
            "brave_search",
            {"template_kwargs": {"builtin_tools": ["brave_search"]}},
            '<|python_tag|>brave_search.call(query="cats")<|eom_id|>',
        ),
    ],
)
def test_calls_that_a_template_knows_by_name(name, called, settings, written):
    call = {"id": "c", "type": "function", "function": {"name": called, "arguments": {"query": "cats"}}}
    messages = (user("Cats?"), said("") | {"tool_calls": [call]})
    tokenizer = tokenizer_of(templates()[f"llama.cpp/{name}"])
    (p,) = render_conversation(Conversation(name, messages), tokenizer, **settings).passes
    assert tokenizer.decode(p.input_ids[p.prompt_length :]) == written


# The causes for which a template is refused, by words of the error.
REFUSALS = {
    "does not render each": "refused: shows no calls",
    "the tools to no turn": "refused: shows no tools",
    "the text of tool messages": "refused: shows no results",
    "the chat template rejects": "rejected by the template",
    "no special token ends": "refused: no token ends a turn",
    "does not render it here": "refused: shows no thinking here",
    "is not a prefix": "refused: prompt and turn part",
}
