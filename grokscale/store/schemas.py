"""What the tables of the store hold: columns, types, and which of several rows about one thing counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from grokscale.errors import GrokscaleError, suggest

SCHEMA_VERSION = 1  # written into every file; columns may be added (nullable), never changed or removed

_TYPES = {
    "int": pa.int64(),
    "ints": pa.list_(pa.int64()),
    "float": pa.float64(),
    "floats": pa.list_(pa.float64()),
    "str": pa.string(),
    "bool": pa.bool_(),
    "time": pa.timestamp("us", tz="UTC"),
}

# column:type, with ? where null is allowed. Steps are optimiser steps; wall_s and seconds_* are seconds.
# `attempt` names one try at a replica, continued from its checkpoint or not: a string unique to that try, the
# same in `replicas`, `curves` and `measures`, so that what a worker that was cut off wrote can be told from others.
# `full` of a curve: val or test (or both, see val_full and test_full) were looked at in full, not on a sample.
# `measured`, `signatures`: comma lists; null in rows older than these columns.
# flops_per_step: the whole model forward and backward, for every example whose gradient a step takes;
# method_flops: the transform's own per step, while it is on; null where a method declares nothing.
# spaces_json: arm -> searched knob -> range.  practice: the arm that stands for the practice baseline.
# p_holm: over the arms of one baseline and clock.
# share: of a knob in what tells the better half of `trials` trials from all of them.
_COLUMNS = {
    "replicas": """
        trial_id:str seed:int attempt:str outcome:str
        fit_step:int? grok_step:int? val_grok_step:int? first_step:int? val_first_step:int? delay:int?
        comprehended:bool? stable_step:int? dips:int? dip_min:float? final_acc:float? final_val_acc:float?
        diverged_step:int? observed_to:int steps:int active_steps:int?
        batch:int oracle_per_step:float labels:int params:int threshold:float monitor:str
        task:str model:str method:str params_json:str spec_json:str
        device:str precision:str torch:str threads:int lanes:int compiled:bool numerics:str
        git_sha:str? version:str host:str wall_s:float at:time
        flops_per_step:float? method_flops:float? measured:str? signatures:str?""",
    "trials": """
        sweep_id:str arm:str phase:str number:int trial_id:str seeds:ints params_json:str cap:int
        value:float? state:str error:str? at:time""",
    "curves": """
        trial_id:str seed:int attempt:str step:int
        train_loss:float train_acc:float val_loss:float val_acc:float test_loss:float test_acc:float
        active:bool full:bool val_full:bool? test_full:bool?""",
    "measures": """
        trial_id:str seed:int attempt:str step:int measure:str value:float? vector:floats?""",
    "sweeps": """
        sweep_id:str name:str question:str baseline:str horizon:int experiment_json:str version:str
        at:time spaces_json:str?""",
    "plans": """
        sweep_id:str block:int tau:int winners_json:str seeds:ints key:str at:time practice:str?""",
    "timings": """
        trial_id:str device:str threads:int seconds_on:float seconds_off:float torch:str host:str at:time""",
    "speedups": """
        sweep_id:str block:int arm:str baseline:str clock:str phase:str
        s:float lo:float hi:float n:int p:float corr:float?
        censored_base:int censored_arm:int bound:str horizon:int
        s_half:float? rmst_ratio:float? rmst_lo:float? rmst_hi:float? median_base:float? median_arm:float?
        success_base:float success_arm:float p_sooner:float logrank_p:float? version:str at:time
        p_holm:float? paired:bool?""",
    "endpoints": """
        sweep_id:str block:int endpoint:str kind:str metric:str up:bool arm:str baseline:str
        base:float mine:float scale:str value:float lo:float hi:float n:int p:float?
        margin:float? noninferior:bool? censored_base:int censored_arm:int bound:str
        base_values:floats mine_values:floats version:str at:time""",
    "importances": """
        sweep_id:str arm:str knob:str share:float trials:int version:str at:time""",
}


def _schema(columns: str) -> pa.Schema:
    fields = []
    for column in columns.split():
        name, kind = column.split(":")
        fields.append(pa.field(name, _TYPES[kind.rstrip("?")], nullable=kind.endswith("?")))
    return pa.schema(fields)


SCHEMAS: dict[str, pa.Schema] = {table: _schema(columns) for table, columns in _COLUMNS.items()}

LARGE = ("curves", "measures")  # many rows per replica, of the attempt that counts
ATTEMPT = ("trial_id", "seed", "attempt")  # what ties them to it


@dataclass(frozen=True)
class Rule:
    """Of several rows with the same `keys` the first in the order `best` counts.

    best: columns in order of weight; "-x" puts the greatest x first; a column of RANKS goes by rank.
    """

    keys: tuple[str, ...]
    best: tuple[str, ...]


RANKS = {"outcome": {"grokked": 0, "diverged": 0}, "state": {"ended": 0, "failed": 1}}  # anything else: last
RULES = {
    "replicas": Rule(("trial_id", "seed"), ("outcome", "-observed_to", "-at", "attempt")),
    "trials": Rule(("sweep_id", "arm", "phase", "number", "seeds"), ("state", "-at")),
    "curves": Rule(("trial_id", "seed", "attempt", "step"), ()),
    "measures": Rule(("trial_id", "seed", "attempt", "step", "measure"), ()),
    "sweeps": Rule(("sweep_id",), ("-at",)),
    "plans": Rule(("sweep_id", "block"), ("at",)),
    "timings": Rule(("trial_id", "device", "threads", "at"), ()),
    "endpoints": Rule(("sweep_id", "block", "endpoint", "arm", "baseline"), ("-at",)),
    "importances": Rule(("sweep_id", "arm", "knob"), ("-at",)),
    "speedups": Rule(("sweep_id", "block", "arm", "baseline", "clock", "phase"), ("-at",)),
}


Rows = pa.Table | Mapping[str, Any] | Sequence[Mapping[str, Any]]  # what can be appended


def to_table(name: str, rows: Rows) -> pa.Table:
    """Rows in the shape of table `name`.

    rows: a list of dicts, a pa.Table, or a dict of columns in which a single value stands for a column of it.
    A nullable column may be missing; `at`, if missing, is now.
    Raises GrokscaleError for unknown and missing columns, nulls and values of another type; all at once.
    """
    schema = SCHEMAS[name]
    columns = _columns(rows)
    length = max((len(values) for values in columns.values()), default=0)
    if "at" in schema.names and isinstance(given := columns.get("at", [None] * length), list):
        now = datetime.now(UTC)
        columns["at"] = [now if at is None else at for at in given]
    problems = [
        f"{name}.{column}: no such column; {suggest(column, schema.names)}"
        for column in columns
        if column not in schema.names
    ]
    arrays = []
    for field in schema:
        values = columns.get(field.name, [None] * length)
        try:
            array = _array(values, field.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            problems.append(f"{name}.{field.name}: must be {field.type}: {error}")
            continue
        if array.null_count and not field.nullable:
            what = "has a null" if field.name in columns else "is missing"
            problems.append(f"{name}.{field.name}: {what}, and every row must have a value")
        if len(array) != length:
            problems.append(f"{name}.{field.name}: {len(array)} values, other columns have {length}")
        arrays.append(array)
    if problems:
        raise GrokscaleError("cannot store these rows:\n  " + "\n  ".join(problems))
    return pa.Table.from_arrays(arrays, schema=schema)


def _columns(rows: Rows) -> dict[str, Any]:
    if isinstance(rows, pa.Table):
        table: pa.Table = rows
        return {name: table[name].combine_chunks() for name in table.column_names}
    if isinstance(rows, Mapping):  # of columns
        whole = {name: v for name, v in rows.items() if isinstance(v, list | tuple | np.ndarray | pa.Array)}
        length = max((len(values) for values in whole.values()), default=1)
        return {name: rows[name] if name in whole else [rows[name]] * length for name in rows}
    listed: list[Mapping[str, Any]] = list(rows)
    names = dict.fromkeys(name for row in listed for name in row)
    return {name: [row.get(name) for row in listed] for name in names}


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array):
        return values.cast(kind) if values.type != kind else values
    if pa.types.is_integer(kind) and not isinstance(values, np.ndarray):  # pyarrow would cut 3.5 down to 3
        broken = [v for v in values if isinstance(v, float | np.floating) and not float(v).is_integer()]
        if broken:
            raise ValueError(f"{broken[0]!r} is no whole number")
    return pa.array(values, type=kind)


def conform(name: str, table: pa.Table) -> pa.Table:
    """A table as read from a file, in today's schema: columns added since are null, later ones go.

    Raises ValueError where the file cannot be of this table.
    """
    if table.schema.equals(SCHEMAS[name]):
        return table.replace_schema_metadata()
    arrays = []
    for field in SCHEMAS[name]:
        if field.name in table.column_names:
            column = table[field.name]
            if column.type != field.type:
                raise ValueError(f"column {field.name} is {column.type}, not {field.type}")
        elif field.nullable:
            column = pa.nulls(table.num_rows, field.type)
        else:
            raise ValueError(f"column {field.name} is missing")
        arrays.append(column)
    return pa.Table.from_arrays(arrays, schema=SCHEMAS[name])
