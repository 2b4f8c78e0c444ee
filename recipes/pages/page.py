"""One self-contained HTML file of a template, its styles, its scripts and what they show.

A page fetches nothing: its policy (Content-Security-Policy) allows the styles and scripts that stand in it, by their
hashes, and pictures written into it. Whatever a conversation says is text: templates escape all values, and what
scripts read stands in an element of JSON that no text can end.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from flexmask.text.rendering import Role
from flexmask.tree.segments import ROLE_COLORS, ROLE_LABELS
from recipes.storage.whole import write_whole

ASSETS = Path(__file__).parent / "assets"
_TEMPLATES = Environment(
    loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def write_page(
    path: Path,
    template: str,
    *,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    data: Any = None,
    values: Mapping[str, Any],
) -> None:
    """Write a page, whole or not at all.

    template: a file of assets/ that extends base.html.
    styles, scripts: files of assets/, behind base.css and in this order.
    data: what JSON can say, for the scripts: `JSON.parse(document.getElementById("data").textContent)`.
    values: what the template is filled with; base.html needs `title`.
    """
    style = Markup("\n".join(_text(name) for name in ("base.css", *styles)) + _role_colors())
    found = [Markup(_text(name)) for name in scripts]
    policy = "; ".join(
        (
            "default-src 'none'",
            # Elements' own style attributes set sizes and places that are known only with the data.
            "style-src 'unsafe-inline'",
            "script-src " + (" ".join(map(_hash, found)) or "'none'"),
            "img-src data:",
        )
    )
    page = _TEMPLATES.get_template(template).render(
        policy=policy,
        style=style,
        scripts=found,
        data=None if data is None else _json(data),
        roles={Role(role).name: label for role, label in ROLE_LABELS.items()},
        **values,
    )
    write_whole(path, page, "backslashreplace")


def picture(path: Path) -> str:
    """A PNG file as an address that stands in the page."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _text(name: str) -> str:
    text = (ASSETS / name).read_text(encoding="utf-8")
    if "</script" in text.lower() or "</style" in text.lower():
        raise ValueError(f"{ASSETS / name}: would end its element in the page; write the end tag in two parts")
    return text


def _hash(script: str) -> str:
    # What stands between the tags, as base.html writes it.
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"


def _json(data: Any) -> Markup:
    """JSON without a character that HTML reads: the escapes mean the same to JSON."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Half of a surrogate pair, which JSON Lines can say, is nothing that a file in UTF-8 can hold.
    text = text.encode("utf-8", "backslashreplace").decode()
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _role_colors() -> str:
    colors = "".join(f"--{Role(role).name}: {color}; " for role, color in ROLE_COLORS.items())
    return f"\n:root {{ {colors}}}\n"
