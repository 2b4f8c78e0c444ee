"""Records as people have them, for several tests, and what makes them. Written after public reports of this field."""

import json

PARAMETERS = {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}
FLAT = {"name": "temperature", "description": "Of a town.", "parameters": PARAMETERS}
SCHEMA = {"type": "function", "function": FLAT}


def system(text):
    return {"role": "system", "content": text}


def user(text="q"):
    return {"role": "user", "content": text}


def assistant(text="a", thinking=None, *calls, **keys):
    thought = {} if thinking is None else {"reasoning_content": thinking}
    return {"role": "assistant", "content": text, **thought, **({"tool_calls": list(calls)} if calls else {}), **keys}


def tool(text, **keys):
    return {"role": "tool", "content": text, **keys}


def call(name="temperature", arguments=None, **keys):
    return {**keys, "type": "function", "function": {"name": name, "arguments": arguments or {}}}


LUND, OSLO = (call(arguments={"town": town}) for town in ("Lund", "Oslo"))


def turns(*pairs, **beside):
    return {"conversations": [{"from": speaker, "value": text} for speaker, text in pairs], **beside}


def written(name, **arguments):
    return json.dumps({"name": name, "arguments": arguments})


# ---- calls ----

CALLED = [user("Lund?"), assistant("", None, LUND), tool("7"), assistant("Seven.", "7 it says")]
LUND_TEXT = written("temperature", town="Lund")
WAYS_TO_CALL = {
    "sharegpt": turns(
        ("human", "Lund?"),
        ("function_call", LUND_TEXT),
        ("observation", "7"),
        ("gpt", "<think>\n7 it says\n</think>\n\nSeven."),
    ),
    "sharegpt, other names": turns(
        ("user", "Lund?"),
        ("tool_call", LUND_TEXT),
        ("tool_response", "7"),
        ("assistant", "<think>7 it says</think>Seven."),
    ),
    "hermes": turns(
        ("human", "Lund?"),
        ("gpt", f"<tool_call>\n{LUND_TEXT}\n</tool_call>"),
        ("tool", "<tool_response>\n7\n</tool_response>"),
        ("gpt", "<think>\n7 it says\n</think>\nSeven."),
    ),
    "hermes as Python prints it, result of a user": {
        "messages": [
            user("Lund?"),
            assistant("<tool_call>\n{'arguments': {'town': 'Lund'}, 'name': 'temperature'}\n</tool_call>"),
            user("<tool_response>\n7\n</tool_response>"),
            assistant("Seven.", thinking="7 it says"),
        ]
    },
    "agentic roles": {
        "messages": [
            user("Lund?"),
            {"role": "tool_call", "content": LUND_TEXT},
            {"role": "tool_output", "content": "7"},
            {"role": "reasoning", "content": "7 it says"},
            {"role": "answer", "content": "Seven."},
        ]
    },
    "old function calls": {
        "messages": [
            user("Lund?"),
            {"role": "assistant", "content": None, "function_call": {"name": "temperature",
             "arguments": '{"town": "Lund"}'}},
            {"role": "function", "content": "7"},
            assistant("Seven.", "7 it says"),
        ]
    },
    "content blocks": {
        "messages": [
            user("Lund?"),
            {"role": "assistant", "content": [{"type": "tool_use", "name": "temperature", "input": {"town": "Lund"}}]},
            {"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": "7"}]}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "7 it says", "signature": "x"},
                                              {"type": "text", "text": "Seven."}]},
        ]
    },
    "Responses items": {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Lund?"}]},
            {"type": "function_call", "name": "temperature", "arguments": '{"town": "Lund"}', "status": "completed"},
            {"type": "function_call_output", "output": "7"},
            {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "7 it says"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Seven."}]},
        ]
    },
    "harmony channels": {
        "messages": [
            user("Lund?"),
            assistant("<|channel|>commentary to=functions.temperature <|constrain|>json<|message|>"
                      '{"town": "Lund"}<|call|>'),
            tool("7"),
            assistant("<|channel|>analysis<|message|>7 it says<|end|><|start|>assistant<|channel|>final<|message|>"
                      "Seven.<|return|>"),
        ]
    },
    "flat calls as JSON text": {
        "messages": [user("Lund?"), {"role": "assistant", "tool_calls": f"[{LUND_TEXT}]"}, tool("7"),
                     assistant("Seven.", "7 it says")]
    },
}  # fmt: skip

# What a table makes of: calls with differing arguments.
TABLE = [
    {
        "tools": [SCHEMA, {"type": "function", "function": {"name": "convert", "parameters": {"type": "object",
                  "properties": {"amount": {"type": "number"}, "to": {"type": "string", "enum": ["EUR", "SEK"]}}}}}],
        "messages": [
            user("Lund?"), assistant("", "look", {**LUND, "id": "c1"}), tool("7", tool_call_id="c1"),
            assistant("Seven."),
            user("Ten euros?"), assistant("", None, {**call("convert", {"amount": 10.0, "to": "SEK"}), "id": "c2"}),
            tool("110", tool_call_id="c2"), assistant("110."),
        ],
    },
    {"messages": [user(), assistant("", None, call("now"))], "note": "x"},
]  # fmt: skip

# ChatML with tools and calls as Hermes has them, thinking dropped from the history.
CALLING_TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\n' }}
{%- for one in tools %}{{ one | tojson }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif -%}
{%- set last = namespace(user=-1) -%}
{%- for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor -%}
{%- for m in messages -%}
{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' and m.reasoning_content and loop.index0 > last.user -%}
{{ '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}
{%- endif -%}
{{ m.content }}
{%- for call in m.tool_calls or [] -%}
{{ ('\\n' if m.content or not loop.first) ~ '<tool_call>\\n{"name": ' ~ call.function.name | tojson
   ~ ', "arguments": ' ~ call.function.arguments | tojson ~ '}\\n</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""
