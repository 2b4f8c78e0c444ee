"""Records of calls at fault, what their errors say, and the same records mended as the errors advise."""

from functools import partial

import traces
from records import FLAT, assistant, call, tool, user

from flexmask import read_record
from flexmask.conversations.episodes import check_key
from flexmask.conversations.model_calls import joined

read = partial(read_record, name="c")


def of_call(**keys):
    """A record of one call."""
    return {"calls": [keys]}


def competing(*candidates, **beside):
    """A record of calls, one for each of the candidates."""
    return {"calls": [{"prompt": [1], "completion": [2], "candidate": one} for one in candidates], **beside}


def trajectory(*steps, **beside):
    return traces.atif(*({"step_id": i, **one} for i, one in enumerate(steps, start=1)), **beside)


def behind(*steps):
    """A question, a call of a tool without its result, and what stands behind it."""
    return trajectory(ASKS, CALLS_TOOL, *steps)


def answered(**result):
    """A trajectory in which a tool has answered so."""
    return trajectory(ASKS, CALLS_TOOL | {"observation": {"results": [result]}}, SAYS)


def referring(**beside):
    return traces.atif(*traces.TRAJECTORIES["sub-agent"]["steps"], **beside)


def graph(*nodes, **beside):
    return {"traces": [{"nodes": list(nodes), **beside}]}


def node(role, ids=None, mask=None, parent=None, **beside):
    return traces.node(role, role, ids, mask, parent, **beside)


def logged(request=None, response=None):
    return {"request": request or {"messages": ASKED}, "response": response or {"choices": [{"message": ANSWERED}]}}


def keyed(key):
    """A logged call, read under the key of an episode."""

    def reading():
        check_key(key)
        return read(logged() | {"session_id": "s"}, episode_key=key)

    return reading


def deep(depth):
    """A pair whose answers have an argument of a call that is equal in both, and as deep."""
    values = ["x", "x"]
    for _ in range(depth):
        values = [[value] for value in values]
    talks = [[user(), assistant("", None, call(arguments={"a": value})), tool("7")] for value in values]
    return {"chosen": [*talks[0], assistant("a")], "rejected": [*talks[1], assistant("b")]}


ASKED, ANSWERED = [user()], {"role": "assistant", "content": "a"}
IDS = of_call(prompt=[1], completion=[2])
ONE_CALL = of_call(prompt=ASKED, completion=ANSWERED)
TWO = competing(0, 1, rewards=[1, 0])
PAIR = {"prompt": ASKED, "chosen": [assistant("a")], "rejected": [assistant("b")]}
GROUP = {"prompt": "q", "completions": ["a", "b"], "rewards": [1, 0]}

ASKS = {"source": "user", "message": "q"}
SAYS = {"source": "agent", "message": "a"}
CALLS_TOOL = {
    "source": "agent", "message": "", "tool_calls": [{"tool_call_id": "c1", "function_name": "add", "arguments": {}}]
}  # fmt: skip
OBSERVED = {"observation": {"results": [{"source_call_id": "c1", "content": "7"}]}}
IN_IDS = SAYS | {"metrics": {"prompt_token_ids": [1], "completion_token_ids": [2]}}
COPIED = ASKS | {"is_copied_context": True}
CHANGED = {"source": "system", "message": "", "extra": {"context_management": {"boundary": "other"}}}

RESPONSE_IDS = {"prompt_ids": [1], "response_ids": [7, 30, 9], "response_mask": [1, 0, 1]}
RESULTS = {"prompt_ids": [1], "completion_ids": [7, 30, 9], "messages": [user(), assistant(), tool("7"), assistant()]}
ROOT = node("user", [1, 2], [0, 0])
SAMPLED = node("assistant", [3, 4], [0, 1], 0)

# (a record at fault, what the error says, the record as the error advises; None where it advises to remove the record)
CASES = [
    # ---- records of calls ----
    ({"input_ids": [1, 2]}, r'or \{"calls": \[\{"prompt": \[<ids>\], "completion"', IDS),
    ({"calls": {}}, "'calls' is {} .* not a list of calls with 'prompt' and 'completion'", IDS),
    ({"calls": [1]}, "call 0 is 1 .* not an object with 'prompt' and 'completion'", IDS),
    ({**IDS, "messages": ASKED}, "both 'calls' and 'messages'; keep one", IDS),
    (of_call(completion=[2]), r"no 'prompt' \(found \['completion'\]\)", IDS),
    (of_call(prompt=[1], messages=ASKED, completion=[2]), "both 'prompt' and 'messages'; keep one", IDS),
    ({"calls": [{"prompt": [], "completion": ANSWERED}, *ONE_CALL["calls"]]}, "'prompt' is empty; remove the call",
     ONE_CALL),
    (of_call(prompt=[1], completion=[2], train="no"), "'train' is 'no' .*; write true or false",
     of_call(prompt=[1], completion=[2], train=False)),
    (of_call(prompt=[1.5], completion=[2]), r"'prompt' holds 1.5 .* which are integers from 0 to 2\^31", IDS),
    (of_call(prompt=[1], completion=ANSWERED), "whose tokens would be a guess; give its token ids too", IDS),
    (of_call(prompt=[1], completion=[2], tools=[FLAT]), "'tools' beside token ids, which say all .*; remove it", IDS),
    (of_call(prompt="q", completion=ANSWERED), "'prompt' is 'q' .*; give a list of messages, or token ids", ONE_CALL),
    (of_call(prompt=ASKED, completion="a"), "'completion' is 'a' .*; give an assistant message, or token", ONE_CALL),
    (of_call(prompt=ASKED, completion=user()), "has the role 'user'; give an assistant message", ONE_CALL),
    (of_call(prompt=[user(), ANSWERED], completion=ANSWERED), "ends with an assistant message.* answer as", ONE_CALL),
    (of_call(prompt=ASKED, completion=[ANSWERED, user("r"), ANSWERED]), "'completion' is 3 messages .*; give a call",
     {"calls": [*ONE_CALL["calls"], {"prompt": [*ASKED, ANSWERED, user("r")], "completion": ANSWERED}]}),
    (of_call(prompt=ASKED, completion=ANSWERED, completion_mask=[1]), "beside a message; .*, so remove it", ONE_CALL),
    (of_call(prompt=ASKED, completion=ANSWERED, completion_mask=[1]), "beside a message; .*, or give those",
     of_call(prompt=ASKED, completion=[2], completion_mask=[1])),
    (of_call(prompt=[1], completion=[2, 3], completion_mask=[1]), "give a list of 0 and 1, one for each of the 2 token",
     of_call(prompt=[1], completion=[2, 3], completion_mask=[1, 0])),
    (of_call(prompt=[1], completion=[2], completion_mask=[0.5]), "holds 0.5 .*; give 1 where the model gave the token",
     of_call(prompt=[1], completion=[2], completion_mask=[1])),
    # ---- candidates ----
    (competing(0, "1", rewards=[1, 0]), "'candidate' is '1' .*; give the number of its reward, from 0", TWO),
    (competing(0, 1), "calls have a 'candidate', and the record no 'rewards'; give a number for each", TWO),
    (competing(0, 1, rewards=1), "'rewards' is 1 .*; give a list with a number for each candidate", TWO),
    (competing(0, 1, rewards=["1", 0]), "'rewards' holds '1' .*; give a number for each candidate", TWO),
    (competing(0, 1, 2, rewards=[1, 0]), "has the candidate 2, and there are 2 rewards.*; give one for each candidate",
     competing(0, 1, 2, rewards=[1, 0, 0])),
    (competing(0, 0, rewards=[1, 0]), "no call has the candidate 1, which has a reward; give it to its calls", TWO),
    (PAIR | GROUP, "both 'chosen' and 'completions'; keep one", GROUP),
    ({"messages": ASKED, "chosen": PAIR["chosen"], "rejected": PAIR["rejected"]}, "or call the latter 'prompt'", PAIR),
    (GROUP | {"messages": ASKED}, "both 'completions' and 'messages'; keep one", GROUP),
    (GROUP | {"completions": ["a"]}, "'completions' is 1 answers beside 2 rewards; give a list of as many", GROUP),
    (GROUP | PAIR | {"rejected": None}, "both 'chosen' and 'completions'; keep one", GROUP | {"chosen": None}),
    (PAIR | {"rejected": ""}, "'rejected' is empty; remove the record", None),
    ({"chosen": "a", "rejected": "b"}, "no 'prompt', and 'chosen' is no list of messages; give both", PAIR),
    ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "the answers begin with nothing in common; give it",
     PAIR),
    ({"chosen": ASKED + PAIR["chosen"], "rejected": ASKED}, "'rejected' adds nothing to the prompt; remove the", None),
    (deep(99_999), "brackets stand inside brackets more than 100 deep; simplify", deep(50)),
    # ---- episodes ----
    (logged() | {"session_id": [1]}, r"'session_id' is \[1\] .*; the id of an episode is text or a whole number",
     logged() | {"session_id": 1}),
    (keyed(3), "episode_key=3: must be auto, a key, a list of keys, or null", keyed(["run", "session_id"])),
    (lambda: joined([read(competing(0, 1, rewards=[1, 0])), read(of_call(prompt=[1], completion=[2]))]),
     "calls that compete are a record by themselves; join it with no other",
     lambda: joined([read(of_call(prompt=[1], completion=[2]))])),

    # ---- logged requests ----
    (logged() | {"response": 3}, "'response' is 3 .*, not an object; remove the record", None),
    (logged({"messages": ASKED, "input": "q"}), "the request has both 'messages' and 'input' .*; give one", logged()),
    *((logged({"input": "q", key: "x"}), rf"what the server has kept \('{key}'\), .*; give all .* as 'input', without",
       logged({"input": ASKED})) for key in ("previous_response_id", "conversation")),
    (logged({"model": "m"}), r"the request has no 'messages' \(its keys: \['model'\]\); give one list", logged()),
    (logged(response={"choices": [{"text": "a"}]}), "a choice is {'text': 'a'} .*, without a message; remove", None),
    (logged(response={"error": "busy"}), "holds no answer, but the error 'busy' .*; remove the record", None),
    # ---- trajectories ----
    (trajectory(ASKS), "no step of the trajectory is a call of the model that is trained; remove the record", None),
    (traces.atif(schema_version="ATIF-v2.0"), "'schema_version' is 'ATIF-v2.0' .*; trajectories of ATIF-v1.0 to v1.8",
     traces.atif(schema_version="ATIF-v1.0")),
    (traces.atif(agent=3), "'agent' is 3 .*, not an object", traces.atif(agent={"name": "a"})),
    (traces.atif(steps=3), "'steps' is 3 .*, not a list", traces.atif()),
    (traces.atif(steps=[]), r"'steps' is \[\] .*, no step; remove the trajectory", None),
    (traces.atif(subagent_trajectories=[traces.SUB_AGENT | {"steps": []}]), "no step; remove the trajectory",
     traces.atif(subagent_trajectories=[])),
    (trajectory(ASKS, SAYS | {"step_id": 3}), "step 2 has the step_id 3 .*; give all steps in order, counted from 1",
     trajectory(ASKS, SAYS)),
    (trajectory(ASKS, SAYS | {"source": "model"}), "'source' is 'model' .*; give system, user or agent",
     trajectory(ASKS, SAYS)),
    (trajectory(SAYS), "no step stands before it; give what it was shown in steps before it",
     trajectory(ASKS, SAYS)),
    (trajectory(SAYS), "or prompt_token_ids and completion_token_ids in the metrics of this step", trajectory(IN_IDS)),
    (answered(source_call_id="c1"), "a result of step 2 has no content; give it",
     answered(source_call_id="c1", content="7")),
    (answered(source_call_id="c1"), "has no content; .* completion_token_ids in the metrics of this step",
     trajectory(ASKS, CALLS_TOOL | {"observation": {"results": [{"source_call_id": "c1"}]}}, IN_IDS)),
    (trajectory(ASKS, CHANGED, SAYS), "step 2 changed the context .*; give what it left in is_copied_context steps",
     trajectory(ASKS, CHANGED, COPIED, SAYS)),
    (trajectory(ASKS, traces.EMPTIED, SAYS), "step 2 replaced the context.*; give it there",
     trajectory(ASKS, traces.SUMMARY, SAYS)),
    (trajectory(ASKS, traces.EMPTIED, SAYS), "replaced the context.*, or in is_copied_context steps behind it",
     trajectory(ASKS, traces.EMPTIED, COPIED, SAYS)),
    (behind(SAYS), "nothing that the model could answer; give the observation of that step",
     trajectory(ASKS, CALLS_TOOL | OBSERVED, SAYS)),
    (behind(SAYS), "could answer; .*, make one step of the two if they were one answer",
     trajectory(ASKS, CALLS_TOOL | {"message": "a"})),
    (behind(SAYS), "could answer; .*, or give token ids in its metrics", behind(IN_IDS)),
    (answered(source_call_id="c2", content="7"), r"of the call 'c2'.* none of that id, but \['c1'\]; give one of these",
     answered(source_call_id="c1", content="7")),
    (answered(source_call_id="c2", content="7"), "is of the call 'c2'.*, or leave source_call_id out",
     answered(content="7")),
    (referring(), r"the sub-agent 'helper', which is none of .*; put it into subagent_trajectories",
     referring(subagent_trajectories=[traces.SUB_AGENT])),
    (answered(source_call_id="c1", content="7", subagent_trajectory_ref=[{"trajectory_id": "helper"}]),
     "the sub-agent 'helper', .*, or remove the reference", answered(source_call_id="c1", content="7")),
    # ---- token ids of rollouts ----
    (traces.VERL_DUMP, "a rollout dump of verl, .*; give prompt_ids, response_ids and response_mask", RESPONSE_IDS),
    ({"token_ids": [1, 2], "mask": [0]}, r"token ids \[1, 2\] .* with a mask \[0\] .*; give lists of one length",
     {"token_ids": [1, 2], "mask": [0, 1]}),
    ({"token_ids": [1, 2], "mask": [0, 0]}, "the mask is 0 everywhere.*; give 1 at what the model gave",
     {"token_ids": [1, 2], "mask": [0, 1]}),
    ({"token_ids": [7, 8], "mask": [1, 1]}, "the mask begins with 1, .*; give 1 .* behind its prompt",
     {"token_ids": [1, 7, 8], "mask": [0, 1, 1]}),
    ({"token_ids": [1, 2], "mask": [0, 0]}, "the mask is 0 everywhere.*, or remove the rollout", None),
    (RESPONSE_IDS | {"completion_ids": [7]}, "'completion_ids' and 'response_ids' differ; keep one", RESPONSE_IDS),
    (RESPONSE_IDS | {"prompt_ids": [0, 1], "prompt_mask": [0, 1]}, "some tokens are padding; give the ids without it",
     RESPONSE_IDS | {"prompt_mask": [1]}),
    (RESULTS, "messages with results of tools, and no mask .*; give completion_mask, with 0 at the results",
     RESULTS | {"completion_mask": [1, 0, 1]}),
    # ---- traces of verifiers ----
    (graph(ROOT), "no trace has an answer of a model that is trained; remove the record", None),
    ({"trajectory": [traces.STEP, 3]}, "step 1 is 3 .*, not an object with 'prompt' and 'completion'",
     {"trajectory": [traces.STEP, traces.STEP]}),
    (graph(node("user"), SAMPLED), r"has token_ids \[\] .* with a mask \[\] .*; give both for each, of one length",
     graph(ROOT, SAMPLED)),
    (graph(node("user"), SAMPLED), r"has token_ids \[\] .*, or the ids of none",
     graph(node("user"), node("assistant", parent=0))),
    (graph(ROOT, SAMPLED | {"parent": 1}), "node 1 has the parent 1 .*, which is no node .*; give the number of one",
     graph(ROOT, SAMPLED)),
    (graph(ROOT | {"parent": -1}, SAMPLED), "node 0 has the parent -1 .*, or none at the root", graph(ROOT, SAMPLED)),
]  # fmt: skip
