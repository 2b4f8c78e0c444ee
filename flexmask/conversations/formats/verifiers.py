"""Traces of verifiers and prime-rl: graphs of messages, in which each node holds the tokens that it adds.

    {"traces": [{"agent": {"name": "solver", "trainable": true}, "nodes": [
        {"message": {"role": "user", "content": "2+2?"}, "token_ids": [1, 2], "mask": [false, false]},
        {"parent": 0, "sampled": true, "message": {"role": "assistant", "content": "4"},
         "token_ids": [3, 7, 8], "mask": [false, true, true]}]}]}

A node that the model sampled is a call behind all that stands on its path from the root, and is trained once, however
many branches go on from it. Without token ids (a run against an API) the messages go through the chat template. Records
of verifiers before 0.2 have a `trajectory`, a list of steps with a prompt and a completion each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flexmask.conversations.formats import rollouts
from flexmask.conversations.messages import ENCRYPTED, joined_text
from flexmask.conversations.values import as_list, as_object, is_empty, shown

NAME = "verifiers traces"
_UNTRAINED = (
    "traces of agents that are not trained ('trainable': false), and compactions nobody went on from, are left out"
)
_MASKED = "answers of which no token is the model's, as their mask says, are left out"
_FAILED = "traces that did not end well ('ok': false) are trained as others are"
_EPISODE = frozenset("id env task group run ok is_timeout errors traces".split())
_TRACE = frozenset(
    "version id verifiers task agent tools nodes calls mm_token_type_id_map request_rewrites response_rewrites "
    "metrics info root_reply extra_usage is_completed ok stop_condition is_timeout errors timing".split()
)
_NODE = frozenset("parent tools semantic_parents message sampled timestamp token_ids mask is_content".split())
_STEP = frozenset("prompt completion response tokens is_truncated trajectory_id extras".split())
_TOKENS = frozenset("overlong_prompt is_truncated".split())


def fits(record: Mapping[str, Any]) -> bool:
    """Whether a record holds traces, is one, or has the trajectory of older versions."""
    if isinstance(record.get("traces"), list):
        return True
    nodes, steps = record.get("nodes"), record.get("trajectory")
    return (isinstance(nodes, list) and any(isinstance(one, Mapping) and "message" in one for one in nodes)) or (
        isinstance(steps, list) and any(isinstance(one, Mapping) and "completion" in one for one in steps)
    )


def as_calls(record: Mapping[str, Any], name: str, notes: list[str]) -> dict[str, Any]:
    """The record with its calls in `calls`. Raises ValueError beginning with `name`."""
    left = dict(record)
    traces = left.get("traces")
    if isinstance(steps := left.get("trajectory"), list) and left.get("nodes") is None and traces is None:
        del left["trajectory"]
        for key in ("prompt", "completion"):  # the whole of it, which the steps say
            left.pop(key, None)
        left["calls"] = [_of_step(one, left, f"{name}: step {i}") for i, one in enumerate(steps)]
        return left
    unread: dict[str, Any] = {}
    calls = [
        call
        for i, one in enumerate([record] if traces is None else traces)
        for call in _of_trace(one, f"{name}: trace {i}", i, unread, notes)
    ]
    if not calls:
        raise ValueError(f"{name}: no trace has an answer of a model that is trained; remove the record")
    known = _TRACE if traces is None else _EPISODE
    return {key: value for key, value in left.items() if not _is_known(key, known)} | unread | {"calls": calls}


def _is_known(key: str, known: frozenset[str]) -> bool:
    return key in known or key.startswith("num_")


def _of_step(step: Any, left: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(step, Mapping):
        raise ValueError(f"{where} is {shown(step)}, not an object with 'prompt' and 'completion'")
    left |= {f"trajectory.{key}": value for key, value in step.items() if key not in _STEP}
    if isinstance(tokens := step.get("tokens"), Mapping):
        call = rollouts.call_of(others := dict(tokens), where)
        left |= {f"trajectory.tokens.{key}": value for key, value in others.items() if key not in _TOKENS}
        return call
    return {key: step.get(key) for key in ("prompt", "completion")}


def _of_trace(
    trace: Any, where: str, number: int, unread: dict[str, Any], notes: list[str]
) -> Iterator[dict[str, Any]]:
    """The calls of a trace, in the order in which they were made."""
    trace = as_object(trace, where)
    nodes = [as_object(one, f"{where}: a node") for one in as_list(trace.get("nodes"), f"{where}: 'nodes'")]
    for node in nodes:
        node["message"] = as_object(node.get("message"), f"{where}: the message of a node")
    unread |= {f"traces.{key}": value for key, value in trace.items() if not _is_known(key, _TRACE)}
    for node in nodes:
        unread |= {f"nodes.{key}": value for key, value in node.items() if key not in _NODE and not is_empty(value)}
    paths = _paths(nodes, where)
    sampled = [i for i, node in enumerate(nodes) if node.get("sampled")]
    agent = as_object(trace.get("agent"), f"{where}: 'agent'")
    trained = _trained(nodes, paths, where) if agent.get("trainable", True) else set()
    if not trained.issuperset(sampled):
        notes.append(_UNTRAINED)
    if trace.get("ok") is False:
        notes.append(_FAILED)
    ended: dict[int, Any] = {}
    for one in as_list(trace.get("calls"), f"{where}: 'calls'"):
        made = as_object(one, f"{where}: a call")
        if isinstance(made.get("node"), int):
            ended[made["node"]] = made.get("finish_reason")
    for i in sampled:
        if i not in trained:
            continue
        path, at = [nodes[k] for k in paths[i]], f"{where}: node {i}"
        for node in path:
            joined_text(node["message"].get("content"), at)  # tokens of images are nothing without them
        named = {"name": f"trace {number}, node {i}"}
        if not is_empty(nodes[i].get("token_ids")):
            if (call := _of_ids(path, at)) is not None:
                yield call | named
            else:
                notes.append(_MASKED)
        else:
            messages = [dict(node["message"]) for node in path]
            if any(message.pop("provider_state", None) for message in messages):
                notes.append(ENCRYPTED)
            answer = messages.pop() | {"finish_reason": ended.get(i)}
            yield {"prompt": messages, "completion": answer, "tools": path[0].get("tools") or None} | named


def _of_ids(path: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any] | None:
    """The call of the last node of a path; None where none of its tokens is the model's."""
    for node in path:
        ids, mask = (as_list(node.get(key), f"{where}: {key!r}") for key in ("token_ids", "mask"))
        if not ids or len(mask) != len(ids):
            raise ValueError(
                f"{where}: a node of its path has token_ids {shown(ids)} with a mask {shown(mask)}; give both for "
                "each, of one length, or the ids of none"
            )
    if not any(path[-1]["mask"]):
        return None
    before = [one for node in path[:-1] for one in node["token_ids"]]
    own, mask = path[-1]["token_ids"], path[-1]["mask"]
    first = next(i for i, one in enumerate(mask) if one)
    return {"prompt": [*before, *own[:first]], "completion": own[first:], "completion_mask": mask[first:]}


def _paths(nodes: Sequence[Mapping[str, Any]], where: str) -> list[list[int]]:
    """The numbers of the nodes from the root to each of them."""
    paths: list[list[int]] = []
    for i, node in enumerate(nodes):
        parent = node.get("parent")
        if parent is not None and not (isinstance(parent, int) and 0 <= parent < i):
            raise ValueError(
                f"{where}: node {i} has the parent {shown(parent)}, which is no node before it; give the "
                "number of one, or none at the root"
            )
        paths.append([*([] if parent is None else paths[parent]), i])
    return paths


def _trained(nodes: Sequence[Mapping[str, Any]], paths: list[list[int]], where: str) -> set[int]:
    """The nodes of the branches that are trained: of all but attempts to compact that nobody went on from."""
    links = [
        [
            as_object(link, f"{where}: a link")
            for link in as_list(node.get("semantic_parents"), f"{where}: a node's links")
        ]
        for node in nodes
    ]
    accepted = {link.get("node") for some in links for link in some if link.get("type") == "compaction"}
    inner = {node.get("parent") for node in nodes}
    leaves = [i for i in range(len(nodes)) if i not in inner]
    kept = [
        i for i in leaves
        if i in accepted or not any(link.get("type") == "compaction_attempt" for link in links[i])
    ]  # fmt: skip
    return {k for i in kept for k in paths[i]}
