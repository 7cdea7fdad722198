"""Blocks of commands of the documentation, run by a real shell; the programs of the package run in this process."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.checkout import ROOT

#: what a command of this package is in the shell: it hands its folder and arguments over, and waits for the exit code
_FUNCTION = """dials.diffuse_{name}() {{
  printf '%s\\0' "$#" {name} "$PWD" "$@" >&{requests}
  local status; read -r status <&{answers}; return "$status"
}}
"""


def code_blocks(page: Path) -> list:
    """Texts of the fenced blocks without a language and of the indented ones, those in lists too."""
    found, lines, fence = [], [], None
    for line in [*page.read_text(encoding="utf-8").splitlines(), "end"]:
        mark = re.match(r"\s*```(\{?\w*)", line)
        if mark:
            fence = mark[1] if fence is None else None
        elif (fence is None and line.startswith("    ")) or (fence == "" and line):
            lines.append(line.strip())
        elif line or fence is not None:  # blank lines do not end an indented block
            if lines:
                found.append("\n".join(lines))
            lines = []
        elif lines:
            lines.append("")
    return [block.strip("\n") for block in found]


def run_block(block: str, folder: Path, arguments_of: Callable) -> int:
    """Run a block in a folder, up to the first command that fails; the exit code.

    arguments_of : (name of a program, list of arguments) -> the arguments that it is called with
    """
    to_us, requests = os.pipe()
    answers, to_shell = os.pipe()
    names = [shim.stem[len("diffuse_") :] for shim in (ROOT / "command_line").glob("diffuse_*.py")]
    functions = "".join(_FUNCTION.format(name=name, requests=requests, answers=answers) for name in names)
    shell = subprocess.Popen(["bash", "-euc", functions + block], cwd=folder, pass_fds=(requests, answers))
    os.close(requests)
    os.close(answers)
    with os.fdopen(to_us, "rb") as stream, os.fdopen(to_shell, "wb", buffering=0) as back:
        while words := _request(stream):
            name, place, *arguments = words
            back.write(b"%d\n" % _run(name, Path(place), arguments_of(name, arguments)))
    return shell.wait()


def _request(stream) -> list:
    """Words of one command; empty when the shell has ended."""
    count = _word(stream)
    return [_word(stream) for _ in range(int(count) + 2)] if count else []


def _word(stream) -> str:
    letters = iter(lambda: stream.read(1), b"\0")
    word = b""
    for letter in letters:
        if not letter:
            break
        word += letter
    return word.decode()


def _run(name: str, folder: Path, arguments: list) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        try:
            importlib.import_module(f"dials_diffuse.cli.{name}").run(arguments)
        except SystemExit as end:
            return end.code or 0
    return 0
