"""Reports as self-contained pages of HTML, from the templates of this folder."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from dials_diffuse.files.atomic import atomic_path
from dials_diffuse.files.together import where_is
from dials_diffuse.report.figures import DPI


def write_page(path, template: str, **values) -> None:
    """Fill a template in; everything the page needs is inside it.

    Parameters
    ----------
    template : name of a file in this folder
    values : for the template; text in them is escaped

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(**values)
    with atomic_path(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def embedded(picture) -> str:
    """A picture as the address that shows it: a path of a PNG file, or a matplotlib figure."""
    if isinstance(picture, (str, Path)):
        data = where_is(picture).read_bytes()
    else:
        buffer = io.BytesIO()
        picture.savefig(buffer, format="png", dpi=DPI)
        data = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
