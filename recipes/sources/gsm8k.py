"""GSM8K in Socratic form, one problem at a time, as a conversation record.

A problem on the hub or in a local file has two strings:

    question  Mia packs 4 boxes of 6 cups and 5 loose cups. How many cups does she pack?
    answer    How many cups are in the boxes? ** The boxes hold 4 * 6 = <<4*6=24>>24 cups.
              How many cups does she pack? ** She packs 24 + 5 = <<24+5=29>>29 cups.
              #### 29

As a conversation the problem and the first sub-question are the first user message, and each further
sub-question is a user turn. A turn's calculations (`<<...>>`) are its thinking, one a line; the sentence
without them is its answer. A sentence without calculation has no thinking.
"""

import re
from collections.abc import Mapping
from typing import Any

SEPARATOR = re.compile(r"\s\*\*(?:\s|$)")
CALCULATION = re.compile(r"<<(.*?)>>")
RESULT = "####"
HUB_ID, HUB_CONFIG = "openai/gsm8k", "socratic"


def to_record(problem: Mapping[str, Any], name: str) -> dict[str, Any]:
    """`{"messages": [...]}` of one problem, for `read_conversation`.

    The result line is no sentence of the dialogue and stays out of the messages. Runs of white space in an
    answer become one space; questions keep theirs. A few sub-questions of the data have no answer sentence:
    such a turn stays in the history as an empty answer, with `train: false` so that nobody learns to say
    nothing.

    Raises ValueError naming `name`, the line of the answer (from 1), what it holds and what is expected.
    """
    question, answer = _text(problem, "question", name), _text(problem, "answer", name)
    lines = [(number, line) for number, line in enumerate(answer.split("\n"), start=1) if line.strip()]
    number, last = lines[-1]
    if not last.startswith(RESULT) or not last.removeprefix(RESULT).strip():
        raise ValueError(f"{name}: answer line {number} is {last!r}; the last line must be '{RESULT} <result>'")
    messages: list[dict[str, Any]] = []
    for number, line in lines[:-1]:
        asked, reply = _turn(line, f"{name}: answer line {number}")
        messages += [{"role": "user", "content": asked}, reply]
    if not messages:
        raise ValueError(f"{name}: the answer has no 'sub-question ** sentence' line, only the result {last!r}")
    messages[0]["content"] = f"{question.strip()}\n{messages[0]['content']}"
    return {"messages": messages}


def _turn(line: str, where: str) -> tuple[str, dict[str, Any]]:
    """The sub-question and the assistant message of one line."""
    asked, *sentence = SEPARATOR.split(line, maxsplit=1)
    if line.startswith(RESULT):
        raise ValueError(f"{where} is {line!r}; the result must be the last line")
    if not sentence or not asked.strip():
        raise ValueError(f"{where} is {line!r}; expected 'sub-question ** sentence'")
    calculations = [calculation.strip() for calculation in CALCULATION.findall(sentence[0])]
    text = " ".join(CALCULATION.sub("", sentence[0]).split())
    if "<<" in asked + text or ">>" in asked + text or not all(calculations):
        raise ValueError(f"{where} has an unpaired, misplaced or empty <<...>> in {line!r}; repair it")
    reply: dict[str, Any] = {"role": "assistant", "content": text}
    if calculations:
        reply["reasoning_content"] = "\n".join(calculations)
    if not text:
        reply["train"] = False
    return asked.strip(), reply


def _text(problem: Mapping[str, Any], key: str, name: str) -> str:
    value = problem.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"{name}: {key!r} is {value!r}; a GSM8K-Socratic problem has text in 'question' and 'answer' "
            f"(keys found: {', '.join(map(str, problem))})"
        )
    return value
