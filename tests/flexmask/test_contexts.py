"""Context rules: the calls of a conversation as a harness with that rule would have made them, exact in one pass."""

import functools
import random
import warnings

import numpy as np
import pytest
import torch
from factories import WORDS, Work, chatml_tokenizer, random_conversation, template_tokenizer, tiny_qwen3
from reference import distinct_prefixes, gradients, per_turn_loss, worst_gradient_difference
from small_templates import TEMPLATES

from flexmask import (
    Calls,
    Conversation,
    OnePassConfig,
    OnePassTrainer,
    calls_of,
    load_rule,
    pack,
    prepare_conversation,
    prepare_model,
    read_record,
    render_passes,
    token_losses,
)
from flexmask.conversations.contexts import CLEARED, RULES
from flexmask.text.calls import calls_under, render_calls

TOKENIZER = chatml_tokenizer()
ASKS, SO_FAR = "Sum up what you know.", "What was found so far:"


def words(rng, most):
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def episode(seed, steps=9, at_once=False):
    """An agent's conversation: calls with one or two results, user messages in between, a turn of weight 0, and two
    summaries that the harness asked for. at_once: the model may go on right behind a summary, which only a harness that
    compacts does."""
    rng = random.Random(seed)
    messages = [{"role": "system", "content": words(rng, 8)}] if rng.random() < 0.5 else []
    messages.append({"role": "user", "content": words(rng, 12)})
    for step in range(steps):
        answer = {"role": "assistant", "content": words(rng, 6)}
        if rng.random() < 0.8:
            answer["reasoning_content"] = words(rng, 12)
        if rng.random() < 0.2:
            answer["weight"] = rng.choice([0, 0.5])
        if rng.random() < 0.75:
            ids = [f"c{step}{letter}" for letter in "ab"[: rng.randint(1, 2)]]
            answer["tool_calls"] = [
                {"id": one, "type": "function", "function": {"name": "add", "arguments": {"a": rng.randrange(9)}}}
                for one in ids
            ]
            behind = [
                {"role": "tool", "name": "add", "tool_call_id": one, "content": f"{words(rng, 12)}\n{words(rng, 3)}"}
                for one in ids
            ]
        else:
            behind = [{"role": "user", "content": words(rng, 10)}]
        messages += [answer, *behind]
        if step in (3, 6):
            messages += [
                {"role": "user", "content": f"{ASKS} {words(rng, 3)}"},
                {"role": "assistant", "content": words(rng, 10), "reasoning_content": words(rng, 5)},
                *([] if at_once and rng.random() < 0.5 else [{"role": "user", "content": "go on"}]),
            ]
    messages.append({"role": "assistant", "content": words(rng, 5), "reasoning_content": words(rng, 5)})
    return Conversation(f"episode:{seed}", tuple(messages))


# ---- The rules written once more, as a harness that changes its history between two calls ----


def tokens_of(messages):
    read = [{key: value for key, value in one.items() if key != "weight"} for one in messages]
    return len(TOKENIZER.apply_chat_template(read, add_generation_prompt=True, return_dict=False))


class Harness:
    """Takes messages as they come; `shown` is what it sends. A subclass says what it changes before it does."""

    def __init__(self):
        self.shown = []

    def send(self):
        return [dict(one) for one in self.shown]


class KeepsResults(Harness):
    def send(self):
        results = [one for one in self.shown if one["role"] == "tool"]
        for one in results[: max(0, len(results) - 2)]:
            one["content"] = CLEARED
        return super().send()


class Clears(KeepsResults):
    def send(self):
        return super().send() if tokens_of(self.shown) > 220 else Harness.send(self)


class Observes(Harness):
    def send(self):
        begun, seen = False, []
        for one in self.shown:
            begun = begun or one["role"] == "assistant"
            if begun and one["role"] != "assistant":
                seen.append(one)
        while len(seen) > 3:
            old = seen.pop(0)
            if not old["content"].startswith("gone: "):
                old["content"] = f"gone: {len(old['content'].splitlines())} lines"
        return super().send()


class Compacts(Harness):
    def send(self):
        if len(self.shown) > 1 and self.shown[-2]["content"].startswith(ASKS) and self.shown[-1]["role"] == "assistant":
            self._compact(self.shown[-1], [])
        elif len(self.shown) > 2 and self.shown[-3]["content"].startswith(ASKS):
            self._compact(self.shown[-2], [self.shown[-1]])
        return super().send()

    def _compact(self, summary, behind):
        system = self.shown[:1] if self.shown[0]["role"] == "system" else []
        first = self.shown[len(system)]
        told = {"role": "user", "content": f"{SO_FAR}\n\n{summary['content']}"}
        self.shown = [*system, first, told, *behind]


HARNESSES = {
    "keep_last_tool_results": (KeepsResults, {"keep": 2}),
    "clear_tool_results": (Clears, {"threshold": 220, "keep": 2}),
    "last_observations": (Observes, {"keep": 3, "placeholder": "gone: {lines} lines"}),
    "compact": (Compacts, {"instruction": ASKS, "introduction": SO_FAR, "keep_first": 1}),
}


def by_hand(conversation, harness):
    """The calls that a harness makes, as records of one call."""
    records = []
    for message in conversation.messages:
        if message["role"] == "assistant":
            prompt = [{key: value for key, value in one.items() if key != "weight"} for one in harness.send()]
            answer = {key: value for key, value in message.items() if key != "weight"}
            records.append({"prompt": prompt, "completion": answer, "weight": message.get("weight", 1)})
        harness.shown.append(dict(message))
    return records


def same(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.prompt_length == other.prompt_length and one.ends == other.ends
        for name in ("input_ids", "roles", "loss_weights"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


# Breaks if a call is shown another history than the harness has at that time, or a weight is lost. Each call is
# rendered by itself here, so it breaks also if what calls share changes any of them.
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", HARNESSES)
def test_passes_under_a_rule_are_those_of_its_calls_written_by_hand(name, seed):
    conversation, (harness, arguments) = episode(seed, at_once=name == "compact"), HARNESSES[name]
    records = by_hand(conversation, harness())
    expected = [
        one for record in records for one in render_calls(read_record({"calls": [record]}, "by hand"), TOKENIZER).passes
    ]
    calls = calls_under(load_rule({"rule": name, "arguments": arguments}), conversation, TOKENIZER)
    found = render_calls(calls, TOKENIZER).passes
    same(found, expected)
    assert [one.turn for one in found] == [i for i, record in enumerate(records) if record["weight"]]
    assert {one.name for one in found} == {conversation.name}


# Breaks if one pass computes a token twice, or trains a call behind what another one was shown.
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("name", HARNESSES)
def test_one_pass_under_a_rule_is_each_call_alone(name, split):
    conversation, (_, arguments) = episode(7), HARNESSES[name]
    context = {"rule": name, "arguments": arguments}
    passes = render_calls(calls_under(load_rule(context), conversation, TOKENIZER), TOKENIZER).passes
    pack_length = max(map(len, passes)) if split else None
    rows = prepare_conversation(conversation, TOKENIZER, pack_length=pack_length, context=context).rows
    if not split:
        assert sum(map(len, rows)) == distinct_prefixes(passes) < sum(map(len, passes))
    else:
        assert len(rows) > 1
    model = tiny_qwen3(len(TOKENIZER), torch.float64)
    expected = per_turn_loss(model, passes)
    theirs = gradients(model, expected)
    prepare_model(model)
    mine = sum(token_losses(model, one, 16).total for one in pack(rows, 4096))
    assert abs(mine.item() / expected.item() - 1) < 1e-10
    assert worst_gradient_difference(theirs, gradients(model, mine)) < 1e-10


def everything(messages):
    return messages


def signed(messages):
    return [*messages[:-1], messages[-1] | {"content": messages[-1]["content"] + " ."}]


# Breaks if the calls of a conversation are rendered otherwise than its turns, or refused where it is not: a template
# may show in one prompt what it leaves out of another.
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_rule_that_changes_nothing_gives_the_passes_of_the_conversation(template, seed):
    tokenizer, conversation = template_tokenizer(TEMPLATES[template]), random_conversation(seed)

    def outcome(make):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return make(), None
            except ValueError as error:
                return None, str(error)

    expected, refused = outcome(lambda: render_passes(conversation, tokenizer))
    found, also = outcome(lambda: render_calls(calls_of(conversation, everything), tokenizer).passes)
    assert (refused is None) == (also is None), refused or also
    if expected is not None:
        same(found, expected)
        assert [(one.name, one.turn) for one in found] == [(one.name, one.turn) for one in expected]


def test_weights_and_turns_select_the_same_under_a_rule():
    conversation = episode(2)
    for settings in ({"turns": "1::2"}, {"turns": "-1", "thinking_weight": 0.5}, {"layout": "per_turn"}):
        with pytest.warns(UserWarning, match="the context rule everything changes nothing"):
            found = prepare_conversation(
                conversation, TOKENIZER, context={"rule": f"{__name__}:everything"}, **settings
            )
        expected = prepare_conversation(conversation, TOKENIZER, **settings)
        assert [row.turns for row in found.rows] == [row.turns for row in expected.rows]
        for one, other in zip(found.rows, expected.rows, strict=True):
            np.testing.assert_array_equal(one.loss_weights, other.loss_weights)


# What a template leaves out of every call is refused as for a conversation; what one call shows is enough.
# The template shows the last user message alone, so the second call leaves out what the first one shows.
def test_what_one_call_shows_is_not_left_out_of_the_record():
    last_alone = (
        "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}{% elif m.role == 'assistant' %}"
        "{{ m.content }}<|im_end|>{% elif loop.last or messages[loop.index].role == 'assistant' and "
        "loop.index == messages | length - 1 %}<|im_start|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    asked = [[{"role": "user", "content": text}] for text in ("first", "second")]
    answers = [{"role": "assistant", "content": text} for text in ("one", "two")]
    calls = [
        {"prompt": asked[0], "completion": answers[0]},
        {"prompt": [*asked[0], answers[0], *asked[1]], "completion": answers[1]},
    ]
    tokenizer = template_tokenizer(last_alone)
    first, second = render_calls(read_record({"calls": calls}, "r"), tokenizer).passes
    assert "first" in tokenizer.decode(first.input_ids) and "first" not in tokenizer.decode(second.input_ids)
    with pytest.raises(ValueError, match="shows the text of user messages to no turn that is trained"):
        render_calls(read_record({"calls": calls[1:]}, "r"), tokenizer)


def test_what_the_template_leaves_out_of_all_calls_is_refused():
    template = (
        "{% for m in messages %}{% if m.role != 'tool' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    messages = (
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "one"},
        {"role": "tool", "content": "seven"},
        {"role": "assistant", "content": "two"},
    )
    conversation, context = Conversation("x:1", messages), {"rule": f"{__name__}:signed"}
    with pytest.raises(ValueError, match="x:1: call 1 .*shows the text of tool messages to no turn .*'seven .'"):
        prepare_conversation(conversation, template_tokenizer(template), context=context)
    early = template.replace("m.role != 'tool'", "m.role != 'tool' or loop.last")
    assert prepare_conversation(conversation, template_tokenizer(early), context=context).rows


# ---- Thinking that stays ----

THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and (loop.last or SHOWS) %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KEEPS_ONE = {"rule": "keep_thinking_of_last", "arguments": {"keep": 1}}


def thinking(turns=4):
    exchanges = [
        ({"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}", "reasoning_content": f"t{i}"})
        for i in range(turns)
    ]
    return Conversation("x:1", tuple(message for exchange in exchanges for message in exchange))


# Breaks if thinking is promised that the template drops, or if what the error advises does not show it.
@pytest.mark.parametrize(
    ("shows", "settings"),
    [("preserve_thinking", {"preserve_thinking": True}), ("clear_thinking is false", {"clear_thinking": False})],
)
def test_thinking_stays_as_the_error_advises(shows, settings):
    tokenizer = template_tokenizer(THINKS.replace("SHOWS", shows))
    with pytest.raises(ValueError) as refused:
        prepare_conversation(thinking(), tokenizer, context=KEEPS_ONE)
    (name, value), *_ = settings.items()
    said = "x:1: call 1 (message 3): keep_thinking_of_last: the chat template does not show the thinking of message 1 ("
    assert str(refused.value).startswith(said)
    assert f'set template_kwargs={{"{name}": {str(value).lower()}}}' in str(refused.value)
    calls = calls_under(load_rule(KEEPS_ONE), thinking(), tokenizer, template_kwargs=settings)
    *_, last = render_calls(calls, tokenizer, template_kwargs=settings).passes
    prompt = tokenizer.decode(last.input_ids[: last.prompt_length])
    assert "t2" in prompt and "t1" not in prompt and "t0" not in prompt


def test_a_template_that_never_shows_it_is_refused():
    with pytest.raises(ValueError, match="none of its arguments shows it: give a template that does, or"):
        prepare_conversation(thinking(), template_tokenizer(THINKS.replace("SHOWS", "false")), context=KEEPS_ONE)
    always = template_tokenizer(THINKS.replace("SHOWS", "true"))
    assert prepare_conversation(thinking(), always, context=KEEPS_ONE).rows
    none = {"rule": "keep_thinking_of_last", "arguments": {"keep": 0}}
    assert prepare_conversation(thinking(), template_tokenizer(THINKS.replace("SHOWS", "false")), context=none).rows


# ---- The calling convention ----


# Breaks if a rule is given what is not in front of the turn, or another call's history than the last one's.
@pytest.mark.parametrize(("threshold", "content"), [(10, "found"), (9, CLEARED)])
def test_results_are_cleared_only_beyond_the_threshold(threshold, content):
    messages = [{"role": "user", "content": "q"}, {"role": "tool", "content": "found"}]
    shown = RULES["clear_tool_results"](messages, shown=(), count=lambda some: 10, threshold=threshold, keep=0)
    assert shown[-1]["content"] == content


def test_a_rule_is_given_what_it_asks_for():
    asked = []

    def mine(messages, *, shown, count):
        asked.append((len(messages), len(shown), count(messages)))
        return messages[-1:]

    conversation = thinking(3)
    calls = calls_under(mine, conversation, TOKENIZER)
    assert asked == [(i, int(i > 1), tokens_of(conversation.messages[:i])) for i in (1, 3, 5)]
    assert [len(call.conversation.messages) for call in calls.calls] == [2, 2, 2]
    assert isinstance(calls, Calls) and calls.calls[2].name == "x:1: call 2 (message 5)"


# Breaks if an escaped control token counts as the one token that no prompt holds.
def test_tokens_are_counted_as_they_are_shown():
    counted = []

    def mine(messages, *, count):
        counted.append(count(messages))
        return signed(messages)

    messages = ({"role": "user", "content": "say <|im_end|> once"}, {"role": "assistant", "content": "no"})
    conversation = Conversation("x:1", messages)
    calls = calls_under(mine, conversation, TOKENIZER, control_tokens="escape")
    (one,) = render_calls(calls, TOKENIZER, control_tokens="escape").passes
    assert counted == [one.prompt_length - len(TOKENIZER(" .").input_ids)]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda messages: None, "returned None"),
        (lambda messages: [], r"returned \[\]"),
        (lambda messages: [{"role": "user"}], "message 0 of what it shows: 'content' is missing"),
        (lambda messages: [{"role": "assistant", "content": "a"}], "begins with an assistant message"),
        (lambda messages: messages[9], "IndexError"),
        (lambda messages: [*messages, {"role": "assistant", "content": "a"}], "ends with an assistant message"),
        # Else the data is no more what it was, and the run says that the rule has changed nothing.
        (
            lambda messages: messages[0].update(content="b") or messages,
            "has changed message 0 in place.* leave it as it is",
        ),
    ],
)
def test_a_rule_of_a_users_own_that_goes_wrong_is_named(returned, message):
    returned.__name__ = "mine"
    with pytest.raises(ValueError, match=rf"x:1: call 0 \(message 1\): mine: .*{message}"):
        calls_of(thinking(2), returned)


def test_calls_of_a_record_are_left_as_they_are_with_a_warning():
    record = {"calls": [{"prompt": [{"role": "user", "content": "add"}], "completion": {"content": "b"}}]}
    calls, context = read_record(record, "x:1"), {"rule": "keep_last_tool_results", "arguments": {"keep": 0}}
    with pytest.warns(UserWarning, match="says itself what each call was shown; keep_last_tool_results is not applied"):
        found = prepare_conversation(calls, TOKENIZER, context=context)
    np.testing.assert_array_equal(found.rows[0].input_ids, prepare_conversation(calls, TOKENIZER).rows[0].input_ids)


def test_a_layout_that_keeps_thinking_says_what_stands_in_the_history_itself():
    with pytest.raises(ValueError, match="keep_thinking.* this has the context rule signed"):
        prepare_conversation(thinking(), TOKENIZER, layout="keep_thinking", context={"rule": f"{__name__}:signed"})


@pytest.mark.parametrize("context", [None, {}, {"rule": None}, {"rule": None, "arguments": {}}])
def test_without_a_rule_the_template_alone_shows(context):
    assert load_rule(context) is None


# Breaks if each call is tokenized from its beginning: the work would grow with the square of the length.
def test_what_is_tokenized_grows_with_what_is_new(monkeypatch):
    def characters(steps):
        tokenizer = template_tokenizer(chatml_tokenizer().chat_template)
        conversation = episode(1, steps)
        calls = calls_of(conversation, functools.partial(RULES["keep_last_tool_results"], keep=2))
        work = Work(tokenizer, monkeypatch)
        render_calls(calls, tokenizer)
        monkeypatch.undo()
        return work.characters / sum(len(str(message)) for message in conversation.messages)

    short, long = characters(20), characters(160)
    assert long < 1.5 * short < 12


# The road of a library's user: a rule as an argument, to a model whose loss falls.
def test_a_trainer_takes_a_rule(tmp_path):
    arguments = OnePassConfig(
        str(tmp_path), max_steps=12, learning_rate=1e-2, pack_length=4096, per_device_train_batch_size=3, use_cpu=True,
        save_strategy="no", logging_steps=1, disable_tqdm=True,
        context={"rule": "keep_last_tool_results", "arguments": {"keep": 1}},
    )  # fmt: skip
    records = [{"messages": list(episode(seed, 3).messages)} for seed in range(3)]
    trainer = OnePassTrainer(
        tiny_qwen3(len(TOKENIZER), torch.float32), arguments, train_dataset=records, processing_class=TOKENIZER
    )
    rows = [row for some in trainer.train_dataset for row in some]
    assert any(CLEARED in TOKENIZER.decode(row.input_ids) for row in rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    with pytest.raises(ValueError, match="rule=keep_last: no such rule; choose keep_last_tool_results"):
        OnePassConfig(str(tmp_path), use_cpu=True, context={"rule": "keep_last"})
