"""Where the outputs of a program go: checked before the work, against everything that is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.atomic import check_writable
from dials_diffuse.files.protected import protect


def check_outputs(phil, params, required=(), inputs=()) -> None:
    """Can every file named by an ``output.*`` parameter of type path be written? None means no such file.

    Parameters
    ----------
    phil : libtbx phil scope; params : what was extracted from it
    required : names below ``output`` that may not be None
    inputs : paths that must not be written over, beside those that other parameters name

    Raises
    ------
    DiffuseError
        If not, if it is an input, or if two of them are the same file; the message names the parameter and its value.
    """
    taken = {Path(path).resolve(): f"the input {path}" for path in inputs}
    protect(_files_named(phil, params))
    for name, value in _outputs(phil, params):
        if value is None and name[len("output.") :] not in required:
            continue
        if not isinstance(value, str) or not value.strip():
            otherwise = "" if name[len("output.") :] in required else ", or None for no such file"
            raise DiffuseError(f"{name}={value}: not a file name; give one{otherwise}")
        if name == "output.log" and _is_device(value):
            continue
        check_writable(value, name)
        other = taken.setdefault(Path(value).resolve(), name)
        if other != name:
            raise DiffuseError(f"{name}={value}: the same file as {other}; change one of them")


def output_folders(phil, params) -> list:
    """The folders that outputs go to."""
    paths = [Path(value) for _, value in _outputs(phil, params) if isinstance(value, str) and value.strip()]
    return list(dict.fromkeys(path.parent for path in paths if not _is_device(path)))


def _outputs(phil, params) -> Iterator[tuple]:
    """Name and value of the parameters that name files to be written."""
    for definition in phil.all_definitions():
        if definition.path.startswith("output.") and definition.object.type.phil_type == "path":
            (value,) = _values(params, definition.path.split("."))
            yield definition.path, value


def _files_named(phil, params) -> Iterator[str]:
    """Whatever parameters other than outputs say and is the name of a file; the types are path, and str or strings."""
    for definition in phil.all_definitions():
        if definition.path.startswith("output."):
            continue
        for value in _values(params, definition.path.split(".")):
            for item in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(item, str) and is_file(item):
                    yield item


def _values(scope, names: list) -> list:
    """Values of a parameter, of which there are several where it or its scope may be given several times."""
    scopes = scope if isinstance(scope, (list, tuple)) else [scope]
    found = [getattr(item, names[0]) for item in scopes]
    return found if len(names) == 1 else [value for item in found for value in _values(item, names[1:])]


def is_file(text: str) -> bool:
    """Is some text the name of a file?"""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # no name that a file can have
        return False


def _is_device(path) -> bool:
    """/dev/null and the like: a log may go there, though nobody can create files beside it."""
    try:
        return Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir()
    except (OSError, ValueError):  # no name that a file can have
        return False
