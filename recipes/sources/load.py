"""The conversations that `conf/data` names: generated, from files, from the hub, or a mix of sources; some held out.

Nothing is left out silently: an invalid record is an error, or with `data.on_invalid=drop` a line in
`LoadedData.dropped`. Names of conversations are those of their records (`recipes.sources.files`), `<hub id>/<split>[i]`
for data of the hub, and in a mix `<source>/` and such a name.
"""

import functools
import hashlib
import itertools
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np

from flexmask import Calls, Conversation
from flexmask.conversations.conversation import check_template_kwargs
from flexmask.conversations.notes import said_of_reading
from recipes.configuration.schema import GENERATED, DataConfig, DataKind, OnInvalid, SourceConfig
from recipes.distributed import ranks
from recipes.distributed.processes import available_processors, mapping
from recipes.sources import Entry, Part, documents, programs
from recipes.sources.conversation_store import Reading, ReadPart, StoredConversations, keep_part
from recipes.sources.files import read_path
from recipes.sources.filters import load_filters, without_rare_reasons
from recipes.sources.flaws import flawed
from recipes.sources.gsm8k import HUB_CONFIG, HUB_ID
from recipes.sources.heldout import repeated, share, split_heldout
from recipes.sources.hub import read_hub
from recipes.sources.invalid import shown
from recipes.sources.parcels import episodes
from recipes.sources.parts import parts_of_entries
from recipes.sources.tutoring import dialogues
from recipes.sources.tutoring_pairs import careless, pairs
from recipes.storage import shards

# Records without end, of a seed and a split.
_GENERATORS = {
    DataKind.tutoring: dialogues,
    DataKind.careless_tutoring: careless,
    DataKind.tutoring_pairs: pairs,
    DataKind.parcels: episodes,
    DataKind.programs: programs.sessions,
    DataKind.documents: documents.sessions,
}
# Fewer parts than this are read before other processes have started.
_WORTH_PROCESSES = 8


@dataclass(frozen=True)
class SourceCounts:
    """Counts for one source. `train` counts repetitions: weight 2 counts each conversation twice."""

    read: int
    train: int
    heldout: int
    dropped: int

    def __str__(self) -> str:
        dropped = f", {self.dropped:,} invalid and left out" if self.dropped else ""
        return f"{self.read:,} conversations, {self.train:,} to train in an epoch, {self.heldout:,} held out{dropped}"


@dataclass(frozen=True)
class LoadedData:
    """train: one epoch, in the order of the sources; a source of weight 2 stands there twice.
    heldout: each once, and no conversation of it is in `train`, whatever its thinking.
    dropped: why each record is left out as invalid, by its name; empty with `data.on_invalid=error`.
    sources: by name; of a mix its own, else one.
    formats: how many conversations were read from which format.
    """

    train: StoredConversations
    heldout: StoredConversations
    dropped: dict[str, str]
    sources: dict[str, SourceCounts]
    formats: dict[str, int]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what is trained and held out, in its order; names of files and lines do not count."""
        digest = hashlib.sha256()
        for part in (self.train, self.heldout):
            for one in part.digests():
                digest.update(one)
            digest.update(b"\n")
        return digest.hexdigest()


def choose(data: LoadedData, wanted: str) -> Conversation | Calls:
    """The conversation, or record of calls, that a user names: by its index among those trained, or by its name (of an
    episode, by that of any of its records). Raises ValueError where there is none, or it was left out as invalid."""
    if wanted.isdecimal() and int(wanted) < len(data.train):
        return data.train[int(wanted)]
    for some in (data.train, data.heldout):
        for index, names in enumerate(some.names_of_records()):
            if wanted in names:
                return some[index]
    if wanted in data.dropped:
        raise ValueError(f"conversation {wanted!r}: invalid, left out: {data.dropped[wanted]}")
    raise ValueError(
        f"conversation {wanted!r}: there is none of this name or index; names are like {data.train[0].name!r}, "
        f"indices go from 0 to {len(data.train) - 1:,}"
    )


def load_data(data: DataConfig) -> LoadedData:
    """Conversations to train on and to evaluate with; the same for the same settings and sources.

    Which ones are held out depends on `data.seed` and on the text of each conversation only, so a longer file moves few
    of them and another `train_conversations` none.

    Raises ValueError when a file is not what its name says, when the hub cannot be reached, when records are invalid
    (it counts them and quotes the first few; `data.on_invalid=drop` leaves them out), when a source has no valid
    conversation, and when `data.heldout_conversations` are more than can be held out.
    """
    with ranks.first_on_machine():
        return _generated(data) if data.kind in GENERATED else _loaded(data)


def _loaded(data: DataConfig) -> LoadedData:
    mix = data.kind is DataKind.mix
    sources: dict[str, DataConfig | SourceConfig] = dict(data.sources) if mix else {_name(data): data}
    read: list[list[ReadPart]] = []
    to_train: list[ReadPart] = []  # the same records without loss on what the filters refuse
    filters = tuple(data.filter)
    load_filters(filters)  # a wrong name fails before anything is read
    for name, source in sources.items():
        key, prefix = (f"data.sources.{name}", f"{name}/") if mix else ("data", "")
        of_source = source.template_kwargs if mix else None  # else those of the run
        check_template_kwargs(of_source, f"{key}.template_kwargs")
        is_gsm8k = source.kind is DataKind.gsm8k_socratic
        reading = Reading(data.thinking_tags, data.seed, prefix, is_gsm8k, of_source, data.episode_key)
        found = _read(_parts(source, data.seed, key), reading, data)
        if filters:
            to_train += _read(_parts(source, data.seed, key), replace(reading, filters=filters), data)
        if not any(len(one.valid) for one in found):
            left_out = sum(len(one.invalid) for one in found)
            raise ValueError(f"{key}: {_name(source)} has no valid conversation; {left_out:,} were left out")
        read.append(found)
    everything = [one for found in read for one in found]
    _say_of_reading(to_train or everything)
    items = [_items(found) for found in read]
    split = split_heldout([one.order for one in items], data.heldout_conversations)
    train, heldout, episodes, counts, offset = [], [], {}, {}, 0
    for (name, source), found, of_source, is_held in zip(sources.items(), read, items, split, strict=True):
        key = f"data.sources.{name}" if mix else "data"
        numbers = of_source.numbers + offset
        episodes |= {first + offset: records + offset for first, records in of_source.episodes.items()}
        offset += sum(one.records for one in found)
        rest, held = numbers[~is_held], numbers[is_held]
        made = source.kind in GENERATED  # as many as train_conversations says, of which some are held out
        if not made and source.train_conversations is not None and source.train_conversations > len(rest):
            warnings.warn(
                f"{key}.train_conversations={source.train_conversations}: {len(rest):,} are left to train when "
                f"{len(held):,} are held out; all of them are taken",
                stacklevel=4,
            )
        epoch = rest[: source.train_conversations]
        if mix:
            again = of_source.order_again[~is_held][: source.train_conversations]
            epoch = epoch[repeated(again, source.weight)]
            if not len(epoch):
                raise ValueError(
                    f"{key}.weight={source.weight:g}: leaves none of {len(again):,} conversations; raise it"
                )
        train.append(epoch)
        heldout.append(held)
        counts[name] = SourceCounts(len(numbers), len(epoch), len(held), sum(len(one.invalid) for one in found))
    return _data(everything, np.concatenate(train), np.concatenate(heldout), counts, episodes, to_train)


def _generated(data: DataConfig) -> LoadedData:
    """Generated data: the generator keeps the splits apart itself, so both have the numbers asked for."""
    count, heldout_count = data.train_conversations, data.heldout_conversations
    if heldout_count is None:
        (heldout_count,) = share([count])
    filters = tuple(data.filter)
    load_filters(filters)
    # Flaws and filters are of what is trained; what is held out stays as it was made.
    of_training, of_heldout = Reading("auto", data.seed, filters=filters), Reading("auto", data.seed)
    read = [
        _read(parts_of_entries(_entries(data.kind, number, data.seed, split, flaws)), reading, data)
        for number, split, flaws, reading in (
            (count, "train", data.flaws, of_training),
            (heldout_count, "heldout", {}, of_heldout),
        )
    ]
    _say_of_reading(read[0])
    train, heldout = map(_numbers, read)
    counts = SourceCounts(count + heldout_count, count, heldout_count, 0)
    return _data([*read[0], *read[1]], train, heldout + count, {_name(data): counts})


def _data(
    read: list[ReadPart],
    train: np.ndarray,
    heldout: np.ndarray,
    counts: dict[str, SourceCounts],
    episodes: dict[int, np.ndarray] | None = None,
    to_train: list[ReadPart] | None = None,
) -> LoadedData:
    """train, heldout: numbers of records, those of all parts counted through. episodes: as in `_Items`. to_train: the
    same parts as they are trained, where that is otherwise."""
    of_all = shards.Shards([one.kept.file for one in read], [one.records for one in read])
    trained = shards.Shards([one.kept.file for one in to_train], [one.records for one in read]) if to_train else of_all
    return LoadedData(
        StoredConversations(trained, train, episodes),
        StoredConversations(of_all, heldout, episodes),
        {name: why for one in read for name, why in one.invalid.items()},
        counts,
        dict(_total(one.formats for one in read).most_common()),
    )


def _say_of_reading(read: list[ReadPart]) -> None:
    valid = sum(len(one.valid) for one in read)
    unread, notes = _total(one.unread for one in read), _total(one.notes for one in read)
    few, others = without_rare_reasons(notes)
    said = said_of_reading(valid, unread, few)
    said += [f"data.filter: answers are not trained for {others:,} other reasons, each a rarer one"] if others else []
    for one in said:
        warnings.warn(one, stacklevel=5)


def _total(counts: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return total


def _numbers(read: list[ReadPart]) -> np.ndarray:
    """The numbers of the valid records, those of all parts counted through."""
    starts = np.cumsum([0, *(one.records for one in read)])
    parts = [start + one.valid for start, one in zip(starts, read, strict=False)]
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])


@dataclass(frozen=True)
class _Items:
    """What is trained or held out of a source as one: valid records, and episodes of several.

    numbers: of the records, those of all parts counted through; of an episode that of the first. order, order_again: as
    in `ReadPart`, one for each of them. episodes: the numbers of all records of those that have several, by the first.
    """

    numbers: np.ndarray
    order: np.ndarray
    order_again: np.ndarray
    episodes: dict[int, np.ndarray]


def _items(read: list[ReadPart]) -> _Items:
    """Those of all parts of a source, in the order of their first records. An episode has a hash of those of its
    records, in whatever order they stand."""
    numbers, episode = _numbers(read), np.concatenate([one.episode for one in read])
    order, order_again = (np.concatenate([getattr(one, name) for one in read]) for name in ("order", "order_again"))
    in_order = np.argsort(episode, kind="stable")
    borders = np.flatnonzero(episode[in_order][1:] != episode[in_order][:-1]) + 1
    several = [one for one in np.split(in_order, borders) if len(one) > 1 and episode[one[0]]]
    alone = np.ones(len(numbers), dtype=bool)
    for members in several:
        alone[members[1:]] = False
        for hashes in (order, order_again):
            hashes[members[0]] = hashlib.sha256(b"".join(np.sort(hashes[members]).tolist())).digest()
    episodes = {int(numbers[members[0]]): numbers[members] for members in several}
    return _Items(numbers[alone], order[alone], order_again[alone], episodes)


def _read(parts: Iterator[Part], reading: Reading, data: DataConfig) -> list[ReadPart]:
    """What is known of each part, in order. With `data.on_invalid=error` one ValueError for all invalid records."""
    first = list(itertools.islice(parts, _WORTH_PROCESSES))
    few = len(first) < _WORTH_PROCESSES
    processes = 1 if few else available_processors(data.processes)
    read = []
    with mapping(functools.partial(keep_part, reading=reading, of_reading=reading.digest()), processes) as mapped:
        for one in mapped(itertools.chain(first, parts)):
            if one.kept.damage:
                warnings.warn(one.kept.damage, stacklevel=5)
            read.append(one)
    if any(one.kept.is_new for one in read):
        shards.remove_old()
    invalid = [why for one in read for why in one.invalid.values()]
    if invalid and data.on_invalid == OnInvalid.error:
        raise ValueError(
            f"{len(invalid):,} of {sum(one.records for one in read):,} conversations are invalid:\n{shown(invalid)}\n"
            "Repair them, or leave them out, counted, with data.on_invalid=drop"
        )
    return read


def _parts(source: DataConfig | SourceConfig, seed: int, key: str) -> Iterator[Part]:
    """The records of a source: generated, of its path where it has one, else of the hub."""
    if source.kind in GENERATED:
        return parts_of_entries(_entries(source.kind, source.train_conversations, seed, "train"))
    if source.path is not None:
        return read_path(source.path, source.split, f"{key}.path")
    hub_id, hub_config = source.hub_id, source.hub_config
    if hub_id is None and source.kind is DataKind.gsm8k_socratic:
        hub_id, hub_config = HUB_ID, hub_config or HUB_CONFIG
    if hub_id is None:
        raise ValueError(f"{key}.path: has no value; give a file, folder or pattern (or {key}.hub_id, data of the hub)")
    return read_hub(hub_id, hub_config, source.split, key)


def _entries(
    kind: DataKind, count: int, seed: int, split: str, flaws: Mapping[str, float] = MappingProxyType({})
) -> Iterator[Entry]:
    records = itertools.islice(_GENERATORS[kind](seed, split), count)
    for index, record in enumerate(flawed(records, flaws, seed) if flaws else records):
        yield f"{kind}/{split}[{index}]", record


def _name(source: DataConfig | SourceConfig) -> str:
    return source.path or source.hub_id or str(source.kind)
