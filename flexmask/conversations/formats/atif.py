"""Trajectories in ATIF, the Agent Trajectory Interchange Format of Harbor: one a record, with its sub-agents.

    {"schema_version": "ATIF-v1.8", "agent": {"name": "a", "version": "1", "tool_definitions": []}, "steps": [
        {"step_id": 1, "source": "user", "message": "Warm in Lund?"},
        {"step_id": 2, "source": "agent", "message": "", "reasoning_content": "Look it up.",
         "tool_calls": [{"tool_call_id": "c1", "function_name": "temperature", "arguments": {"town": "Lund"}}],
         "observation": {"results": [{"source_call_id": "c1", "content": "7"}]}},
        {"step_id": 3, "source": "agent", "message": "Seven."}]}

Each step in which the agent called the model is a call behind the steps before it. Where its metrics have token ids,
these are taken. A step that replaced the context begins the history anew with what it observed, or with the copied
steps behind it. A call whose history no step states is an error, unless its token ids do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from flexmask.conversations.messages import joined_text
from flexmask.conversations.values import as_list, as_object, brief, is_empty, shown

NAME = "ATIF trajectories"
_VERSION = re.compile(r"ATIF-v1\.\d+")
_TRAJECTORY = frozenset(
    "schema_version session_id trajectory_id agent steps notes final_metrics continued_trajectory_ref extra "
    "subagent_trajectories".split()
)
_STEP = frozenset(
    "step_id timestamp source model_name reasoning_effort message reasoning_content tool_calls observation metrics "
    "extra llm_call_count is_copied_context".split()
)
_METRICS = frozenset(
    "prompt_tokens completion_tokens cached_tokens cost_usd prompt_token_ids completion_token_ids extra".split()
)
_TOOL_CALL = frozenset(("tool_call_id", "function_name", "arguments", "extra"))
_RESULT = frozenset(("source_call_id", "content", "subagent_trajectory_ref", "extra"))
_AS_USER = (
    "observations that belong to no tool call are shown as user messages: ATIF does not say in which role they were"
)
_UNANSWERED = "tool calls whose result no observation states stand without one in front of later calls"
_NO_MODEL = "steps that no call of the model made (llm_call_count 0) are shown to later calls as the agent's messages"
_SEVERAL = (
    "steps of several calls of the model (llm_call_count above 1) are context and not trained: each is not stated"
)
_COPIED = "steps copied from another trajectory (is_copied_context) are context and not trained, as ATIF asks"
_REPLACED = (
    "behind a step that replaced the context, calls are given what that step observed, as a user message, and nothing "
    "from before it, system texts included, as ATIF says"
)
# Each reason for which a history is not stated says what would state it.
_NOTHING_BEFORE = "no step stands before it; give what it was shown in steps before it"
_ELSEWHERE = "sub-agents and continuations in other files are records of their own, if those files are given"
_EFFORT = "'reasoning_effort' that is a number is not given to the chat template"


def fits(record: Mapping[str, Any]) -> bool:
    """Whether a record says that it is a trajectory."""
    version = record.get("schema_version")
    return isinstance(version, str) and version.startswith("ATIF")


def as_calls(record: Mapping[str, Any], name: str, notes: list[str]) -> dict[str, Any]:
    """The record with its calls in `calls`: those of the trajectory, then those of each sub-agent. Raises ValueError
    beginning with `name` and naming the step."""
    unread: dict[str, Any] = {}
    calls = list(_Trajectory(record, name, "", unread, notes).calls())
    if not calls:
        raise ValueError(f"{name}: no step of the trajectory is a call of the model that is trained; remove the record")
    return unread | {"calls": calls}


class _Trajectory:
    """One trajectory under way. history: what the next call is shown; lost: why that is not stated, if it is not;
    unanswered: whether it has a call without its result."""

    def __init__(
        self, given: Mapping[str, Any], name: str, agent: str, unread: dict[str, Any], notes: list[str]
    ) -> None:
        self.name, self.agent, self.unread, self.notes = name, agent, unread, notes
        self.given = given
        version = given.get("schema_version")
        if not isinstance(version, str) or not _VERSION.fullmatch(version):
            raise ValueError(
                f"{name}: 'schema_version' is {shown(version)}; trajectories of ATIF-v1.0 to v1.8 are read"
            )
        self._name_others(self.given, _TRAJECTORY, "")
        self.tools = as_object(self.given.get("agent"), f"{name}: 'agent'").get("tool_definitions")
        several = as_list(self.given.get("subagent_trajectories"), f"{name}: 'subagent_trajectories'")
        self.sub_agents = [as_object(one, f"{name}: a sub-agent") for one in several]
        self.history: list[dict[str, Any]] = []
        self.lost: str | None = None
        self.unanswered = False

    def calls(self) -> Iterator[dict[str, Any]]:
        """The calls of the model, with those of the sub-agents behind them."""
        steps = as_list(self.given.get("steps"), f"{self.name}: 'steps'")
        if not steps:
            raise ValueError(
                f"{self.name}: 'steps' is {shown(self.given.get('steps'))}, no step; remove the trajectory"
            )
        for number, given in enumerate(steps, start=1):
            step = as_object(given, f"{self.name}: step {number}")
            if step.get("step_id", number) != number:
                raise ValueError(
                    f"{self.name}: step {number} has the step_id {shown(step['step_id'])}, so steps are missing, or in "
                    "another order; give all steps in order, counted from 1"
                )
            self._name_others(step, _STEP, "steps.")
            call = self._step(step, number, f"{self.name}: step {number}")
            if call is not None:
                yield call
        if self.given.get("continued_trajectory_ref"):
            self.notes.append(_ELSEWHERE)
        for one in self.sub_agents:
            agent = f"sub-agent {brief(one.get('trajectory_id'))}"
            given = (one, f"{self.name}: {agent}", f"{self.agent}{agent}, ", self.unread, self.notes)
            yield from _Trajectory(*given).calls()

    def _step(self, step: dict[str, Any], number: int, where: str) -> dict[str, Any] | None:
        """The call that a step was, None where it was none; it joins the history, with what it observed."""
        source = step.get("source")
        text = joined_text(step.get("message", ""), where)
        extra = step.get("extra")
        if isinstance(extra, Mapping) and not is_empty(extra.get("context_management")):
            # What the agent itself wrote there, such as a summary, it wrote on the history that is replaced.
            call = self._call(step, self._answer(step, text, where), number, where) if self._wrote(step, text) else None
            self._replace(extra["context_management"], step, number, where)
            return call
        if step.get("is_copied_context"):
            self.notes.append(_COPIED)
            if not self.history:
                self.lost = None  # the copies say what is shown
        if source in ("system", "user"):
            self.history.append({"role": source, "content": text})
            self._observe(step, number, where)
            return None
        if source != "agent":
            raise ValueError(f"{where}: 'source' is {shown(source)}; give system, user or agent")
        answer = self._answer(step, text, where)
        call = self._call(step, answer, number, where)
        self.history.append(answer)
        self._observe(step, number, where)
        return call

    def _wrote(self, step: dict[str, Any], text: Any) -> bool:
        """Whether a step says what the model wrote in it, and not only that something happened."""
        metrics = step.get("metrics")
        ids = metrics.get("completion_token_ids") if isinstance(metrics, Mapping) else None
        said = (text, step.get("reasoning_content"), step.get("tool_calls"), ids)
        return step.get("source") == "agent" and step.get("llm_call_count") != 0 and not all(map(is_empty, said))

    def _answer(self, step: dict[str, Any], text: Any, where: str) -> dict[str, Any]:
        answer = {"role": "assistant", "content": text, "reasoning_content": step.get("reasoning_content")}
        if not is_empty(step.get("tool_calls")):
            calls = as_list(step["tool_calls"], f"{where}: 'tool_calls'")
            answer["tool_calls"] = [self._tool_call(one, where) for one in calls]
        return answer

    def _call(self, step: dict[str, Any], answer: dict[str, Any], number: int, where: str) -> dict[str, Any] | None:
        if step.get("is_copied_context"):
            return None
        if (count := step.get("llm_call_count")) is not None and count != 1:
            self.notes.append(_SEVERAL if count else _NO_MODEL)
            return None
        named = {"name": f"{self.agent}step {number}"}
        metrics = as_object(step.get("metrics"), f"{where}: 'metrics'")
        self._name_others(metrics, _METRICS, "steps.metrics.")
        prompt_ids, completion_ids = (metrics.get(f"{part}_token_ids") or None for part in ("prompt", "completion"))
        if prompt_ids is not None:
            return {"prompt": prompt_ids, "completion": completion_ids or answer, **named}
        if self.lost is not None or not self.history:
            raise ValueError(
                f"{where}: what the model was given is not stated: {self.lost or _NOTHING_BEFORE}, or prompt_token_ids "
                "and completion_token_ids in the metrics of this step"
            )
        if self.history[-1]["role"] == "assistant":
            raise ValueError(
                f"{where}: the agent's message before it is followed by nothing that the model could answer; give the "
                "observation of that step, make one step of the two if they were one answer, or give token ids in its "
                "metrics"
            )
        if self.unanswered:
            self.notes.append(_UNANSWERED)
        effort = step.get("reasoning_effort")
        if effort is not None and not isinstance(effort, str):
            self.notes.append(_EFFORT)
        with_effort = {"reasoning_effort": effort} if isinstance(effort, str) else {}
        return {
            "prompt": list(self.history),
            "completion": completion_ids or answer,
            "tools": self.tools,
            **with_effort,
            **named,
        }

    def _tool_call(self, given: Any, where: str) -> dict[str, Any]:
        call = as_object(given, f"{where}: a tool call")
        self._name_others(call, _TOOL_CALL, "steps.tool_calls.")
        return {key: call.get(of) for key, of in (
            ("id", "tool_call_id"), ("name", "function_name"), ("arguments", "arguments"),
        )}  # fmt: skip

    def _results(self, step: dict[str, Any], where: str) -> list[tuple[dict[str, Any], str | None]]:
        """Each result of a step with its text, None where it has none."""
        observation = step.get("observation")
        results = as_object(observation, f"{where}: 'observation'").get("results")
        found = []
        for one in as_list(results, f"{where}: 'results'"):
            result = as_object(one, f"{where}: a result")
            self._name_others(result, _RESULT, "steps.observation.")
            content = result.get("content")
            found.append((result, None if content is None else joined_text(content, where)))
            for ref in as_list(result.get("subagent_trajectory_ref"), f"{where}: 'subagent_trajectory_ref'"):
                self._refer(ref, where)
        return found

    def _observe(self, step: dict[str, Any], number: int, where: str) -> None:
        calls = as_list(step.get("tool_calls"), f"{where}: 'tool_calls'") if step.get("source") == "agent" else []
        called = [as_object(one, f"{where}: a tool call").get("tool_call_id") for one in calls]
        answered = []
        for result, text in self._results(step, where):
            identity = result.get("source_call_id")
            answered.append(identity)
            if identity is not None and identity not in called:
                raise ValueError(
                    f"{where}: a result is of the call {brief(identity)}, and the step has none of that id, but "
                    f"{brief(called)}; give one of these, or leave source_call_id out"
                )
            if text is None:
                self.lost = f"a result of step {number} has no content; give it"
            elif identity is None:
                self.notes.append(_AS_USER)
                self.history.append({"role": "user", "content": text})
            else:
                self.history.append({"role": "tool", "tool_call_id": identity, "content": text})
        self.unanswered |= any(one not in answered for one in called)

    def _replace(self, management: Any, step: dict[str, Any], number: int, where: str) -> None:
        """The history behind a step that changed the context."""
        boundary = management.get("boundary") if isinstance(management, Mapping) else management
        texts = [text for _, text in self._results(step, where) if text]
        self.history, self.lost, self.unanswered = [], None, False
        if boundary != "replace":
            self.lost = (
                f"step {number} changed the context in a way that is not read ({brief(management)}); give what it left "
                "in is_copied_context steps behind it"
            )
        elif texts:
            self.notes.append(_REPLACED)
            self.history = [{"role": "user", "content": text} for text in texts]
        else:
            self.lost = (
                f"step {number} replaced the context, and no content of its observation says by what; give it there, "
                "or in is_copied_context steps behind it"
            )

    def _refer(self, given: Any, where: str) -> None:
        ref = as_object(given, f"{where}: a reference to a sub-agent")
        held = [one.get("trajectory_id") for one in self.sub_agents]
        if ref.get("trajectory_id") in held and ref.get("trajectory_id") is not None:
            return
        if not ref.get("trajectory_path"):
            raise ValueError(
                f"{where}: refers to the sub-agent {brief(ref.get('trajectory_id'))}, which is none of the "
                f"trajectory's ({brief(held)}); put it into subagent_trajectories, or remove the reference"
            )
        self.notes.append(_ELSEWHERE)

    def _name_others(self, given: Mapping[str, Any], known: frozenset[str], place: str) -> None:
        """Keys that nothing reads are named."""
        self.unread |= {f"{place}{key}": value for key, value in given.items() if key not in known}
