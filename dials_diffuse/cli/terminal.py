"""Terminals that cannot show every character get what can be read instead."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata

#: what Unicode's own decomposition does not turn into something that can be read
_WORDS = {
    "²": "^2",
    "³": "^3",
    "⁴": "^4",
    "⁻": "^-",
    "ᵀ": "^T",
    "·": "*",
    "×": "x",
    "°": " deg",
    "±": "+-",
    "−": "-",
    "–": "-",
    "…": "...",
    "≈": "~",
    "√": "sqrt ",
    "∫": "integral ",
    "⟨": "<",
    "⟩": ">",
    "†": "+",
}

_ERRORS = "dials_diffuse.spelled"


def spell(text: str) -> str:
    """ASCII for some text: A for Å, sigma for σ, ^2 for ²."""
    return "".join(_spell_character(c) for c in text)


def _spell_character(c: str) -> str:
    if c.isascii():
        return c
    if c in _WORDS:
        return _WORDS[c]
    name = unicodedata.name(c, "")
    if name.startswith("GREEK SMALL LETTER "):
        return name.split()[3].lower()
    if name.startswith("GREEK CAPITAL LETTER "):
        return name.split()[3].capitalize()
    return unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode() or "?"


def _spelled(error: UnicodeError) -> tuple:
    """Handler of characters that an encoding does not have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return spell(error.object[error.start : error.end]), error.end


def spell_what_cannot_be_shown() -> None:
    """Let standard output and error spell the characters that their encoding lacks: with LANG=C, and of bad names."""
    codecs.register_error(_ERRORS, _spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)
