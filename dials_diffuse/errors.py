"""Errors that a user can mend."""

from __future__ import annotations


class DiffuseError(Exception):
    """Wrong input: the message is one line that names the file, the value and the fix."""


class CommandLineError(DiffuseError):
    """A command line that cannot be understood (exit code 2)."""


def one_line(error: BaseException, longest: int = 300) -> str:
    """The message of an error in one line; the name of its type where there is none. Boost.Python writes pages."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else f"{text[:longest]}..."
