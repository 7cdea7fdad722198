"""What every program shares: parsing, logging, progress, exit codes."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from libtbx import Auto

from dials_diffuse.cli.outputs import check_outputs, is_file, output_folders
from dials_diffuse.cli.terminal import spell, spell_what_cannot_be_shown
from dials_diffuse.compat import dials_version
from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.files.interrupts import interrupt
from dials_diffuse.files.protected import protect, protecting
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.files.together import Together, together
from dials_diffuse.files.unfinished import remove_leftovers
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
    outputs = None
    try:
        with _terminable(), protecting(), together() as outputs:
            params, options, files, provenance = _parse(name, help_text, phil, args, without_files, folders)
            place(params)
            check_outputs(phil, params, required)
            log = nullcontext() if quiet else _logging(params.output.log, options.verbose)
            with log, _collected_warnings() as warnings:
                logger.info("%s", dials_version())
                changed = options.diff_phil
                if changed:
                    logger.info("The following parameters have been modified:\n\n%s", changed)
                for folder in output_folders(phil, params):
                    remove_leftovers(folder)
                load_numba()
                main(params, files, provenance, warnings)
    except CommandLineError as error:
        _stop(name, _one_line(error), 2)
    except DiffuseError as error:
        _stop(name, _one_line(error), 1)
    except KeyboardInterrupt:
        _stop(name, f"interrupted, {_what_is_left(outputs)}", 1)
    except _Terminated as stop:
        _stop(name, f"terminated, unfinished outputs are removed; {_what_is_left(outputs)}", stop.code)
    except MemoryError:
        _stop(
            name, f"not enough memory; give a smaller nproc, fewer data or a coarser grid; {_what_is_left(outputs)}", 1
        )
    except OSError as error:  # of what no part of the package has foreseen
        logger.debug("Unforeseen error", exc_info=True)
        _stop(name, f"{_system_error(error)}; {_what_is_left(outputs)}", 1)


def _stop(name: str, text: str, code) -> None:
    with suppress(OSError):  # standard error may be closed, or on a full disk
        print(f"{name}: {text}", file=sys.stderr)
    raise SystemExit(code) from None


def _what_is_left(outputs: Together | None) -> str:
    """What an end before its time leaves: nothing, or some whole files."""
    if outputs is None or not outputs.written:
        return "no output written"
    names = list(dict.fromkeys(map(str, outputs.written)))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"complete and kept: {', '.join(names[:3])}{more}"


def _system_error(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{error.filename or 'a file'}: not written, the disk is full; free some space"
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    if error.errno in (errno.EMFILE, errno.ENFILE):
        reason += " (raise the limit with ulimit -n, or give a smaller nproc)"
    return f"{error.filename}: {reason}" if error.filename else reason


def _hidden(error: BaseException, raised: dict) -> BaseException | None:
    """What a signal raised, if an error came of it: Python makes a RuntimeError of it while a class is made, as in an
    import."""
    cause: BaseException | None = error
    while cause is not None and id(cause) not in raised:
        cause = cause.__cause__ or cause.__context__
    return cause


_ONCE_MORE = 0.02  # seconds


class _Terminated(SystemExit):
    """SIGTERM or SIGHUP arrived."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Signals unwind the block, so that it can clean up.

    These are Ctrl-C, SIGTERM with which batch systems end a job, and SIGHUP of a terminal that is closed.
    """
    if threading.current_thread() is not threading.main_thread():  # Python lets only that one handle signals
        yield
        return
    owner, raised, hook = os.getpid(), {}, sys.unraisablehook

    def stop(number, frame):
        if os.getpid() != owner:  # a forked worker: what it inherited is not its own to clean up
            os._exit(128 + number)
        error = KeyboardInterrupt() if number == signal.SIGINT else _Terminated(128 + number)
        raised[id(error)] = error, number
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)  # once is enough, a second one would interrupt the cleaning up
        interrupt(error)

    def once_more(lost):
        """What is raised in a destructor or the like goes nowhere: the signal is sent again."""
        if id(lost.exc_value) not in raised:
            hook(lost)
            return
        _, number = raised.pop(id(lost.exc_value))
        signal.signal(number, stop)
        threading.Timer(_ONCE_MORE, os.kill, (os.getpid(), number)).start()  # not now: this is still the destructor

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        numbers.append(signal.SIGHUP)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # shells ignore it for programs in the background
        numbers.append(signal.SIGINT)
    previous = {number: signal.signal(number, stop) for number in numbers}
    sys.unraisablehook = once_more
    try:
        yield
    except DiffuseError:
        raise
    except Exception as error:
        hidden = _hidden(error, raised)
        if hidden is None:
            raise
        raise hidden from None
    finally:
        sys.unraisablehook = hook
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _one_line(error) -> str:
    return " ".join(str(error).split())


def _parse(name, help_text, phil, args, without_files, folders):
    from dials.util.options import ArgumentParser

    args = list(sys.argv[1:] if args is None else args)
    _check_surroundings(args)
    usage = f"{name} [options] [param=value ...] [param.phil] files"
    parser = ArgumentParser(usage=usage, phil=phil, epilog=help_text)
    parser.error = _refuse  # in place of several lines
    try:
        params, options, unhandled = parser.parse_args(args, show_diff_phil=False, return_unhandled=True)
    except SystemExit:
        raise
    except Exception as error:  # DIALS 3.12 lets phil errors of several types through
        raise CommandLineError(f"cannot understand the command line: {error}") from None
    protect(item for item in args if is_file(item))  # also files of parameters, which do not come back from parsing
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
        modified=options.diff_phil,
    )
    return params, options, files, provenance


def _check_surroundings(args: list) -> None:
    """Nothing works in a folder that was removed, and DIALS cannot write names that are no UTF-8 into its files."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise DiffuseError("the current folder does not exist any more; change to another one") from None
    for item in args:
        try:
            item.encode("utf-8")
        except UnicodeEncodeError:
            raise CommandLineError(f"{spell(item)}: not UTF-8; rename the file, or correct the parameter") from None


def _refuse(message: str) -> None:
    raise CommandLineError(message)


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
        for n in names:
            for handler in logging.getLogger(n).handlers:
                if handler not in before[n]:
                    handler.handleError = _QuietFailure(handler)
        yield
    finally:
        for n in names:
            for handler in list(logging.getLogger(n).handlers):
                if handler not in before[n]:
                    logging.getLogger(n).removeHandler(handler)
                    with suppress(OSError):  # the end of a log that cannot be written, of which a warning was given
                        handler.close()


class _QuietFailure:
    """In place of the tracebacks of logging: one line when a log cannot be written, and nothing more.

    A terminal or pipe that is gone is no reason to stop, and there is nobody to tell.
    """

    def __init__(self, handler: logging.StreamHandler):
        self._handler, self._told = handler, False

    def __call__(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if self._told:
            return
        self._told = True
        name = self._handler.stream.name if self._handler.stream is not None else "the log"
        if not isinstance(error, BrokenPipeError):
            with suppress(OSError):
                print(f"Warning: {name}: the log is not complete ({error})", file=sys.stderr)
        if isinstance(error, OSError) and not isinstance(self._handler, logging.FileHandler):
            with suppress(OSError, ValueError):  # else Python complains at its end that it could not write the rest
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._handler.stream.fileno())


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
