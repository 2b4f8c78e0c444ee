"""Chat on held-out conversations with the histories that are asked for, and what the replies say of the model."""

import datetime
import random
import warnings
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flexmask import Calls, Conversation
from flexmask.conversations.contexts import Rule
from flexmask.text.control_tokens import guard_control_tokens
from recipes.configuration.rules import rule_of
from recipes.configuration.schema import TEMPLATE, ContextConfig, DataConfig, EvaluationConfig, History
from recipes.distributed import ranks
from recipes.evaluation.chat import chat, turns_to_ask
from recipes.evaluation.environments import OF_KIND
from recipes.evaluation.judges import load_judges
from recipes.evaluation.replies import ChatResult, figures
from recipes.terminal.progress import progress


def evaluate_chats(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    heldout: Sequence[Conversation | Calls],
    evaluation: EvaluationConfig,
    data: DataConfig,
    context: ContextConfig = TEMPLATE,
) -> tuple[dict[str, Any], list[ChatResult]]:
    """Chat on `heldout` as `evaluation` says, with the template's arguments and the date of `data`, and histories as
    `context` shows them; calls of a record say themselves what they are shown.

    Returns the figures of `recipes.evaluation.replies.figures` for each history that is asked for (those of teacher
    history with `teacher_` in front) and the chats, those with own history first. More conversations asked for than
    there are: all of them. Shows its progress on stderr. Raises what `load_judges` and `chat` raise, which no
    conversation causes that `recipes.preparation.rows.prepare_heldout` finds valid.
    """
    judges = load_judges(evaluation)
    asked = sample(heldout, evaluation.conversations, data.seed)
    rule = rule_of(context)
    rules = [rule if isinstance(some, Conversation) else None for some in asked for _ in conversations_of(some)]
    # Prompts show what training showed of control tokens in message text.
    chosen = [
        guard_control_tokens(one, tokenizer, data.control_tokens) for some in asked for one in conversations_of(some)
    ]
    turns = sum(len(turns_to_ask(one)) for one in chosen)
    found, chats = {}, []
    for history, prefix in ((History.own, ""), (History.teacher, "teacher_")):
        if evaluation.history not in (history, History.both):
            continue
        with progress(turns, f"chatting with {history} history") as advance:
            results = _chat_in_all_processes(
                model,
                tokenizer,
                chosen,
                rules,
                max_new_tokens=evaluation.max_new_tokens,
                batch_size=evaluation.batch_size,
                history=history,
                matcher=judges.matcher,
                thinking_matcher=judges.thinking_matcher,
                probe=judges.probe,
                environment=OF_KIND.get(data.kind),
                template_kwargs=data.template_kwargs,
                date=datetime.date.fromisoformat(data.date),
                advance=advance,
            )
        found |= {prefix + name: value for name, value in figures(results).items()}
        chats += results
    return found, chats


def _chat_in_all_processes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chosen: Sequence[Conversation],
    rules: Sequence[Rule | None],
    **settings: Any,
) -> list[ChatResult]:
    """`chat` on a share of the conversations in each process of a run; the results of all of them, in order."""
    if ranks.count() == 1:
        return chat(model, tokenizer, chosen, rules=rules, **settings)
    mine = range(ranks.rank(), len(chosen), ranks.count())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = chat(model, tokenizer, [chosen[i] for i in mine], rules=[rules[i] for i in mine], **settings)
    texts = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    for text in dict.fromkeys(ranks.gathered(texts)):
        warnings.warn(text, stacklevel=3)
    of_all = ranks.gathered(list(zip(mine, results, strict=True)))
    return [result for _, result in sorted(of_all, key=lambda one: one[0])]


def conversations_of(one: Conversation | Calls) -> list[Conversation]:
    """What can be chatted: a conversation, or each call of a record behind its own prompt; of token ids nothing can."""
    if isinstance(one, Conversation):
        return [one]
    best = one.rewards and one.rewards.index(max(one.rewards))  # of answers that compete the one to be learned
    asked = [
        call
        for call in one.calls
        if call.weight and call.completion_ids is None and (not one.rewards or call.candidate == best)
    ]
    return [call.conversation for call in asked if call.conversation is not None]


def sample(conversations: Sequence[Conversation | Calls], count: int | None, seed: int) -> list[Conversation | Calls]:
    """At most `count` of the conversations (None: all), in their order; always the same ones for the same seed.

    Drawn at random, because a file may be sorted and a mix has one source behind the other.
    """
    if count is None or count >= len(conversations):
        return list(conversations)
    return [conversations[i] for i in sorted(random.Random(seed).sample(range(len(conversations)), count))]
