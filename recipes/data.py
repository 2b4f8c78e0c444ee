"""Load conversations: generated, from the Hugging Face hub, or from a local file; then hold some of them out.

Nothing is left out silently: an invalid record is an error, or with `on_invalid="drop"` a line in
`LoadedData.dropped`. Names of conversations are `<file name>:<line>` for files of JSON lines (blank lines
count), `<file name>[<index from 0>]` for a JSON list or Parquet file, `<hub id>/<split>[<index>]` for the
hub.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexmask.conversation import Conversation
from recipes.gsm8k import to_record

Record = Mapping[str, Any]
# A record, or the reason why what stands in its place is none.
Entry = tuple[str, Record | ValueError]

KINDS = ("tutoring", "gsm8k_socratic", "mathchatsync", "jsonl")
HUB_SOURCES = {
    "gsm8k_socratic": ("openai/gsm8k", "socratic"),
    "mathchatsync": ("devrev-research/MathChatSync-reasoning", None),
}
ERRORS_SHOWN = 5


@dataclass(frozen=True)
class LoadedData:
    """train: in the order of the source. heldout: no conversation of it is in `train`, whatever its thinking.
    dropped: for each record left out as invalid, why, beginning with its name; empty with
    `on_invalid="error"`.
    """

    train: list[Conversation]
    heldout: list[Conversation]
    dropped: tuple[str, ...] = ()


def load_conversations(
    kind: str,
    *,
    path: str | Path | None = None,
    hub_id: str | None = None,
    hub_config: str | None = None,
    split: str = "train",
    train_conversations: int | None = None,
    heldout_conversations: int = 0,
    seed: int = 0,
    on_invalid: str = "error",
) -> LoadedData:
    """Conversations to train on and to evaluate with; the same for the same arguments and source.

    kind: one of KINDS. `path` (a local file) takes precedence over the hub; `hub_id` and `hub_config` replace
        the usual ones of the kind; `split` is the hub's split.
    train_conversations: at most this many, the first of those that are not held out; None for all. Required
        for tutoring dialogues, which are generated.
    heldout_conversations: exactly this many. Which ones depends on `seed` and on the text of each
        conversation only, so a longer file moves few of them and another `train_conversations` none.
    on_invalid: "error" raises one ValueError that counts the invalid records and quotes the first few; "drop"
        leaves them out and reports them in `dropped`.

    Raises ValueError also when the hub cannot be reached, a file does not exist, there are too few
    conversations, or an argument is not one of the above.
    """
    if on_invalid not in ("error", "drop"):
        raise ValueError(f"on_invalid={on_invalid!r}: write 'error' or 'drop'")
    if train_conversations is not None and train_conversations < 1:
        raise ValueError(f"train_conversations={train_conversations}: must be at least 1, or None for all")
    if heldout_conversations < 0:
        raise ValueError(f"heldout_conversations={heldout_conversations}: must be 0 or more")
    if kind == "tutoring":
        return _tutoring(train_conversations, heldout_conversations, seed)
    entries = _entries(kind, path, hub_id, hub_config, split)
    convert = to_record if kind == "gsm8k_socratic" else None
    conversations, dropped = parse(entries, convert, on_invalid)
    if not conversations:
        raise ValueError(f"{path or hub_id or kind}: no valid conversation; {len(dropped)} were dropped")
    train, heldout = split_heldout(conversations, heldout_conversations, seed)
    return LoadedData(train[:train_conversations], heldout, tuple(dropped))


def _tutoring(train_conversations: int | None, heldout_conversations: int, seed: int) -> LoadedData:
    """The generator keeps the splits apart itself."""
    from recipes.tutoring import generate

    if train_conversations is None:
        raise ValueError("train_conversations=None: tutoring dialogues have no end; give the number to generate")
    train, heldout = (
        [
            Conversation.from_record(record, f"tutoring/{split}[{index}]")
            for index, record in enumerate(generate(count, seed, split))
        ]
        for split, count in (("train", train_conversations), ("heldout", heldout_conversations))
    )
    return LoadedData(train, heldout)


def _entries(
    kind: str, path: str | Path | None, hub_id: str | None, hub_config: str | None, split: str
) -> Iterator[Entry]:
    """The records of a file if `path` is given, else of the hub."""
    if kind not in KINDS:
        raise ValueError(f"data kind {kind!r} is unknown; choose one of {', '.join(KINDS)}")
    if path is not None:
        return _read_file(Path(path))
    usual_id, usual_config = HUB_SOURCES.get(kind, (None, None))
    if hub_id is None and usual_id is None:
        raise ValueError(f"data kind {kind!r} reads a local file; give its path")
    # The usual configuration belongs to the usual repository: another one is taken at its word.
    if hub_id in (None, usual_id):
        hub_id, hub_config = usual_id, hub_config or usual_config
    return read_hub(hub_id, hub_config, split)


def parse(
    entries: Iterable[Entry], convert: Callable[[Record, str], Record] | None, on_invalid: str
) -> tuple[list[Conversation], list[str]]:
    """(conversations, reasons of those dropped); with `on_invalid="error"` a single error for all of them."""
    conversations, invalid = [], []
    for name, record in entries:
        try:
            if isinstance(record, ValueError):
                raise record
            conversations.append(Conversation.from_record(convert(record, name) if convert else record, name))
        except ValueError as error:
            invalid.append(str(error))
    if invalid and on_invalid == "error":
        shown = "\n".join(invalid[:ERRORS_SHOWN])
        more = f"\n... and {len(invalid) - ERRORS_SHOWN} more" if len(invalid) > ERRORS_SHOWN else ""
        total = len(invalid) + len(conversations)
        raise ValueError(
            f"{len(invalid)} of {total} conversations are invalid:\n{shown}{more}\n"
            "Repair them, or leave them out, counted, with on_invalid=drop"
        )
    return conversations, invalid


def split_heldout(
    conversations: Sequence[Conversation], count: int, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """(the rest, exactly `count` held out), both in the order given.

    Conversations are grouped by what is said in them (roles and contents but neither system prompts nor
    thinking, white space evened out), so that a duplicate never stands on both sides. Groups are taken in the
    order of a hash of `seed` and that text, passing over those too large for what is left. Raises ValueError
    when that leaves nothing to train on, or cannot give `count`.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, conversation in enumerate(conversations):
        groups[hashlib.sha256(f"{seed}\n{_spoken(conversation)}".encode()).hexdigest()].append(index)
    heldout: set[int] = set()
    for _, members in sorted(groups.items()):
        if len(heldout) + len(members) <= count:
            heldout.update(members)
    if len(heldout) < count or len(heldout) == len(conversations):
        raise ValueError(
            f"heldout_conversations={count}: cannot be taken from {len(conversations)} conversations "
            f"({len(groups)} without duplicates) with some left to train on; lower it"
        )
    train = [conversation for index, conversation in enumerate(conversations) if index not in heldout]
    return train, [conversations[index] for index in sorted(heldout)]


def _spoken(conversation: Conversation) -> str:
    """What is said, as text that is equal for duplicates."""
    said = [
        [message["role"], " ".join(message["content"].split()), message.get("tool_calls")]
        for message in conversation.messages
        if message["role"] not in ("system", "developer")
    ]
    return json.dumps(said, sort_keys=True)


# --- files -------------------------------------------------------------------------------------------------


def read_jsonl(path: str | Path) -> Iterator[tuple[str, Record]]:
    """(name, record) for each line of a file of JSON lines; the name is `<file name>:<line from 1>`.

    Blank lines hold nothing and are passed over. Raises ValueError naming file, line and column for invalid
    UTF-8, malformed JSON, a key given twice in one object and a line that is no object, and for a file
    without records.
    """
    for name, record in _read_lines(Path(path)):
        if isinstance(record, ValueError):
            raise record
        yield name, record


def _read_file(path: Path) -> Iterator[Entry]:
    """The records of a local file: `.parquet`, `.json` holding a list, else JSON lines."""
    if path.suffix == ".parquet":
        return _read_parquet(_existing(path))
    if path.suffix == ".json" and _existing(path).read_bytes().lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        return _read_list(path)
    return _read_lines(path)


def _read_lines(path: Path) -> Iterator[Entry]:
    empty = True
    with _existing(path).open("rb") as file:  # binary: only \n ends a line, and bad UTF-8 is ours to report
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, as some editors write
            if not line.strip():
                continue
            empty = False
            yield f"{path.name}:{number}", _object(line.rstrip(b"\r\n"), f"{path}:{number}")
    if empty:
        raise ValueError(f"{path}: holds no records; give a file with one JSON object a line")


def _read_list(path: Path) -> Iterator[Entry]:
    """One JSON list of objects. Malformed JSON here is no single record's fault, so it is raised."""
    value = _json(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), str(path))
    if not value:
        raise ValueError(f"{path}: holds an empty list; give at least one conversation")
    for index, record in enumerate(value):
        yield f"{path.name}[{index}]", _if_object(record, f"{path}[{index}]")


def _read_parquet(path: Path) -> Iterator[Entry]:
    import pyarrow
    import pyarrow.parquet  # comes with datasets

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: is not a Parquet file ({error})") from error
    if not len(table):
        raise ValueError(f"{path}: holds no records; give at least one conversation")
    for index, record in enumerate(table.to_pylist()):
        yield f"{path.name}[{index}]", record


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path}: {'is a folder; give a file' if path.is_dir() else 'no such file'}")
    return path


def _object(line: bytes, where: str) -> Record | ValueError:
    try:
        return _if_object(_json(line, where), where)
    except ValueError as error:
        return error


def _if_object(value: Any, where: str) -> Record | ValueError:
    if isinstance(value, dict):
        return value
    return ValueError(f'{where}: a JSON {type(value).__name__} in place of an object such as {{"messages": ...}}')


def _json(data: bytes, where: str) -> Any:
    """JSON with errors that name the place; a key given twice is one (Python would keep the last)."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"{where}: the key {twice!r} stands twice in one object; keep one")
        return dict(pairs)

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise ValueError(f"{where}: byte {error.start + 1} (0x{byte:02x}) is not UTF-8; save as UTF-8") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        found = error.doc[error.pos : error.pos + 40]
        raise ValueError(f"{where}: malformed JSON at {place}: {error.msg}, found {found!r}; repair it") from error


# --- the hub -----------------------------------------------------------------------------------------------


def read_hub(hub_id: str, hub_config: str | None, split: str) -> Iterator[Entry]:
    """The records of a dataset on the Hugging Face hub (or in its cache), through `datasets.load_dataset`.

    Raises ValueError when it cannot be had, with what to do instead.
    """
    import datasets

    try:
        table = datasets.load_dataset(hub_id, name=hub_config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        config = f", config {hub_config!r}" if hub_config else ""
        raise ValueError(
            f"cannot load {hub_id!r}{config}, split {split!r}, from the Hugging Face hub: {error}\n"
            "Without a network, download the file elsewhere and give it with data.path=<file>"
        ) from error
    for index, record in enumerate(table):
        yield f"{hub_id}/{split}[{index}]", record
