"""Sphinx extension: a page for each program, made of its help and its parameters, so that both are true.

The directive ``program-reference`` stands for all of them.
"""

from __future__ import annotations

import importlib
import re
import textwrap
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive

SHIMS = Path(__file__).parent.parent / "command_line"


def names() -> list:
    """Names of the programs, without ``diffuse_``."""
    return [shim.stem[len("diffuse_") :] for shim in sorted(SHIMS.glob("diffuse_*.py"))]


def help_of(module) -> str:
    """What ``-h`` shows: a text of its own, or that of the module."""
    return vars(module).get("HELP", module.__doc__)


def parameters(scope) -> list:
    """(name, default, help) of each parameter that is shown without asking for more."""
    found = []
    for definition in scope.all_definitions():
        item = definition.object
        if (item.expert_level or 0) <= 1:
            default = " ".join(str(word) for word in item.words)
            found.append((definition.path, default, " ".join((item.help or "").split())))
    return found


def _help(text: str) -> list:
    """Paragraphs, and literal blocks of what is indented."""
    found = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if block.startswith(" "):
            found.append(nodes.literal_block("", textwrap.dedent(block), language="none"))
        else:
            found.append(nodes.paragraph("", " ".join(block.split()).replace("::", ":")))
    return found


def _definitions(rows: list) -> nodes.definition_list:
    found = nodes.definition_list()
    for name, default, text in rows:
        term = nodes.term("", "", nodes.literal("", f"{name} = {default}"))
        found += nodes.definition_list_item("", term, nodes.definition("", nodes.paragraph("", text)))
    return found


class ProgramReference(Directive):
    """A section for each program."""

    def run(self) -> list:
        sections = []
        for name in names():
            module = importlib.import_module(f"dials_diffuse.cli.{name}")
            title = f"dials.diffuse_{name}"
            section = nodes.section(ids=[nodes.make_id(title)], names=[title])
            section += nodes.title("", title)
            section += _help(help_of(module))
            section += _definitions(parameters(module.phil_scope))
            sections.append(section)
        return sections


def setup(app) -> dict:
    app.add_directive("program-reference", ProgramReference)
    return {"parallel_read_safe": True}
