"""Types that the tables of an experiment file are made of, and how a check complains."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from grokscale.spec.where import shown

LABEL = r"^[A-Za-z0-9][A-Za-z0-9_+.,:=-]{0,95}$"


def complaint(text: str) -> PydanticCustomError:
    """An error whose text goes into the message as it stands."""
    return PydanticCustomError("grokscale", "{text}", {"text": text})


def integral(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def names(value: Any) -> Any:
    """A name stands for a list of one."""
    if isinstance(value, str):
        return (value,)
    return as_tuple(value)


def as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def scalar(value: Any) -> Any:
    if not isinstance(value, (bool, int, float, str)):
        raise complaint(f"must be a number, a string, true or false, got {shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise complaint(f"must be finite, got {value}")
    return value


Int = Annotated[int, BeforeValidator(integral), Field(strict=True)]
Float = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], BeforeValidator(names)]
Scalar = Annotated[Any, AfterValidator(scalar)]
Precision = Literal["fp32", "tf32", "bf16", "fp64"]


class Table(BaseModel):
    """A table of the file: frozen, and strict about names and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
