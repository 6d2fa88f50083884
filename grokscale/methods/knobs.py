"""What a factory refuses: ValueError with the invariant and the value, before any tensor is touched."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from grokscale.transform import Scalar


def check(holds: bool, message: str) -> None:
    """Raise ValueError with `message` unless `holds`."""
    if not holds:
        raise ValueError(message)


def number(knob: str, value: Scalar, invariant: str, holds: Callable[[float], bool]) -> None:
    """Raise ValueError unless a number keeps the invariant; a tensor may stand for many lanes and is not looked at."""
    if not isinstance(value, Tensor) and not holds(value):
        raise ValueError(f"{invariant} must hold, got {knob}={value}")


def one_of(knob: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless the value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{knob} must be one of {', '.join(allowed)}, got {value!r}")
