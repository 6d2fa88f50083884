"""Values and their types: what a setting may be, in one spelling; ranges as Optuna distributions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from grokscale.spec.messages import say
from grokscale.spec.tables import Knob, Optimiser
from grokscale.spec.where import shown

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

ALWAYS: dict[str, Any] = {"batch": 512, "drop_last": False, "warmup": 0, "precision": "fp32"}
ADAM: dict[str, Any] = {"lr": 1e-3, "wd": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
OPTIMISERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1, "wd": 0.0, "momentum": 0.0, "decay": "inside"},
    "adam": {**ADAM, "decay": "coupled"},
    "adamw": {**ADAM, "decay": "decoupled"},
}
"""What each optimiser reads, with usual values; ALWAYS besides."""
OPTIMISER_SETTINGS: tuple[str, ...] = ("lr", "wd", "momentum", "beta1", "beta2", "eps", "decay", *ALWAYS)
FIXED_KEYS = ("name", "precision", "drop_last")
"""Keys of the optimiser that are not for a search."""
LARGEST = 1e300
NEUTRAL: dict[str, Any] = {"momentum": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
"""What stands in a trial for keys that its optimiser does not read."""


class Refused(ValueError):
    """A value is not what a setting may be; the text says what it may be."""


def coerce(value: Any, like: Any) -> Any:
    """`value` in the one spelling that its setting has; Refused where it is of another type.

    like: the setting's default, whose type decides: 1 is 1.0 for a float, 20.0 is 20 for an integer. A
    default of None takes any scalar.
    """
    if isinstance(value, (list, tuple)) and isinstance(like, (list, tuple)):
        return [coerce(one, like[0] if like else None) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise Refused(f"must be finite, got {value}")
    is_bool = isinstance(value, bool)
    match like:
        case bool():
            if is_bool:
                return value
            wanted = "true or false"
        case int():
            if isinstance(value, (int, float)) and not is_bool and value == int(value):
                return int(value)
            wanted = "an integer"
        case float():
            if isinstance(value, (int, float)) and not is_bool and abs(value) < LARGEST:
                return float(value) + 0.0  # -0.0 is 0.0
            wanted = "a number"
        case str():
            if isinstance(value, str):
                return value
            wanted = "a string"
        case None:
            if isinstance(value, (bool, int, str)):
                return value
            if isinstance(value, float):
                return int(value) if value.is_integer() else value
            wanted = "a number, a string, true or false"
        case _:
            wanted = "a list"
    raise Refused(f"must be {wanted}, got {shown(value)}")


def check_optimiser(key: str, value: Any) -> Any:
    """The value of an optimiser key in its one spelling; Refused where it is out of range."""
    try:
        return getattr(Optimiser.model_validate({key: value}), key)
    except ValidationError as error:
        (detail, *_) = error.errors(include_url=False)
        raise Refused(say({**detail, "loc": ("optimiser", key)})) from None


def optimiser_table(preset: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the complete table, the given keys that this optimiser does not read).

    preset: of the task, or the table that an arm starts from.  given: what the file says over it.
    Where `given` names another optimiser than the preset, only batch, drop_last, warmup and precision of the
    preset carry over: one optimiser's learning rate means nothing to another.
    """
    name = given.get("name") or preset.get("name", "sgd")
    reads = ALWAYS | OPTIMISERS[name]
    same = name == preset.get("name", "sgd")
    carried = {k: v for k, v in preset.items() if k in (reads if same else ALWAYS)}
    chosen = {k: v for k, v in given.items() if k in reads}
    table = {"name": name, **{k: coerce(v, reads[k]) for k, v in (reads | carried | chosen).items()}}
    return table, [k for k in given if k not in reads and k != "name"]


def distribution(knob: Knob, like: Any) -> BaseDistribution:
    """The range of a knob. like: the setting's value without the search, whose type tells 1 from 1.0."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if knob.choices is not None:
        return CategoricalDistribution([_choice(one, like) for one in knob.choices])
    assert knob.low is not None and knob.high is not None
    if isinstance(like, (bool, str)):
        raise Refused(
            f"is not a number but {shown(like)} by default: choices = [...] must be given, not a range"
        )
    if not (knob.int or isinstance(like, int)):
        return FloatDistribution(knob.low, knob.high, log=knob.log)
    if not (knob.low.is_integer() and knob.high.is_integer()):
        raise Refused(
            f"is an integer: low and high must be integers, got low={knob.low:g}, high={knob.high:g}"
        )
    return IntDistribution(int(knob.low), int(knob.high), log=knob.log)


def _choice(value: Any, like: Any) -> Any:
    """A choice may be of another type than the default ("full" or a rank); numbers follow the default's."""
    try:
        return coerce(value, like)
    except Refused:
        if isinstance(value, (bool, int, float, str)):
            return value
        raise


def fits(value: Any, range_: BaseDistribution, zero: bool = False) -> bool:
    """Does the range hold the value? zero: 0 counts as held."""
    choices = getattr(range_, "choices", None)
    if choices is not None:
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in choices)
    if isinstance(value, (bool, str)) or value is None:
        return False
    low, high = range_.low, range_.high  # pyright: ignore[reportAttributeAccessIssue]
    return bool(low <= value <= high) or (zero and value == 0)


def ends(range_: BaseDistribution) -> Iterable[Any]:
    """The values at which a range is checked: both ends, or every choice."""
    choices = getattr(range_, "choices", None)
    return choices if choices is not None else (range_.low, range_.high)  # pyright: ignore[reportAttributeAccessIssue]


def range_text(range_: BaseDistribution, zero: bool = False) -> str:
    """A range in words for messages."""
    choices = getattr(range_, "choices", None)
    if choices is not None:
        return f"one of {shown(list(choices))}"
    bounds = f"{range_.low:g} to {range_.high:g}"  # pyright: ignore[reportAttributeAccessIssue]
    return f"{bounds}, or 0" if zero else bounds


def described(range_: BaseDistribution) -> list[Any]:
    """A range as plain values for hashing, free of Optuna's own format."""
    choices = getattr(range_, "choices", None)
    if choices is not None:
        return ["choices", *choices]
    kind = "int" if isinstance(range_.low, int) else "float"  # pyright: ignore[reportAttributeAccessIssue]
    low, high, log = (getattr(range_, k) for k in ("low", "high", "log"))
    return [kind, low, high, "complement" if getattr(range_, "complement", False) else log]


def chosen(value: Any, range_: BaseDistribution) -> bool:
    """Is the value one of the range's choices, of exactly that type?"""
    return any(value == c and type(value) is type(c) for c in getattr(range_, "choices", ()))


def plain(value: Any) -> Any:
    """Tuples as lists: a setting as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
