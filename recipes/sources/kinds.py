"""What a file holds: its name says so, and how its contents begin must agree.

Whatever does not agree is one error that says what the file is and what to do.
"""

import json
from pathlib import Path
from shlex import quote

from flexmask.conversations.values import place
from recipes.sources.json_text import BYTE_ORDER_MARK, is_object

JSON_LINES, JSON, PARQUET, ARROW = "JSON lines", "JSON", "Parquet", "Arrow"
KINDS = {".jsonl": JSON_LINES, ".ndjson": JSON_LINES, ".json": JSON, ".parquet": PARQUET, ".arrow": ARROW}
# By suffix: the tool's name, and how its files begin.
COMPRESSIONS = {".gz": ("gzip", b"\x1f\x8b"), ".zst": ("zstd", b"\x28\xb5\x2f\xfd"), ".bz2": ("bzip2", b"BZh")}

_ARCHIVE = "unpack it and give the file or folder that was in it"
# How other files begin, what they are, and the suffix of those that are read under another name.
_SIGNATURES = (
    (b"PAR1", "a Parquet file", ".parquet"),
    (b"ARROW1", "an Arrow file", ".arrow"),
    (b"\xff\xff\xff\xff", "a stream of Arrow", ".arrow"),
    (b"PK\x03\x04", "a ZIP archive, or an Excel workbook, which is one", None),
    (b"\xfd7zXZ\x00", "packed with xz", None),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", None),
)


def compression(path: Path) -> str | None:
    """The suffix of `path` that says how it is packed."""
    return path.suffix if path.suffix in COMPRESSIONS else None


def kind_by_name(path: Path) -> str | None:
    """What `path` should hold going by its name; None for a name that does not say."""
    return KINDS.get(path.with_suffix("").suffix if compression(path) else path.suffix)


def renamed(path: Path, suffix: str) -> str:
    """The name of `path` with the suffix of other contents, packed as before."""
    packed = compression(path) or ""
    name = path.name.removesuffix(packed)
    return (Path(name).stem if Path(name).suffix in KINDS else name) + suffix + packed


def check_packing(path: Path) -> None:
    """Raise ValueError unless the contents of `path` are packed as its name says."""
    with path.open("rb") as file:
        head = file.read(512)
    packed = compression(path)
    if not head:
        raise ValueError(f"{path}: is empty, so it holds no records; give a file with at least one conversation")
    if packed is not None and not head.startswith(COMPRESSIONS[packed][1]):
        raise ValueError(f"{path}: is not packed as {packed} says; name it {path.name.removesuffix(packed)}")
    for suffix, (tool, begins) in COMPRESSIONS.items():
        if packed is None and head.startswith(begins):
            name = path.name if path.suffix in KINDS else f"{path.name}.jsonl"
            raise ValueError(f"{path}: this is packed with {tool}; rename it to {name}{suffix}, or unpack it")
    if packed is not None and kind_by_name(path) in (PARQUET, ARROW):
        raise ValueError(f"{path}: {kind_by_name(path)} is packed in itself; unpack it ({packed})")


def check_contents(path: Path, kind: str, head: bytes) -> None:
    """Raise ValueError when contents that begin with `head`, unpacked, cannot be of `kind`."""
    for begins, what, suffix in _SIGNATURES:
        if head.startswith(begins) and (suffix is None or KINDS[suffix] != kind):
            raise ValueError(
                f"{path}: this is {what}; {f'rename it to {renamed(path, suffix)}' if suffix else _ARCHIVE}"
            )
    if head[257:262] == b"ustar":
        raise ValueError(f"{path}: this is a tar archive; {_ARCHIVE}")
    if kind in (JSON, JSON_LINES):
        if encoding := _utf_16(head):
            new = path.with_name(renamed(path, ".utf8" + path.suffix))
            raise ValueError(
                f"{path}: this is {encoding} text; save it as UTF-8, for instance with iconv -f {encoding} -t UTF-8 "
                f"{quote(str(path))} > {quote(str(new))}"
            )
        if b"\x00" in head:
            raise ValueError(
                f"{path}: this is no text; read are {', '.join(KINDS)}, also packed: {', '.join(COMPRESSIONS)}"
            )
    elif not any(head.startswith(begins) for begins, _, suffix in _SIGNATURES if suffix):
        text = head.removeprefix(BYTE_ORDER_MARK).lstrip()
        if text[:1] in (b"{", b"["):
            suffix = ".jsonl" if text.startswith(b"{") else ".json"
            raise ValueError(f"{path}: this is no {kind} file but JSON; rename it to {renamed(path, suffix)}")
        raise ValueError(f"{path}: is not a {kind} file: {_what_text(text)}")


def _utf_16(head: bytes) -> str | None:
    """The encoding of a text in UTF-16, by its mark or because half of its bytes are 0, as JSON's are."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    few = head[:16]
    if len(few) == 16 and not any(few[1::2]):
        return "UTF-16LE"
    return "UTF-16BE" if len(few) == 16 and not any(few[::2]) else None


def check_lines(path: Path, first: bytes, data: bytes) -> None:
    """Raise ValueError unless `path` holds JSON lines; for a file whose first line, `first`, is no JSON object.

    Bad lines among good ones are those lines' fault and pass. `data` is all of the file.
    """
    text = data.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
    value, malformed = None, None
    try:
        value, end = json.JSONDecoder().raw_decode(text)
        several_lines, alone = "\n" in text[:end], not text[end:].strip()
        if isinstance(value, list) and alone:
            raise ValueError(f"{path}: this is a JSON array: rename it to {renamed(path, '.json')}")
        if isinstance(value, dict) and several_lines and alone:
            raise ValueError(
                f"{path}: this is one JSON object over several lines: rename it to {renamed(path, '.json')}"
            )
        if isinstance(value, dict) and several_lines:
            raise ValueError(
                f"{path}: these are JSON objects over several lines each; put each on one line, for instance with "
                f"jq -c . {quote(str(path))} > {quote(str(path.with_name(renamed(path, '.lines.jsonl'))))}"
            )
    except json.JSONDecodeError as error:
        malformed = error
    except RecursionError:
        return
    if any(map(is_object, data.splitlines())):
        return
    if text[:1] not in ("{", "["):
        raise ValueError(f"{path}: {_what_text(first)}")
    if malformed is not None and malformed.lineno > 1:
        raise ValueError(
            f"{path}: this is JSON over several lines, malformed at {place(malformed)} ({malformed.msg}); repair "
            f"it and name it {renamed(path, '.json')}"
        )


def _what_text(first: bytes) -> str:
    """What a file is that begins with the text `first` and holds no JSON object, and what to do."""
    if first.startswith(b"version https://git-lfs"):
        return "this is a pointer of Git LFS to a file that was not fetched; run git lfs pull where it came from"
    if first.startswith(b"<"):
        return "this is a page of HTML or XML, as servers send in place of a file; download it again"
    shown = repr(first.splitlines()[0][:60].decode("utf-8", errors="replace")) if first else "with blanks"
    if b"," in first or b"\t" in first:
        return f"this looks like a table (CSV) and begins {shown}; write one JSON object a line, or Parquet"
    return f"no line is a JSON object, and it begins {shown}; give JSON lines, JSON, Parquet or Arrow"
