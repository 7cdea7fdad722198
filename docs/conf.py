"""The documentation as a site: ``make docs`` builds it into ``build/docs``; warnings are errors there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

from dials_diffuse import __version__  # noqa: E402

project = "dials_diffuse"
author = "dials_diffuse developers"
copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "programs"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["*.sh"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"dials_diffuse {version}"
html_copy_source = False

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autoclass_content = "class"
napoleon_google_docstring = False


def read_docstring(app, what, name, obj, options, lines) -> None:
    """Make what the docstrings say of parameters, ``name : what it is``, a description, where numpydoc has a type.

    |s| is the length of a vector in them, not a substitution of reStructuredText.
    """
    result = []
    for line in lines:
        line = re.sub(r"(?<!\\)\|", r"\\|", line)
        found = re.fullmatch(r"([\w*]+(?:, [\w*]+)*) : (.+)", line)
        result += [found[1], f"    {found[2]}"] if found else [line]
    lines[:] = result


def setup(app) -> None:
    app.connect("autodoc-process-docstring", read_docstring, priority=100)  # before napoleon
