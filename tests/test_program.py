"""What all programs share: outputs are checked before the work, parameter files, and the end by a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers.checkout import environment
from libtbx import Auto
from libtbx.phil import parse

from dials_diffuse.cli import fit, integrate, merge, model, scale, simulate
from dials_diffuse.cli.outputs import check_outputs
from dials_diffuse.cli.program import keep_words, run_program
from dials_diffuse.errors import DiffuseError
from dials_diffuse.files import hdf5 as files
from dials_diffuse.files.atomic import atomic_path
from dials_diffuse.files.interrupts import interrupt
from dials_diffuse.files.protected import protect
from dials_diffuse.files.record import write_json
from dials_diffuse.files.together import together, where_is

PHIL = parse(
    """
n = 1
  .type = int
output {
  result = result.txt
    .type = path
  aside = None
    .type = path
  title = absent/this_is_no_path
    .type = str
  deeper {
    picture = a.png
      .type = path
  }
  log = None
    .type = path
}
"""
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder but for one input file, made the current one."""
    monkeypatch.chdir(tmp_path)
    Path("input.txt").write_text("1")
    return tmp_path


def program(args, required=(), main=None) -> list:
    """Run a program that does nothing; return what it was called with, one item a call."""
    calls = []
    run_program("dials.test", "help", PHIL, main or (lambda *a: calls.append(a)), [str(a) for a in args], required)
    return calls


def fails(args, code, capsys, **options) -> str:
    """Run, check that it ends with ``code`` and one line before it starts the work; return the line."""

    def main(*_):
        pytest.fail("the work has begun")

    before = set(Path().iterdir())
    with pytest.raises(SystemExit) as stopped:
        program(args, main=main, **options)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == code and len(lines) == 1
    assert set(Path().iterdir()) == before
    return lines[0]


@pytest.mark.parametrize("name", ["result", "aside", "deeper.picture", "log"])
@pytest.mark.parametrize(
    "value, words",
    [
        ("absent/a.x", "absent/a.x: cannot write, the folder absent does not exist"),
        ("/proc/a.x", "/proc/a.x: cannot write, the folder /proc refuses"),
        ("taken", "taken: cannot write, a folder has this name"),
        ("input.txt/a.x", "input.txt/a.x: cannot write, the folder input.txt does not exist"),
        ("''", "not a file name"),
        ("' '", "not a file name"),
        ("Auto", "not a file name"),
    ],
)
def test_outputs_are_checked_before_the_work(capsys, name, value, words):
    Path("taken").mkdir()
    line = fails(["input.txt", f"output.{name}={value}"], 1, capsys)
    assert f"output.{name}=" in line and words in line


def test_no_such_file_please(capsys):
    words = ["input.txt", "output.result=None", "output.deeper.picture=None"]
    ((params, files, *_),) = program(words)
    assert params.output.result is None and files == ["input.txt"]
    line = fails(words, 1, capsys, required=("result",))
    assert "output.result=None: not a file name; give one" in line and "None for" not in line


def test_outputs_that_can_be_written():
    Path("old.txt").write_text("old")
    assert program(["input.txt", "output.result=old.txt", "output.aside=../new.txt", "output.log=/dev/null"])
    assert Path("old.txt").read_text() == "old" and not Path("../new.txt").exists()


def test_devices_are_not_replaced(capsys):
    assert "no ordinary file" in fails(["input.txt", "output.result=/dev/null"], 1, capsys)


@pytest.mark.parametrize("run, name", [(integrate.run, "observations"), (merge.run, "map")], ids=["integrate", "merge"])
def test_the_main_output_cannot_be_left_out(run, name, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(["input.txt", f"output.{name}=None"])
    assert stopped.value.code == 1
    assert f"output.{name}=None: not a file name" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bad.phil", "bad.eff"])
@pytest.mark.parametrize("text, words", [("output {\n", "no matching"), ('n = "3\n', "missing closing quote")])
def test_parameter_file_that_cannot_be_read(capsys, name, text, words):
    Path(name).write_text(text)
    line = fails(["input.txt", name], 2, capsys)
    assert line.startswith(f"dials.test: {name}: ") and words in line


def test_parameter_files():
    Path("a.phil").write_text("n = 3\n")
    Path("empty.phil").write_text("")
    ((params, files, *_),) = program(["input.txt", "a.phil", "empty.phil"])
    assert params.n == 3 and files == ["input.txt"]


def test_folder_as_input(capsys):
    Path("sweep").mkdir()
    assert "sweep: this is a folder" in fails(["input.txt", "sweep"], 1, capsys)


SLEEPER = """
import os, sys, time
from libtbx import Auto
from libtbx.phil import parse
from dials_diffuse.cli.program import run_program
from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.atomic import atomic_path
from dials_diffuse.files.hdf5 import create_hdf5

def main(params, files, provenance, warnings):
    with atomic_path("result.txt") as temporary, create_hdf5("result.h5", "test") as handle:
        temporary.write_text("half")
        child = os.fork() if "fork" in sys.argv else None
        if not child:
            print("ready", os.getpid(), flush=True)
        if child == 0:
            time.sleep(60)
            os._exit(0)
        if child:
            assert os.waitpid(child, 0)[1] >> 8 == 143
            return
        handle.create_dataset("data", data=bytes(1000))
        handle.flush()
        with handle.computing():
            while True:
                handle["data"][...]

run_program("dials.test", "", parse("output.log = None\\n.type = path"), main, ["input.txt"])
"""


def terminate(*options) -> tuple:
    """Start a program, send SIGTERM to the process that it names; return its exit code and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, *options],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = ""
        while not line.startswith("ready"):  # DIALS prints its version first
            line = process.stdout.readline()
            assert line, process.communicate()
        os.kill(int(line.split()[1]), signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, errors


def test_sigterm_cleans_up():
    code, errors = terminate()
    assert code == 143, errors
    assert errors.strip() == "dials.test: terminated, unfinished outputs are removed; no output written"
    assert [p.name for p in Path().iterdir()] == ["input.txt"]


def test_sigterm_of_a_worker_leaves_the_files_of_the_program_alone():
    code, errors = terminate("fork")
    assert code == 0, errors
    assert {p.name for p in Path().iterdir()} == {"input.txt", "result.txt", "result.h5"}
    assert Path("result.txt").read_text() == "half"


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 1)], ids=["TERM", "INT"])
def test_signal_inside_a_write(capsys, monkeypatch, number, code):
    """As another process sends it, when HDF5 has called the sink."""
    write = files._Sink.write

    def interrupted(sink, data):
        if not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return write(sink, data)

    def main(*_):
        with files.create_hdf5("result.h5", "test") as handle:
            monkeypatch.setattr(files._Sink, "write", interrupted)
            handle["data"] = range(1000)
            handle.flush()
            undisturbed.append(sent[0])
            with handle.computing():
                pytest.fail("the signal was lost")

    sent, undisturbed = [], []
    with pytest.raises(SystemExit) as stopped:
        program(["input.txt"], main=main)
    assert stopped.value.code == code and undisturbed == [number]
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert [p.name for p in Path().iterdir()] == ["input.txt"]


def test_signals_wait_only_for_what_hdf5_writes_in_this_thread():
    def nothing_waits():
        with pytest.raises(KeyboardInterrupt):
            interrupt(KeyboardInterrupt())

    def write():
        with files.create_hdf5("other.h5", "test"):
            opened.set()
            assert done.wait(60)

    opened, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert opened.wait(60)
        nothing_waits()
        with pytest.raises(KeyboardInterrupt), files.create_hdf5("result.h5", "test") as handle, handle.computing():
            nothing_waits()
            with pytest.raises(KeyboardInterrupt), handle.writing():
                interrupt(KeyboardInterrupt())
            nothing_waits()
        nothing_waits()
    finally:
        done.set()
        thread.join()
    assert {p.name for p in Path().iterdir()} == {"input.txt", "other.h5"}


@pytest.mark.parametrize("method", ["write", "truncate"])
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 1)], ids=["TERM", "INT"])
def test_signal_while_hdf5_writes(capsys, number, code, method):
    """HDF5 crashes the interpreter when its writes raise: the signal counts afterwards."""

    def trace(frame, event, argument):  # the first line of the method: the place where signals are handled
        if event == "call" and frame.f_code is getattr(files._Sink, method).__code__ and not sent:
            sent.append(method)
            signal.raise_signal(number)

    def main(*_):
        with files.create_hdf5("result.h5", "test") as handle:
            sys.settrace(trace)
            handle["data"] = range(1000)
            handle.flush()
            sys.settrace(None)
            undisturbed.append(method)
            handle.check()
            pytest.fail("the signal was lost")

    sent, undisturbed = [], []
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as stopped:
            program(["input.txt"], main=main)
    finally:
        sys.settrace(None)
    assert stopped.value.code == code and sent and undisturbed
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert [p.name for p in Path().iterdir()] == ["input.txt"]


def test_signal_handlers_are_put_back():
    def handlers():
        return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    before = handlers()
    during = []
    program(["input.txt"], main=lambda *_: during.extend(handlers()))
    assert during[0] != before[0] and handlers() == before
    with pytest.raises(SystemExit):
        program(["absent.txt"])
    assert handlers() == before


def test_programs_run_in_threads():
    calls = []
    thread = threading.Thread(target=lambda: calls.extend(program(["input.txt"])))
    thread.start()
    thread.join()
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["in.h5", "other"])
def test_outputs_do_not_replace_inputs_or_each_other(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = parse(f"output {{ a = {name}\n.type = path\n b = ./{name}\n.type = path\n }}")
    Path("in.h5").write_text("data")
    with pytest.raises(DiffuseError, match="in.h5" if name == "in.h5" else "output.a"):
        check_outputs(scope, scope.extract(), inputs=["in.h5"])
    assert Path("in.h5").read_text() == "data"


@pytest.mark.parametrize("module", [fit, integrate, merge, model, scale, simulate], ids=lambda module: module.__name__)
def test_words_that_phil_takes_for_its_own(module):
    """A choice that is typed as auto or none is the word, as it is by default; a parameter without the word is not."""
    for definition in module.phil_scope.all_definitions():
        if definition.object.type.phil_type != "choice":
            continue
        for word in ("auto", "none"):
            params = module.phil_scope.fetch(parse(f"{definition.path}={word}")).extract()
            keep_words(module.phil_scope, params)
            value = params
            for name in definition.path.split("."):
                value = getattr(value, name)
            named = word in {w.value.lstrip("*") for w in definition.object.words}
            assert (value == word) == named, definition.path


def test_a_word_that_phil_takes_for_its_own_on_the_command_line(capsys):
    """The default, typed: it was refused as "Auto"."""
    run_program(
        "test",
        "Help.",
        parse("kind = *auto one\n  .type = choice\noutput.log = None\n  .type = path"),
        show,
        ["kind=auto", __file__],
    )
    assert capsys.readouterr().out.splitlines()[-1] == "auto"


def show(params, files, provenance, warnings) -> None:
    print(params.kind)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 1)], ids=["TERM", "INT"])
def test_signals_in_destructors_are_not_lost(number, code, capsys):
    """Python ignores what is raised there."""

    class Dying:
        def __del__(self):
            signal.raise_signal(number)

    def main(*_):
        Dying()
        time.sleep(20)
        pytest.fail("the signal was lost")

    with pytest.raises(SystemExit) as stopped:
        program(["input.txt"], main=main)
    assert stopped.value.code == code and len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 1)], ids=["TERM", "INT"])
def test_signals_while_a_class_is_made(number, code, capsys):
    """Up to Python 3.11 they come out as a RuntimeError; so it was when matplotlib was imported."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    class Named:
        def __set_name__(self, owner, name):
            os.kill(os.getpid(), number)
            time.sleep(5)

    def main(params, files, provenance, warnings):
        type("Owner", (), {"name": Named()})

    try:
        with pytest.raises(SystemExit) as stop:
            program(["input.txt"], main=main)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stop.value.code == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no output written" in line and ("interrupted" in line or "terminated" in line)


def test_outputs_appear_together(capsys):
    """One that cannot be written keeps the others from appearing, and what was there stays."""
    Path("result.txt").write_text("old")

    def main(params, files, provenance, warnings):
        for name in ("result.txt", "a.png"):
            with atomic_path(name) as temporary:
                temporary.write_text("new")
            assert where_is(name).read_text() == "new"
        assert Path("result.txt").read_text() == "old" and not Path("a.png").exists()
        if fail:
            raise fail[0]

    for error, text in (
        (DiffuseError("no"), "no"),
        (KeyboardInterrupt(), "interrupted, no output written"),
        (MemoryError(), "not enough memory"),
        (OSError(24, "Too many open files", "x.h5"), "x.h5: Too many open files (raise the limit with ulimit -n"),
    ):
        fail = [error]
        with pytest.raises(SystemExit) as stopped:
            program(["input.txt"], main=main)
        assert stopped.value.code == 1 and text in capsys.readouterr().err
        assert {p.name: p.read_text() for p in Path().iterdir()} == {"input.txt": "1", "result.txt": "old"}
    fail = []
    program(["input.txt"], main=main)
    assert {p.name: p.read_text() for p in Path().iterdir()} == {"input.txt": "1", "result.txt": "new", "a.png": "new"}


def test_what_was_written_is_said(capsys):
    """A step that is finished stays when the next one is interrupted."""

    def main(params, files, provenance, warnings):
        with together(), atomic_path("step.json") as temporary:
            temporary.write_text("1")
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        program(["input.txt"], main=main)
    assert capsys.readouterr().err == "dials.test: interrupted, complete and kept: step.json\n"
    assert Path("step.json").exists()


LINKS = {
    "name": lambda path: path,
    "symbolic link": lambda path: (Path("link.txt").symlink_to(path), "link.txt")[1],
    "hard link": lambda path: (os.link(path, "link.txt"), "link.txt")[1],
}


@pytest.mark.parametrize("how", LINKS)
@pytest.mark.parametrize("read", ["parameter", "parameter file", "reader"])
def test_nothing_that_is_read_is_written_over(how, read, capsys):
    """An input may be named by a parameter, be a file of parameters, or be found while the program works."""
    Path("model.txt").write_text("model")
    Path("some.phil").write_text("n = 1\n")
    source = {"parameter": "model.txt", "parameter file": "some.phil", "reader": "model.txt"}[read]
    words = {"parameter": ["title=model.txt"], "parameter file": ["some.phil"], "reader": []}[read]
    scope = parse(
        "title = None\n.type = path\nn = 2\n.type = int\n"
        "output {\nresult = x\n.type = path\nlog = None\n.type = path\n}"
    )
    content = Path(source).read_text()

    def main(params, files, provenance, warnings):
        assert read == "reader"
        protect([source])
        with atomic_path(params.output.result) as temporary:
            temporary.write_text("lost")

    with pytest.raises(SystemExit) as stopped:
        run_program("dials.test", "", scope, main, ["input.txt", *words, f"output.result={LINKS[how](source)}"])
    assert stopped.value.code == 1 and f"the same file as the input {source}" in capsys.readouterr().err
    assert Path(source).read_text() == content


def test_scripts_may_replace_what_they_have_read():
    protect(["input.txt"])
    with atomic_path("input.txt") as temporary:
        temporary.write_text("2")
    assert Path("input.txt").read_text() == "2"


def test_names_that_no_file_can_have(capsys):
    assert "the name is too long" in fails(["input.txt", f"output.result={'x' * 300}"], 1, capsys)
    assert "not UTF-8" in fails(["input.txt", "output.result=a\udcff.txt"], 2, capsys)
    long = "x" * 250 + ".json"  # 255 bytes
    program(["input.txt", f"output.result={long}"], main=lambda *_: write_json(long, {}))
    assert Path(long).exists()


def test_a_folder_that_is_gone(capsys):
    Path("gone").mkdir()
    os.chdir("gone")
    os.rmdir("../gone")
    with pytest.raises(SystemExit) as stopped:
        program(["../input.txt"])
    assert stopped.value.code == 1 and "current folder does not exist" in capsys.readouterr().err


def test_a_pipe_that_nobody_reads(tmp_path):
    """As in ``dials.diffuse_merge ... | head -1``: the work is done, and Python does not complain."""
    script = """
import logging
from libtbx.phil import parse
from dials_diffuse.cli.program import run_program
from dials_diffuse.files.record import write_json

def main(params, files, provenance, warnings):
    for _ in range(20000):
        logging.getLogger("dials.diffuse.test").info("line")
    write_json("result.json", {})

run_program("dials.test", "", parse("output.log = None\\n.type = path"), main, ["input.txt"])
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        run.stdout.readline()
        run.stdout.close()
        errors = run.stderr.read()
    assert run.returncode == 0 and errors == "" and Path("result.json").exists()


@pytest.mark.parametrize("text", ["auto", "Auto"])
def test_a_file_may_be_called_auto(text):
    """phil makes its own Auto of this word, which no file name may be."""
    scope = parse(
        """
        reference = None
          .type = path
        background = None
          .type = path
          .multiple = True
        names = None
          .type = strings
        grid = Auto
          .type = str
        """
    )
    told = parse(f"reference={text}\nbackground={text}\nbackground=b\nnames=a {text}\ngrid=Auto")
    params = scope.fetch(sources=[told]).extract()
    keep_words(scope, params)
    assert params.reference == "auto" and params.grid is Auto
    assert [item for item in params.background if item] == ["auto", "b"]
    assert params.names in (["a", text], ["a", "auto"])
