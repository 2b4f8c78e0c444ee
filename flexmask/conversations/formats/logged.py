r"""Requests and responses as servers and proxies log them, one pair a record: chat completions, Responses, Messages.

    {"request": {"model": "m", "messages": [{"role": "user", "content": "Warm in Lund?"}], "tools": []},
     "response": {"id": "r1", "choices": [{"index": 0, "finish_reason": "stop",
                  "message": {"role": "assistant", "reasoning_content": "Look it up.", "content": "Seven."}}]},
     "session_id": "e1"}
    {"messages": [...], "choices": [...], "metadata": {"episode_id": "e1"}}

What the request gave besides (tools, system text, arguments of the template) is what the model was given. Where the
response has token ids (vLLM's `return_token_ids`), they are taken. Each choice is a call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flexmask.conversations.beside import (
    DESCRIBING_KEYS,
    SYSTEM_KEYS,
    TEMPLATE_KEYS,
    TOOL_KEYS,
    UNSUPPORTED_KEYS,
)
from flexmask.conversations.formats.rollouts import SAID_BY_IDS
from flexmask.conversations.values import are_given, brief, is_empty, parse_json, shown

NAME = "logged requests"
_PAIRS = (("request", "response"), ("request_body", "response_body"))
# Of a request: what the model was shown, under the names that records have for it.
_SHOWN = (*SYSTEM_KEYS, *TOOL_KEYS, *TEMPLATE_KEYS, *UNSUPPORTED_KEYS, "chat_template_kwargs", "thinking")
# Of a request: how the answer was sampled and given back, which says nothing of what the model was shown.
_SAMPLING = frozenset(
    "frequency_penalty presence_penalty repetition_penalty length_penalty logit_bias logprobs top_logprobs max_tokens "
    "max_completion_tokens max_output_tokens min_tokens n best_of temperature top_p top_k min_p stop stop_sequences "
    "stop_token_ids ignore_eos skip_special_tokens spaces_between_special_tokens seed stream stream_options "
    "tool_choice parallel_tool_calls response_format service_tier store user prediction modalities return_token_ids "
    "add_generation_prompt include truncation text previous_response_id background prompt_cache_key "
    "safety_identifier verbosity".split()
)
# Of a request: what names a history that the server has kept, and the request does not hold.
_KEPT_BY_SERVER = ("previous_response_id", "conversation")
# Of `reasoning` in a request: how much of it, which templates may show, and how much of it is given back.
_OF_REASONING = ("effort", "summary", "generate_summary")
# Of a choice: what is read, and what describes it.
_OF_CHOICE = frozenset("index message finish_reason stop_reason matched_stop token_ids".split())
# Of a response: what describes it.
_ANSWERED = frozenset(
    "id object created created_at model usage system_fingerprint service_tier prompt_logprobs kv_transfer_params "
    "status metadata role type stop_sequence".split()
)


def fits(record: Mapping[str, Any]) -> bool:
    """Whether a record is a request with its response, side by side or in one."""
    return any(are_given(record, pair) for pair in _PAIRS) or (
        record.get("choices") is not None and any(key in record for key in ("messages", "prompt"))
    )


def as_calls(record: Mapping[str, Any], name: str, notes: list[str]) -> dict[str, Any]:
    """The record with its calls in `calls`, one a choice. Raises ValueError beginning with `name`."""
    left = dict(record)
    pair = next((pair for pair in _PAIRS if are_given(left, pair)), None)
    request: dict[str, Any]
    response: dict[str, Any]
    if pair is None:
        request = {key: left.pop(key) for key in ("messages", "prompt", *_SHOWN, *_SAMPLING) if key in left}
        response = {key: left.pop(key) for key in ("choices", "prompt_token_ids") if key in left}
    else:
        request, response = (_body(left.pop(key), f"{name}: {key!r}") for key in pair)
    left["calls"] = _calls(request, response, left, name, notes)
    return left


def _body(given: Any, where: str) -> dict[str, Any]:
    """A request or a response: an object, its JSON text, or either as `body` of one."""
    value = parse_json(given, where) if isinstance(given, str) else given
    if isinstance(value, Mapping) and isinstance(value.get("body"), (Mapping, str)):
        return _body(value["body"], where)
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {shown(given)}, not an object; remove the record")
    return dict(value)


def _calls(
    request: dict[str, Any], response: dict[str, Any], left: dict[str, Any], name: str, notes: list[str]
) -> list[dict[str, Any]]:
    prompts = [key for key in ("messages", "input", "prompt") if not is_empty(request.get(key))]
    if len(prompts) != 1:
        found = f"both {prompts[0]!r} and {prompts[1]!r}" if prompts else "no 'messages'"
        raise ValueError(f"{name}: the request has {found} (its keys: {brief(list(request))}); give one list")
    prompt = request.pop(prompts[0])
    if prompts[0] == "input" and isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    shared = {key: request.pop(key) for key in _SHOWN if not is_empty(request.get(key))}
    if isinstance(reasoning := request.pop("reasoning", None), Mapping):
        if not is_empty(reasoning.get("effort")):
            shared["reasoning_effort"] = reasoning["effort"]  # the Responses API's place for it
        left |= {f"request.reasoning.{key}": value for key, value in reasoning.items() if key not in _OF_REASONING}
    kept = [key for key in _KEPT_BY_SERVER if not is_empty(request.get(key))]
    if isinstance(shared.get("thinking"), Mapping):
        del shared["thinking"]  # of the Messages API: how many tokens it may take
    prompt_ids = response.pop("prompt_token_ids", None)
    choices = _choices(response, left, name)
    for part, other, known in (("request", request, _SAMPLING), ("response", response, _ANSWERED)):
        left |= {f"{part}.{key}": value for key, value in other.items() if key not in known | DESCRIBING_KEYS}
    calls = []
    for choice in choices:
        ids = prompt_ids, choice.get("token_ids")
        if all(isinstance(one, Sequence) and one for one in ids):
            notes.append(SAID_BY_IDS)
            calls.append({"prompt": ids[0], "completion": ids[1]})
        elif kept:
            raise ValueError(
                f"{name}: the request goes on from what the server has kept ({kept[0]!r}), which is not in it; give "
                f"all that the model was given as {prompts[0]!r}, without {kept[0]!r}"
            )
        else:
            calls.append({"prompt": prompt, **shared, "completion": choice["message"]})
    return calls


def message_of(choice: Mapping[str, Any]) -> dict[str, Any] | None:
    """The message of a choice, with the reason for which it ended; None where the choice has none."""
    message = choice.get("message")
    ended = {key: choice[key] for key in ("finish_reason",) if key in choice}
    return {**message, **ended} if isinstance(message, Mapping) else None


def _choices(response: dict[str, Any], left: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """What was answered, each as `{"message": a message or its pieces, "token_ids"?}`; taken out of the response. What
    else a choice says joins `left`."""
    ended = {key: response.pop(key) for key in ("stop_reason", "finish_reason") if key in response}
    if isinstance(choices := response.pop("choices", None), Sequence) and choices:
        found = []
        for choice in choices:
            message = message_of(choice) if isinstance(choice, Mapping) else None
            if message is None:
                raise ValueError(f"{name}: a choice is {shown(choice)}, without a message; remove the record")
            left |= {f"response.choices.{key}": value for key, value in choice.items() if key not in _OF_CHOICE}
            found.append({"message": message, "token_ids": choice.get("token_ids")})
        return found
    if isinstance(output := response.pop("output", None), list) and output:
        return [{"message": output}]
    if isinstance(content := response.pop("content", None), (list, str)) and content:
        return [{"message": {"role": "assistant", "content": content, **ended}}]
    error = response.get("error")
    held = f"the error {shown(error)}" if error else f"the keys {brief(list(response))}"
    raise ValueError(f"{name}: the response holds no answer, but {held}; remove the record")
