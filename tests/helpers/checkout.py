"""The checkout, for tests that read its files or start a Python of their own."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment(*folders) -> dict:
    """Variables for a subprocess that imports from these folders first, then from the checkout."""
    paths = [*map(str, folders), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
