"""Records of calls as the software that makes them writes them, by hand: logs of servers, ATIF, verl, prime-rl, TRL."""

QUESTION = {"role": "user", "content": "add 3 and 4"}
ANSWER = {"role": "assistant", "content": "seven", "reasoning_content": "add them"}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}}}  # fmt: skip
CALLING = {"role": "assistant", "content": None, "reasoning_content": "ask", "tool_calls": [
    {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 3, "b": 4}'}}]}  # fmt: skip
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "7"}


def logged(messages, answer, **beside):
    """A line of a proxy's log: what was posted to /v1/chat/completions, and what came back."""
    finish = "tool_calls" if answer.get("tool_calls") else "stop"
    return {
        "request": {"model": "m", "messages": messages, "tools": [TOOL], "temperature": 0.7, "stream": False},
        "response": {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "system_fingerprint": None,
            "choices": [{"index": 0, "message": answer, "logprobs": None, "finish_reason": finish}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
        },
        **beside,
    }  # fmt: skip


def logged_episode(episode, name):
    """Two calls of an agent: its harness shows the second one a summary in place of the first one's work."""
    asked = [{"role": "system", "content": "be brief"}, QUESTION | {"content": f"add 3 and 4 for {name}"}]
    after = [*asked, {"role": "user", "content": "so far 7"}]
    beside = {"metadata": {"session_id": episode}, "latency_ms": 12}
    return [logged(asked, CALLING, **beside), logged(after, ANSWER, **beside)]


def turns_of_dialog(dialog):
    """A line for each turn of a dialog that its agent began, what the agent answered beside the messages: as AReaL's
    data of tau2-bench have it."""
    greeted = [{"role": "system", "content": "be brief"}, {"role": "assistant", "content": "what is it?"}, QUESTION]
    calls = [{"name": "add", "arguments": {"a": 3, "b": 4}}]
    after = [*greeted, {"role": "assistant", "content": "", "reasoning": "ask", "tool_calls": calls},
             {"role": "tool", "content": "7"}]  # fmt: skip
    answers = [{"content": "", "thinking": "ask", "tool_calls": calls}, {"content": "seven", "thinking": "add them"}]
    return [
        {"messages": messages, "answer": {"role": "assistant", **answer},
         "metadata": {"source_dialog_id": dialog, "turn_index": i, "correct": 1, "reward": 1.0}}
        for i, (messages, answer) in enumerate(zip((greeted, after), answers, strict=True))
    ]  # fmt: skip


def atif_steps():
    """A question, a call of a tool with its result, and an answer."""
    return [
        {"step_id": 1, "source": "system", "message": "be brief", "timestamp": "2025-10-16T14:30:00Z"},
        {"step_id": 2, "source": "user", "message": [{"type": "text", "text": "add 3 and 4"}]},
        {"step_id": 3, "source": "agent", "message": "", "reasoning_content": "ask", "model_name": "m",
         "tool_calls": [{"tool_call_id": "c1", "function_name": "add", "arguments": {"a": 3, "b": 4}}],
         "observation": {"results": [{"source_call_id": "c1", "content": "7"}]},
         "metrics": {"prompt_tokens": 20, "completion_tokens": 9, "cost_usd": 0.1}},
        {"step_id": 4, "source": "agent", "message": "seven", "reasoning_content": "add them", "llm_call_count": 1},
    ]  # fmt: skip


def atif(*steps, **beside):
    return {
        "schema_version": "ATIF-v1.8", "session_id": "s", "trajectory_id": "t",
        "agent": {"name": "agent", "version": "1.0", "model_name": "m", "tool_definitions": [TOOL]},
        "steps": list(steps or atif_steps()), **beside,
    }  # fmt: skip


def more(*steps):
    """The steps of `atif_steps`, one more of the user and others behind them, numbered."""
    before = [*atif_steps(), {"source": "user", "message": "go on"}]
    return [one | {"step_id": i} for i, one in enumerate([*before, *steps], start=1)]


SUMMARY = {"source": "system", "message": "Compacted.", "extra": {"context_management": {
    "type": "compaction", "boundary": "replace"}}, "observation": {"results": [{"content": "so far 7"}]}}  # fmt: skip
EMPTIED = SUMMARY | {"observation": None}
LATER = {"source": "agent", "message": "add", "metrics": {}}
SUB_AGENT = {
    "schema_version": "ATIF-v1.8", "trajectory_id": "helper", "agent": {"name": "helper", "version": "1"},
    "steps": [{"step_id": 1, "source": "user", "message": "so 3"}, {"step_id": 2, "source": "agent", "message": "3"}],
}  # fmt: skip
# Every kind of trajectory that is read, for the models of the package `atif` too (tests/network/test_traces.py).
TRAJECTORIES = {
    "plain": atif(),
    "compaction": atif(*more(SUMMARY, LATER)),
    "copied": atif(
        *more(EMPTIED, {"source": "user", "message": "so far", "is_copied_context": True}, LATER)
    ),
    "token ids": atif(*more(EMPTIED, LATER | {"metrics": {
        "prompt_token_ids": [1, 5], "completion_token_ids": [7, 8], "logprobs": [-0.1, -0.2]}})),
    "answer in token ids": atif(*more({"source": "user", "message": "so"}, LATER | {"metrics": {
        "completion_token_ids": [7, 8]}})),
    "sub-agent": atif(
        *more({"source": "agent", "message": "", "tool_calls": [{"tool_call_id": "c2", "function_name": "add",
               "arguments": {}}], "observation": {"results": [{"source_call_id": "c2", "content": "3",
               "subagent_trajectory_ref": [{"trajectory_id": "helper"}]}]}}, LATER),
        subagent_trajectories=[SUB_AGENT],
    ),
    "dispatched": atif(*more({"source": "agent", "message": "so", "llm_call_count": 0, "observation": {
        "results": [{"content": "7"}]}}, LATER)),
}  # fmt: skip


# verl 0.9: `AgentLoopOutput.model_dump()`, a tool's result in the midst of the response.
VERL = {
    "prompt_ids": [1, 5, 9], "response_ids": [7, 8, 30, 31, 9, 2], "response_mask": [1, 1, 0, 0, 1, 1],
    "response_logprobs": [-0.1, -0.2, 0.0, 0.0, -0.3, -0.1], "routed_experts": None, "multi_modal_data": {},
    "reward_score": 1.0, "num_turns": 4, "extra_fields": {}, "mm_processor_kwargs": None,
}  # fmt: skip
# verl 0.9: a line of `trainer.rollout_data_dir`.
VERL_DUMP = {"input": "user\nadd\nassistant\n", "output": "seven", "gts": "7", "score": 1.0, "step": 3}
# TRL 1.16: what a `rollout_func` returns, one of the batch, and a line of the completions that GRPO logs.
TRL = {"prompt_ids": [1, 5, 9], "completion_ids": [7, 8, 30, 31, 9, 2], "env_mask": [1, 1, 0, 0, 1, 1]}
TRL_COMPLETIONS = {
    "step": 3, "prompt": [QUESTION], "completion": [CALLING, RESULT, ANSWER], "accuracy_reward": 1.0, "advantage": 0.5
}  # fmt: skip
# prime-rl: a `TrainingSample`, and what its trainer exports (`enable_token_export`).
PRIME_RL = {
    "token_ids": [1, 5, 9, 7, 8, 30, 31, 9, 2], "mask": [False] * 3 + [True] * 2 + [False] * 2 + [True] * 2,
    "logprobs": [0.0] * 9, "temperatures": [1.0] * 9, "env_name": "add",
}  # fmt: skip


def node(role, content, ids, mask, parent=None, **beside):
    message = {"role": role, "content": content}
    linked = {} if parent is None else {"parent": parent}
    return {"message": message, "timestamp": 1.0, "token_ids": ids, "mask": mask, "is_content": [], "logprobs": [],
            "sampled": role == "assistant", **linked, **beside}  # fmt: skip


def episode_of_verifiers(**trace):
    """verifiers 0.4, a line of `traces.jsonl`: an answer that a tool's result follows and, behind a compaction, another
    branch from the same question."""
    nodes = [
        node("user", "add 3 and 4", [1, 5, 9], [False] * 3),
        node("assistant", "so", [10, 7, 8], [False, True, True], 0),
        node("tool", "7", [30, 31], [False] * 2, 1) | {"message": RESULT},
        node("assistant", "seven", [10, 9, 2], [False, True, True], 2),
        node("user", "so far 7", [40, 41], [False] * 2, 0),
        node("assistant", "eight", [10, 11, 2], [False, True, True], 4),
    ]
    one = {"version": 1, "id": "t", "task": {"type": "Task", "data": {}}, "agent": {"name": "a", "trainable": True},
           "tools": [], "nodes": nodes, "calls": [{"node": 1, "finish_reason": "stop"}], "rewards": {}, "ok": True,
           "is_completed": True, "num_total_tokens": 20} | trace  # fmt: skip
    return {"id": "e", "env": {"id": "add"}, "task": one["task"], "ok": True, "errors": [], "traces": [one]}


# verifiers 0.1: a step of a `trajectory`.
STEP = {
    "prompt": [QUESTION], "completion": [ANSWER], "response": {}, "reward": 1.0, "advantage": None, "extras": {},
    "tokens": {"prompt_ids": [1, 5], "prompt_mask": [0, 0], "completion_ids": [7, 2], "completion_mask": [1, 1],
               "completion_logprobs": [-0.1, -0.1], "overlong_prompt": False, "is_truncated": False},
    "is_truncated": False, "trajectory_id": "t",
}  # fmt: skip
