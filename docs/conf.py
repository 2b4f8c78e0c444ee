"""The site of the documentation: `make docs` builds it from the Markdown beside this file, and the docstrings.

The pages are written for GitHub too, so they link to each other, and to files of the repository, by relative paths.
"""

import logging
import sys
import tomllib
from pathlib import Path

DOCS = Path(__file__).resolve().parent
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns when it is imported, of kernels that are not used
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]

project = "flexmask"
author = "the flexmask authors"
copyright = "the flexmask authors, Apache-2.0"
release = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "docstrings", "repository"]
exclude_patterns = ["_ext", "_static"]
language = "en"

# What GitHub understands, and no more: a page must read well there.
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # pages that other files are included in begin below their title

highlight_language = "text"  # of commands, formulas and pictures of characters; Python says so

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
default_role = "py:obj"  # `name` in a docstring is a link where the name is documented, and code where it is not
python_maximum_signature_line_length = 100
add_module_names = False

# Files of the repository that pages link to and that are pages of the site themselves.
repository_pages = {"CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog"}

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"flexmask {release}"
html_copy_source = False
html_show_sphinx = False
linkcheck_ignore = [r"https?://localhost"]
