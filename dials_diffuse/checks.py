"""Are the numbers and words that a user gave what they have to be?"""

from __future__ import annotations

import math

from dials_diffuse.errors import DiffuseError


def positive(name: str, value) -> float:
    """The value as float; DiffuseError unless it is a positive, finite number. name : of the parameter."""
    if value is None or not 0 < value < math.inf:
        raise DiffuseError(f"{name}={value}: a positive number is needed")
    return float(value)


def not_negative(name: str, value) -> float:
    """The value as float; DiffuseError unless it is a finite number that is not negative."""
    if value is None or not 0 <= value < math.inf:
        raise DiffuseError(f"{name}={value}: a number is needed that is not negative")
    return float(value)


def fraction(name: str, value) -> float:
    """The value as float; DiffuseError unless it is at least 0 and below 1."""
    if value is None or not 0 <= value < 1:
        raise DiffuseError(f"{name}={value}: a number from 0 to below 1 is needed")
    return float(value)


def at_least(name: str, value, least) -> None:
    """DiffuseError unless the value is a number that is not less than ``least``."""
    if value is None or not value >= least:
        raise DiffuseError(f"{name}={value}: at least {least} is needed")


def choice(name: str, value, choices) -> str:
    """The value; DiffuseError unless it is one of ``choices``."""
    if value not in choices:
        raise DiffuseError(f"{name}={value}: choose from {', '.join(choices)}")
    return value
