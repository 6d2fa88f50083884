"""The errors a user may meet: what is wrong, where, what is allowed (nearest first), what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")


class GrokscaleError(Exception):
    """Something failed that the user can act on: commands print the message and exit with `exit_code`."""

    exit_code: int = 1


class InputError(GrokscaleError):
    """What was asked for makes no sense as written; nothing has been run or stored.

    problems: every problem found, a line each: "where: key: what is wrong; what is allowed".
    """

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[InputError], tuple[list[str]]]:  # travels between processes intact
        return type(self), (self.problems,)


class StoreError(GrokscaleError):
    """The store's disk or bucket does not take what is written: no fault of the trial that wrote it."""


class TrialStopped(GrokscaleError):
    """A trial was stopped by hand, from outside: it is given up at once, and the next start tries it again."""


def holds_password(place: str) -> bool:
    """Is there a password in an address? It would be kept and shown: in the store, in jobs, in lists of processes."""
    return masked(place) != place


def refuse_password(name: str, place: str) -> None:
    """Raise InputError where an address holds a password, without repeating it. name: of the option or variable."""
    if holds_password(place):
        raise InputError(
            f"{name}: holds a password, which lists of processes, logs and jobs would show; leave it out and set what "
            "the other side reads from the environment: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, RAY_AUTH_TOKEN_PATH"
        )


def masked(text: str) -> str:
    """The text without the passwords of addresses in it, to be shown."""
    return re.sub(r"(://[^/?#:]*):[^/?#]*@", r"\1:...@", text)


def nearest(name: str, allowed: Iterable[str]) -> list[str]:
    """All of `allowed`, the one most like `name` first; ties in the order given.

    name: what was written.  allowed: what could have been written, in its natural order.
    """
    wanted = name.lower()
    options = list(dict.fromkeys(allowed))
    return sorted(options, key=lambda option: -_likeness(wanted, option.lower()))


def suggest(name: str, allowed: Iterable[str], most: int | None = None) -> str:
    """The tail of an error message: "did you mean 'x'? allowed: x, y, z", nearest first.

    The question is left out where nothing is near enough to be what was meant.
    most: how many to name, where there may be any number.
    """
    options = nearest(name, allowed)
    if not options:
        return "nothing is allowed here"
    question = f"did you mean '{options[0]}'? " if _likeness(name.lower(), options[0].lower()) >= 0.6 else ""
    more = f" and {len(options) - most} more" if most is not None and len(options) > most else ""
    return f"{question}allowed: {', '.join(options[:most])}{more}"


def _likeness(a: str, b: str) -> float:
    """1 for the same, 0.9 where one begins the other; where only numbers differ, 0.9 to 1, by how far apart they are.

    The letters of numbers say nothing: wd=2.0 is wd=2, and wd=1e-2 is nearer to wd=0.01 than to wd=1.
    """
    if NUMBER.sub("#", a) == NUMBER.sub("#", b):
        pairs = zip(map(float, NUMBER.findall(a)), map(float, NUMBER.findall(b)), strict=True)
        return 0.9 + 0.1 / (1 + sum(abs(x - y) / max(x, y) for x, y in pairs if x != y))
    if a and (b.startswith(a) or a.startswith(b)):
        return 0.9
    return difflib.SequenceMatcher(None, a, b).ratio()
