"""What errors advise works: for each error of reading, a record at fault and the same one mended as the error says."""

import ast
import json
import math
import traceback
from functools import partial
from pathlib import Path

import mended_calls
import pytest
from records import FLAT, LUND, LUND_TEXT, OSLO, PARAMETERS, SCHEMA, assistant, system, turns, user

import flexmask.conversations
from flexmask import Calls, calls_of, load_rule, read_conversation, read_record
from flexmask.conversations.contexts import source_of
from flexmask.conversations.conversation import Conversation

HOME = Path(flexmask.conversations.__file__).parent
read = partial(read_record, name="c")
OTHER = {**FLAT, "description": "Of another."}


def chat(*messages, **beside):
    """A question, and what follows it."""
    return {"messages": [user(), *messages], **beside}


def asked(*messages, **beside):
    """The messages as they are."""
    return {"messages": list(messages), **beside}


def calling(one, **beside):
    return chat({"role": "assistant", "content": "", "tool_calls": one}, **beside)


def blocks(*parts, **keys):
    return chat({"role": "assistant", "content": list(parts), **keys})


def made(*messages, **keys):
    return partial(Conversation, "c", messages, **keys)


def nested(depth):
    value = "x"
    for _ in range(depth):
        value = [value]
    return value


def under(context, *messages):
    """The calls of messages under a rule."""
    return lambda: calls_of(made(*(messages or (user(), assistant(), user(), assistant())))(), load_rule(context))


def own(returned):
    """A rule of a user's own, that returns this."""
    return lambda: calls_of(made(user(), assistant(), user(), assistant())(), lambda messages: returned(messages))


TEXT, THOUGHT = {"type": "text", "text": "a"}, {"type": "thinking", "thinking": "t"}
USE = {"type": "tool_use", "name": "f", "input": {}}
CALL, OUTPUT = {"type": "function_call", "name": "f"}, {"type": "function_call_output", "output": "7"}
GOOD = chat(assistant())
SEES_LAST = {"rule": "last_observations", "arguments": {"keep": 0}}
SUMS_UP = {"rule": "compact", "arguments": {"instruction": "sum up", "introduction": "So far:"}}
THINKS = chat(assistant("a", "t"))
CHANNEL = "<|channel|>analysis<|message|>t<|end|><|start|>assistant<|channel|>final<|message|>a<|return|>"
TAGGED = f"<tools>{json.dumps([FLAT])}</tools>"


def typed(value):
    text = f"<tool_call><function=f><parameter=x>{value}</parameter></function></tool_call>"
    return chat(assistant(text), tools=[{"name": "f", "parameters": {"properties": {"x": {"type": "integer"}}}}])


def solution(text):
    return chat(assistant(f"<|begin_of_thought|>t<|end_of_thought|><|begin_of_solution|>{text}"))


# (a record at fault, what the error says, the record as the error advises; None where it advises to remove the record)
CASES = [
    *mended_calls.CASES,
    # ---- the record ----
    ([user()], "is a JSON object, not", GOOD),
    (chat(assistant(), conversations=[user()]), "found both 'messages' and 'conversations'; keep one", GOOD),
    ({"messages": "hi"}, "'messages' is 'hi'.* not a list of messages", GOOD),
    ({"input_ids": [1]}, "are token ids, which are not read; give text or messages", GOOD),
    ({"text": "a"}, "found keys .* a conversation has 'messages'", {"prompt": "q", "completion": "a"}),
    ({"messages": []}, "is empty; give it at least one assistant message", GOOD),
    (asked(assistant(), user(), assistant()), "nothing comes before it.* remove it", chat(assistant())),
    (asked(assistant()), "nothing comes before it.* or put a user message first", GOOD),
    (asked(user()), "no assistant message to learn from", None),
    (asked(user(), answer=assistant(), response=assistant()), "both 'answer' and 'response' hold an answer; keep one",
     asked(user(), answer=assistant())),
    (partial(read_conversation, asked(user(), answer=assistant()), "c"), "is not read; read_record reads it, as a call",
     asked(user(), answer=assistant())),
    (asked(user(), label=assistant()), "the last message is of the role 'user', and 'label' beside .* under 'answer'",
     asked(user(), answer=assistant())),
    (chat(assistant(), user(), answer="4"), "'answer' beside the messages is '4' .*, or remove 'answer'",
     chat(assistant())),
    (chat(assistant(), documents=["x"]), "'documents' beside the messages is not supported; remove it", GOOD),
    (chat(assistant(), system=3), "'system' is 3 .*; give text", chat(assistant(), system="3")),
    (chat(assistant(), system="s", instructions="t"), "different texts in .*; keep one", chat(assistant(), system="s")),
    (asked(system("t"), user(), assistant(), system="s"), "both 'system' and a first system message; keep one",
     asked(system("t"), user(), assistant())),
    (chat(assistant(), chat_template_kwargs=[1]), "not names with values",
     chat(assistant(), chat_template_kwargs={"a": 1})),
    (chat(assistant(), enable_thinking="yes"), "'enable_thinking' is 'yes' .*; give true or false, once",
     chat(assistant(), enable_thinking=True)),
    (chat(assistant(), reasoning_effort=3), "'reasoning_effort' is 3 .*; give text, once",
     chat(assistant(), reasoning_effort="3")),
    (chat(assistant(), reasoning="on", thinking="off"), "say different things; keep one",
     chat(assistant(), reasoning="on")),
    (chat(assistant(), reasoning="on", enable_thinking=False), "the template argument .* different things; keep one",
     chat(assistant(), enable_thinking=False)),
    (chat(assistant(), chat_template_kwargs={"tokenize": True}), "has 'tokenize', which rendering sets itself; remove",
     GOOD),
    (made(user(), assistant(), template_kwargs=[1]), "not names with values, for instance",
     made(user(), assistant(), template_kwargs={"enable_thinking": False})),
    (partial(read, GOOD, thinking_tags="on"), 'thinking_tags is .*; give "auto", .opening, closing., or None',
     partial(read, GOOD, thinking_tags=["<t>", "</t>"])),
    ({"instruction": "q", "output": 3}, "3 .* among 'instruction', 'input' and 'output'; give texts",
     {"instruction": "q", "output": "3"}),
    ({"instruction": "q", "output": "a", "history": ["q"]}, r"not a list of \[question, answer\]",
     {"instruction": "q", "output": "a", "history": [["q", "a"]]}),
    ({"prompt": "q", "completion": 3}, "neither text nor a list of messages", {"prompt": "q", "completion": "3"}),
    ({"prompt": [1], "completion": [2]}, "holds token ids.*; give text or messages",
     {"prompt": "q", "completion": "a"}),
    ({"prompt": "q", "completion": [assistant(reasoning="t")], "reasoning": "u"}, "not that of its last message; keep",
     {"prompt": "q", "completion": [assistant(reasoning="t")]}),
    ({"prompt": [user(), assistant("Two is")], "completion": " two."}, "put both into the completion",
     {"prompt": [user()], "completion": "Two is two."}),
    ({"prompt": [user(), assistant("Two is")], "completion": [assistant("two.")]}, "or a question between them",
     {"prompt": [user(), assistant("Two is"), user()], "completion": [assistant("two.")]}),
    ({"instruction": "q", "output": "a", "history": ["Hi", "Yo"]}, r"not a list of \[question, answer\]",
     {"instruction": "q", "output": "a", "history": [["Hi", "Yo"]]}),
    (asked({"type": "human", "content": "q"}, assistant()), "of the type 'human' without a role .*; give it one of",
     asked(user(), assistant())),
    # ---- parts of a content ----
    (asked(user([TEXT | {"image": "x.png"}]), assistant()), "unknown key 'image' .* in a part of its content; remove",
     asked(user([TEXT]), assistant())),
    (asked(user(), assistant("", None, LUND), user([{"type": "tool_result", "output": "7"}]), assistant()),
     "unknown key 'output' .* in a part of its content; remove or rename it",
     asked(user(), assistant("", None, LUND), user([{"type": "tool_result", "content": "7"}]), assistant())),
    (asked(system([{"type": "tool_result", "content": "7"}]), assistant()), "of role 'system' .*; make the role 'user'",
     asked(user([{"type": "tool_result", "content": "7"}]), assistant())),
    (asked(user([{"type": "tool_result", "content": "7"}]) | {"name": "Al"}, assistant()), "'Al'; remove the name",
     asked(user([{"type": "tool_result", "content": "7"}]), assistant())),
    # ---- tools ----
    (chat(assistant(), tools=[SCHEMA], functions=[OTHER]), "different tools in 'tools' and 'functions'; keep one",
     chat(assistant(), tools=[SCHEMA])),
    (chat(assistant(), tools={"a": 1}), "not a list of function schemas", chat(assistant(), tools=[FLAT])),
    (chat(assistant(), tools=[3]), "holds 3 .*, which is no function schema", chat(assistant(), tools=[FLAT])),
    (chat(assistant(), tools=[{"parameters": {}}]), "a function schema without a name; give it one",
     chat(assistant(), tools=[{"name": "f", "parameters": {}}])),
    (chat(assistant(), tools=[{"type": "custom", "name": "f"}]), "a custom tool.*; make it a function with parameters",
     chat(assistant(), tools=[{"name": "f", "parameters": PARAMETERS}])),
    (chat(assistant(), tools=[{**FLAT, "input_schema": {}}]), "'parameters' and 'input_schema' differ in .*; keep one",
     chat(assistant(), tools=[FLAT])),
    (asked(system(TAGGED), user(), assistant(), tools=[OTHER]), "other tools .* than in <tools>.*; keep one of the two",
     asked(system(TAGGED), user(), assistant())),
    # ---- messages ----
    (chat("a"), "a message is a JSON object, not", GOOD),
    (made(user(), "a"), "a message is a dict, not", made(user(), assistant())),
    (chat({"role": "bot", "content": "a"}), "unknown role 'bot'.*known roles: .*assistant", GOOD),
    (chat(assistant("a", prefix=True)), "unknown key 'prefix' .*. Remove or rename it", GOOD),
    (chat(assistant("a", notes="x")), "unknown key 'notes' .*. Remove or rename it",
     chat(assistant("a", metadata="x"))),
    (chat(assistant(None)), r"""'content' is missing; give text \(an empty answer is ""\)""", chat(assistant(""))),
    (chat(assistant(56)), "'content' is 56 .*; give text", chat(assistant("56"))),
    (made(user(), assistant("a", " ")), "'reasoning_content' is empty; leave the key out",
     made(user(), assistant("a"))),
    (chat(assistant("a", weight=-1)), r"'weight' is -1 .*; give 0 \(context only\), 1", chat(assistant("a", weight=0))),
    (chat(assistant("a", train=0)), "'train' is 0 .*; give true or false", chat(assistant("a", train=False))),
    (chat(assistant("a", train=0.5)), "'train' is 0.5 .* or a factor as 'weight'", chat(assistant("a", weight=0.5))),
    (chat(assistant("a", weight=1, train=False)), "contradicting weights .*; keep one",
     chat(assistant("a", train=False))),
    (chat({"from": "gpt", "content": "a"}), "'from'/'value' and 'content' in one message; keep one pair",
     chat({"from": "gpt", "value": "a"})),
    (turns(("human", "q"), ("bing", "a")), "unknown 'from' 'bing'.*; known: .*gpt",
     turns(("human", "q"), ("gpt", "a"))),
    (blocks({"type": "image"}), "is not text; only text can be trained on", blocks(TEXT)),
    # ---- thinking ----
    (chat(assistant("a", reasoning=3)), "'reasoning' is 3 .*, not a string", chat(assistant("a", reasoning="3"))),
    (chat(assistant("<think>t</think>a", "u")), "contradicting thinking in .*; keep one", chat(assistant("a", "u"))),
    (chat(assistant("a", reasoning_details="t")), "'reasoning_details' is .*, not a list of objects",
     chat(assistant("a", reasoning_details=[{"text": "t"}]))),
    (chat(assistant("a", reasoning_details=[{"text": 3}])), "'reasoning_details' .*, whose texts are no strings",
     chat(assistant("a", reasoning_details=[{"text": "3"}]))),
    (chat({"role": "thinking", "content": 3}, assistant()), "thinking is 3 .*, not text",
     chat({"role": "thinking", "content": "3"}, assistant())),
    (chat({"role": "thinking", "content": "t", "reasoning_content": "t"}, assistant()), "beside thinking; keep one",
     chat({"role": "thinking", "content": "t"}, assistant())),
    (blocks({"type": "thinking", "thinking": 3}, TEXT), "thinking is 3 .*, not text", blocks(THOUGHT, TEXT)),
    (blocks({**THOUGHT, "text": "u"}, TEXT), "contradicting thinking .* of a block; keep one", blocks(THOUGHT, TEXT)),
    (blocks(THOUGHT, TEXT, reasoning_content="t"), "'reasoning_content' beside blocks of the same; keep one",
     blocks(THOUGHT, TEXT)),
    (blocks(TEXT, THOUGHT), "stands behind 'content'.*. Split it where the model began anew",
     chat({"role": "assistant", "content": [TEXT]}, {"role": "assistant", "content": [THOUGHT, TEXT]})),
    (chat({"type": "reasoning", "summary": 3}, assistant()), "the reasoning is 3 .*, not a list of texts",
     chat({"type": "reasoning", "summary": ["3"]}, assistant())),
    (chat({"type": "reasoning", "summary": [3]}, assistant()), "content part 3 .* is not text",
     chat({"type": "reasoning", "summary": ["3"]}, assistant())),
    (chat(assistant("<think>t")), "<think> is not closed.*. Close it where the answer begins",
     chat(assistant("<think>t</think>a"))),
    (chat(assistant("<think> opens.")), "<think> is not closed.*give the thinking in 'reasoning_content'",
     chat(assistant("Opens: <think>", "t"))),
    (chat(assistant("It is <think>.")), "<think> is not closed.*read no thinking from text with thinking_tags=null",
     partial(read, chat(assistant("It is <think>.")), thinking_tags=None)),
    (chat(assistant("<think>t</think>a<think>u</think>b")), "2 pairs of <think> tags; one message has one thinking",
     chat(assistant("<think>t</think>a"), assistant("<think>u</think>b"))),
    (chat(assistant("<think><think>t</think>a")), "<think> stands twice; .*. Keep one",
     chat(assistant("<think>t</think>a"))),
    (chat(assistant("<thinking>t</think>a")), "begins with '<thinking>', and ends .*; begin it with <think>",
     chat(assistant("<think>t</think>a"))),
    (chat(assistant("</think>t<think>")), "</think> stands before <think>; repair the message",
     chat(assistant("<think>t</think>"))),
    (chat(assistant("Well. <think>t</think>a")), "thinking comes first. Move the text behind </think>",
     chat(assistant("<think>t</think>Well. a"))),
    (solution("a"), "<.begin_of_solution.> is not closed.*. Close it", solution("a<|end_of_solution|>")),
    (solution("a<|end_of_solution|>b"), "text 'b' .* behind <.end_of_solution.>; repair",
     solution("a b<|end_of_solution|>")),
    (chat(assistant(CHANNEL + "b")), "text 'b' .* outside of the channels; repair", chat(assistant(CHANNEL))),
    (chat(assistant("<|channel|>final<|message|>a<|end|><|channel|>analysis<|message|>t<|end|>")),
     "channel analysis stands behind the answer or a call; repair", chat(assistant(CHANNEL))),
    # ---- calls ----
    (calling([3]), "a tool call is an object with a name and arguments, not 3", calling([LUND])),
    (calling(3), "'tool_calls' is 3 .*, not a list of calls", calling([LUND])),
    (made(user(), {**assistant(), "tool_calls": []}), "is .* not a list of calls; leave it out",
     made(user(), assistant())),
    (calling([{"type": "custom", "custom": {"name": "f", "input": "x"}}]), "a custom tool .*; make it a function",
     calling([{"name": "f", "arguments": {"text": "x"}}])),
    (calling([{"arguments": {}}]), "a tool call without a name: .*; give it one",
     calling([{"name": "f", "arguments": {}}])),
    (calling([{"name": "f", "note": "x"}]), "unknown key 'note' in the call of 'f'; remove or rename it",
     calling([{"name": "f"}])),
    (calling([{"name": "f", "args": {}, "parameter": {"a": 1}}]), "unknown key 'parameter' .*; remove or rename it",
     calling([{"name": "f", "parameters": {"a": 1}}])),
    (calling([{"name": "f", "arguments": [1]}]), r"arguments of the call of 'f' are \[1\] .*; give an object",
     calling([{"name": "f", "arguments": {"x": 1}}])),
    (calling([{"name": "f", "arguments": 1}]), "are 1 .*; give an object, or its JSON text",
     calling([{"name": "f", "arguments": '{"x": 1}'}])),
    (calling([LUND], tools=[FLAT]) | chat({**assistant(""), "function_call": LUND, "tool_calls": [OSLO]}),
     "both 'function_call' and 'tool_calls'; keep one", calling([OSLO])),
    (chat(assistant(f"<tool_call>{LUND_TEXT}</tool_call>", None, OSLO)),
     "other calls in the text .*; keep one of the two",
     calling([OSLO])),
    (chat({"role": "tool_call", "content": 3}), "a tool call is 3 .*, not the JSON text of one",
     chat({"role": "tool_call", "content": LUND_TEXT})),
    (chat(assistant(f"<tool_call>{LUND_TEXT}</tool_call>Wait.")), "text 'Wait.' .*; calls come last .*. Repair it",
     chat(assistant(f"Wait.<tool_call>{LUND_TEXT}</tool_call>"))),
    (chat(assistant(f"<tool_call>{LUND_TEXT}")), "<tool_call> that is not closed.*. Repair it",
     chat(assistant(f"<tool_call>{LUND_TEXT}</tool_call>"))),
    (chat(assistant("<tool_call><function=f>x</function></tool_call>")), "in XML is neither a function .*; repair it",
     chat(assistant("<tool_call><function=f><parameter=y>x</parameter></function></tool_call>"))),
    (typed("1</parameter><parameter=x>2"), "the parameter 'x' stands twice .*; keep one", typed("2")),
    (typed("1.5"), "is '1.5' .*, and its schema declares integer; repair one of the two", typed("1")),
    (chat(assistant("<|python_tag|>f()")), "opens a call .*; give the calls in 'tool_calls'", calling([{"name": "f"}])),
    (chat(assistant("It is <|python_tag|>.")), "or put it in quotes", chat(assistant("It is '<|python_tag|>'."))),
    (blocks(USE, TEXT), "a block 'text' stands behind 'tool_calls'.*. Split it",
     chat({"role": "assistant", "content": [USE]}, {"role": "assistant", "content": [TEXT]})),
    (chat({**CALL, "type": "custom_tool_call", "input": "x"}, assistant()), "custom_tool_call has free text.*; make it",
     chat({**CALL, "arguments": '{"text": "x"}'}, assistant())),
    (chat(CALL, {**OUTPUT, "content": "8"}, assistant()), "'content' beside 'output'; keep one",
     chat(CALL, OUTPUT, assistant())),
    (chat({"type": "x", "content": [{"type": "input_text", "text": "a"}]}, assistant()), "items of the type 'x'", None),
    # ---- values ----
    (chat(assistant(), tools="[{"), "malformed JSON at .*; repair it", chat(assistant(), tools="[]")),
    (chat({"role": "tool_call", "content": "[" * 99_999}), "message 1: .*brackets too deep to be read", None),
    (calling([{"name": "f", "arguments": '{"a": 1, "a": 2}'}]), "the key 'a' stands twice in one object; keep one",
     calling([{"name": "f", "arguments": '{"a": 2}'}])),
    (calling([{"name": "f", "arguments": '{"a": %s}' % ("1" * 5000)}]),
     "of more digits than can be read; write it as text",
     calling([{"name": "f", "arguments": '{"a": "%s"}' % ("1" * 5000)}])),
    (chat(assistant("a\ud83d")), "half a surrogate pair .*; repair the text", chat(assistant("a\U0001f600"))),
    (calling([{"name": "f", "arguments": {"a": nested(150)}}]), "more than 100 deep; simplify",
     calling([{"name": "f", "arguments": {"a": nested(50)}}])),
    (chat(assistant(), tools=[{"name": "f", "strict": None, "parameters": nested(9000)}]), "than 100 deep; simplify",
     chat(assistant(), tools=[{"name": "f", "strict": None, "parameters": nested(50)}])),
    (calling([{"name": "f", "arguments": {1: 2}}]), "has the key 1 .*; write it as text",
     calling([{"name": "f", "arguments": {"1": 2}}])),
    (calling([{"name": "f", "arguments": {"a": math.nan}}]), "is nan, which JSON has not; write it as text",
     calling([{"name": "f", "arguments": {"a": "nan"}}])),
    (calling([{"name": "f", "arguments": {"a": 10**5000}}]), "of more digits than can be written; write it as text",
     calling([{"name": "f", "arguments": {"a": "1" + "0" * 5000}}])),
    (calling([{"name": "f", "arguments": {"a": b"x"}}]), "a value that JSON has not; write it as text",
     calling([{"name": "f", "arguments": {"a": "x"}}])),
    # ---- context rules ----
    (under("compact"), "context has 'compact' .*; give {'rule': ..., 'arguments': {...}}", under(SEES_LAST)),
    (under({"rules": "last_observations"}), "context has the key 'rules'; give {'rule': ..., ", under(SEES_LAST)),
    (under({"arguments": {"keep": 1}}), "arguments={'keep': 1}: there is no rule to take them; give one",
     under(SEES_LAST)),
    (under({"rule": "last_observation"}), "rule=last_observation: no such rule; choose .* last_observations",
     under(SEES_LAST)),
    (under({"rule": "no_such:rule"}), "rule=no_such:rule: cannot be imported .*; give the import path",
     under({"rule": "copy:copy"})),
    (under({"rule": "copy:Error.mro"}), "rule=copy:Error.mro: is no function of messages",
     under({"rule": "copy:copy"})),
    (under({"rule": "last_observations", "arguments": {"keeps": 1}}), "arguments.keeps=1: .*; it has keep, placeholder",
     under(SEES_LAST)),
    (under({"rule": "last_observations", "arguments": {"keep": "1"}}), "arguments.keep=1: must be of the type int",
     under(SEES_LAST)),
    (under({"rule": "last_observations", "arguments": {"keep": -1}}), "arguments.keep=-1: must be 0 or more",
     under(SEES_LAST)),
    (under({"rule": "last_observations"}), "arguments.keep: has no value; rule=last_observations needs it",
     under(SEES_LAST)),
    (under(SUMS_UP, user("sum up"), assistant(" "), user(), assistant()), "message 1 is to be a summary .*; give one",
     under(SUMS_UP, user("sum up"), assistant("all of it"), user(), assistant())),
    (own(lambda messages: messages[9]), "<lambda>: IndexError", own(lambda messages: messages[-1:])),
    (own(lambda messages: None), "<lambda>: returned None.*; return the messages that are shown, as a list",
     own(lambda messages: list(messages[-1:]))),
    (own(lambda messages: [*messages, assistant()]), "what it shows ends with an assistant .*; leave what stands",
     own(lambda messages: [*messages, assistant(), user()])),
    (own(lambda messages: messages[0].update(content="b") or messages), "has changed message 0 in place.* return anoth",
     own(lambda messages: [messages[0] | {"content": "b"}, *messages[1:]])),
    (own(lambda messages: [assistant()]), "what it shows begins with an assistant .*; put what asks for it in front",
     own(lambda messages: [user("x")])),
    (lambda: source_of({"rule": "sys:intern"}), "rule=sys:intern: its code stands in no file; give a func", None),
]  # fmt: skip


def run(record):
    return record() if callable(record) else read(record)


# Breaks if an error advises what does not work, or begins without the name of the conversation.
@pytest.mark.parametrize(("record", "error", "repaired"), CASES, ids=[case[1] for case in CASES])
def test_a_record_that_is_mended_as_its_error_says_is_read(record, error, repaired):
    with pytest.raises(ValueError, match=f"^(c: .*)?{error}"):
        run(record)
    if repaired is not None:  # None: the error advises to leave the conversation out
        found = run(repaired)
        assert isinstance(found, Calls) or found.messages[-1]["role"] == "assistant"


def raised_at(record):
    """The files and lines on which the error of a record is raised, and those that it repeats."""
    with pytest.raises(ValueError) as raised:
        run(record)
    found, error = set(), raised.value
    while error is not None:
        inside = [one for one in traceback.extract_tb(error.__traceback__) if HOME in Path(one.filename).parents]
        found |= {(Path(one.filename), one.lineno) for one in inside[-1:]}
        error = error.__cause__
    return found


def raising_statements():
    """The file, the lines and the text of every statement that raises a ValueError in reading."""
    for path in sorted(HOME.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if (
                isinstance(node, ast.Raise)
                and isinstance(node.exc, ast.Call)
                and "ValueError" == ast.unparse(node.exc.func)
            ):
                yield path, range(node.lineno, node.end_lineno + 1), ast.unparse(node.exc)


def test_every_error_of_reading_has_a_case():
    """Breaks if an error is added without a record that is mended as it says."""
    reached = {place for record, _, _ in CASES for place in raised_at(record)}
    missing = [
        f"{path.name}:{lines[0]} {text}"
        for path, lines, text in raising_statements()
        if not any((path, line) in reached for line in lines)
    ]
    assert not missing, "\n".join(missing)
