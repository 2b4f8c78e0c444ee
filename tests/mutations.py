"""Faults planted in flexmask/ and recipes/, one a rule, and whether the tests notice.

    python tests/mutations.py                 plant each of them, run its tests, list those that survived
    python tests/mutations.py subtree window  only those whose rule has one of the words

A fault is planted in a copy of the project, so nothing here changes. A fault that survives is a rule that no test
holds: it gets a test, or the code that it changes is not needed. Exits with 1 where any survives.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COPIED = ("flexmask", "recipes")
LINKED = ("conf", "docs", "notebooks", "tests", "Makefile", "README.md", "pyproject.toml", "CITATION.cff")


class Fault(NamedTuple):
    """`right` stands once in `file`, of flexmask/ or recipes/..., and is replaced by `wrong`; one of `tests` must fail
    then."""

    rule: str
    file: str
    right: str
    wrong: str
    tests: str

    @property
    def path(self) -> Path:
        """The file, from the root of the project."""
        return Path(self.file) if self.file.startswith("recipes/") else Path("flexmask", self.file)


FAULTS = [
    # ---- context rules ----
    Fault(
        "a rule is given what it showed before",
        "conversations/contexts.py",
        '{"shown": shown, **able}',
        '{"shown": (), **able}',
        "flexmask/test_contexts.py",
    ),
    Fault(
        "a turn without weight is a call that is not trained",
        "conversations/contexts.py",
        'weight=float(message.get("weight", 1))',
        "weight=1.0",
        "flexmask/test_contexts.py",
    ),
    Fault(
        "the last results of tools stay",
        "conversations/contexts.py",
        "max(0, len(places) - keep)",
        "max(0, len(places) - keep - 1)",
        "flexmask/test_contexts.py",
    ),
    Fault(
        "results are cleared only beyond the threshold",
        "conversations/contexts.py",
        "if count(history) <= threshold:",
        "if count(history) <= threshold // 2:",
        "flexmask/test_contexts.py",
    ),
    Fault(
        "the task is no observation",
        "conversations/contexts.py",
        'if i > first and one["role"] in',
        'if one["role"] in',
        "flexmask/test_contexts.py",
    ),
    Fault(
        "of several summaries the last one counts",
        "conversations/contexts.py",
        "at = asked[-1]",
        "at = asked[0]",
        "flexmask/test_contexts.py",
    ),
    Fault(
        "thinking that a rule keeps is shown",
        "conversations/contexts.py",
        "    require_thinking(kept)",
        "    pass",
        "flexmask/test_contexts.py",
    ),
    Fault(
        "what calls begin with in common is tokenized once",
        "text/rendering.py",
        "text.generated.split(CUT), self._known, where",
        "text.generated.split(CUT), None, where",
        "flexmask/test_contexts.py",
    ),
    Fault(
        "what one call of a record shows is not left out",
        "text/shown.py",
        "        if part.said not in shown:",
        "        if True:",
        "flexmask/test_contexts.py",
    ),
    Fault(
        "rows of another version of a user's own rule are not taken",
        "recipes/preparation/rows.py",
        '        digest_of_rule(ContextConfig(**settings["context"])),',
        "        None,",
        "recipes/test_preparation.py",
    ),
    Fault(
        "a chat goes on from what the rule showed last",
        "recipes/evaluation/chat.py",
        "self.shown = shown_by(",
        "self.shown, _ = self.messages, shown_by(",
        "recipes/test_chat.py",
    ),
    # ---- the tree ----
    Fault(
        "a token's position is its depth in the tree",
        "tree/layouts.py",
        "positions[self.node_end[parent] - 1] + 1",
        "positions[self.node_end[parent] - 1]",
        "flexmask/test_tree.py",
    ),
    Fault(
        "a subtree ends with its last descendant",
        "tree/layouts.py",
        "max(subtree_end[parent], subtree_end[node])",
        "subtree_end[parent]",
        "flexmask/test_tree.py",
    ),
    Fault(
        "a branch is predicted by the last token of its parent, wherever that stands",
        "tree/layouts.py",
        "np.where(parents >= 0, self.node_end[parents] - 1, -1)",
        "np.where(parents >= 0, self.node_start - 1, -1)",
        "flexmask/test_tree.py",
    ),
    Fault(
        "the loss weights of a token that several passes share add up",
        "tree/layouts.py",
        "node.loss_weights + p.loss_weights[here]",
        "np.maximum(node.loss_weights, p.loss_weights[here])",
        "flexmask/test_tree.py",
    ),
    Fault(
        "a token that any pass generates has a generated role",
        "tree/layouts.py",
        "np.where(is_generated(p.roles[here]), p.roles[here], node.roles)",
        "node.roles",
        "flexmask/test_tree.py",
    ),
    Fault(
        "of a node's branches the latest comes first",
        "tree/layouts.py",
        "(child, index) for child in node.children)",
        "(child, index) for child in reversed(node.children))",
        "flexmask/test_tree.py",
    ),
    Fault(
        "what a pass shares with the tree needs no room",
        "tree/layouts.py",
        "return self.size + len(p) - matched",
        "return self.size + len(p)",
        "flexmask/test_tree.py",
    ),
    Fault(
        "context that keeps its thinking is not trained",
        "tree/layouts.py",
        "[np.zeros_like(context.loss_weights), ",
        "[context.loss_weights, ",
        "flexmask/test_tree.py",
    ),
    # ---- traces ----
    Fault(
        "what a tool said within a completion is context",
        "text/calls.py",
        "np.array(call.completion_mask)",
        "np.ones(len(completion), bool)",
        "flexmask/conversations/test_traces.py",
    ),
    Fault(
        "behind a tool's result another thought begins",
        "text/calls.py",
        "generated[start : start + (closed[0] + 1 if closed.size else 0)]",
        "generated[start : start + (closed[0] + 1 if closed.size and not start else 0)]",
        "flexmask/conversations/test_traces.py",
    ),
    Fault(
        "a completion that ends with what a tool said ends no turn",
        "text/calls.py",
        "bool(given[-1]) and completion",
        "completion",
        "flexmask/conversations/test_traces.py",
    ),
    Fault(
        "a step that replaced the context begins the history anew",
        "conversations/formats/atif.py",
        "self.history, self.lost, self.unanswered = [], None, False",
        "self.lost, self.unanswered = None, False",
        "flexmask/conversations/test_traces.py",
    ),
    Fault(
        "a result without content leaves the history unstated",
        "conversations/formats/atif.py",
        'self.lost = f"a result of step {number} has no content; give it"',
        "pass",
        "flexmask/conversations/test_traces.py",
    ),
    Fault(
        "copied steps are not trained",
        "conversations/formats/atif.py",
        '        if step.get("is_copied_context"):\n            return None\n',
        "",
        "flexmask/conversations/test_traces.py",
    ),
    Fault(
        "token ids of a trajectory are taken as they are",
        "conversations/formats/atif.py",
        "if prompt_ids is not None:",
        "if prompt_ids is not None and self.lost is None:",
        "flexmask/conversations/test_traces.py",
    ),
    Fault(
        "a sampled node is given all of its path",
        "conversations/formats/verifiers.py",
        "[*before, *own[:first]]",
        "own[:first]",
        "flexmask/conversations/test_traces.py",
    ),
    Fault(
        "a compaction that nobody went on from is not trained",
        "conversations/formats/verifiers.py",
        "if i in accepted or not any",
        "if i in accepted or True or not any",
        "flexmask/conversations/test_traces.py",
    ),
    Fault(
        "token ids that a server gave are taken",
        "conversations/formats/logged.py",
        "if all(isinstance(one, Sequence) and one for one in ids):",
        "if False:",
        "flexmask/conversations/test_traces.py",
    ),
    Fault(
        "a kind of record is not known by keys that a table filled in",
        "conversations/values.py",
        "all(key in record for key in keys) and any(record[key] is not None for key in keys)",
        "all(key in record for key in keys)",
        "flexmask/conversations/test_nulls.py",
    ),
    Fault(
        "ids beside tools' results need a mask",
        "conversations/formats/rollouts.py",
        '"completion_mask" not in call and any',
        "False and any",
        "flexmask/conversations/test_traces.py",
    ),
    Fault(
        "lines of an episode are trained once",
        "recipes/sources/load.py",
        "alone[members[1:]] = False",
        "alone[members[2:]] = False",
        "recipes/test_episodes.py",
    ),
    Fault(
        "an episode is held out by what all of its lines say, in any order",
        "recipes/sources/load.py",
        "np.sort(hashes[members])",
        "hashes[members]",
        "recipes/test_episodes.py",
    ),
    Fault(
        "another process is given all lines of an episode",
        "recipes/sources/conversation_store.py",
        "members = [self._members(number) for number in self.numbers]",
        "members = [np.array([number]) for number in self.numbers]",
        "recipes/test_episodes.py",
    ),
    Fault(
        "names of files are no part of what calls say",
        "recipes/sources/conversation_store.py",
        "name=call.name.removeprefix(one.name)",
        "name=call.name",
        "recipes/test_episodes.py",
    ),
    # ---- packs ----
    Fault(
        "subtrees of a packed row end where they do in the pack",
        "tree/packing.py",
        "(row.visible_until + start)",
        "(row.visible_until + 0 * start)",
        "flexmask/test_packing.py",
    ),
    Fault(
        "a packed row's predecessors stand in the row",
        "tree/packing.py",
        "row.previous + start, -1",
        "row.previous, -1",
        "flexmask/test_packing.py",
    ),
    # ---- the mask rule ----
    Fault(
        "a token sees itself", "attention/masks.py", "not_later = k <= q", "not_later = k < q", "flexmask/test_masks.py"
    ),
    Fault(
        "visible_until is exclusive",
        "attention/masks.py",
        "in_subtree = q < visible_until[b, k]",
        "in_subtree = q <= visible_until[b, k]",
        "flexmask/test_masks.py",
    ),
    Fault(
        "a window of n positions has n tokens",
        "attention/masks.py",
        "return positions[b, q] < reach[b, k]",
        "return positions[b, q] <= reach[b, k]",
        "flexmask/test_masks.py",
    ),
    Fault(
        "chunks begin at position 0",
        "attention/masks.py",
        "chunks = (position_ids // chunk)",
        "chunks = ((position_ids + 1) // chunk)",
        "flexmask/test_masks.py",
    ),
    Fault(
        "a full block holds no hidden pair",
        "attention/masks.py",
        "(least[None, :] > last_query[:, None])",
        "(greatest[None, :] > last_query[:, None])",
        "flexmask/test_masks.py",
    ),
    Fault(
        "a block with a visible pair is listed",
        "attention/masks.py",
        "(greatest[None, :] > first_query[:, None])",
        "(least[None, :] > first_query[:, None])",
        "flexmask/test_masks.py",
    ),
    Fault(
        "a block is full under a window if its farthest pair is near",
        "attention/masks.py",
        "all_near = queries[1][:, None] - keys[0][None, :] < window",
        "all_near = queries[0][:, None] - keys[1][None, :] < window",
        "flexmask/test_masks.py",
    ),
    Fault(
        "a block is full under chunks if both blocks lie in one",
        "attention/masks.py",
        "(q_least == q_greatest)[:, None] & (k_least == k_greatest)[None, :] & some_near",
        "some_near",
        "flexmask/test_masks.py",
    ),
    # ---- attention on CPU ----
    Fault(
        "the gradient of scores loses what softmax takes off",
        "attention/cpu.py",
        "grad_scores.sub_(tile.rows(delta, heads)).mul_(probabilities)",
        "grad_scores.mul_(probabilities)",
        "flexmask/test_attention.py",
    ),
    Fault(
        "a soft-capped score has the slope of tanh",
        "attention/cpu.py",
        "1 - (scores / (self.softcap * _LOG2_E)).square()",
        "torch.ones_like(scores)",
        "flexmask/test_attention.py",
    ),
    Fault(
        "attention sinks take probability",
        "attention/cpu.py",
        "total += torch.exp2(tile.rows(work.sinks, heads) - top)",
        "total += 0",
        "flexmask/test_attention.py",
    ),
    # ---- the loss ----
    Fault(
        "a token is predicted by the one in front of it on its path, and nothing is shifted",
        "model/loss.py",
        "places.to(device), previous[places].to(device)",
        "places.to(device), (places - 1).clamp(min=0).to(device)",
        "equivalence/test_one_pass.py",
    ),
    Fault(
        "each token has its own loss weight",
        "model/loss.py",
        "weighted = (loss * weights[start:end].to(loss.dtype)).sum()",
        "weighted = loss.sum()",
        "flexmask/test_loss.py",
    ),
    Fault(
        "the gradients of the head add up over chunks",
        "model/loss.py",
        "    return total.add_(more)",
        "    return more",
        "flexmask/test_loss.py",
    ),
    Fault(
        "what comes from above scales the gradients",
        "model/loss.py",
        "None if grad is None else grad * grad_total",
        "grad",
        "flexmask/test_loss.py flexmask/test_training.py",
    ),
    # ---- models ----
    Fault(
        "a layer with a window gets the window that its model asks for",
        "attention/interface.py",
        "mask = masks(window=size)",
        "mask = masks()",
        "equivalence/test_families.py flexmask/test_models.py",
    ),
    Fault(
        "a layer in chunks gets the chunks that its model asks for",
        "attention/interface.py",
        "mask = masks(chunk=size)",
        "mask = masks()",
        "equivalence/test_families.py flexmask/test_models.py",
    ),
    Fault(
        "a mask of an unknown kind is refused",
        "attention/interface.py",
        "        case _:\n            raise UnsupportedModelError(",
        "        case _ if False:\n            raise UnsupportedModelError(",
        "flexmask/test_models.py flexmask/test_attention.py",
    ),
    Fault(
        "within a pack attention takes no mask but the pack's",
        "attention/interface.py",
        "if _masks.get() is not None:\n            raise",
        "if False:\n            raise",
        "flexmask/test_models.py flexmask/test_attention.py",
    ),
    Fault(
        "a model that asks for no mask is refused",
        "model/support.py",
        "if not masks.cache_info().currsize:",
        "if False:",
        "flexmask/test_models.py",
    ),
    Fault(
        "Llama 4 scales queries by their index in the pack",
        "model/support.py",
        "if len(tokens) >= text.floor_scale:",
        "if False:",
        "equivalence/test_families.py",
    ),
    Fault(
        "ALiBi goes by position",
        "attention/alibi.py",
        "return table[:, 0, positions]",
        "return table[:, 0, : len(positions)]",
        "equivalence/test_families.py flexmask/test_models.py",
    ),
    Fault(
        "the check before training compares gradients",
        "model/exactness.py",
        "elif not found.gradient <= _GRADIENT_TOLERANCE[found.dtype]:",
        "elif False:",
        "flexmask/test_exactness.py",
    ),
    Fault(
        "the check before training fills in zeros",
        "model/stand_ins.py",
        "values = _random(parameter, seed) if zero else parameter.detach()",
        "values = parameter.detach()",
        "flexmask/test_exactness.py",
    ),
    Fault(
        "trying a model leaves its weights alone",
        "model/stand_ins.py",
        "        for tensor, data in held.pop(module, ()):\n",
        "        for tensor, data in ():\n",
        "flexmask/test_exactness.py",
    ),
    # ---- calls of a model ----
    Fault(
        "what stands in the prompt of a call is context",
        "conversations/model_calls.py",
        'one | {"weight": 0} if one["role"] == "assistant" else one',
        "one",
        "flexmask/test_calls_of_a_model.py",
    ),
    Fault(
        "an answer that was cut off ends no turn",
        "text/calls.py",
        "completion[-1] in special_ids(tokenizer)",
        "True",
        "flexmask/test_calls_of_a_model.py",
    ),
    Fault(
        "calls that begin alike share a pack",
        "tree/layouts.py",
        "if sum(tree.size for tree in alike) < sum(tree.size for tree in in_time):",
        "if False:",
        "flexmask/test_calls_of_a_model.py",
    ),
    # ---- state ----
    Fault(
        "two tokens that follow one begin a node each",
        "model/state_branches.py",
        "(self._previous != index - 1) | (followers[self._previous] > 1)",
        "(self._previous != index - 1)",
        "flexmask/test_state_branches.py equivalence/test_state_branches.py",
    ),
    Fault(
        "a convolution finds a node's ancestors in front of it",
        "model/state_branches.py",
        "tokens[places[self._start] - back] = ancestor",
        "tokens[places[self._start] - back] = np.maximum(self._start - back, 0)",
        "flexmask/test_state_branches.py equivalence/test_state_branches.py",
    ),
    Fault(
        "a padded step of a recurrence leaves the state alone",
        "model/state_layers.py",
        "dt = dt.float() + dt_bias.float()\n",
        "dt, more = dt.float(), more | dict(dt_bias=dt_bias)\n",
        "equivalence/test_state_branches.py",
    ),
    # ---- records ----
    Fault(
        "calls that follow each other are one message",
        "conversations/messages.py",
        'max(before) == min(now) != GENERATED.index("content")',
        "False",
        "flexmask/test_reading.py",
    ),
    Fault(
        "thinking behind a call begins a new message",
        "conversations/messages.py",
        "max(before) < min(now) or",
        "True or",
        "flexmask/test_reading.py",
    ),
    Fault(
        "a key of a part of a content that nobody reads is refused",
        "conversations/messages.py",
        "if key not in read and key not in _DESCRIBING_PART and not is_empty(value):",
        "if False:",
        "flexmask/conversations/test_conserved.py",
    ),
    Fault(
        "a system message that says nothing has no other keys",
        "conversations/reading.py",
        '                if is_none:\n                    one["content"] = ""',
        "                if is_none:\n                    continue",
        "flexmask/conversations/test_conserved.py",
    ),
    Fault(
        "results behind a message that calls nothing are named",
        "conversations/reading.py",
        'elif message["role"] == "tool" and not calls:',
        "elif False:",
        "flexmask/conversations/test_conserved.py",
    ),
    Fault(
        "a prompt does not begin its answer",
        "conversations/formats/prompt_completion.py",
        'if first == "prompt" and prompt and',
        "if False and",
        "flexmask/conversations/test_advice.py",
    ),
    Fault(
        "advice on a switch of a conversation is about that",
        "text/template.py",
        "if name in self.own:",
        "if False:",
        "flexmask/test_advice.py",
    ),
    Fault(
        "what an assistant says in a prompt is not trained",
        "conversations/formats/prompt_completion.py",
        "[_context(message) for message in prompt]",
        "prompt",
        "flexmask/test_reading.py",
    ),
    Fault(
        "delimiters that are the topic of a text stay in it",
        "conversations/thinking.py",
        "if (has_thinking or tags.word) and not begins:",
        "if tags.word and not begins:",
        "flexmask/test_reading.py",
    ),
    Fault(
        "an empty system text is none",
        "conversations/reading.py",
        ' or message["content"].strip()]',
        "]",
        "flexmask/test_reading.py",
    ),
    Fault(
        "nulls of a table that a trainer is given are gone",
        "training/data.py",
        "without_nulls(item) if of_table else item",
        "item",
        "flexmask/test_reading.py",
    ),
    Fault(
        "a null argument that no schema declares is gone",
        "conversations/nulls.py",
        "if inner is not None or properties.get(key) is not None or others",
        "if True",
        "flexmask/conversations/test_nulls.py",
    ),
    Fault(
        "a parameter whose schema is null is not declared",
        "conversations/nulls.py",
        "or properties.get(key) is not None or",
        "or key in properties or",
        "flexmask/conversations/test_nulls.py",
    ),
    Fault(
        "objects with other keys are no table's",
        "conversations/nulls.py",
        "if keys.setdefault(place, value.keys()) != value.keys():",
        "if False:",
        "flexmask/conversations/test_nulls.py",
    ),
    Fault(
        "a null that somebody may write is no mark of a table",
        "conversations/nulls.py",
        "and not any(key in written for key in place)",
        "",
        "flexmask/conversations/test_nulls.py",
    ),
    Fault(
        "a default that is null is no mark of a table",
        "conversations/nulls.py",
        "any(inner is None and key not in written for",
        "any(inner is None for",
        "flexmask/test_reading.py flexmask/conversations/test_nulls.py",
    ),
    Fault(
        "arguments whose nulls go are named",
        "conversations/reading.py",
        "if arguments_hold_null(raw):",
        "if False:",
        "flexmask/conversations/test_nulls.py",
    ),
    Fault(
        "nulls that no schema declares are named where they go",
        "conversations/reading.py",
        'if declared != call["function"]["arguments"]:',
        "if False:",
        "flexmask/conversations/test_nulls.py",
    ),
    Fault(
        "a key of a record that is empty counts as absent",
        "conversations/reading.py",
        'if not is_empty(value) or (key in TEXTS and value == "")',
        "if value is not None",
        "flexmask/conversations/test_nulls.py",
    ),
    Fault(
        "a key of a message that is empty counts as absent",
        "conversations/messages.py",
        "(not is_empty(value) or (key == text and value is not None))",
        "value is not None",
        "flexmask/conversations/test_nulls.py",
    ),
    Fault(
        "a key of a call that is empty counts as absent",
        "conversations/calls.py",
        "if key not in _DESCRIBING and not is_empty(value)}",
        "if key not in _DESCRIBING and value is not None}",
        "flexmask/conversations/test_nulls.py",
    ),
    Fault(
        "of two pairs that which is filled is read",
        "conversations/formats/prompt_completion.py",
        "key=lambda pair: sum(bool(record[key]) for key in pair)",
        "key=lambda pair: 0",
        "flexmask/conversations/test_nulls.py",
    ),
    # ---- what stands twice, and calls in text ----
    Fault(
        "calls in the text are those beside it",
        "conversations/reading.py",
        'if [one["function"] for one in given] != [one["function"] for one in calls]:',
        "if False:",
        "flexmask/conversations/test_doubled.py",
    ),
    Fault(
        "reasoning_details are the thinking beside them",
        "conversations/reading.py",
        "if text and not same:",
        "if text and not same and not set(REASONING_KEYS) & message.keys():",
        "flexmask/conversations/test_doubled.py",
    ),
    Fault(
        "encrypted thinking among other is named",
        "conversations/reading.py",
        'if any(one.get("data") for one in details):',
        "if not any(texts):",
        "flexmask/conversations/test_doubled.py",
    ),
    Fault(
        "a switch says what the arguments of the template say",
        "conversations/beside.py",
        "if kwargs.get(one) is (not switch)]",
        "if False]",
        "flexmask/conversations/test_doubled.py",
    ),
    Fault(
        "calls in a form that is not read are refused",
        "conversations/calls.py",
        "if not quoted(text, found):",
        "if False:",
        "flexmask/conversations/test_calls_in_text.py",
    ),
    Fault(
        "what opens a call is text in quotes",
        "conversations/calls.py",
        "if not quoted(text, found):",
        "if True:",
        "flexmask/conversations/test_calls_in_text.py",
    ),
    Fault(
        "arguments in XML are of the declared type",
        "conversations/parameters.py",
        'if kind not in types and not (kind == "integer" and "number" in types):',
        "if False:",
        "flexmask/conversations/test_calls_in_text.py",
    ),
    Fault(
        "an integer is a number",
        "conversations/parameters.py",
        'and not (kind == "integer" and "number" in types):',
        "and True:",
        "flexmask/conversations/test_calls_in_text.py",
    ),
    Fault(
        "arguments without a declared type are named",
        "conversations/reading.py",
        "if not typed(call, tools):",
        "if typed(call, tools) is None:",
        "flexmask/conversations/test_calls_in_text.py",
    ),
    Fault(
        "calls of custom tools are refused",
        "conversations/calls.py",
        'if call.get("type") == "custom":',
        "if False:",
        "flexmask/conversations/test_calls_in_text.py",
    ),
    Fault(
        "every error of reading has a record that is mended as it says",
        "conversations/formats/hermes.py",
        "        if name in arguments:\n",
        "        if not name:\n            raise ValueError(f'{where}: a parameter without a name; give it one')\n"
        "        if name in arguments:\n",
        "flexmask/conversations/test_advice.py",
    ),
    Fault(
        "numbers that JSON has not are refused",
        "conversations/values.py",
        "if not math.isfinite(value):",
        "if False:",
        "flexmask/test_reading_fuzz.py",
    ),
    Fault(
        "weights of one message that differ are refused",
        "conversations/messages.py",
        "if len(set(weights)) > 1:",
        "if False:",
        "flexmask/test_reading.py flexmask/test_conversation.py",
    ),
    Fault(
        "different system texts beside the messages are refused",
        "conversations/beside.py",
        "if len(texts) > 1:",
        "if False:",
        "flexmask/test_reading.py flexmask/test_conversation.py",
    ),
    Fault(
        "images beside the messages are refused",
        "conversations/beside.py",
        "if left.pop(key, None):",
        "if False:",
        "flexmask/test_reading.py flexmask/test_conversation.py",
    ),
    Fault(
        "the weight of a record multiplies those of its messages",
        "conversations/reading.py",
        'message["weight"] = message.get("weight", 1) * weight',
        'message["weight"] = weight',
        "flexmask/test_reading.py flexmask/test_conversation.py",
    ),
    Fault(
        "thinking that a message gives twice is the same",
        "conversations/reading.py",
        'if len({thinking.strip("\\n") for thinking in found.values()}) > 1:',
        "if False:",
        "flexmask/test_reading.py flexmask/test_conversation.py",
    ),
    Fault(
        "tools in a system text are those beside the messages",
        "conversations/reading.py",
        "if differs := difference(here, beside_them):",
        "if differs := ', '.join(here.keys() ^ beside_them.keys()):",
        "flexmask/conversations/test_doubled.py",
    ),
    Fault(
        "a key given twice in JSON text is refused",
        "conversations/values.py",
        "if len(set(keys)) < len(keys):",
        "if False:",
        "flexmask/conversations/test_advice.py",
    ),
    Fault(
        "text in front of thinking is refused",
        "conversations/thinking.py",
        "if text[:start].strip():",
        "if False:",
        "flexmask/test_reading.py flexmask/test_conversation.py",
    ),
    Fault(
        "delimiters in quotes are text",
        "conversations/thinking.py",
        "[found for found in _places(text, tag) if not quoted(text, found)]",
        "_places(text, tag)",
        "flexmask/test_reading.py flexmask/test_conversation.py",
    ),
    Fault(
        "unknown keys of a call are refused",
        "conversations/calls.py",
        "if unknown := [*outer, *function]:",
        "if unknown := []:",
        "flexmask/test_reading.py flexmask/test_conversation.py",
    ),
    Fault(
        "arguments that rendering sets are not the record's",
        "conversations/conversation.py",
        "if taken := [key for key in RENDERING_ARGUMENTS if key in kwargs]:",
        "if taken := []:",
        "flexmask/test_reading.py flexmask/test_conversation.py",
    ),
    # ---- text ----
    Fault(
        "a token that straddles thinking and answer is of the answer",
        "text/rendering.py",
        "thinking = generated.ends <= ",
        "thinking = generated.starts < ",
        "flexmask/test_rendering.py",
    ),
    Fault(
        "a message's weight multiplies its loss",
        "text/rendering.py",
        'float(conversation.messages[i].get("weight", 1)) for',
        "1.0 for",
        "flexmask/test_rendering.py",
    ),
    Fault(
        "tool schemas are guarded as message text is",
        "text/control_tokens.py",
        'guarded(conversation.tools, "tools")',
        "conversation.tools",
        "flexmask/test_rendering.py flexmask/test_conversation.py",
    ),
    Fault(
        "arguments of the template are guarded as message text is",
        "text/control_tokens.py",
        'guarded(conversation.template_kwargs, "template_kwargs")',
        "conversation.template_kwargs",
        "flexmask/test_rendering.py",
    ),
    Fault(
        "the tokenizer's end is one that is trained",
        "model/end_of_turn.py",
        "if before not in ends:",
        "if before is None:",
        "flexmask/test_end_of_turn.py",
    ),
    Fault(
        "a template may cut white space off a text",
        "text/forms.py",
        "choices = _trimmed(texts[piece]) if is_probe(piece) else [piece]",
        "choices = [texts[piece]] if is_probe(piece) else [piece]",
        "flexmask/test_turns.py flexmask/test_rendering.py",
    ),
    Fault(
        "the form of a call is good for its turn only",
        "text/forms.py",
        '(message.get("tool_calls") and message is not CALLING)',
        "False",
        "flexmask/test_forms.py",
    ),
    Fault(
        "a form begins behind the last place of the message before",
        "text/forms.py",
        "text[text.rfind(probe) + len(probe) :]",
        "text[text.find(probe) + len(probe) :]",
        "flexmask/test_forms.py",
    ),
    Fault(
        "a prompt may hold less than the header of a turn",
        "text/forms.py",
        "(prompt_only.endswith(turn_only) or turn_only.endswith(prompt_only))",
        "prompt_only.endswith(turn_only)",
        "flexmask/test_forms.py",
    ),
    Fault(
        "a result may name the call that it answers",
        "text/forms.py",
        "[pieces.count(last) :]",
        "[1:]",
        "flexmask/test_forms.py",
    ),
    Fault(
        "a turn ends with a token that history shows as well",
        "text/ends.py",
        "for token in in_history or found:",
        "for token in found:",
        "flexmask/test_ends.py",
    ),
    Fault(
        "a turn ends with the tokenizer's end where that stands in it",
        "text/ends.py",
        "if token.group() == template.tokenizer.eos_token:",
        "if False:",
        "flexmask/test_ends.py",
    ),
    Fault(
        "the end of the whole is not that of a turn",
        "text/ends.py",
        "for token in reversed(in_history[:-1] if tail[shared:].strip() else ()):",
        "for token in ():",
        "flexmask/test_ends.py",
    ),
    Fault(
        "the token that opens the next message may end a turn",
        "text/ends.py",
        "followed[len(tail) : opening.end()]",
        "followed[len(tail) : opening.start()]",
        "flexmask/test_ends.py",
    ),
    Fault(
        "what an earlier turn sees is shown",
        "text/shown.py",
        ", *trained[:-1]]:",
        "]:",
        "flexmask/test_shown.py",
    ),
    Fault(
        "the parameters of tools are shown",
        "text/shapes.py",
        "return len(place) > 2 and place[-3] == ",
        "return place == ",
        "flexmask/test_shown.py",
    ),
    Fault(
        "the names of arguments are shown",
        "text/shapes.py",
        "for names in (True, False):",
        "for names in (False,):",
        "flexmask/test_shown.py flexmask/test_turns.py",
    ),
    Fault(
        "an argument is shown in its place",
        "text/shapes.py",
        "for names in (True, False):",
        "for names in (True,):",
        "flexmask/test_shown.py flexmask/test_turns.py",
    ),
    Fault(
        "an argument is shown as it is",
        "text/shown.py",
        'missing.append((call["function"]',
        '[].append((call["function"]',
        "flexmask/test_shown.py",
    ),
    Fault(
        "false and nothing are shown as well",
        "text/leaves.py",
        "if place not in probes or ",
        "if place in probes and ",
        "flexmask/test_shown.py",
    ),
    Fault(
        "a value that is shown differs from none",
        "text/leaves.py",
        "*([] if place[-1:] == (NAME,) else [_ABSENT])",
        "",
        "flexmask/test_shown.py",
    ),
    Fault(
        "a value that is shown differs from another",
        "text/leaves.py",
        "(_other(held[place]), *(",
        "(_ABSENT, *(",
        "flexmask/test_shown.py",
    ),
    Fault(
        "what the template writes another way than a probe is shown",
        "text/leaves.py",
        "    plain = render(value)\n",
        "    return missing\n",
        "flexmask/test_shown.py",
    ),
    Fault(
        "the arguments of calls in context are shown",
        "text/shown.py",
        "told = {place: self._probe(at, _ARGUMENTS, value)",
        "told = {place: value",
        "flexmask/test_shown.py",
    ),
    Fault(
        "the name of the last speaker is shown",
        "text/shown.py",
        "if part.at <= last}",
        "if part.at < last}",
        "flexmask/test_shown.py",
    ),
    Fault(
        "a switch that the template does not have is named",
        "text/shown.py",
        "if conversation.thinks is not None and template.switch is None and",
        "if False and",
        "flexmask/test_shown.py",
    ),
    Fault(
        "a call that a template knows by name is written",
        "text/shown.py",
        "found = forms.of(message).pieces != forms.of(rest).pieces",
        "found = True",
        "flexmask/test_turns_hard.py",
    ),
    Fault(
        "a call may be known by its name",
        "text/forms.py",
        'if calls and all(re.fullmatch(r"[\\w.:-]+", call["function"]["name"]) for call in calls):',
        "if False:",
        "flexmask/test_turns_hard.py",
    ),
    Fault(
        "a name that is written otherwise is no name that a template knows",
        "text/forms.py",
        'if calls and all(re.fullmatch(r"[\\w.:-]+", call["function"]["name"]) for call in calls):',
        "if calls:",
        "flexmask/test_turns_hard.py",
    ),
    Fault(
        "an error names the text that is rewritten",
        "text/shown.py",
        "if text.strip() not in written] or changed",
        "] or changed",
        "flexmask/test_turns_hard.py flexmask/test_advice.py",
    ),
    Fault(
        "a thought is awaited only where the prompt says more than a turn without one",
        "text/thoughts.py",
        "return more and begun",
        "return begun",
        "flexmask/test_turns.py flexmask/test_forms.py flexmask/test_rendering.py flexmask/test_turns_hard.py",
    ),
    Fault(
        "a form is learned from the exchange of a turn",
        "text/forms.py",
        "self.history = history if whole else _exchange(history)",
        "self.history = history",
        "flexmask/test_forms.py",
    ),
    Fault(
        "tokens that a normalizer makes are no place to restart from",
        "text/tokenization.py",
        "if not tokenizer.added_tokens_decoder[index].normalized",
        "if True",
        "flexmask/test_tokenization.py",
    ),
    Fault(
        "arguments of the template that it does not read are named",
        "text/shown.py",
        "if name not in template.variables:",
        "if False:",
        "flexmask/test_shown.py",
    ),
    Fault(
        "the keys of arguments are guarded",
        "text/control_tokens.py",
        '{guarded(key, f"a key of {where}"): guarded',
        "{key: guarded",
        "flexmask/test_rendering.py flexmask/test_conversation.py",
    ),
    Fault(
        "what is left of an escaped token is escaped",
        "text/control_tokens.py",
        "while found is not None:",
        "if found is not None:",
        "flexmask/test_control_tokens.py",
    ),
    Fault(
        "added tokens that the template writes are control tokens",
        "text/control_tokens.py",
        "(token.content in written and not token.content.isspace())",
        "False",
        "flexmask/test_control_tokens.py",
    ),
    Fault(
        "a token that a normalizer makes is refused",
        "text/control_tokens.py",
        "if token.normalized and tokenizer.backend_tokenizer.normalizer is not None:",
        "if False:",
        "flexmask/test_rendering.py flexmask/test_conversation.py",
    ),
    Fault(
        "a conversation's template arguments are over the run's",
        "text/template.py",
        "{**(template_kwargs or {}), **self.own}",
        "{**self.own, **(template_kwargs or {})}",
        "flexmask/test_template.py",
    ),
    Fault(
        "a template writes the date that is given",
        "text/template.py",
        "date or today())",
        "today())",
        "flexmask/test_template.py",
    ),
    Fault(
        "a template that takes text gets arguments as text",
        "text/template.py",
        'if "tool_calls" in read and self._text_arguments:',
        "if False:",
        "flexmask/test_template.py",
    ),
    Fault(
        "a template does not see weights",
        "text/template.py",
        'if key != "weight"}',
        "}",
        "flexmask/test_template.py",
    ),
    Fault(
        "an empty thought is context where that is asked for",
        "text/rendering.py",
        'or self.empty_thinking == "train"',
        "or True",
        "flexmask/test_rendering.py flexmask/test_turns.py",
    ),
    Fault(
        "the end of a turn is one token",
        "text/rendering.py",
        "if int(generated.ids[-1]) not in special:",
        "if False:",
        "flexmask/test_rendering.py flexmask/test_turns.py",
    ),
    Fault(
        "a prompt that merges with the turn is tokenized by itself",
        "text/tokenization.py",
        "if len(pieces) == 1 and np.array_equal(whole.ids[:count], asked.ids):",
        "if len(pieces) == 1:",
        "flexmask/test_rendering.py",
    ),
    Fault(
        "a thought that is opened anew is not closed",
        "text/thoughts.py",
        'text.rfind(closes) > text.rfind(opens or "\\0")',
        "True",
        "flexmask/test_forms.py",
    ),
    Fault(
        "thinking behind a closed thought is refused",
        "text/turns.py",
        "if self.thinking and self.thoughts.closes(prompt_only if shown else form.opening):",
        "if False:",
        "flexmask/test_turns.py flexmask/test_rendering.py",
    ),
    # ---- training ----
    Fault(
        "a step's loss is divided by the weights of all its batches",
        "training/trainer.py",
        "weight = sum(one.target_weight for one in figures)",
        "weight = sum(one.target_weight for one in figures[:1])",
        "flexmask/test_training.py",
    ),
    Fault(
        "a step's loss is divided by the weights of all processes",
        "training/data.py",
        "target_weight=float(sum(row.loss_weights.sum(dtype=np.float64) for row in rows))",
        "target_weight=float(sum(one.loss_weights.sum() for one in own))",
        "flexmask/test_ranks.py",
    ),
    Fault(
        "processes have as many packs each",
        "training/data.py",
        "* (max(map(len, groups)) - len(own))",
        "* 0",
        "flexmask/test_ranks.py",
    ),
    Fault(
        "rows are shared out by what they cost",
        "tree/sharing.py",
        "zip(left, reversed(right), strict=True)",
        "zip(left, right, strict=True)",
        "flexmask/test_ranks.py",
    ),
    Fault(
        "a sharded checkpoint is read by any number of processes",
        "training/sharding.py",
        'vars(tensor)["data_ptr"] = functools.partial(int, -number)',
        'vars(tensor)["data_ptr"] = int',
        "flexmask/test_ranks.py",
    ),
    Fault(
        "gradients that processes average are those of the sum",
        "training/trainer.py",
        "loss / step_weight * self.accelerator.num_processes",
        "loss / step_weight",
        "flexmask/test_ranks.py",
    ),
    Fault(
        "a run that is resumed from its last step trains no other",
        "training/checkpoints.py",
        "self.state.global_step >= self.state.max_steps",
        "self.state.global_step > self.state.max_steps",
        "flexmask/test_training.py flexmask/test_runs.py",
    ),
    Fault(
        "a gradient that is not finite stops the run",
        "training/trainer.py",
        "not torch.isfinite(torch.as_tensor(norm))",
        "False",
        "flexmask/test_training.py flexmask/test_runs.py",
    ),
    Fault(
        "each epoch has an order of its own, also by length",
        "training/batches.py",
        "self._seed + self._epoch",
        "self._seed",
        "flexmask/test_epochs.py",
    ),
    Fault(
        "an epoch has the same order where a run goes on",
        "training/batches.py",
        "use_seedable_sampler=True",
        "use_seedable_sampler=False",
        "flexmask/test_epochs.py",
    ),
    Fault(
        "a run's totals go on from its checkpoint",
        "training/run_totals.py",
        "        self._started = time.perf_counter()\n\n    def on_train_end",
        "        self._start_anew()\n        self._started = time.perf_counter()\n\n    def on_train_end",
        "flexmask/test_training.py flexmask/test_runs.py",
    ),
    Fault(
        "a process that no block of a pack is left for computes one all the same",
        "attention/context.py",
        "        if not len(tokens):",
        "        if False:",
        "flexmask/test_context.py",
    ),
    Fault(
        "blocks of a pack go round and back again",
        "attention/context.py",
        "[*range(processes), *reversed(range(processes))]",
        "[*range(processes), *range(processes)]",
        "flexmask/test_context.py",
    ),
    Fault(
        "a stream is read by one worker",
        "training/batches.py",
        "order, workers = {}, min(workers, 1)",
        "order = {}",
        "flexmask/test_epochs.py",
    ),
    Fault(
        "packs that were not finite are kept whole",
        "training/nonfinite.py",
        ' if f.name != "context"',
        "",
        "flexmask/test_runs.py",
    ),
    Fault(
        "the newest packs are those that were written last",
        "training/nonfinite.py",
        "key=lambda path: path.stat().st_mtime",
        "key=lambda path: path.name",
        "flexmask/test_runs.py",
    ),
    # ---- runs and storage ----
    Fault(
        "a folder belongs to one process",
        "recipes/run/claim.py",
        "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "recipes/test_claim.py",
    ),
    Fault(
        "no child keeps a folder",
        "recipes/run/claim.py",
        "fcntl.lockf(file,",
        "fcntl.flock(file,",
        "recipes/test_claim.py",
    ),
    Fault(
        "a file stays until another is whole",
        "recipes/storage/whole.py",
        "    partial = partial_of(path)\n    try:",
        "    partial = path\n    try:",
        "recipes/test_storage.py",
    ),
    Fault(
        "a shard that is read counts as used",
        "recipes/storage/shards.py",
        "            _use(self.files[shard].parent)",
        "            pass",
        "recipes/test_storage.py",
    ),
    Fault(
        "the map that is dropped was used before the others",
        "recipes/storage/shards.py",
        "self._tables.popitem(last=False)",
        "self._tables.popitem()",
        "recipes/test_storage.py",
    ),
    Fault(
        "two runs may store the same",
        "recipes/storage/shards.py",
        "if find(folder) is None:  # else",
        "if True:  # else",
        "recipes/test_storage.py",
    ),
    Fault(
        "what is being written is not removed",
        "recipes/storage/shards.py",
        '(_ABANDONED_SECONDS, cache().glob("partial-*"))',
        '(0, cache().glob("partial-*"))',
        "recipes/test_storage.py",
    ),
]


def noticed(fault: Fault) -> bool:
    """Whether its tests fail with the fault in place."""
    with tempfile.TemporaryDirectory() as folder:
        for name in LINKED:
            os.symlink(ROOT / name, Path(folder) / name)
        for name in COPIED:
            shutil.copytree(ROOT / name, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__"))
        file = folder / fault.path
        file.write_text(with_fault(fault, file.read_text(encoding="utf-8")), encoding="utf-8")
        tests = [str(Path(folder) / "tests" / name) for name in fault.tests.split()]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-n", "0", "-p", "no:cacheprovider", f"--rootdir={folder}", *tests],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": folder},
            capture_output=True,
            text=True,
        )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{fault.rule}: its tests did not run\n{done.stdout}{done.stderr}")
    return done.returncode == 1


def with_fault(fault: Fault, source: str) -> str:
    """Raises ValueError where the text to replace does not stand in `source` once."""
    if source.count(fault.right) != 1:
        raise ValueError(f"{fault.rule}: {fault.right!r} stands {source.count(fault.right)} times in {fault.file}")
    return source.replace(fault.right, fault.wrong)


def main(words: list[str]) -> int:
    chosen = [fault for fault in FAULTS if not words or any(word in fault.rule for word in words)]
    survivors = []
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1))) as pool:
        for fault, found in zip(chosen, pool.map(noticed, chosen), strict=True):
            print(f"{'noticed ' if found else 'SURVIVED'}  {fault.file:18} {fault.rule}", flush=True)
            survivors += [] if found else [fault]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} faults noticed, {len(survivors)} survived")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
