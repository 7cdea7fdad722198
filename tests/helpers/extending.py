"""A copy of the package in which something is added, as somebody who extends it would: files, and rows in tables."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from helpers.checkout import ROOT, environment


class Extended:
    """A copy of the package in a folder, whose programs run with what was added to it.

    Attributes
    ----------
    folder : holds the copy, ``folder / "dials_diffuse"``
    """

    def __init__(self, folder: Path):
        self.folder = folder
        shutil.copytree(ROOT / "dials_diffuse", folder / "dials_diffuse")

    def add_file(self, path: str, text: str) -> None:
        """A new module; ``path`` below the package."""
        place = self.folder / "dials_diffuse" / path
        assert not place.exists(), f"{path} is there already"
        place.write_text(text, encoding="utf-8")

    def add_row(self, path: str, after: str, row: str) -> None:
        """One line more in a table of the module ``path``, behind the only line that holds ``after``."""
        place = self.folder / "dials_diffuse" / path
        lines = place.read_text(encoding="utf-8").splitlines(keepends=True)
        (found,) = (i for i, line in enumerate(lines) if after in line)
        assert "\n" not in row
        lines.insert(found + 1, row + "\n")
        place.write_text("".join(lines), encoding="utf-8")

    def run(self, *command, ok: bool = True, cwd=None) -> subprocess.CompletedProcess:
        """``python COMMAND`` with the copy in place of the package."""
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=cwd or self.folder,
            env=environment(self.folder),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done

    def program(self, name: str, *arguments, ok: bool = True, cwd=None) -> subprocess.CompletedProcess:
        """``dials.diffuse_NAME ARGUMENTS`` of the copy."""
        return self.run("-m", f"dials_diffuse.cli.{name}", *arguments, ok=ok, cwd=cwd)
