"""What every program shares: parsing, logging, progress, exit codes."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from libtbx import Auto

from dials_diffuse.cli.terminal import spell_what_cannot_be_shown
from dials_diffuse.compat import dials_version
from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.files.atomic import check_writable
from dials_diffuse.files.hdf5 import interrupt
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.kernels.jit import load_numba

logger = logging.getLogger("dials.diffuse.cli")

#: what DIALS takes for a file of parameters
_PHIL_SUFFIXES = (".phil", ".param", ".params", ".eff", ".def")


def run_program(
    name: str,
    help_text: str,
    phil,
    main: Callable,
    args=None,
    required=(),
    without_files=lambda params: False,
    folders: bool = False,
    place: Callable = lambda params: None,
    quiet: bool = False,
) -> None:
    """Parse ``args``, set up logging and call ``main(params, files, provenance, warnings)``.

    Parameters
    ----------
    name : dispatcher name, e.g. ``dials.diffuse_merge``; the log file is ``<name>.log`` unless ``output.log`` says else
    help_text : shown by -h and when there is no input
    phil : libtbx phil scope
    main : receives the extracted phil, the list of input paths (existing files), a Provenance, and a list that grows:
        the text of each warning that was logged, once
    args : list of str, default ``sys.argv[1:]``
    required : names of ``output.*`` that may not be None
    without_files : can the program do with these parameters (extracted phil) and no input files?
    folders : may an input be a folder?
    place : called with the extracted phil, may change the names of the outputs
    quiet : the program prints what it has to say: there is no log, nor ``output.log``

    Raises
    ------
    SystemExit
        1 for a user or data error (one line on stderr), 2 for a bad command line, 143 when terminated by SIGTERM.
        Returns normally on success.
    """
    spell_what_cannot_be_shown()
    try:
        with _terminable():
            params, options, files, provenance = _parse(name, help_text, phil, args, without_files, folders)
            place(params)
            check_outputs(phil, params, required, files)
            log = nullcontext() if quiet else _logging(params.output.log, options.verbose)
            with log, _collected_warnings() as warnings:
                logger.info("%s", dials_version())
                changed = options.diff_phil
                if changed:
                    logger.info("The following parameters have been modified:\n\n%s", changed)
                load_numba()
                main(params, files, provenance, warnings)
    except CommandLineError as error:
        print(f"{name}: {_one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except DiffuseError as error:
        print(f"{name}: {_one_line(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"{name}: interrupted, no output written", file=sys.stderr)
        raise SystemExit(1) from None
    except _Terminated as stop:
        print(f"{name}: terminated, unfinished outputs are removed", file=sys.stderr)
        raise SystemExit(stop.code) from None


class _Terminated(SystemExit):
    """SIGTERM arrived."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Ctrl-C, and SIGTERM with which batch systems end a job, unwind the block, so that it can clean up."""
    if threading.current_thread() is not threading.main_thread():  # Python lets only that one handle signals
        yield
        return
    owner = os.getpid()

    def stop(number, frame):
        if os.getpid() != owner:  # a forked worker: what it inherited is not its own to clean up
            os._exit(128 + number)
        if number == signal.SIGINT:
            interrupt(KeyboardInterrupt())
        else:
            signal.signal(number, signal.SIG_IGN)  # once is enough, a second one would interrupt the cleaning up
            interrupt(_Terminated(128 + number))

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # shells ignore it for programs in the background
        numbers.append(signal.SIGINT)
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def check_outputs(phil, params, required=(), inputs=()) -> None:
    """Can every file named by an ``output.*`` parameter of type path be written? None means no such file.

    Parameters
    ----------
    phil : libtbx phil scope; params : what was extracted from it
    required : names below ``output`` that may not be None
    inputs : paths that must not be written over

    Raises
    ------
    DiffuseError
        If not, if it is an input, or if two of them are the same file; the message names the parameter and its value.
    """
    taken = {Path(path).resolve(): f"the input {path}" for path in inputs}
    for definition in phil.all_definitions():
        name = definition.path
        if not name.startswith("output.") or definition.object.type.phil_type != "path":
            continue
        value = params
        for part in name.split("."):
            value = getattr(value, part)
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


def _is_device(path) -> bool:
    """/dev/null and the like: a log may go there, though nobody can create files beside it."""
    return Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir()


def _one_line(error) -> str:
    return " ".join(str(error).split())


def _parse(name, help_text, phil, args, without_files, folders):
    from dials.util.options import ArgumentParser

    args = list(sys.argv[1:] if args is None else args)
    usage = f"{name} [options] [param=value ...] [param.phil] files"
    parser = ArgumentParser(usage=usage, phil=phil, epilog=help_text)
    try:
        params, options, unhandled = parser.parse_args(args, show_diff_phil=False, return_unhandled=True)
    except SystemExit:
        raise
    except Exception as error:  # DIALS 3.12 lets phil errors of several types through
        raise CommandLineError(f"cannot understand the command line: {error}") from None
    files = []
    for item in unhandled:
        if "=" in item and not Path(item).exists():
            raise CommandLineError(f"unknown parameter or bad value: {item} ('{name} -c' lists the parameters)")
        if item.startswith("-") and not Path(item).exists():
            raise CommandLineError(f"unknown option: {item} ('{name} -h' shows the help)")
        if Path(item).is_dir() and folders:
            files.append(item)
            continue
        if Path(item).is_dir():
            raise DiffuseError(f"{item}: this is a folder; give the files in it")
        if not Path(item).is_file():
            raise DiffuseError(f"{item}: no such file; check the path")
        if item.endswith(_PHIL_SUFFIXES):  # DIALS hands back those that it cannot parse, and those that are empty
            _check_phil_file(item)
            continue
        files.append(item)
    if not files and not without_files(params):
        parser.print_help(sys.stderr)
        raise CommandLineError("no input files given")
    keep_words(phil, params)
    options.diff_phil = parser.diff_phil.as_str().strip()
    full_phil = phil.format(python_object=params).as_str()
    provenance = Provenance(
        program=name,
        dials_version=dials_version(),
        phil=full_phil,
        inputs=tuple(files),
        command_line=shlex.join([name, *map(str, args)]),
    )
    return params, options, files, provenance


def keep_words(phil, params) -> None:
    """Texts that were typed as "auto", and choices as "auto" or "none", are these words.

    phil makes its own Auto and None of them. Auto stays where it is the default, and so means something.

    phil : libtbx phil scope; params : what was extracted from it, is changed
    """
    for definition in phil.all_definitions():
        kind = definition.object.type.phil_type
        if kind not in ("choice", "path", "str", "strings"):
            continue
        words = {word.value.lstrip("*") for word in definition.object.words}
        *scopes, name = definition.path.split(".")
        scope = params
        for part in scopes:
            scope = getattr(scope, part)
        if kind != "choice":
            if "Auto" not in words and not definition.path.startswith("output."):  # outputs refuse such a name
                setattr(scope, name, _typed_auto(getattr(scope, name)))
            continue
        for value, word in ((Auto, "auto"), (None, "none")):
            if getattr(scope, name) is value and word in words:
                setattr(scope, name, word)


def _typed_auto(value):
    """A text, or a list of them, with the word "auto" in the place of phil's Auto."""
    if value is Auto:
        return "auto"
    return [_typed_auto(item) for item in value] if isinstance(value, list) else value


def _check_phil_file(path) -> None:
    from dials.util.phil import parse

    try:
        parse(file_name=path)
    except Exception as error:  # phil raises RuntimeError, Sorry and others, and whatever reading a file may raise
        raise CommandLineError(f"{path}: cannot read these parameters: {error}") from None


@contextmanager
def _logging(logfile, verbosity: int) -> Iterator[None]:
    """DIALS logging for the length of the block; handlers do not pile up when run() is called again."""
    import dials.util.log

    names = ("dials", "dxtbx", "py.warnings", "xfel")
    before = {n: list(logging.getLogger(n).handlers) for n in names}
    try:
        try:
            dials.util.log.config(verbosity=verbosity, logfile=logfile or False)
        except OSError as error:  # by then the console handler is there already
            raise DiffuseError(f"output.log={logfile}: cannot write the log ({error.strerror})") from None
        yield
    finally:
        for n in names:
            for handler in list(logging.getLogger(n).handlers):
                if handler not in before[n]:
                    logging.getLogger(n).removeHandler(handler)
                    handler.close()


class _WarningList(logging.Handler):
    """Keeps the text of each warning, once."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts: list = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().removeprefix("Warning: ")
        if text not in self.texts:
            self.texts.append(text)


@contextmanager
def _collected_warnings() -> Iterator[list]:
    """Texts of what this package warns of during the block, for a record that programs read."""
    handler = _WarningList()
    package = logging.getLogger("dials.diffuse")
    package.addHandler(handler)
    try:
        yield handler.texts
    finally:
        package.removeHandler(handler)


def flag(value) -> bool | None:
    """What a phil parameter of type bool says; None for Auto."""
    return value if isinstance(value, bool) else None


def track(items: Iterable, total: int, label: str) -> Iterator:
    """Pass ``items`` through: a progress bar on a terminal, otherwise a log line for every 10 %."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=label, leave=False)
        return
    reported = 0
    for done, item in enumerate(items, start=1):
        yield item
        tenth = 10 * done // max(total, 1)
        if tenth > reported:
            reported = tenth
            logger.info("%s: %d %%", label, 10 * tenth)
