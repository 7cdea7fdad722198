"""Errors that a user can mend."""

from __future__ import annotations


class DiffuseError(Exception):
    """Wrong input: the message is one line that names the file, the value and the fix."""


class CommandLineError(DiffuseError):
    """A command line that cannot be understood (exit code 2)."""
