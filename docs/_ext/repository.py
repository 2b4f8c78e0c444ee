"""Links of pages to files and folders of the repository lead to pages of the site that show these."""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils import get_source_line
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).resolve().parents[2]
PAGES = "repository"  # the folder of these pages within the site


class RepositoryLinks(SphinxTransform):
    """What MyST takes for a download (a file), or does not find (a folder), where it is of the repository."""

    default_priority = 400

    def apply(self, **_: Any) -> None:
        """Called by Sphinx for each page. A path that leads nowhere is left, and MyST warns of it."""
        for node in [
            *self.document.findall(addnodes.download_reference),
            *self.document.findall(addnodes.pending_xref),
        ]:
            if node.get("reftype") != "myst":
                continue
            # What is Markdown, MyST takes for a page, whose name has no ending.
            ending = ".md" if node.get("refdomain") == "doc" else ""
            # The file that the link stands in, which may be one that the page includes.
            page = Path(get_source_line(node)[0] or self.env.doc2path(self.env.docname))
            path = (page.parent / f"{node['reftarget']}{ending}").resolve()
            if path.is_relative_to(ROOT) and path.exists() and not (ending and path.is_relative_to(ROOT / "docs")):
                target = self.config.repository_pages.get(str(path.relative_to(ROOT)))
                if target is None:
                    target = page_of(path)
                    self.app.env.repository_paths.add(path)
                uri = self.app.builder.get_relative_uri(self.env.docname, target)
                link = nodes.reference("", "", *node.children, internal=True, refuri=uri, classes=["repository"])
                node.replace_self(link)


def page_of(path: Path) -> str:
    """The name of the page that shows a file or folder."""
    return f"{PAGES}/{path.relative_to(ROOT)}"


def contents(folder: Path) -> list[Path]:
    """What of a folder is shown: no caches and nothing that is hidden."""
    return sorted(path for path in folder.iterdir() if path.name[0] not in "._" or path.name == "__init__.py")


def pages(app: Any) -> Iterator[tuple[str, dict[str, str], str]]:
    """A page of each file that is linked to, and of each folder with all that is in it."""
    wanted = sorted(app.env.repository_paths)
    while wanted:
        path = wanted.pop()
        title = html.escape(str(path.relative_to(ROOT)))
        if path.is_dir():
            wanted += contents(path)
            links = {one.name: app.builder.get_relative_uri(page_of(path), page_of(one)) for one in contents(path)}
            body = "".join(f'<li><a href="{link}">{html.escape(name)}</a></li>' for name, link in links.items())
            body = f"<ul>{body}</ul>"
        else:
            text = path.read_text(encoding="utf-8")
            try:
                lexer = get_lexer_for_filename(path.name)
            except ClassNotFound:
                lexer = TextLexer()
            body = highlight(text, lexer, HtmlFormatter())
        yield page_of(path), {"title": title, "body": f"<h1>{title}</h1>{body}"}, "page.html"


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_config_value("repository_pages", {}, "env")
    app.add_transform(RepositoryLinks)
    app.connect("builder-inited", lambda app: setattr(app.env, "repository_paths", set()))
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": False}
