"""What a Trainer is given as data (records, conversations, rows; in a list, a table or a stream) -> rows, and packs."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset
from tqdm.auto import tqdm

from flexmask.conversations.contexts import load_rule, name_of
from flexmask.conversations.conversation import Conversation
from flexmask.conversations.model_calls import Calls
from flexmask.conversations.notes import unread_and_notes
from flexmask.conversations.reading import AUTO
from flexmask.conversations.records import read_record
from flexmask.conversations.values import without_nulls
from flexmask.text.calls import calls_under, render_calls
from flexmask.text.rendering import render_conversation
from flexmask.tree.layouts import LaidOut, Row, lay_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Reasons that an error or a warning quotes.
_SHOWN = 20
# Conversations of a stream that are prepared to see where their turns end.
_LOOKED_AT = 32


def prepare_conversation(
    conversation: Conversation | Calls,
    tokenizer: PreTrainedTokenizerBase,
    *,
    layout: str = "one_pass",
    pack_length: int | None = None,
    too_long: str = "error",
    context: Mapping[str, Any] | None = None,
    **rendering: Any,
) -> LaidOut:
    """Conversation, or the calls of a record -> passes -> rows. `rendering` goes to `render_conversation`, the rest to
    `lay_out`.

    context: what a harness shows of a long conversation (`flexmask.conversations.contexts.load_rule`), for instance
        `{"rule": "keep_last_tool_results", "arguments": {"keep": 3}}`. Calls of a record say that themselves, and
        are left as they are, with a warning.

    Raises ValueError as they do, and for calls and context rules in layout "keep_thinking"."""
    keeps = layout == "keep_thinking"  # what earlier turns generated, in front of later ones, trained or not
    rule = load_rule(context)
    if rule is not None and isinstance(conversation, Conversation):
        conversation = calls_under(rule, conversation, tokenizer, **rendering)
    elif rule is not None:
        warnings.warn(
            f"a record of calls says itself what each call was shown; {name_of(rule)} is not applied to it",
            stacklevel=2,
        )
    if isinstance(conversation, Conversation):
        rendered = render_conversation(conversation, tokenizer, untrained=keeps, **rendering)
    elif keeps:
        raise ValueError(
            f'{conversation.name}: layout="keep_thinking" is for conversations that the chat template alone shows, and '
            f"this has {'calls' if rule is None else f'the context rule {name_of(rule)}'}"
        )
    else:
        rendered = render_calls(conversation, tokenizer, **rendering)
    laid_out = lay_out(rendered.passes, layout, pack_length, too_long)
    return replace(laid_out, retokenized_texts=rendered.retokenized_texts)


@dataclass(frozen=True)
class Preparation:
    """How records become conversations, and these rows: the tokenizer, and the arguments of `prepare_conversation`.

    tokenizer: None refuses whatever is not rows already. thinking_tags: as in `read_conversation`. drop_invalid: leave
    out conversations that cannot be read or rendered, with a warning that names them.
    """

    tokenizer: PreTrainedTokenizerBase | None
    settings: Mapping[str, Any]
    thinking_tags: Any = AUTO
    drop_invalid: bool = False

    def check(self, item: Any, name: str) -> None:
        """Raise ValueError, beginning with `name`, for an item that cannot be prepared whatever it says."""
        if not isinstance(item, (Conversation, Calls, Mapping)):
            raise ValueError(
                f"{name} is a {type(item).__name__}; give a record with 'messages' or 'calls', a Conversation or "
                "Calls, or the rows of one (prepare_conversation(...).rows)"
            )
        if self.tokenizer is None:
            raise ValueError(
                f"{name} is a {'record' if isinstance(item, Mapping) else type(item).__name__}, and there is no "
                "tokenizer to prepare it with; give processing_class=tokenizer"
            )
        if not self.tokenizer.chat_template:
            raise ValueError(
                "processing_class has no chat_template; set one (tokenizer.chat_template = ...), or give the tokenizer "
                "of a chat model"
            )

    def read(self, item: Any, name: str, of_table: bool) -> Conversation | Calls:
        """What a record holds, or `item` is. of_table: its nulls are those of a table."""
        if isinstance(item, (Conversation, Calls)):
            return item
        record = without_nulls(item) if of_table else item
        # Each item is a record of its own here: a Trainer joins none.
        return read_record(record, name, thinking_tags=self.thinking_tags, episode_key=None)

    def rows_of(self, conversation: Conversation | Calls) -> LaidOut:
        """The rows of a conversation. Raises ValueError naming it."""
        assert self.tokenizer is not None  # see `check`
        return prepare_conversation(conversation, self.tokenizer, **self.settings)


# A data set whose items are the rows of a conversation each.
Rows = Sequence[Sequence[Row]] | IterableDataset


def prepare_dataset(data: Any, name: str, preparation: Preparation, quiet: bool = True) -> tuple[Rows, tuple[int, ...]]:
    """The rows of a data set, and the ends of the turns that were prepared for it (`LaidOut.ends`).

    Rows are left as they are; records and conversations are prepared, at once or, those of a stream, when asked for.

    data: anything with a length and items (a list, `datasets.Dataset`), or a stream that can be read again and again
        (`IterableDataset`). name: of the argument, with which every error begins. quiet: no progress bar.

    Conversations without a turn to train are left out, and turns that `too_long` drops, with one warning that counts
    them; another names the keys of records that nothing reads. Raises ValueError for what is no data set of
    conversations, an empty one, and conversations or records that cannot be prepared, naming all of them.
    """
    if isinstance(data, (str, bytes)):
        raise ValueError(f"{name} is the string {data!r}; give the data itself: datasets.load_dataset(...), or a list")
    if isinstance(data, Mapping):
        raise ValueError(f"{name} is a {type(data).__name__} with the keys {list(data)}; give one of its data sets")
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        return _prepare_stream(data, name, preparation)
    if not len(data):
        raise ValueError(f"{name} is empty; give it conversations, or leave it out")
    try:
        first = data[0]
    except (LookupError, TypeError) as error:
        raise ValueError(f"{name} is a {type(data).__name__} without an item 0 ({error!r}); give a list") from error
    if is_rows(first):
        return data, ()
    of_table = _is_table(data)
    rows: list[tuple[Row, ...]] = []
    read: list[Conversation | Calls] = []
    ends: set[int] = set()
    dropped = 0
    invalid: list[str] = []
    for i in tqdm(range(len(data)), desc=f"preparing {name}", disable=quiet):
        item, item_name = data[i], f"{name}[{i}]"
        if is_rows(item):
            rows.append(tuple(item))
            continue
        preparation.check(item, item_name)
        try:
            conversation = preparation.read(item, item_name, of_table)
            laid_out = preparation.rows_of(conversation)
        except ValueError as error:
            invalid.append(str(error))
            continue
        read.append(conversation)
        dropped += len(laid_out.dropped_turns)
        ends.update(laid_out.ends)
        if laid_out.rows:
            rows.append(laid_out.rows)
    if invalid and not preparation.drop_invalid:
        raise ValueError(_invalid(invalid, len(data)))
    for said in unread_and_notes(read):
        warnings.warn(f"{name}: {said}", stacklevel=4)
    if invalid:
        warnings.warn(f"{name}: left out: {_invalid(invalid, len(data))}", stacklevel=4)
    if not rows:
        raise ValueError(f"{name}: none of its {len(data):,} conversations has a turn to train")
    if len(rows) < len(data) - len(invalid) or dropped:
        warnings.warn(
            f"{name}: {len(data) - len(invalid) - len(rows):,} of {len(data):,} conversations have no turn to train "
            "and are left out" + (f"; {dropped:,} turns are longer than a pack and were dropped" if dropped else ""),
            stacklevel=4,
        )
    return rows, tuple(sorted(ends))


def _invalid(reasons: Sequence[str], total: int) -> str:
    """All that is wrong with some conversations of `total`, as one error."""
    if len(reasons) == 1:
        return reasons[0]
    more = [f"... and {len(reasons) - _SHOWN:,} more"] if len(reasons) > _SHOWN else []
    lines = "\n".join([*reasons[:_SHOWN], *more])
    return f"{len(reasons):,} of {total:,} conversations cannot be prepared:\n{lines}"


def _is_table(data: Any) -> bool:
    """Whether records come from a table, in which each has the keys of all others: `datasets` calls them features."""
    return hasattr(data, "features")


def is_rows(item: Any) -> bool:
    """Whether an item is the rows of a conversation; one without a turn to train has none."""
    is_sequence = isinstance(item, Sequence) and not isinstance(item, (str, bytes))
    return is_sequence and all(isinstance(row, Row) for row in item)


def _prepare_stream(data: Any, name: str, preparation: Preparation) -> tuple[Rows, tuple[int, ...]]:
    if not isinstance(data, Iterable) or isinstance(data, Iterator):
        can = "can be read only once" if isinstance(data, Iterator) else "has no items"
        raise ValueError(
            f"{name} is a {type(data).__name__}, which {can}; give a list, a Dataset, or an IterableDataset with "
            "max_steps"
        )
    stream = _Stream(data, name, preparation)
    ends = {end for laid_out in itertools.islice(stream.prepared(), _LOOKED_AT) for end in laid_out.ends}
    return stream, tuple(sorted(ends))


class _Stream(IterableDataset):
    """The rows of each conversation of a stream, prepared when asked for; those without are passed over."""

    def __init__(self, data: Iterable, name: str, preparation: Preparation) -> None:
        self.data, self.name, self.preparation = data, name, preparation
        self._said: set[str] = set()

    def prepared(self) -> Iterator[LaidOut]:
        of_table = _is_table(self.data)
        for i, item in enumerate(self.data):
            name = f"{self.name}[{i}]"
            if is_rows(item):
                yield LaidOut(tuple(item), ())
                continue
            self.preparation.check(item, name)
            try:
                conversation = self.preparation.read(item, name, of_table)
                laid_out = self.preparation.rows_of(conversation)
            except ValueError as error:
                if not self.preparation.drop_invalid:
                    raise
                warnings.warn(f"left out: {error}", stacklevel=2)
                continue
            self._say_once(conversation)
            yield laid_out

    def _say_once(self, conversation: Conversation | Calls) -> None:
        keys = [f"the key {key!r} of records is not read" for key in conversation.unread]
        for said in [one for one in (*conversation.notes, *keys) if one not in self._said]:
            self._said.add(said)
            warnings.warn(f"{self.name}: {said}", stacklevel=2)

    def __iter__(self) -> Iterator[tuple[Row, ...]]:
        said, trained = False, False
        for i, laid_out in enumerate(self.prepared()):
            if laid_out.rows:
                trained = True
                yield laid_out.rows
            if not said and (laid_out.dropped_turns or not laid_out.rows):
                said = True
                what = "turns longer than a pack, which are dropped" if laid_out.dropped_turns else "no turn to train"
                warnings.warn(
                    f"{self.name}[{i}] has {what}; nothing is said of others like it, because a stream is not counted",
                    stacklevel=2,
                )
        if not trained:  # else the Trainer would ask for the first batch of nothing
            raise ValueError(f"{self.name}: none of its conversations has a turn to train")

    def set_epoch(self, epoch: int) -> None:
        """Tell the stream, which may shuffle by it."""
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch(epoch)
