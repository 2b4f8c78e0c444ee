"""Token ids of a rollout, as reinforcement learning keeps them, with a mask of what the model gave itself.

    {"prompt_ids": [1, 2], "response_ids": [7, 8, 30, 31, 9], "response_mask": [1, 1, 0, 0, 1]} of verl's agent loops
    {"prompt_ids": [1, 2], "completion_ids": [7, 8, 9], "env_mask": [1, 0, 1]} of TRL's rollout functions
    {"token_ids": [1, 2, 7, 8, 9], "mask": [0, 0, 1, 0, 1]} of prime-rl's samples

The mask is 0 at what tools have said between: context, as the prompt is. Ids are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flexmask.conversations.values import brief, is_empty, shown

NAME = "token ids of rollouts"
_PROMPTS = ("prompt_ids", "prompt_token_ids")
_COMPLETIONS = ("completion_ids", "response_ids", "completion_token_ids")
_MASKS = ("completion_mask", "response_mask", "env_mask", "tool_mask")
_FLAT = ("token_ids", "input_ids")
_FLAT_MASKS = ("mask", "loss_mask", "completion_mask", "assistant_masks")
_BESIDE = ("prompt", "completion", "response", "messages")
# What verl writes into `trainer.rollout_data_dir`.
_VERL_DUMP = {"input", "output", "gts", "score", "step"}
SAID_BY_IDS = "messages beside token ids are not read: the ids are what the model was given and gave"


def fits(record: Mapping[str, Any]) -> bool:
    """Whether a record has the token ids of a prompt and of what came behind it, or both in one list with a mask."""
    given = {key for key, value in record.items() if not is_empty(value)}
    return bool(
        (given.intersection(_PROMPTS) and given.intersection(_COMPLETIONS))
        or (given.intersection(_FLAT) and given.intersection(_FLAT_MASKS))
        or given >= _VERL_DUMP
    )


def as_calls(record: Mapping[str, Any], name: str, notes: list[str]) -> dict[str, Any]:
    """The record with its one call in `calls`. Raises ValueError beginning with `name`."""
    left = dict(record)
    if _VERL_DUMP <= left.keys() and not any(key in left for key in _PROMPTS):
        raise ValueError(
            f"{name}: a rollout dump of verl, whose text has lost the special tokens: neither messages nor token ids "
            "can be had from it; give prompt_ids, response_ids and response_mask of the agent loop's output"
        )
    call = call_of(left, name)
    if beside := [left.pop(key) for key in _BESIDE if not is_empty(left.get(key))]:
        notes.append(SAID_BY_IDS)
        messages = [one for some in beside if isinstance(some, list) for one in some]
        if "completion_mask" not in call and any(_is_result(one) for one in messages):
            raise ValueError(
                f"{name}: token ids beside messages with results of tools, and no mask says which of the ids the model "
                "gave; give completion_mask, with 0 at the results"
            )
    return {**left, "calls": [call]}


def call_of(left: dict[str, Any], where: str) -> dict[str, Any]:
    """The call of a rollout's ids and masks, which are taken out of `left`. Raises ValueError beginning with
    `where`."""
    if (prompt := _take(left, _PROMPTS, where)) is not None:
        completion, mask = _take(left, _COMPLETIONS, where), _take(left, _MASKS, where)
        _refuse_padding(left.pop("prompt_mask", None), f"{where}: 'prompt_mask'")
        return {"prompt": prompt, "completion": completion} | ({} if mask is None else {"completion_mask": mask})
    ids, mask = _take(left, _FLAT, where), _take(left, _FLAT_MASKS, where)
    if not isinstance(ids, Sequence) or not isinstance(mask, Sequence) or len(ids) != len(mask):
        raise ValueError(f"{where}: token ids {shown(ids)} with a mask {shown(mask)}; give lists of one length")
    first = next((i for i, one in enumerate(mask) if one), 0)
    if not first:
        said = "is 0 everywhere, so nothing is trained" if not any(mask) else "begins with 1, behind nothing"
        raise ValueError(
            f"{where}: the mask {said}; give 1 at what the model gave, behind its prompt, or remove the rollout"
        )
    return {"prompt": ids[:first], "completion": ids[first:], "completion_mask": mask[first:]}


def _take(left: dict[str, Any], keys: Sequence[str], where: str) -> Any:
    """What stands under one of the keys, which is taken out; None where none is there."""
    found = {key: left.pop(key) for key in keys if not is_empty(left.get(key))}
    if any(value != next(iter(found.values())) for value in found.values()):
        raise ValueError(f"{where}: {' and '.join(map(repr, found))} differ; keep one")
    return next(iter(found.values()), None)


def _refuse_padding(mask: Any, where: str) -> None:
    """Of attention or of loss, a mask of a prompt is the same at all tokens, unless some of them are padding."""
    if isinstance(mask, Sequence) and any(one != mask[0] for one in mask):
        raise ValueError(f"{where} is {brief(list(mask))}: some tokens are padding; give the ids without it")


def _is_result(message: Any) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "tool"
