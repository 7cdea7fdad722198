"""Pages as programs and people see them: their elements, the data in them, and a browser that opens them."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import pytest

#: elements without an end
_VOID = ("meta", "link", "input", "br")


class Page(HTMLParser):
    """What a page has without its scripts: headings, tables as text, what it links to, and the data of its plots."""

    def __init__(self, path):
        super().__init__()
        self.text = Path(path).read_text(encoding="utf-8")
        self.heads, self.tables, self.links, self.pre, self._open, self._ids, self._data = [], [], [], [], [], [], ""
        self.feed(self.text)
        assert not self._open, f"not closed: {self._open}"
        assert len(self._ids) == len(set(self._ids)), "an id is there twice"
        self.plots = json.loads(self._data)["plots"]

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if "id" in attributes:
            self._ids.append(attributes["id"])
        if tag not in _VOID:
            self._open.append((tag, attributes.get("id")))
        for name in ("href", "src"):
            if name in attributes and not attributes[name].startswith(("#", "data:,")):
                self.links.append(attributes[name])
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag in ("h1", "h2", "h3"):
            self.heads.append("")
        elif tag == "pre":
            self.pre.append("")

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        tag, name = self._open[-1] if self._open else ("", None)
        if tag in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif tag in ("h1", "h2", "h3"):
            self.heads[-1] += data
        elif tag == "pre":
            self.pre[-1] += data
        elif name == "page-data":
            self._data += data


@contextmanager
def chromium():
    """A headless Chromium of this system; the test is skipped, loudly, where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="PAGES ARE NOT OPENED: no playwright (pip install)")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("PAGES ARE NOT OPENED: no Chromium (on Debian: apt-get install chromium)")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@contextmanager
def opened(browser, path, width=1280, height=900):
    """A page when it is ready. Until it is closed it says nothing on the console, and asks for nothing but itself."""
    page = browser.new_page(viewport={"width": width, "height": height})
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    address = Path(path).resolve().as_uri()
    page.goto(address)
    page.evaluate("diffuse.ready")
    yield page
    page.wait_for_timeout(50)
    page.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [address]
