"""The documentation's commands are ones that the programs understand, and its links lead somewhere."""

from __future__ import annotations

import importlib
import re
import shlex

import pytest
from helpers.checkout import ROOT

from dials_diffuse.pipeline.verdict import WORDS

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
COMMAND = re.compile(r"dials\.diffuse_(\w+)")


def blocks(text: str) -> list:
    """Lines of code, those that go on with a backslash joined: of fenced and of indented blocks."""
    lines, fenced = [], False
    for line in text.replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip())
    return lines


def commands(page) -> list:
    """(line, name of the program, its arguments) of each command in a page."""
    found = []
    for line in blocks(page.read_text(encoding="utf-8")):
        match = re.match(r"(?:.*?[;&(] *)?(?:do )?(?:bin/)?dials\.diffuse_(\w+)((?: [^;&)#|>]*)?)", line)
        if match and not line.startswith(("#", "from", "import")):
            found.append((line, match[1], shlex.split(match[2])))
    return found


CASES = [pytest.param(*case, id=f"{page.name}: {case[0]}"[:80]) for page in PAGES for case in commands(page)]


def test_there_are_commands():
    assert len(CASES) >= 29


@pytest.mark.parametrize(("line", "name", "arguments"), CASES)
def test_commands_are_understood(line, name, arguments):
    """Every parameter is one of the program's, with a value of its kind."""
    assert (ROOT / "command_line" / f"diffuse_{name}.py").is_file(), line
    scope = importlib.import_module(f"dials_diffuse.cli.{name}").phil_scope
    told = [re.sub(r"\$\w+", "1", item) for item in arguments if re.match(r"[\w.]+=", item)]
    interpreter = scope.command_line_argument_interpreter()
    sources = [interpreter.process(item) for item in told]
    assert not [item for item in arguments if item.startswith("-") and item not in ("-h", "-c", "-v", "-vv", "--json")]
    scope.fetch(sources=sources).extract()


def test_links_lead_to_files():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            assert re.match(r"https?:", target) or (page.parent / target).exists(), f"{page.name}: {target}"


def test_messages_that_are_explained_are_those_of_the_programs():
    """Code in bold at the begin of a paragraph is what a program prints; ... stands for what differs."""
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "dials_diffuse").rglob("*.py"))
    source = re.sub(r"\"\s+f?\"", "", source)  # texts that go on in the next line
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = [
        quoted for bold in re.findall(r"^\*\*(`.*?)\*\*", text, re.MULTILINE) for quoted in re.findall("`(.+?)`", bold)
    ]
    words = set(WORDS)
    assert len(messages) > 8 and words & set(messages) == words - {"good"}
    for message in set(messages) - words:
        assert all(part.strip() in source for part in message.split("...")), message
