"""Evaluation by chatting, against a scripted model whose replies are known and against one-by-one generation."""

import pytest
import torch

import flexmask  # noqa: F401  registers the attention implementation
from flexmask.conversation import Conversation
from recipes.chat import accuracy_by_turn, answer_accuracy, chat, conversation_accuracy, parse_reply
from recipes.tiny import build_model, build_tokenizer
from recipes.tutoring import generate

TOKENIZER = build_tokenizer()


def conversation(*turns, name="test:1", system=None):
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Conversation(name=name, messages=tuple(messages))


class Scripted:
    """Answers a prompt with what `reply` makes of its text; records every prompt it was shown."""

    def __init__(self, reply):
        self.reply = reply
        self.prompts = []
        self.model = build_model(0, vocab_size=len(TOKENIZER), layers=1, hidden_size=16)

    def install(self, monkeypatch):
        monkeypatch.setattr(self.model, "generate", self.generate, raising=False)
        return self.model

    def generate(self, input_ids, attention_mask, generation_config):
        rows = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            prompt = TOKENIZER.decode(ids[mask.bool()])
            assert not mask[: int((mask == 0).sum())].any()  # padded on the left
            self.prompts.append(prompt)
            new = TOKENIZER.encode(self.reply(prompt))[: generation_config.max_new_tokens]
            rows.append(ids.tolist() + new)
        width = max(map(len, rows))
        return torch.tensor([row + [TOKENIZER.pad_token_id] * (width - len(row)) for row in rows])


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
    assert answer_accuracy(results) == 3 / 4
    assert conversation_accuracy(results) == 1 / 2
    assert accuracy_by_turn(results) == [1.0, 0.0, 1.0]


def test_a_turn_that_does_not_end_is_wrong_even_with_the_right_text(monkeypatch):
    script = Scripted(lambda prompt: "yes")  # no end of turn
    (result,) = chat(
        script.install(monkeypatch), TOKENIZER, [conversation(("a", "yes"))], max_new_tokens=9, batch_size=1
    )
    (turn,) = result.turns
    assert (turn.answer, turn.finished, turn.correct) == ("yes", False, False)


@pytest.mark.parametrize(
    ("reply", "ended", "opened", "parsed"),
    [
        ("<think>\nt\n</think>\n\na", True, False, ("t", "a", True)),
        ("<think>\n\n</think>\n\na", True, False, ("", "a", True)),
        ("a", True, False, ("", "a", True)),
        ("<think>\nt", True, False, ("t", "", False)),  # ended inside its thinking
        ("t\n</think>\n\na", True, True, ("t", "a", True)),  # the prompt opened the thinking
        ("t", True, True, ("t", "", False)),
        ("<think>\nt\n</think>\n\na", False, False, ("t", "a", False)),
    ],
)
def test_replies_are_split_at_the_end_of_thinking(reply, ended, opened, parsed):
    assert parse_reply(reply, ended, thinking_opened=opened) == parsed


def test_messages_not_trained_are_shown_as_they_stand(monkeypatch):
    script = Scripted(lambda prompt: "b<|im_end|>")
    messages = (
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "example", "train": False},
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


@pytest.fixture(scope="module")
def model():
    return build_model(1, vocab_size=len(TOKENIZER), layers=2)


def test_batches_change_nothing(model):
    # Broken by wrong left padding or positions. The untrained model's replies are long and differ by prompt.
    talks = [Conversation.from_record(r, f"t:{i}") for i, r in enumerate(generate(6, 4, "heldout"))]
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


def test_bad_input_is_refused(model):
    with pytest.raises(ValueError, match="at least one conversation"):
        chat(model, TOKENIZER, [], max_new_tokens=2, batch_size=1)
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    messages = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]})
    with pytest.raises(ValueError, match=r"test:9: chatting runs no tools, and message 1 calls one"):
        chat(model, TOKENIZER, [Conversation(name="test:9", messages=messages)], max_new_tokens=2, batch_size=1)
    bare = build_tokenizer()
    bare.chat_template = None
    with pytest.raises(ValueError, match="no chat_template"):
        chat(model, bare, [conversation(("q", "a"))], max_new_tokens=2, batch_size=1)
