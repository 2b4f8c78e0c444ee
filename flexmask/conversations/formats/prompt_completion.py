r"""A prompt and what completes it, as TRL has them: texts, or messages of any format.

    {"prompt": [{"role": "user", "content": "2+2?"}], "completion": [{"role": "assistant", "content": "4"}]}
    {"prompt": "2+2?", "completion": "<think>\ntwo and two\n</think>\n\n4"}

`input` with `output` is read likewise, as are `prompt` and `response`. What of an assistant stands in the prompt is
context and not trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flexmask.conversations.formats import agentic, sharegpt
from flexmask.conversations.values import AS_CALLS, shown

NAME = "prompt and completion"
_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("input", "output"))
# The speakers, in any format, of what no model has written.
_ASKING = {"function", "function_call_output"} | {
    speaker
    for speaker, role in (agentic.ROLES | sharegpt.SPEAKERS).items()
    if role in ("user", "system", "developer", "tool")
}


def fits(record: Mapping[str, Any]) -> bool:
    """Whether a record has a prompt with its completion; `input` alone is a list of items that holds both."""
    if record.get("instruction"):
        return False
    return any(first in record and second in record for first, second in _PAIRS) or isinstance(
        record.get("input"), (list, tuple)
    )


def keys(record: Mapping[str, Any]) -> tuple[str, str]:
    """The keys of the record that `turns` reads: of one pair, so that what stands under another is not read. A pair of
    which something is empty is read where there is no other."""
    pairs = [pair for pair in _PAIRS if all(key in record for key in pair)]
    return max(pairs, key=lambda pair: sum(bool(record[key]) for key in pair), default=_PAIRS[-1])


def turns(record: Mapping[str, Any], name: str) -> list[Any]:
    """The messages of the prompt, its answers with weight 0, and those of the completion."""
    first, second = keys(record)
    if second not in record:
        return list(record[first])
    prompt = _messages(record[first], "user", f"{name}: {first!r}")
    completion = _messages(record[second], "assistant", f"{name}: {second!r}")
    if first == "prompt" and prompt and completion and is_generated(prompt[-1]) and is_generated(completion[0]):
        raise ValueError(
            f"{name}: the prompt ends with the beginning of an answer, which the completion goes on with, and a turn "
            "is trained from its beginning; put both into the completion, or a question between them"
        )
    return [_context(message) for message in prompt] + completion


def _messages(given: Any, role: str, where: str) -> list[Any]:
    if isinstance(given, str):
        return [{"role": role, "content": given}]
    if isinstance(given, Mapping):
        return [given]
    if not isinstance(given, Sequence) or isinstance(given, (bytes, bytearray)):
        raise ValueError(f"{where} is {shown(given)}, neither text nor a list of messages")
    if any(isinstance(one, int) for one in given):
        raise ValueError(f"{where} holds token ids, which are not read; give text or messages, or {AS_CALLS}")
    return list(given)


def is_generated(message: Any) -> bool:
    """Whether a model has written a message."""
    speaker = message.get("role", message.get("from", message.get("type"))) if isinstance(message, Mapping) else None
    return isinstance(speaker, str) and speaker not in _ASKING


def _context(message: Any) -> Any:
    """The message, with weight 0 where a model has generated it."""
    if not is_generated(message):
        return message
    return {**{key: value for key, value in message.items() if key not in ("train", "loss")}, "weight": 0}
