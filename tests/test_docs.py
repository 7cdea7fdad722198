"""The documentation's commands are ones that the programs understand, and its links lead somewhere."""

from __future__ import annotations

import ast
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


TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SOURCES = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "dials_diffuse").rglob("*.py"))]


def explained() -> list:
    """Messages of the table of warnings, those of one cell apart; ... stands for what differs."""
    section = TROUBLES.partition("## Warnings")[2].partition("## Errors")[0]
    cells = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    return [quoted for cell in cells for quoted in re.findall("`(.+?)`", cell)]


def test_messages_that_are_explained_are_those_of_the_programs():
    """Code in bold at the begin of a paragraph, and in tables, is what is printed; ... stands for what differs."""
    source = re.sub(r"\"\s+f?\"", "", "".join(SOURCES))  # texts that go on in the next line
    messages = [
        quoted
        for bold in re.findall(r"^\*\*(`.*?)\*\*", TROUBLES, re.MULTILINE)
        for quoted in re.findall("`(.+?)`", bold)
    ]
    words = set(WORDS)
    assert len(messages) > 8 and words & set(messages) == words - {"good"}
    for message in {*messages, *explained()} - words:
        assert all(part.strip() in source for part in message.split("...")), message


def _text(node) -> str:
    """A literal text of the code; what is put into it is three dots."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
    return re.sub("%[-+.0-9]*[a-z]", "...", node.value)


def _warnings(tree) -> list:
    """Literal texts of what is logged as a warning, gathered under that name, or returned by functions of that name."""
    places = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in ("warning", "warnings"):
            places += node.body[bool(ast.get_docstring(node)) :]
        if isinstance(node, ast.Call) and re.search(r"(^|\.)(warn|warning|warnings\.append)$", ast.unparse(node.func)):
            places += node.args[:1]
        elif isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any("warning" in ast.unparse(target).lower() for target in targets):
                places.append(node.value)
    inner = [node for place in places for node in ast.walk(place)]
    parts = {id(part) for node in inner if isinstance(node, ast.JoinedStr) for part in ast.walk(node)} - {
        id(node) for node in inner if isinstance(node, ast.JoinedStr)
    }
    found = [n for n in inner if isinstance(n, ast.JoinedStr) or (isinstance(n, ast.Constant) and type(n.value) is str)]
    return [_text(node) for node in found if id(node) not in parts]


def test_every_warning_is_explained():
    """A text of three words or more, of its own, that is logged as a warning is in a table of troubleshooting.md."""
    texts = {text for source in SOURCES for text in _warnings(ast.parse(source))}
    texts = {text for text in texts if len(re.findall("[a-z]{2,}", text.replace("Warning", ""))) > 3}
    assert len(texts) > 30
    patterns = [".*".join(map(re.escape, message.split("..."))) for message in explained()]
    missing = [text for text in sorted(texts) if not any(re.search(pattern, text) for pattern in patterns)]
    assert not missing
