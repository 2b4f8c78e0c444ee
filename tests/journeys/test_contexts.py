"""Context rules from the command line: a user trains for the harness that will run the model, and chats under it."""

import json
import re

import pytest
from journeys import assets

CLEARED, ASKS, SO_FAR = "[Old tool result content cleared]", "Sum up what you know.", "So far:"
SETTINGS = [
    "model=hub", "model.name_or_path=models/dense", "trainer=finetune", "data=jsonl", "data.path=episodes.jsonl",
    "data.heldout_conversations=2", "trainer.steps=3", "trainer.conversations_per_step=4", "trainer.save_every=0",
    "evaluation.history=teacher", "evaluation.max_new_tokens=8", "wandb=off",
]  # fmt: skip
COMPACT = ["context=compact", f"context.arguments.instruction='{ASKS}'", f"context.arguments.introduction='{SO_FAR}'"]
# A rule with its settings, and what rows hold under it that no conversation says.
RULES = {
    "template": (["context=template"], ""),
    "keep_last_tool_results": (["context=keep_last_tool_results", "context.arguments.keep=1"], CLEARED),
    "clear_tool_results": (
        ["context=clear_tool_results", "context.arguments.threshold=400", "context.arguments.keep=1"],
        CLEARED,
    ),
    "last_observations": (
        ["context=last_observations", "context.arguments.keep=1", "context.arguments.placeholder='gone: {lines}'"],
        "gone: 1",
    ),
    "compact": (COMPACT, f"{SO_FAR}\n\nThree, known"),
    "keep_thinking_of_last": (
        ["context=keep_thinking_of_last", "data.template_kwargs={preserve_thinking: true}"],
        "",
    ),
    "a user's own": (["context.rule=harness:mine", "context.arguments={text: Be brief.}"], "Be brief."),
}
OWN = '''def mine(messages, *, text: str):
    """The question, and the last message behind a text."""
    last = [{**messages[-1], "content": f"{text} {messages[-1]['content']}"}]
    return [*messages[:1], *last] if len(messages) > 1 else last
'''


def episode(number):
    messages = [{"role": "user", "content": f"Find the shelf of {number}."}]
    for step, found in enumerate(("one", "two", "three", "four", "five")):
        call = {"id": f"c{step}", "type": "function", "function": {"name": "look", "arguments": {"at": step}}}
        messages += [
            {"role": "assistant", "content": "", "reasoning_content": f"Look {step}", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"c{step}", "content": f"Shelf {found} of {number} is empty today."},
        ]
        if step == 2:
            messages += [
                {"role": "user", "content": ASKS},
                {"role": "assistant", "content": f"Three, known of {number}.", "reasoning_content": "Look back"},
                {"role": "user", "content": "Go on."},
            ]
    messages += [
        {"role": "assistant", "content": "None.", "reasoning_content": "It was 5."},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Still none.", "reasoning_content": "Same."},
    ]
    schema = {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "integer"}}}}
    return {"messages": messages, "tools": [{"type": "function", "function": schema}]}


@pytest.fixture(scope="module")
def here(workshop):
    assets.write_jsonl(workshop.folder / "episodes.jsonl", [episode(number) for number in range(12)])
    (workshop.folder / "harness.py").write_text(OWN)
    return workshop


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def plain(here):
    return result_of(here.folder / here.train(*SETTINGS).last_line)


# Breaks if a rule does not reach the rows, what is held out, or the chats.
@pytest.mark.parametrize("rule", RULES)
def test_a_run_under_a_rule(here, plain, rule):
    settings, held = RULES[rule]
    done = here.train(*SETTINGS, *settings)
    folder = here.folder / done.last_line
    result = result_of(folder)
    assert result["loss_last"] > 0 and result["heldout_loss"] > 0
    assert (result["tokens_computed"] == plain["tokens_computed"]) == (rule == "template")
    assert result["tokens_trained"] == plain["tokens_trained"]
    assert ("shows it" in done.out + done.err) == (rule != "template")
    assert result["teacher_chatted_replies"] == 6  # three answers without calls in each of two conversations
    words = " ".join(f'"{one}"' for one in [*SETTINGS[:5], *settings])
    assert held in here.run(f"python -m recipes.inspector episodes.jsonl:2 --full {words}").out


# What a row was made of by a rule of the user's own: breaks if rows of another version of it are taken from the cache,
# or a run goes on under another rule than it began with.
def test_a_users_own_rule_that_has_changed(here):
    rule = here.folder / "changing.py"
    rule.write_text("def mine(messages):\n    return messages[:1]\n")
    words = [*SETTINGS, "context.rule=changing:mine", "evaluation.conversations=0", "output_dir=runs/changing"]
    words = [one for one in words if not one.startswith("trainer.save_every")] + ["trainer.save_every=1"]
    first = result_of(here.folder / here.train(*words).last_line)
    (here.folder / "runs/changing/result.json").unlink()
    rule.write_text("def mine(messages):\n    return messages[:5]\n")
    done = here.run("python -m recipes.train resume=runs/changing", code=1)
    assert "the code of context.rule is not what this run began with" in done.err, done
    other = result_of(here.folder / here.train(*words[:-2], "trainer.save_every=0", "output_dir=runs/again").last_line)
    assert other["tokens_computed"] > first["tokens_computed"]


def test_inspect_says_which_call_sees_what(here):
    words = " ".join([*SETTINGS[:5], *RULES["keep_last_tool_results"][0]])
    done = here.run(f'make inspect ARGS="episodes.jsonl:2 {words}"')
    for said in ("call 6 (message 14)", "of it shared", "seen by", "× later calls see it no longer", "lower bound"):
        assert said in done.out, done
    assert re.search(r"prompt .* 4 ×", done.out), done  # the third result


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["context=compact"], "context.arguments.instruction: has no value; give one with"),
        (["context.rule=compakt"], "context.rule=compakt: no such rule; choose keep_last_tool_results"),
        (["context.rule=nowhere:rule"], "context.rule=nowhere:rule: cannot be imported"),
        (["context=keep_thinking_of_last"], 'set data.template_kwargs={"preserve_thinking": true}'),
        (["context=last_observations", "duplication=keep_thinking"], "choose another duplication, or context=template"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(here, words, said):
    done = here.train(*SETTINGS, *words, code=1)
    assert said in done.err and "Traceback" not in done.err, done
