"""Context rules: what a harness shows a model of a conversation that has grown long, and the calls that this makes.

A rule is a function

    rule(messages, **arguments) -> messages

which is given all messages in front of an assistant turn, as the data has them, thinking included, and returns those
that the harness shows for that turn. It changes no message and leaves new ones in place of those that it shows
otherwise. A rule may ask for more by the names of its parameters:

    shown                what it returned for the assistant turn before, () for the first: the history of the harness
    count                count(messages) -> how many tokens the prompt of these messages has, as the template writes it
    require_thinking     require_thinking(messages) raises ValueError for thinking in them that the prompt leaves out

`calls_of` makes the calls of a conversation under a rule. What calls have in common is found from their tokens later,
so a rule need not know what it shares.
"""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from flexmask.conversations.conversation import Conversation, check_message
from flexmask.conversations.model_calls import Call, Calls
from flexmask.conversations.values import brief
from flexmask.conversations.values import shown as quoted
from flexmask.importing import code_of, function_at, is_import_path

Message = dict[str, Any]
Messages = Sequence[Message]
Rule = Callable[..., Messages]
GIVEN = ("shown", "count", "require_thinking")  # what a rule may ask for, as above
CLEARED = "[Old tool result content cleared]"
OMITTED = "Old environment output: ({lines} lines omitted)"


def keep_last_tool_results(messages: Messages, *, keep: int, placeholder: str = CLEARED) -> Messages:
    """The last `keep` results of tools as they are, and `placeholder` in place of the content of older ones."""
    return _without(messages, _results(messages), keep, placeholder)


def clear_tool_results(
    messages: Messages,
    *,
    shown: Messages,
    count: Callable[[Messages], int],
    threshold: int,
    keep: int,
    placeholder: str = CLEARED,
) -> Messages:
    """All of it until the prompt has more than `threshold` tokens; then the content of all results of tools but the
    last `keep` is cleared. What was cleared stays so, and what comes after it stays until the prompt has grown beyond
    `threshold` again."""
    history = [*shown, *messages[len(shown) :]]
    if count(history) <= threshold:
        return history
    return _without(history, _results(history), keep, placeholder)


def last_observations(messages: Messages, *, keep: int, placeholder: str = OMITTED) -> Messages:
    """The last `keep` observations as they are, and `placeholder` in place of the content of older ones.

    Observations are the messages of the roles tool and user behind the first assistant message; what stands in front of
    that is the task, which stays.
    """
    first = next((i for i, one in enumerate(messages) if one["role"] == "assistant"), len(messages))
    observations = [i for i, one in enumerate(messages) if i > first and one["role"] in ("tool", "user")]
    return _without(messages, observations, keep, placeholder)


def compact(messages: Messages, *, instruction: str, introduction: str, keep_first: int = 0) -> Messages:
    """The last summary that the model wrote, in place of what it sums up, and what came after it; all without one.

    A user message that begins with `instruction` asks for a summary, and the assistant message behind it is one, of all
    that was shown until then. Later calls see the system messages in front, the first `keep_first` messages behind
    them, a user message with `introduction`, an empty line and the text of the summary, and what came after it.

    Raises ValueError for a summary without text.
    """
    asked = [
        i
        for i, (one, answer) in enumerate(zip(messages, messages[1:], strict=False))
        if one["role"] == "user" and one["content"].startswith(instruction) and answer["role"] == "assistant"
    ]
    if not asked:
        return messages
    at = asked[-1]
    summary = messages[at + 1]["content"]
    if not summary.strip():
        raise ValueError(f"message {at + 1} is to be a summary and has no text; give one")
    start = next(i for i, one in enumerate(messages) if one["role"] not in ("system", "developer"))
    head = messages[: min(start + keep_first, at)]
    return [*head, {"role": "user", "content": f"{introduction}\n\n{summary}"}, *messages[at + 2 :]]


def keep_thinking_of_last(messages: Messages, *, require_thinking: Callable[[Messages], None], keep: int) -> Messages:
    """The thinking of the last `keep` assistant turns before this one, and none of older ones.

    Raises ValueError where the chat template does not show what is to stay.
    """
    turns = [i for i, one in enumerate(messages) if one["role"] == "assistant"]
    older = set(_older(turns, keep))
    kept = [
        {key: value for key, value in one.items() if key != "reasoning_content"} if i in older else one
        for i, one in enumerate(messages)
    ]
    require_thinking(kept)
    return kept


def _results(messages: Messages) -> list[int]:
    return [i for i, one in enumerate(messages) if one["role"] == "tool"]


def _older(places: Sequence[int], keep: int) -> Sequence[int]:
    return places[: max(0, len(places) - keep)]


def _without(messages: Messages, places: Sequence[int], keep: int, placeholder: str) -> list[Message]:
    """The messages with `placeholder` as the content of those at `places` but the last `keep`. `{lines}` in it is how
    many lines stood there. All else of a message stays, such as the id of the call that it answers."""
    found = list(messages)
    for i in _older(places, keep):
        lines = len(found[i]["content"].splitlines())
        found[i] = found[i] | {"content": placeholder.replace("{lines}", str(lines))}
    return found


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (keep_last_tool_results, clear_tool_results, last_observations, compact, keep_thinking_of_last)
}


def load_rule(context: Any) -> Rule | None:
    """The rule that a setting stands for, with its arguments; None for None, and where its `rule` is None: all is shown
    that the chat template shows.

    context: `rule`, one of RULES or the import path of a function, `package.module:function`, which is looked for in
    the current folder as well; and `arguments`, its keyword arguments by name.

    Raises ValueError naming `rule` or the argument, the value found and what there is.
    """
    if context is None:
        return None
    if not isinstance(context, Mapping) or (wrong := context.keys() - {"rule", "arguments"}):
        found = quoted(context) if not isinstance(context, Mapping) else f"the key {brief(sorted(wrong)[0])}"
        raise ValueError(f"context has {found}; give {{'rule': ..., 'arguments': {{...}}}}")
    name, arguments = context.get("rule"), context.get("arguments") or {}
    if name is None:
        if arguments:
            raise ValueError(f"arguments={dict(arguments)}: there is no rule to take them; give one, or leave them out")
        return None
    if name not in RULES and not (isinstance(name, str) and is_import_path(name)):
        raise ValueError(
            f"rule={name}: no such rule; choose {', '.join(RULES)}, or give a function package.module:function"
        )
    if name in RULES:
        function = RULES[name]
    else:
        try:
            function = function_at(name)
        except ValueError as error:
            raise ValueError(f"rule={name}: {error}") from error
    _check_arguments(name, function, arguments)
    return functools.partial(function, **arguments)


def _check_arguments(name: str, function: Rule, arguments: Mapping[str, Any]) -> None:
    """Raise ValueError unless the function takes the arguments, and needs no others but what a rule may ask for."""
    try:
        _, *parameters = inspect.signature(function).parameters.values()
    except ValueError as error:  # a function in C may not tell its signature, and one may have no parameters
        raise ValueError(f"rule={name}: is no function of messages and keyword arguments") from error
    named = [one for one in parameters if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)]
    own = {one.name: one for one in named if one.name not in GIVEN}
    for key, value in arguments.items():
        if key in GIVEN or not (key in own or any(one.kind is one.VAR_KEYWORD for one in parameters)):
            raise ValueError(f"arguments.{key}={value}: rule={name} has no such argument; it has {', '.join(own)}")
        kind = _hints(function).get(key)
        if kind in (int, float, str, bool) and (
            not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        ):
            raise ValueError(f"arguments.{key}={value}: must be of the type {kind.__name__}")
        if name in RULES and kind is int and value < 0:
            raise ValueError(f"arguments.{key}={value}: must be 0 or more")
    if missing := [key for key, one in own.items() if one.default is one.empty and key not in arguments]:
        raise ValueError(f"arguments.{missing[0]}: has no value; rule={name} needs it")


def _hints(function: Rule) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except Exception:  # of a user's function, which may name types that are not there
        return {}


def source_of(context: Any) -> Path | None:
    """Where the code of a user's own rule stands: the file of its module, or the folder of the package that it is in.
    None for rules of RULES, and without a rule. Raises ValueError as `load_rule` does, and for code that stands in no
    file."""
    if (rule := load_rule(context)) is None or context["rule"] in RULES:
        return None
    place = code_of(rule)
    if place is None:
        raise ValueError(
            f"rule={context['rule']}: its code stands in no file; give a function of a module that has one"
        )
    return place


def name_of(rule: Rule) -> str:
    """The name of a rule, without its arguments."""
    return getattr(getattr(rule, "func", rule), "__name__", "the context rule")


def shown_by(rule: Rule, messages: Messages, where: str, shown: Messages = (), **abilities: Any) -> tuple[Message, ...]:
    """What a rule shows of the messages in front of an assistant turn.

    shown: what it has shown for the turn before. abilities: `count` and `require_thinking`, for a rule that asks for
    them.

    Raises ValueError, beginning with `where`, when the rule raises or returns what are no messages.
    """
    where = f"{where}: {name_of(rule)}"
    _, *parameters = inspect.signature(rule).parameters
    given = {key: value for key, value in {"shown": shown, **abilities}.items() if key in parameters}
    try:
        found = rule(messages, **given)
    except Exception as error:  # a user's rule may raise anything
        said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{where}: {said}") from error
    if not isinstance(found, (list, tuple)) or not found:
        raise ValueError(f"{where}: returned {quoted(found)}; return the messages that are shown, as a list")
    known = set(map(id, messages))
    for number, one in enumerate(found):
        if id(one) not in known:
            check_message(one, f"{where}: message {number} of what it shows")
    if found[0]["role"] == "assistant":
        raise ValueError(f"{where}: what it shows begins with an assistant message; put what asks for it in front")
    if found[-1]["role"] == "assistant" and messages[-1]["role"] != "assistant":
        raise ValueError(
            f"{where}: what it shows ends with an assistant message, which the turn would go on with; leave what "
            "stands behind that, or put what asks for the turn there"
        )
    return tuple(found)


def calls_of(conversation: Conversation, rule: Rule, **abilities: Any) -> Calls:
    """The calls of a conversation under a rule: one an assistant turn, each with what the rule shows of the messages in
    front of that turn.

    The calls are numbered as the turns, and a turn of weight 0 is a call that is not trained. abilities: `count` and
    `require_thinking`, for a rule that asks for them; `flexmask.text.calls.calls_under` gives them.

    Warns where the rule changes nothing. Raises ValueError as `shown_by` does, naming the conversation and the turn,
    and for a rule that changes messages in place.
    """
    calls: list[Call] = []
    changed = False
    shown: tuple[Message, ...] = ()
    as_given = copy.deepcopy(conversation.messages)
    for index, message in enumerate(conversation.messages):
        if message["role"] != "assistant":
            continue
        where = f"{conversation.name}: call {len(calls)} (message {index})"
        before = conversation.messages[:index]
        shown = shown_by(rule, before, where, shown, **abilities)
        if wrong := [i for i in range(index) if before[i] != as_given[i]]:
            raise ValueError(
                f"{where}: {name_of(rule)}: has changed message {wrong[0]} in place, which later turns are shown too; "
                "leave it as it is, and return another: message | {'content': ...}"
            )
        changed = changed or shown != before
        calls.append(Call.behind(shown, message, where, conversation))
    if not changed:
        warnings.warn(f"the context rule {name_of(rule)} changes nothing", stacklevel=2)
    return Calls(
        conversation.name,
        tuple(calls),
        format=f"calls under {name_of(rule)}",
        unread=conversation.unread,
        notes=conversation.notes,
    )
