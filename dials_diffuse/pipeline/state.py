"""What is done already in a folder: a run that was interrupted goes on where it was, and two runs do not mix."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.record import write_json
from dials_diffuse.files.together import together

#: hidden names in the folder of the outputs, before the prefix
_STATE, _LOCK = ".diffuse_process.state.json", ".diffuse_process.lock"


@dataclass(frozen=True)
class Fingerprint:
    """All that decides what a step makes. Two runs of equal fingerprints make the same files.

    Attributes
    ----------
    version : of this package and of DIALS
    parameters : name -> text of what the step was told
    inputs : path -> size and time of change (ns) of each file that it reads
    """

    version: str
    parameters: dict
    inputs: dict

    def __post_init__(self):
        _of_types(self, version=str, parameters=dict, inputs=dict)

    def changes(self, old: Fingerprint) -> str:
        """What differs from an older one, in words; empty if nothing does."""
        if self.version != old.version:
            return f"made by {old.version}, this is {self.version}"
        names = sorted(set(self.parameters) | set(old.parameters))
        changed = [n for n in names if self.parameters.get(n) != old.parameters.get(n)]
        if changed:
            return f"{', '.join(changed)} changed"
        paths = sorted(set(self.inputs) | set(old.inputs))
        changed = [p for p in paths if self.inputs.get(p) != old.inputs.get(p)]
        if changed:
            more = f" and {len(changed) - 1} more files" if len(changed) > 1 else ""
            return f"{changed[0]}{more} changed"
        return ""


def files_fingerprint(paths: Iterable) -> dict:
    """path -> [size, time of change in ns] of each file; null where there is none."""
    result: dict = {}
    for path in map(str, paths):
        try:
            found = os.stat(path)
        except OSError:
            result[path] = None
        else:
            result[path] = [found.st_size, found.st_mtime_ns]
    return result


@dataclass(frozen=True)
class Done:
    """A step that was finished.

    Attributes
    ----------
    fingerprint : Fingerprint
    outputs : path -> [size, time of change in ns], files as the step left them
    warnings : sentences of the step
    resources : seconds, cpu_seconds, peak_memory
    result : what later steps and the record need of it, as JSON has it
    listed : path, kind and importance of the outputs
    """

    fingerprint: Fingerprint
    outputs: dict
    warnings: list
    resources: dict
    result: dict = field(default_factory=dict)
    listed: list = field(default_factory=list)

    def __post_init__(self):
        _of_types(self, outputs=dict, warnings=list, resources=dict, result=dict, listed=list)
        if not all(isinstance(item, dict) and {"path", "kind"} <= set(item) for item in self.listed):
            raise TypeError("listed: outputs are needed")


def _of_types(item, **types) -> None:
    """TypeError unless the fields are of these types: the state file may be damaged, or of another version."""
    for name, wanted in types.items():
        if not isinstance(getattr(item, name), wanted):
            raise TypeError(f"{name}: {wanted.__name__} is needed")


class State:
    """The steps that are done in a folder, kept in a hidden file; obtained from :func:`locked_state`."""

    def __init__(self, path: Path):
        self._path = path
        self._done: dict = {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            for name, item in content["steps"].items():
                self._done[name] = Done(Fingerprint(**item.pop("fingerprint")), **item)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self._done = {}  # none, or of another version: everything is done again

    def finished(self, name: str, fingerprint: Fingerprint) -> tuple:
        """(Done, "") of a step that need not be repeated, else (None, why it must be)."""
        done = self._done.get(name)
        if done is None:
            return None, "not done before"
        why = fingerprint.changes(done.fingerprint)
        if why:
            return None, why
        now = files_fingerprint(done.outputs)
        for path, state in done.outputs.items():
            if now[path] != state:
                return None, f"{path} {'is gone' if now[path] is None else 'is not as it was written'}"
        return done, ""

    def keep(self, name: str, done: Done) -> None:
        """Record that a step is finished."""
        self._done[name] = done
        with together():  # at once: a later run goes on here
            write_json(self._path, {"steps": {key: asdict(item) for key, item in self._done.items()}})


@contextmanager
def locked_state(folder, prefix: str = "") -> Iterator[State]:
    """The state of a folder, which no other run can use meanwhile.

    Raises
    ------
    DiffuseError
        If another run works there; the message names its computer and process.
    """
    folder = Path(folder)
    path = folder / (prefix + _LOCK)
    try:
        handle = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (closed below, with the lock)
    except OSError as error:
        raise DiffuseError(
            f"output.directory={folder}: cannot write there ({error.strerror}); choose another"
        ) from None
    with handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, workers do not inherit it
        except (BlockingIOError, PermissionError):
            handle.seek(0)
            owner = handle.read().strip() or "another process"
            raise DiffuseError(
                f"output.directory={folder}: {owner} is at work there; wait for it, or give another output.directory "
                "or output.prefix"
            ) from None
        except OSError:
            pass  # a file system without locks: nothing can be told
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        try:
            yield State(folder / (prefix + _STATE))
        finally:
            handle.truncate(0)
