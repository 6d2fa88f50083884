"""Pydantic's errors in our words: what is wrong, what is allowed, nearest first."""

from __future__ import annotations

import types
import typing
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel

from grokscale.errors import suggest
from grokscale.spec.claims import Endpoint, Paper
from grokscale.spec.tables import (
    Arm,
    Cluster,
    Confirm,
    Eval,
    Experiment,
    Grid,
    Knob,
    Limits,
    Metrics,
    Model,
    Optimiser,
    Race,
    Resources,
    Search,
    Task,
)
from grokscale.spec.where import Path, shown

TABLES: dict[str, type[BaseModel]] = {
    "eval": Eval, "task": Task, "model": Model, "optimiser": Optimiser, "search": Search, "race": Race,
    "grid": Grid, "confirm": Confirm, "metrics": Metrics, "limits": Limits, "resources": Resources, "cluster": Cluster,
}  # fmt: skip
LISTED: dict[str, type[BaseModel]] = {"arm": Arm, "endpoint": Endpoint, "paper": Paper}


def location(loc: tuple[int | str, ...]) -> Path:
    """Pydantic's location without the tags of its unions."""
    if loc[:2] == ("grid", "axes"):
        return tuple(p for i, p in enumerate(loc) if not (i == 3 and p in ("range", "list")))
    return tuple(p for i, p in enumerate(loc) if not (i == 1 and loc[0] == "eval" and p in ("table", "word")))


KINDS = {
    "int": "an integer", "float": "a number", "bool": "true or false", "str": "a string", "tuple": "a list",
    "dict": "a table",
}  # fmt: skip


def say(detail: Any) -> str:
    """A pydantic error in our words: what is wrong, what is allowed."""
    kind, value, loc = detail["type"], detail["input"], location(detail["loc"])
    owner = _table(loc[:-1])
    field = owner.model_fields.get(str(loc[-1])) if owner and loc else None
    if kind == "grokscale":
        return detail["ctx"]["text"]
    if kind == "extra_forbidden":
        return f"unknown key; {_hint(str(loc[-1]), owner)}"
    if loc == ("eval",):
        return f'must be "epoch" or a table such as {{ every = "2%", min = 25 }}, got {shown(value)}'
    if kind == "missing":
        return f"is missing: {(field.description if field else None) or 'it must be given'}"
    wanted = _wanted(field) if field else ""
    if not wanted:
        wanted = {
            "model_type": "a table",
            "dict_type": "a table",
            "tuple_type": "a list",
            "string_type": "a string",
        }.get(kind, detail["msg"])
    literal = _literals(field.annotation) if field else []
    if literal and isinstance(value, str):
        return f"must not be {shown(value)}; {suggest(value, literal)}"
    return f"must be {wanted}, got {shown(value)}"


def _hint(key: str, owner: type[BaseModel] | None) -> str:
    allowed = [name for name in (owner or Experiment).model_fields]
    others = [f"{table}.{key}" for table, model in TABLES.items() if key in model.model_fields]
    if owner is Experiment and key not in allowed and others:
        return f"did you mean {' or '.join(others)}? allowed here: {', '.join(allowed)}"
    return suggest(key, allowed)


def _table(loc: Path) -> type[BaseModel] | None:
    """The model of the table at a location."""
    match loc:
        case ():
            return Experiment
        case (("arm" | "endpoint" | "paper") as name, int()):
            return LISTED[name]
        case ("space", str()) | ("arm", int(), "space", str()):
            return Knob
        case (str() as name,):
            return TABLES.get(name)
    return None


def _wanted(field: Any) -> str:
    """What a field accepts, in words: "an integer >= 1"."""
    options = _literals(field.annotation)
    if options:
        return f"one of {', '.join(options)}"
    base = _base(field.annotation)
    words = KINDS.get(base.__name__ if isinstance(base, type) else "", "")
    if isinstance(base, type) and issubclass(base, BaseModel):
        words = "a table"
    if field.description and base in (str, tuple):
        return f"{words} ({field.description})"
    bounds = [
        f"{sign} {getattr(m, attribute):g}"
        for m in _metadata(field)
        for cls, sign, attribute in ((Gt, ">", "gt"), (Ge, ">=", "ge"), (Lt, "<", "lt"), (Le, "<=", "le"))
        if isinstance(m, cls)
    ]
    return " ".join([words, " and ".join(bounds)]).strip() if words else ""


def _metadata(field: Any) -> list[Any]:
    found = list(field.metadata)
    todo = [field.annotation]
    while todo:
        one = todo.pop()
        if typing.get_origin(one) is typing.Annotated:
            first, *more = typing.get_args(one)
            todo.append(first)
            for m in more:
                found += getattr(m, "metadata", [m])
        elif isinstance(one, types.UnionType) or typing.get_origin(one) is typing.Union:
            todo += typing.get_args(one)
    return found


def _base(annotation: Any) -> Any:
    """The plain class behind Annotated and `| None`."""
    while True:
        origin = typing.get_origin(annotation)
        if origin is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif origin is typing.Union or isinstance(annotation, types.UnionType):
            annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
        else:
            return origin or annotation


def _literals(annotation: Any) -> list[str]:
    while typing.get_origin(annotation) is typing.Union or isinstance(annotation, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    return list(typing.get_args(annotation)) if typing.get_origin(annotation) is typing.Literal else []
