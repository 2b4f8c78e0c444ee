"""Evaluation by chatting, against a scripted model whose replies are known and against one-by-one generation."""

import functools

import pytest
import torch
from families import FAMILIES, VOCAB
from scripted import TOKENIZER, Scripted
from stateful_families import UNBRANCHED

import flexmask.attention.interface  # noqa: F401  registers the attention implementation
from flexmask.conversations.contexts import RULES
from flexmask.conversations.conversation import Conversation
from flexmask.conversations.reading import read_conversation
from recipes.evaluation.chat import chat
from recipes.evaluation.generation import generate, ready_to_generate
from recipes.evaluation.matchers import load_matcher
from recipes.evaluation.replies import Thinking, figures
from recipes.models.tiny import build_model, build_tokenizer
from recipes.sources import tutoring


def conversation(*turns, name="test:1", system=None):
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Conversation(name=name, messages=tuple(messages))


def test_own_answers_are_fed_back_and_thinking_is_not(monkeypatch):
    # Broken by feeding the data's answers back, or by a history that keeps thinking.
    script = Scripted(lambda prompt: f"<think>\nsecret{prompt.count('user')}\n</think>\n\nwrong<|im_end|>")
    talk = conversation(("q1", "right"), ("q2", "wrong"), system="s")
    (result,) = chat(script.install(monkeypatch), TOKENIZER, [talk], max_new_tokens=40, batch_size=4)
    assert script.prompts[1] == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\nwrong<|im_end|>\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [(turn.thinking, turn.answer, turn.expected) for turn in result.turns] == [
        ("secret1", "wrong", "right"),
        ("secret2", "wrong", "wrong"),
    ]
    assert [turn.correct for turn in result.turns] == [False, True]
    assert result.messages[-1] == {"role": "assistant", "content": "wrong", "reasoning_content": "secret2"}


def test_accuracies(monkeypatch):
    script = Scripted(lambda prompt: "<think>\n\n</think>\n\nyes<|im_end|>")
    talks = [conversation(("a", "yes"), ("b", "no"), ("c", "yes")), conversation(("a", "yes"), name="test:2")]
    results = chat(script.install(monkeypatch), TOKENIZER, talks, max_new_tokens=40, batch_size=1)
    assert [result.name for result in results] == ["test:1", "test:2"]
    found = figures(results)
    assert found["answer_accuracy"] == 3 / 4
    assert found["conversation_accuracy"] == 1 / 2
    assert found["chatted_conversations"] == 2 and found["chatted_replies"] == 4


def test_a_turn_that_does_not_end_is_wrong_even_with_the_right_text(monkeypatch):
    script = Scripted(lambda prompt: "yes")  # no end of turn
    (result,) = chat(
        script.install(monkeypatch), TOKENIZER, [conversation(("a", "yes"))], max_new_tokens=9, batch_size=1
    )
    (turn,) = result.turns
    assert (turn.answer, turn.reply.ended, turn.correct) == ("yes", False, False)


def test_messages_not_trained_are_shown_as_they_stand(monkeypatch):
    script = Scripted(lambda prompt: "b<|im_end|>")
    messages = (
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "example", "weight": 0},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": "b"},
    )
    talk = Conversation(name="test:1", messages=messages)
    (result,) = chat(script.install(monkeypatch), TOKENIZER, [talk], max_new_tokens=9, batch_size=1)
    assert len(script.prompts) == 1 and "example" in script.prompts[0]
    assert result.correct


def test_template_kwargs_reach_the_template(monkeypatch):
    script = Scripted(lambda prompt: "a<|im_end|>")
    chat(
        script.install(monkeypatch),
        TOKENIZER,
        [conversation(("q", "a"))],
        max_new_tokens=9,
        batch_size=1,
        template_kwargs={"enable_thinking": False},
    )
    assert script.prompts[0].endswith("<think>\n\n</think>\n\n")


def test_a_conversations_own_template_arguments_count(monkeypatch):
    """One prompt closes the thinking, the other leaves it to the model; the data thinks in both."""
    messages = (
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "reasoning_content": "t"},
    )
    talks = [
        Conversation("test:1", messages),
        Conversation("test:2", messages, template_kwargs={"enable_thinking": False}),
    ]
    script = Scripted(
        lambda prompt: "a<|im_end|>" if prompt.endswith("</think>\n\n") else "<think>t</think>a<|im_end|>"
    )
    one, other = ask(script, monkeypatch, talks)
    assert [(r.turns[0].reply.state, r.turns[0].expects_thinking) for r in (one, other)] == [
        (Thinking.valid, True),
        (Thinking.empty, False),
    ]
    assert all(r.turns[0].thinks_as_expected and r.correct for r in (one, other))
    assert one.turns[0].thinking_tokens == 1


@pytest.fixture(scope="module")
def model():
    return build_model(1, vocab_size=len(TOKENIZER), layers=2)


def test_batches_change_nothing(model):
    # Broken by wrong left padding or positions. The untrained model's replies are long and differ by prompt.
    talks = [read_conversation(r, f"t:{i}") for i, r in enumerate(tutoring.generate(6, 4, "heldout"))]
    alone, together = (chat(model, TOKENIZER, talks, max_new_tokens=6, batch_size=size) for size in (1, len(talks)))
    assert [r.messages for r in alone] == [r.messages for r in together]
    assert len({turn.answer for result in alone for turn in result.turns}) > 1
    assert [len(r.turns) for r in alone] == [sum(m["role"] == "assistant" for m in t.messages) for t in talks]


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(model, fails, monkeypatch):
    # Broken without the finally: training would go on with another attention.
    model.set_attn_implementation("flexmask")
    model.train()
    seen = []

    def generate_(**_):
        seen.append((model.config._attn_implementation, model.training))
        raise RuntimeError("out of memory")

    if fails:
        monkeypatch.setattr(model, "generate", generate_)
        with pytest.raises(RuntimeError, match="out of memory"):
            chat(model, TOKENIZER, [conversation(("q", "a"))], max_new_tokens=2, batch_size=1)
        assert seen == [("sdpa", False)]
    else:
        chat(model, TOKENIZER, [conversation(("q", "a"))], max_new_tokens=2, batch_size=1)
    assert (model.config._attn_implementation, model.training) == ("flexmask", True)


def test_a_tokenizer_that_cannot_chat_is_refused(model):
    bare = build_tokenizer()
    bare.chat_template = None
    with pytest.raises(ValueError, match="no chat_template"):
        chat(model, bare, [conversation(("q", "a"))], max_new_tokens=2, batch_size=1)
    endless = build_tokenizer()
    endless.eos_token = None
    with pytest.raises(ValueError, match="no token ends a turn"):
        chat(model, endless, [conversation(("q", "a"))], max_new_tokens=2, batch_size=1)
    with pytest.raises(ValueError, match="history='both'"):
        chat(model, TOKENIZER, [], max_new_tokens=2, batch_size=1, history="both")
    assert chat(model, TOKENIZER, [], max_new_tokens=2, batch_size=1) == []


def say(text):
    return Scripted(lambda prompt: text)


def ask(script, monkeypatch, talks, **settings):
    return chat(script.install(monkeypatch), TOKENIZER, talks, **{"max_new_tokens": 40, "batch_size": 4} | settings)


def test_teacher_history_is_the_data_of_the_turns_before(monkeypatch):
    # Broken by feeding the model's answers back.
    script = say("<think>\nsecret\n</think>\n\nwrong<|im_end|>")
    (result,) = ask(script, monkeypatch, [conversation(("q1", "right"), ("q2", "wrong"))], history="teacher")
    assert script.prompts[1] == (
        "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\nright<|im_end|>\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [turn.correct for turn in result.turns] == [False, True]
    assert [message["content"] for message in result.messages] == ["q1", "right", "q2", "wrong"]


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
WITH_CALL = Conversation(
    name="test:9",
    messages=(
        {"role": "user", "content": "q0"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "found"},
        {"role": "assistant", "content": "a"},
    ),
)


def test_a_conversation_with_tool_calls_ends_no_evaluation(monkeypatch):
    # Broken by raising after hours of training.
    talks = [conversation(("q", "a")), WITH_CALL]
    with pytest.warns(
        UserWarning, match=r"own history: 3 turns were not asked: a turn calls a tool.*\(first test:9, t"
    ):
        whole, left_out = ask(say("a<|im_end|>"), monkeypatch, talks)
    assert whole.correct and not left_out.turns and sorted(left_out.unasked) == [0, 1, 2]
    found = figures([whole, left_out])
    assert (found["chatted_conversations"], found["unasked_turns"], found["answer_accuracy"]) == (1, 3, 1.0)

    script = say("a<|im_end|>")
    with pytest.warns(UserWarning, match="teacher history: 1 turns were not asked: a turn calls a tool"):
        (result,) = ask(script, monkeypatch, [WITH_CALL], history="teacher")
    assert [turn.turn for turn in result.turns] == [0, 2] and sorted(result.unasked) == [1]
    assert "found" in script.prompts[1] and '"name": "add"' in script.prompts[1]
    assert result.correct is False  # one of its turns was not asked


def test_a_call_that_is_only_shown_is_chatted_past(monkeypatch):
    messages = list(WITH_CALL.messages)
    messages[3] = messages[3] | {"weight": 0}
    (result,) = ask(say("a<|im_end|>"), monkeypatch, [Conversation(name="test:9", messages=tuple(messages))])
    assert [turn.turn for turn in result.turns] == [0, 2] and result.correct


def test_a_prompt_longer_than_the_models_positions_is_counted(monkeypatch):
    # Broken by asking it, which ends in an error of the embedding under learned positions.
    short, long = (
        conversation(("q", "yes")),
        conversation(("q", "yes"), ("q " * 80, "yes"), ("q", "yes"), name="test:2"),
    )
    for history, unasked in (("own", [1, 2]), ("teacher", [1, 2])):
        script = say("yes<|im_end|>")
        script.model.config.max_position_embeddings = 60
        with pytest.warns(UserWarning, match=r"2 turns were not asked: the prompt fills the model's 60 positions"):
            results = ask(script, monkeypatch, [short, long], history=history)
        assert [len(result.turns) for result in results] == [1, 1]
        assert sorted(results[1].unasked) == unasked and not results[1].correct


def test_replies_end_where_the_positions_do(monkeypatch):
    # The second prompt leaves room for fewer tokens, and must not shorten the reply to the first.
    talks = [conversation(("a", "x")), conversation(("a " * 30, "x"), name="test:2")]
    script = Scripted(lambda prompt: "yes " * 60)
    script.model.config.max_position_embeddings = 60
    one, other = ask(script, monkeypatch, talks)
    lengths = [len(TOKENIZER.encode(result.turns[0].answer)) for result in (one, other)]
    assert lengths[0] > lengths[1] > 0


def test_a_template_that_rejects_the_history_ends_one_conversation(monkeypatch):
    strict = build_tokenizer()
    strict.chat_template = (
        "{%- for m in messages if m.content == 'no' -%}{{ raise_exception('never no') }}{%- endfor -%}"
    ) + strict.chat_template
    script = Scripted(lambda prompt: "no<|im_end|>" if "bad" in prompt else "yes<|im_end|>")
    talks = [conversation(("bad", "no"), ("b", "yes")), conversation(("a", "yes"), ("b", "yes"), name="test:2")]
    with pytest.warns(UserWarning, match=r"1 turns were not asked: the chat template rejects the history \(never no\)"):
        one, other = chat(script.install(monkeypatch), strict, talks, max_new_tokens=9, batch_size=2)
    assert [turn.correct for turn in one.turns] == [True] and not one.correct
    assert other.correct


def test_the_matcher_decides(monkeypatch):
    talks = [conversation(("a", "It is 7."), ("b", "none"))]
    (result,) = ask(say("So 7.0<|im_end|>"), monkeypatch, talks, matcher=load_matcher("number"))
    assert [turn.correct for turn in result.turns] == [True, None]
    found = figures([result])
    assert (found["answer_accuracy"], found["conversation_accuracy"], found["uncompared_replies"]) == (1.0, 1.0, 1)

    def fails(answer, expected, messages):
        raise KeyError("mine")

    with pytest.warns(UserWarning, match="matcher or a probe failed on 2 replies.*most often KeyError: 'mine'"):
        (result,) = ask(say("a<|im_end|>"), monkeypatch, talks, matcher=fails)
    assert [turn.correct for turn in result.turns] == [False, False]


# Broken by a matcher that sees the data's history: what the model itself has said decides what is right next.
def test_a_matcher_may_look_at_what_was_said(monkeypatch):
    def repeats(answer, expected, messages):
        return len(messages) == 1 or messages[1] == {"role": "assistant", "content": answer}

    script = Scripted(lambda prompt: "mine<|im_end|>")
    talk = conversation(("a", "theirs"), ("b", "theirs"))
    (result,) = chat(script.install(monkeypatch), TOKENIZER, [talk], max_new_tokens=9, batch_size=2, matcher=repeats)
    assert [turn.correct for turn in result.turns] == [True, True]


def test_generation_stops_at_every_end(monkeypatch):
    # Broken by asking the tokenizer alone: a template may end a turn with another token.
    script = say("yes<|im_start|>no<|im_end|>")
    talk = [conversation(("a", "yes"))]
    assert ask(script, monkeypatch, talk)[0].turns[0].answer == "yes<|im_start|>no"
    script.model.generation_config.eos_token_id = [TOKENIZER.convert_tokens_to_ids("<|im_start|>")]
    assert ask(script, monkeypatch, talk)[0].turns[0].answer == "yes"


def test_text_is_what_its_bytes_say(monkeypatch):
    # Broken by transformers' tidying, which takes the space out of "a ." unless told not to.
    tidy = build_tokenizer()
    tidy.clean_up_tokenization_spaces = True
    text = "¿a . b , c ! 1 'm ü 北京 🙂 ?"
    script = say(text + "<|im_end|>")
    (result,) = chat(script.install(monkeypatch), tidy, [conversation(("q", text))], max_new_tokens=80, batch_size=1)
    assert result.turns[0].answer == text and result.correct


def test_the_models_own_generation_settings_do_not_count(monkeypatch):
    # Broken by transformers' filling in what the model's generation_config says of repetition or sampling.
    model, ids = build_model(3, vocab_size=len(TOKENIZER), layers=2), [[5, 6, 7, 8]]
    ends = {TOKENIZER.eos_token_id}
    plain = generate(model, ids, 12, ends)
    talk = [conversation(("q", "a"))]
    before = chat(model, TOKENIZER, talk, max_new_tokens=12, batch_size=1)
    model.generation_config.repetition_penalty = 50.0
    own = model.generation_config
    assert generate(model, ids, 12, ends) != plain
    assert chat(model, TOKENIZER, talk, max_new_tokens=12, batch_size=1) == before
    assert model.generation_config is own


def test_every_turn_is_counted_as_done(monkeypatch):
    talks = [WITH_CALL, conversation(("q", "a"), ("q", "a")), conversation(("q " * 90, "a"))]
    for history in ("own", "teacher"):
        counts, script = [], say("a<|im_end|>")
        script.model.config.max_position_embeddings = 80
        with pytest.warns(UserWarning):
            ask(script, monkeypatch, talks, history=history, advance=counts.append)
        assert sum(counts) == 6


@pytest.mark.parametrize("name", [*FAMILIES])
def test_generation_of_every_family_is_that_of_its_plain_forward(name):
    """Batched, cached generation under the attention that chatting chooses, against one whole forward pass a token."""
    model = FAMILIES[name].build(torch.float64).eval()
    prompts = [[5, 9, 3], [7, 8, 4, 11, 12, 6, 3, 22, 31, 9, 17, 40, 5, 6]]
    with ready_to_generate(model) as plain:
        replies = [reply for reply, _ in generate(plain, prompts, 8, {VOCAB - 1})]
    model.set_attn_implementation("eager")
    for prompt, reply in zip(prompts, replies, strict=True):
        ids = list(prompt)
        for _ in range(8):
            with torch.inference_mode():
                ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] == VOCAB - 1:
                ids.pop()
                break
        assert reply == ids[len(prompt) :]


@pytest.mark.parametrize("name", ["RWKV", "MiniMax"])
def test_state_never_holds_padding_or_another_prompt(name):
    # Broken by batches, which transformers computes otherwise for these.
    model = UNBRANCHED[name].build(torch.float32)
    model.resize_token_embeddings(len(TOKENIZER))
    talks = [conversation(("q " * n, "a"), name=f"test:{n}") for n in (1, 9, 1, 20)]
    alone, together = (chat(model, TOKENIZER, talks, max_new_tokens=6, batch_size=size) for size in (1, 4))
    assert [r.messages for r in alone] == [r.messages for r in together]


SUMS_UP = functools.partial(RULES["compact"], instruction="sum up", introduction="So far:")


def long_talk():
    return conversation(("q1", "a1"), ("sum up now", "summary"), ("q3", "a3"), ("q4", "a4"), system="s")


def prompt_of(*turns):
    read = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    return f"{read}<|im_start|>assistant\n"


# Breaks if a chat shows what the data says where the model said something else, or all that the rule leaves out.
@pytest.mark.parametrize("history", ["own", "teacher"])
def test_a_context_rule_says_what_is_shown(monkeypatch, history):
    script = Scripted(lambda prompt: f"<think>\nt\n</think>\n\nsaid{prompt.count('user')}<|im_end|>")
    (result,) = chat(
        script.install(monkeypatch), TOKENIZER, [long_talk()], max_new_tokens=40, batch_size=4, history=history,
        rules=[SUMS_UP],
    )  # fmt: skip
    first, summary, third = ("said1", "said2", "said2") if history == "own" else ("a1", "summary", "a3")
    told = [("system", "s"), ("user", f"So far:\n\n{summary}"), ("user", "q3")]
    assert script.prompts == [
        prompt_of(("system", "s"), ("user", "q1")),
        prompt_of(("system", "s"), ("user", "q1"), ("assistant", first), ("user", "sum up now")),
        prompt_of(*told),
        prompt_of(*told, ("assistant", third), ("user", "q4")),
    ]
    assert [message["content"] for message in result.messages][1:3] == [f"So far:\n\n{summary}", "q3"]


# A model whose summary is empty has lost what it was asked about, and the others go on.
def test_a_rule_that_fails_ends_its_chat_only(monkeypatch):
    script = Scripted(lambda prompt: "<|im_end|>" if "sum up" in prompt else "a<|im_end|>")
    with pytest.warns(
        UserWarning, match="2 turns were not asked: the context rule: compact: message 4 is to be a summ"
    ):
        one, other = chat(
            script.install(monkeypatch), TOKENIZER, [long_talk(), conversation(("q", "a"), name="test:2")],
            max_new_tokens=40, batch_size=4, rules=[SUMS_UP, None],
        )  # fmt: skip
    assert len(one.turns) == 2 and len(one.unasked) == 2 and other.correct


# Breaks if what was cleared at a turn that is not asked for comes back.
def test_a_rule_goes_on_from_what_it_showed_last(monkeypatch):
    seen = []

    def mine(messages, *, shown, count):
        seen.append((len(messages), len(shown), count(messages)))
        return messages[-1:]

    script = Scripted(lambda prompt: "a<|im_end|>")
    messages = long_talk().messages
    talk = Conversation("test:1", (*messages[:4], messages[4] | {"weight": 0}, *messages[5:]))
    chat(script.install(monkeypatch), TOKENIZER, [talk], max_new_tokens=9, batch_size=1, rules=[mine])
    assert [one[:2] for one in seen] == [(2, 0), (4, 1), (6, 1), (8, 1)]
    lengths = [len(TOKENIZER.encode(prompt_of(*((m["role"], m["content"]) for m in messages[:i])))) for i in (2, 4)]
    assert [one[2] for one in seen[:1]] == lengths[:1] and seen[1][2] <= lengths[1]
