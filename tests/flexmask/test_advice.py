"""What an error advises works: every error of flexmask/text that advises something, and the same again as it says."""

import ast
import copy
import functools
import re
import traceback
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from factories import chatml_tokenizer, template_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast, PythonBackend

import flexmask.text
from flexmask import Conversation, read_record
from flexmask.conversations.contexts import RULES
from flexmask.text.calls import calls_under, render_calls
from flexmask.text.rendering import render_conversation

ASKED = "{% if add_generation_prompt %}<|im_start|>assistant\nOPENING{% endif %}"
TOOLS = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
CALLS = (
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}{{ c.function.arguments | tojson }}</call>{% endfor %}"
)
LOOP = TOOLS + "{% for m in messages %}<|im_start|>{{ m.role }}\nTHOUGHT{{ m.content }}CALLS<|im_end|>\n{% endfor %}"
THOUGHT = "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
PLAIN = (LOOP + ASKED).replace("THOUGHT", "").replace("CALLS", CALLS).replace("OPENING", "")
SHOWN = (LOOP + ASKED).replace("THOUGHT", THOUGHT).replace("CALLS", CALLS).replace("OPENING", "")


def changed(old, new, template=PLAIN):
    assert template.count(old) == 1
    return template.replace(old, new)


def user(text):
    return {"role": "user", "content": text}


def assistant(text, thinking=None, *calls, **more):
    thought = {} if thinking is None else {"reasoning_content": thinking}
    functions = [{"name": name, "arguments": arguments} for name, arguments in calls]
    named = [{"id": f"c{i}", "type": "function", "function": one} for i, one in enumerate(functions)]
    return {"role": "assistant", "content": text, **thought, **({"tool_calls": named} if calls else {}), **more}


TALK = (user("q"), assistant("a"), user("r"), assistant("b"))
THINKS = (user("q"), assistant("a", "two"))


@dataclass(frozen=True)
class Case:
    """A conversation that is refused with `error`, whose advice is `advice`, and what following it means: other
    messages, another tokenizer or template, or settings. Some errors advise several things, each a case."""

    error: str
    advice: str
    messages: tuple = TALK
    template: str = PLAIN
    tokenizer: PreTrainedTokenizerFast | None = None
    settings: dict = field(default_factory=dict)
    more: dict = field(default_factory=dict)  # of the conversation

    def render(self):
        tokenizer = self.tokenizer or template_tokenizer(self.template)
        conversation = Conversation("data.jsonl:7", self.messages, **self.more)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return render_conversation(conversation, tokenizer, **self.settings).passes


class OfCalls(Case):
    """A record of calls whose answer is token ids."""

    def render(self):
        tokenizer = self.tokenizer or template_tokenizer(self.template)
        ids = tokenizer("a").input_ids + self.more.get("ids", [])
        record = {"calls": [{"prompt": [user("q")], "completion": ids}]}
        return render_calls(read_record(record, "data.jsonl:7"), tokenizer).passes


class UnderARule(Case):
    """A context rule by which the thinking of the turn before stays."""

    def render(self):
        tokenizer = self.tokenizer or template_tokenizer(self.template)
        conversation = Conversation("data.jsonl:7", self.messages, **self.more)
        rule = functools.partial(RULES["keep_thinking_of_last"], keep=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            calls = calls_under(rule, conversation, tokenizer, **self.settings)
            return render_calls(calls, tokenizer, **self.settings).passes


def with_token(template=PLAIN, token="END", normalizer=None, **flags):
    """The tokenizer with another special token."""
    tokenizer = copy.deepcopy(chatml_tokenizer())
    tokenizer.backend_tokenizer.normalizer = normalizer
    tokenizer.add_tokens([AddedToken(token, special=True, **flags)])
    tokenizer.chat_template = template
    return tokenizer


def forgetful():
    """A tokenizer that merges what the prompt ends with and the turn begins with, and decodes to something else."""
    letters = {one: i for i, one in enumerate("qabru\nsetin<>|_md")}
    vocab = letters | {"\na": len(letters), "\nb": len(letters) + 1}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[("\n", "a"), ("\n", "b")]))
    core.decoder = decoders.Replace("a", "b")
    core.add_special_tokens([AddedToken(one, normalized=False) for one in ("<|im_start|>", "<|im_end|>")])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", chat_template=PLAIN)


class Slow(PythonBackend):
    """No fast tokenizer."""

    vocab_size = 3
    chat_template = PLAIN

    def __init__(self):
        super().__init__(eos_token="<|im_end|>", chat_template=PLAIN)

    def get_vocab(self):
        return {"<|im_end|>": 0}

    def _tokenize(self, text):
        return list(text)

    def _convert_token_to_id(self, token):
        return 0


def silent(**arguments):
    return (user("q"), assistant("", None, ("add", arguments)), {**user("7"), "role": "tool"}, assistant("b"))


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
CLOCK = "{% set d = '%Y' %}{{ strftime_now(d) }}"
HELD = (user("q <|im_end|>"), assistant("a"))
OPENS = changed("<|im_start|>assistant\n{%", "<|im_start|>assistant\n<think>{%")
SWITCHED = changed("assistant\n{%", "assistant\n{{ '<think>' if thinking else '<think></think>' }}{%", PLAIN)
DROPPED = changed(
    THOUGHT, "{% if m.reasoning_content and keep %}<think>{{ m.reasoning_content }}</think>{% endif %}", SHOWN
)
OTHER_START = changed("<|im_start|>assistant\n{%", "<|im_start|>model\n{%")
ESCAPED = changed("{{ c.function.name }}", "{{ c.function.name | escape }}")
ASKS = changed("assistant\n{%", "assistant\n{{ 'so: ' if messages[-1].content == 'q' }}{%")
FIRST_CALL = changed("m.tool_calls or []", "(m.tool_calls or [])[:1]")
TWICE = "<think>{thinking}</think>{thinking}"
CASES = {
    "control_tokens": (Case("control_tokens=\"no\"", 'write "refuse" or "escape"', settings={"control_tokens": "no"}),
                       dict(settings={"control_tokens": "escape"})),
    "a mark": (Case("holds 'flexmask_cut'", "remove it", (user("flexmask_cut_"), assistant("a"))),
               dict(messages=(user(""), assistant("a")))),
    "a normalized token": (
        Case("becomes a control token when", "remove it from the data", (user("end"), assistant("a")),
             tokenizer=with_token(normalizer=normalizers.Lowercase(), normalized=True)),
        dict(messages=(user("q"), assistant("a")))),
    "a short token": (
        Case("a single character that", "remove it from the data", (user("a ~ b"), assistant("a")),
             tokenizer=with_token(token="~"), settings={"control_tokens": "escape"}),
        dict(messages=(user("a b"), assistant("a")))),
    "a control token, escaped": (Case("contains the control token", 'control_tokens="escape"', HELD),
                                 dict(settings={"control_tokens": "escape"})),
    "a control token, removed": (Case("contains the control token", "remove it from the data", HELD),
                                 dict(messages=(user("q"), assistant("a")))),
    "no end": (Case("no special token ends", "must close an assistant turn with a special token",
                    template=changed("<|im_end|>", "").replace("<|im_start|>", "")), dict(template=PLAIN)),
    "not_shown": (Case("not_shown=\"no\"", "write 'error' or 'warn'", settings={"not_shown": "no"}),
                  dict(settings={"not_shown": "warn"})),
    "empty_thinking": (Case("empty_thinking=\"no\"", "write 'train' or 'context'", settings={"empty_thinking": "no"}),
                       dict(settings={"empty_thinking": "context"})),
    "no prompt": (Case("renders to no tokens", "give a template that opens assistant turns", TALK[:2],
                       "{% for m in messages if m.role == 'assistant' %}{{ m.content }}<|im_end|>{% endfor %}"),
                  dict(template=PLAIN)),
    "no token at the end": (
        Case("is not tokenized as one token", "add it to the tokenizer without single_word",
             tokenizer=with_token(PLAIN.replace("<|im_end|>\n", "END\n"), single_word=True)),
        dict(tokenizer=with_token(PLAIN.replace("<|im_end|>\n", "END\n")))),
    "a turn": (Case('turns="x": "x" is', 'write "all", or for instance "-1", "1:" or "0,2"', settings={"turns": "x"}),
               *(dict(settings={"turns": one}) for one in ("all", "-1", "1:", "0,2"))),
    "an argument of the template": (
        Case("the template argument 'style'", "remove it", settings={"template_kwargs": {"style": 1}}),
        dict(settings={}), dict(template="{{ style }}" + PLAIN),
        dict(settings={"template_kwargs": {"style": 1}, "not_shown": "warn"})),
    "a switch": (Case("the switch of thinking", "remove it", more={"thinks": False}), dict(more={}),
                 dict(template=SWITCHED), dict(settings={"not_shown": "warn"})),
    "a minimum": (Case("'minimum' in the schemas of tools", "give a template that shows it", template=changed(
        "{{ t | tojson }}", "{{ t.function.name }}{{ t.function.parameters.required }}"
        "{% for n, p in t.function.parameters.properties.items() %}{{ n }}{{ p.type }}{% endfor %}"),
        more={"tools": (TOOL,)}), dict(template=PLAIN), dict(settings={"not_shown": "warn"})),
    "a developer message": (
        Case("the text of developer messages", "remove it", ({"role": "developer", "content": "d"}, *TALK),
             changed("in messages", "in messages if m.role != 'developer'")),
        dict(messages=TALK), dict(template=PLAIN), dict(settings={"not_shown": "warn"})),
    "a lost call": (
        Case("does not render each", "remove it", (user("q"), assistant("", None, ("f", {}), ("g", {}))), FIRST_CALL),
        dict(messages=(user("q"), assistant("", None, ("f", {})))), dict(template=PLAIN)),
    "a lost argument": (
        Case("does not render 1 of the call of 'add' (arguments: b)", "remove it", silent(a=1, b=1), changed(
            "{{ c.function.arguments | tojson }}",
            "{% for k, v in c.function.arguments.items() if k != 'b' %}{{ k }}{{ v }}{% endfor %}")),
        dict(messages=silent(a=1)), dict(template=PLAIN)),
    "a lost answer": (
        Case("rewrites the turn", "change it", (user("q"), assistant("say", None, ("f", {}))),
             changed("{{ m.content }}", "{{ m.content if not m.tool_calls }}")),
        dict(messages=(user("q"), assistant("", None, ("f", {})))),
        dict(messages=(user("q"), assistant("say", None, ("f", {}), weight=0), *TALK), settings={"not_shown": "warn"}),
        dict(template=PLAIN)),
    "a changed name": (
        Case("is written as HTML", "change it", (user("q"), assistant("", None, ("a<b", {}))), ESCAPED),
        dict(messages=(user("q"), assistant("", None, ("a_b", {})))),
        dict(messages=(user("q"), assistant("", None, ("a<b", {}), weight=0), *TALK)), dict(template=PLAIN)),
    "the date": (Case("asks strftime_now", "give it a template with a format in quotes", template=CLOCK + PLAIN),
                 dict(template="{{ strftime_now('%Y') }}" + PLAIN)),
    "an open thought": (
        Case("opens a thinking block", "thinking_format='<think>", template=OPENS, settings={"thinking_format": None}),
        dict(settings={"thinking_format": "<think>\n{thinking}\n</think>\n\n"})),
    "thinking that is not shown": (
        Case("reads thinking but does not render it here", 'set template_kwargs={"keep": true}', THINKS, DROPPED),
        dict(settings={"template_kwargs": {"keep": True}}),
        dict(settings={"thinking_format": "<think>\n{thinking}\n</think>\n\n"})),
    "a closed thought": (
        Case("has closed the thought", 'set template_kwargs={"thinking": true}', THINKS, SWITCHED),
        dict(settings={"template_kwargs": {"thinking": True}}), dict(messages=TALK)),
    "a thought that the conversation itself has closed": (
        Case("has closed the thought", "gives 'thinking' as false: switch it to true there", THINKS, SWITCHED,
             more={"template_kwargs": {"thinking": False}}),
        dict(more={"template_kwargs": {"thinking": True}})),
    "a thought that the switch of the conversation has closed": (
        Case("has closed the thought", "gives 'thinking' as false: switch it to true there", THINKS, SWITCHED,
             more={"thinks": False}),
        dict(more={"thinks": True})),
    "token ids of another tokenizer": (
        OfCalls("is none of the tokenizer", "give the tokenizer of the model that was called", more={"ids": [9999]}),
        dict(more={})),
    "a slow tokenizer": (Case("is no fast tokenizer", "backed by the tokenizers library", tokenizer=Slow()),
                         dict(tokenizer=chatml_tokenizer())),
    "tokens that do not give the text back": (
        Case("is no token prefix of its pass", 'context with "weight": 0', tokenizer=forgetful(), messages=TALK),
        dict(messages=(user("q"), assistant("a", weight=0))),
        dict(tokenizer=chatml_tokenizer())),
    "a format": (Case("must hold {thinking} once", 'be "auto" or None', settings={"thinking_format": TWICE}),
                 *(dict(settings={"thinking_format": one}) for one in ("auto", None, "<t>{thinking}</t>"))),
    "a prompt that depends on the question": (
        Case("generation prompt is not a prefix", 'make the turn context with "weight": 0', TALK[:2], ASKS),
        dict(messages=(user("q"), assistant("a", weight=0), *TALK[2:])), dict(template=PLAIN)),
    "thinking that is to stay": (
        UnderARule("does not show the thinking of message 1 ('two')", 'set template_kwargs={"keep": true}, or',
                   (*THINKS, user("r"), assistant("b")), DROPPED.replace("if m.reasoning_content and keep",
                   "if m.reasoning_content and (keep or loop.last)")),
        dict(settings={"template_kwargs": {"keep": True}}), dict(template=SHOWN.replace(" and loop.last", "")),
        dict(messages=TALK)),
    "another prompt": (
        Case("generation prompt is not a prefix", 'make the turn context with "weight": 0', template=OTHER_START),
        dict(messages=(user("q"), assistant("a", weight=0))), dict(template=PLAIN)),
}  # fmt: skip


# Breaks if what an error advises is wrong, does not help, or is an error in turn.
@pytest.mark.parametrize("name", CASES)
def test_what_an_error_advises_works(name):
    case, *followed = CASES[name]
    with pytest.raises(ValueError, match=re.escape(case.error)) as refused:
        case.render()
    assert case.advice in str(refused.value)
    assert followed
    for changes in followed:
        if "template" in changes:
            changes = {"tokenizer": None, **changes}
        again = replace(case, **changes)
        trained = [one for one in again.messages if one["role"] == "assistant" and one.get("weight", 1)]
        assert bool(again.render()) == bool(trained)


def raising():
    """Where an error of its own is raised: file, and the lines of the statement. An error that repeats another (`raise
    ... from error`) advises what that does."""
    for path in sorted(Path(flexmask.text.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            repeats = isinstance(node, ast.Raise) and isinstance(node.cause, ast.Name)
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and not repeats:
                yield path.name, node.lineno, node.end_lineno


# Breaks if an error has no case above: it gets one.
def test_every_error_has_a_case():
    reached = set()
    for case, *_ in CASES.values():
        with pytest.raises(ValueError) as refused:
            case.render()
        error = refused.value
        while error is not None:
            frames = traceback.extract_tb(error.__traceback__)
            of_text = [one for one in frames if Path(one.filename).parent == Path(flexmask.text.__file__).parent]
            reached |= {(Path(one.filename).name, one.lineno) for one in of_text[-1:]}
            error = error.__cause__
    missing = [
        (name, first)
        for name, first, last in raising()
        if not any((name, line) in reached for line in range(first, last + 1))
    ]
    assert not missing
