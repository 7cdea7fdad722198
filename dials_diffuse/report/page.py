"""Pages of HTML that need no other file: what a program found, with plots and a slice browser."""

from __future__ import annotations

import base64
import json
import logging
import zlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from dials_diffuse.files.atomic import atomic_path
from dials_diffuse.files.record import finite
from dials_diffuse.report.section import COLOURS, Chapter, short

logger = logging.getLogger("dials.diffuse.report")

#: of this folder, put into each page
_STYLE, _SCRIPTS = "page.css", ("unpack.js", "plots.js", "colours.js", "lattice.js", "paint.js", "slices.js")

#: the script in the package plotly, and where Debian's has it
_PLOTLY = Path("package_data", "plotly.min.js")
_DEBIAN_PLOTLY = Path("/usr/share/python3-plotly/plotly.js")

#: of compression: 6 saves 6 % of a page and takes twice the time
_LEVEL = 4


def write_page(path, title: str, chapters: Sequence[Chapter], record: dict) -> None:
    """Write a page; everything that it needs is inside it.

    Parameters
    ----------
    chapters : their text may be anything, in the page it is text
    record : whose warnings, versions and modified parameters the page tells

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    plots = {
        f"{chapter.id}-{plot.id}-plot": {"title": plot.title, "traces": plot.traces, "layout": plot.layout}
        for chapter in chapters
        for section in chapter.sections
        for plot in section.plots
    }
    browsers = {
        f"{chapter.id}-{section.id}": section.browser
        for chapter in chapters
        for section in chapter.sections
        if section.browser
    }
    text = _template().render(
        title=title,
        chapters=chapters,
        record=record,
        modified=record.get("modified"),  # records of version 0.1 have no such key
        style=_read(_STYLE),
        scripts=[_read(name) for name in _SCRIPTS],
        plotly=plotly_script() if plots else "",
        data=_json({"plots": short(plots), "colours": COLOURS}),
        browsers={key: (_json(browser.head), browser.voxels) for key, browser in browsers.items()},
    )
    with atomic_path(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


@lru_cache(maxsize=1)
def _template():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _read(name: str):
    from markupsafe import Markup

    return Markup(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def _json(content):
    """JSON for an element ``script``: no text in it can end the element."""
    from markupsafe import Markup

    text = json.dumps(finite(content), allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


@lru_cache(maxsize=1)
def plotly_script() -> str:
    """The JavaScript of plotly, packed; empty where the package is not installed: pages then have tables of numbers.

    The file is read without the package: importing ``plotly.offline`` takes a second, for IPython and pandas.
    """
    found = find_spec("plotly")
    own = [Path(place) / _PLOTLY for place in found.submodule_search_locations] if found else []
    for path in (*own, _DEBIAN_PLOTLY) if found else ():
        if path.is_file():
            return base64.b64encode(zlib.compress(path.read_bytes(), _LEVEL)).decode("ascii")
    logger.warning("Warning: plotly is not installed: pages show tables in place of plots (pip install plotly)")
    return ""
