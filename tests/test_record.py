"""The record of a program: the same head for all, numbers that every reader of JSON takes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from libtbx.phil import parse

from dials_diffuse import __version__
from dials_diffuse.cli.program import run_program
from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.files.record import Output, write_record

HEAD = ["schema", "version", "dials_version", "command_line", "inputs", "parameters", "modified", "outputs", "warnings"]

PHIL = parse("""
title = None
  .type = str
output.json = record.json
  .type = path
output.log = None
  .type = path
""")


def test_head_and_content(tmp_path):
    provenance = Provenance(
        "dials.test", "DIALS 3", "n = 1", (Path("a.h5"), "b.h5"), ("id",), "dials.test a.h5 b.h5", "n = 1"
    )
    outputs = [Output(tmp_path / "map.nxs", "map"), Output("a.png", "picture", "aid")]
    content = {"cell": (1, np.float32(2)), "cc": np.nan, "shells": [{"n": np.int64(3), "r": np.inf}]}
    write_record(tmp_path / "record.json", "dials.test/1", provenance, outputs, ("too few",), **content)
    record = json.loads((tmp_path / "record.json").read_text())
    assert list(record) == [*HEAD, "cell", "cc", "shells"]
    assert record == {
        "schema": "dials.test/1",
        "version": __version__,
        "dials_version": "DIALS 3",
        "command_line": "dials.test a.h5 b.h5",
        "inputs": ["a.h5", "b.h5"],
        "parameters": "n = 1",
        "modified": "n = 1",
        "outputs": [
            {"path": str(tmp_path / "map.nxs"), "kind": "map", "importance": "main"},
            {"path": "a.png", "kind": "picture", "importance": "aid"},
        ],
        "warnings": ["too few"],
        "cell": [1, 2.0],
        "cc": None,
        "shells": [{"n": 3, "r": None}],
    }


def test_importance_that_nobody_knows():
    with pytest.raises(DiffuseError, match="importance=high: choose from main, aid"):
        Output("a", "map", "high")


def test_programs_record_what_was_typed_and_what_they_warned_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in put.h5").write_text("")

    def main(params, files, provenance, warnings):
        logging.getLogger("dials.diffuse.test").warning("Warning: %d rows are left out", 3)
        logging.getLogger("dials.diffuse.deeper.test").warning("no errors")
        logging.getLogger("dials.diffuse.test").warning("Warning: %d rows are left out", 3)
        logging.getLogger("dials.diffuse.test").info("nothing to warn of")
        logging.getLogger("dials.other").warning("of another program")
        write_record(params.output.json, "dials.test/1", provenance, [], warnings)

    for _ in range(2):  # nothing is left over from the first run
        run_program("dials.test", "help", PHIL, main, ["in put.h5", "title=a b"])
        record = json.loads(Path("record.json").read_text())
        assert record["command_line"] == "dials.test 'in put.h5' 'title=a b'"
        assert record["inputs"] == ["in put.h5"] and 'title = "a b"' in record["parameters"]
        assert record["warnings"] == ["3 rows are left out", "no errors"]
