"""From TOML to an `Experiment`: reads the file, applies overrides, reports every problem at once."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from grokscale.entries import Registry
from grokscale.errors import InputError, holds_password, masked, nearest, suggest
from grokscale.spec.claims import check_claims
from grokscale.spec.grid import expand
from grokscale.spec.messages import location, say
from grokscale.spec.resolve import Resolved
from grokscale.spec.tables import Arm, Experiment, Grid, flat_knobs, flat_settings
from grokscale.spec.where import Path, Where, dotted, shown

NEAR = 8  # files that are named where one is not there
UNNAMED = "unnamed"
"""Stands in for a name or baseline that was refused, while the rest is looked at."""


def load(path: str | FilePath, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file.

    path: a TOML file.  overrides: "a.b=c" each, the value as TOML or else as a string; arms go by label.
    Raises InputError with every problem that can be seen without the registry.
    """
    data, text = _read(FilePath(path))
    experiment, problems = _check(data, overrides, str(path), text)
    if problems or experiment is None:
        raise InputError(problems)
    return experiment


def parse(data: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "experiment") -> Experiment:
    """An experiment from tables in memory, checked like a file. source: what messages call it."""
    experiment, problems = _check(data, overrides, source, "")
    if problems or experiment is None:
        raise InputError(problems)
    return experiment


def resolve_file(
    path: str | FilePath,
    overrides: Sequence[str] = (),
    *,
    registry: Callable[[Sequence[str]], Registry],
) -> Resolved:
    """Read a file and check it against the registry, for all problems of the file at once.

    registry: plugins -> Registry, `grokscale.registry.load`; it is called after the file has been read.
    What is wrong in the tables is left out for the second half, so that an unknown key does not hide an
    unknown method. Raises InputError.
    """
    data, text = _read(FilePath(path))
    experiment, problems = _check(data, overrides, str(path), text)
    if experiment is None:
        raise InputError(problems)
    try:
        resolved = experiment.resolve(registry(experiment.plugin))
    except InputError as error:
        here = experiment.where.at(("plugin",))
        more = [here + p.removeprefix("plugin") if p.startswith("plugin: ") else p for p in error.problems]
        raise InputError(_in_order([*problems, *more], str(path))) from error
    if problems:
        raise InputError(problems)
    return resolved


def _read(path: FilePath) -> tuple[dict[str, Any], str]:
    try:
        text = path.read_bytes().decode()
        if path.suffix == ".json":  # as the store and a job on a cluster have it
            data = json.loads(text)
            if not isinstance(data, dict):
                raise InputError([f"{path}: must hold an object, the tables of an experiment"])
            return data, ""
        return tomllib.loads(text), text
    except FileNotFoundError:
        raise InputError([f"{path}: there is no such file; {_files_near(path)}"]) from None
    except IsADirectoryError:
        raise InputError([f"{path}: is a folder; name a file in it: {_files_near(path / 'x')}"]) from None
    except UnicodeDecodeError as error:
        raise InputError([f"{path}: is not UTF-8 text (byte {error.start}); TOML files are"]) from None
    except OSError as error:
        raise InputError([f"{path}: cannot be read: {error.strerror}"]) from None
    except RecursionError:
        raise InputError([f"{path}: is nested too deeply to be an experiment"]) from None
    except json.JSONDecodeError as error:
        raise InputError([f"{path}:{error.lineno}: is not JSON: {error.msg} at column {error.colno}"]) from None
    except ValueError as error:  # TOMLDecodeError, or a path or number that Python itself refuses
        raise InputError([_syntax(path, str(error))]) from None


def _syntax(path: FilePath, message: str) -> str:
    found = re.search(r"^(.*) \(at line (\d+), column (\d+)\)$", message)
    if found:
        return f"{path}:{found[2]}: is not TOML: {found[1]} at column {found[3]}"
    return f"{path}: is not TOML: {message}"


def _files_near(path: FilePath) -> str:
    """What could have been meant: the TOML files of the folder, else those of experiments/."""
    for folder in (path.parent, FilePath("experiments")):
        try:
            found = sorted(str(one) for one in folder.glob("*.toml"))
        except (OSError, ValueError):
            found = []
        if found:
            more = f", and {len(found) - NEAR} more in {folder}/" if len(found) > NEAR else ""
            return suggest(str(path), nearest(str(path), found)[:NEAR]) + more
    return "an experiment file ends in .toml and stands under experiments/"


# ------------------------------------------------------------------------------------------- checks


def _check(
    data: Mapping[str, Any], overrides: Sequence[str], source: str, text: str
) -> tuple[Experiment | None, list[str]]:
    """(the experiment, or None where too little is left of it; the problems found)."""
    raw = copy.deepcopy(dict(data))
    problems: list[str] = []
    changed = [(path, argument) for argument in overrides if (path := _override(raw, argument, problems))]
    _flatten(raw)
    labels = [_label(arm) for arm in raw["arm"]] if isinstance(raw.get("arm"), list) else []
    where = Where(source, text, changed, labels)
    guessed = "baseline" not in raw
    if guessed and ("none" in labels or len(labels) == 1):
        raw["baseline"] = "none" if "none" in labels else labels[0]
    problems += _multiply(raw, where)

    for _ in range(100):  # each round leaves out what was wrong; a file has fewer layers than that
        try:
            experiment = Experiment.model_validate(raw)
            break
        except ValidationError as error:
            details = error.errors(include_url=False)
            problems += [f"{where.at(location(d['loc']))}: {say(d)}" for d in details]
            left_out = [_leave_out(raw, location(d["loc"]), d["type"] == "missing") for d in details]
            if not all(left_out) or not _drop_arms(raw, where):
                return None, _in_order(problems, source)
    else:
        return None, _in_order(problems, source)
    experiment._where = where
    problems += [f"{where.at(path)}: {message}" for path, message in _cross(experiment)]
    return experiment, _in_order(problems, source)


def _multiply(raw: dict[str, Any], where: Where) -> list[str]:
    """Replace the arms that [grid] multiplies by its points; what is wrong with it, which leaves it out."""
    if (isinstance(raw.get("grid"), dict) and raw["grid"].get("expanded") is True) or raw.get("grid", 0) is None:
        return []  # as the store has it: the points stand among the arms
    if "grid" not in raw or not isinstance(raw.get("arm"), list):
        return []
    try:
        grid = Grid.model_validate(raw["grid"])
    except ValidationError as error:
        details = error.errors(include_url=False)
        del raw["grid"]
        return [f"{where.at(location(('grid', *d['loc'])))}: {say({**d, 'loc': ('grid', *d['loc'])})}" for d in details]
    baseline = raw.get("baseline")
    arms, wrong = expand(grid, raw["arm"], baseline if isinstance(baseline, str) else None)
    found = [f"{where.at(path)}: {text}" for path, text in wrong]
    raw["grid"] = {**raw["grid"], "expanded": True}
    where.kept, raw["arm"] = [i for i, _ in arms], [arm for _, arm in arms]
    return found


def _flatten(raw: dict[str, Any]) -> None:
    """Flat keys from here on, so that locations are the same in what was read and in what is checked."""
    if "space" in raw:
        raw["space"] = flat_knobs(raw["space"])
    if isinstance(raw.get("arm"), tuple):
        raw["arm"] = list(raw["arm"])
    for arm in raw["arm"] if isinstance(raw.get("arm"), list) else []:
        if isinstance(arm, dict):
            for key, flatten in (("set", flat_settings), ("default", flat_settings), ("space", flat_knobs)):
                if key in arm:
                    arm[key] = flatten(arm[key])


def _leave_out(raw: dict[str, Any], path: Path, missing: bool) -> bool:
    """Take the offending value out of `raw`, so that its default stands in; False where nothing can."""
    if path in (("name",), ("baseline",)):
        raw[str(path[0])] = UNNAMED
        return True
    if missing:
        path = path[:-1]  # a table without what makes it one goes as a whole
    if "space" in path:  # so does a knob, which its parts make together
        path = path[: path.index("space") + 2]
    lists = [i for i, part in enumerate(path) if isinstance(part, int) and path[:i] != ("arm",)]
    path = path[: lists[0]] if lists else path  # and so does a list of names
    match path:
        case ("arm", int(i)) | ("arm", int(i), "name"):
            raw["arm"][i] = None
            return True
        case () | ("arm",) | ("task",) | ("task", "name"):
            return False
    node: Any = raw
    for key in path[:-1]:
        node = node[key]
        if node is None:
            return True  # gone with the arm
    node.pop(path[-1], None)
    return True


def _drop_arms(raw: dict[str, Any], where: Where) -> bool:
    """Drop the arms that were left out; False if none remain."""
    arms = raw["arm"]
    where.kept = [where.kept[i] for i, arm in enumerate(arms) if arm is not None]
    raw["arm"] = [arm for arm in arms if arm is not None]
    return bool(raw["arm"])


def _cross(experiment: Experiment) -> list[tuple[Path, str]]:
    """What is wrong between tables: (path, message)."""
    found: list[tuple[Path, str]] = []
    x, labels = experiment, [arm.name for arm in experiment.arm]
    for i, arm in enumerate(x.arm):
        if arm.name in labels[:i]:
            found.append((("arm", i, "name"), f"label {shown(arm.name)} is used twice; labels must differ"))
        for method in dict.fromkeys(m for m in arm.methods if arm.methods.count(m) > 1):
            text = f"{shown(method)} stands twice in the chain; once is allowed"
            found.append((("arm", i, "method"), text))
    if x.baseline not in [*labels, *x.where.labels, UNNAMED]:
        hint = suggest(x.baseline, labels)
        found.append((("baseline",), f"no arm is labelled {shown(x.baseline)}; {hint}"))
    if x.task.validation == 0 and x.task.monitor == "val":
        text = 'validation = 0 leaves nothing to look at; it needs monitor = "test", which results will show'
        found.append((("task", "validation"), text))
    if x.search.trials == 0 and x.confirm.seeds == 0:
        text = "search.trials = 0 and confirm.seeds = 0 leave nothing to run; raise one of them"
        found.append((("confirm", "seeds"), text))
    places = {("tracking",): x.tracking, ("store",): x.store, ("cluster", "address"): x.cluster.address}
    for path, place in places.items():
        if place and holds_password(place):
            text = ("holds a password; leave it out and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                    "what the other side reads from its environment")
            found.append((path, text))
    return [*found, *_devices(experiment), *check_claims(experiment)]


def _devices(x: Experiment) -> list[tuple[Path, str]]:
    """What does not go with several devices per trial."""
    devices, gpus, found = x.resources.devices, x.resources.gpus, []
    if devices > 1 and 0 < gpus < devices:
        text = f"{devices} devices need as many GPUs, got gpus = {gpus:g}; take gpus = {devices}, or devices = 1"
        found.append((("resources", "devices"), text))
    asked = {"search": x.search.seeds if x.search.trials else 0, "race": x.race.seeds if x.search.trials else 0,
             "confirm": x.confirm.seeds}  # fmt: skip
    for phase, seeds in asked.items():
        if 0 < seeds < devices:
            text = (f"{devices} devices want a replica each, {phase}.seeds = {seeds} gives fewer; take "
                    f"{phase}.seeds = {devices} or more, or devices = {seeds}")
            found.append((("resources", "devices"), text))
    return found


def _in_order(problems: list[str], source: str) -> list[str]:
    """Without doubles, in the order of the file; those without a line come first."""

    def line(problem: str) -> int:
        found = re.match(r":(\d+): ", problem.removeprefix(source))
        return int(found[1]) if found else 0

    return sorted(dict.fromkeys(problems), key=line)


def _label(arm: Any) -> str | None:
    return arm["name"] if isinstance(arm, Mapping) and isinstance(arm.get("name"), str) else None


# --------------------------------------------------------------------------------------- overrides


def _override(raw: dict[str, Any], argument: str, problems: list[str]) -> Path | None:
    """Write "a.b=c" into `raw`; the path changed, or None with a problem noted."""
    key, equals, text = argument.partition("=")
    argument = masked(argument)
    parts = dotted(key.strip())
    if not equals or not parts or not all(parts):
        problems.append(
            f"--set {argument}: must look like key=value, such as search.trials=8 or arm.LABEL.set.KNOB=0.1"
        )
        return None
    path: list[str | int] = []
    node: Any = raw
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if isinstance(node, list) and path == ["arm"]:
            labels = [_label(arm) for arm in node]
            if part not in labels:
                hint = suggest(str(part), [label for label in labels if label])
                problems.append(f"--set {argument}: no arm is labelled {shown(part)}; {hint}")
                return None
            if last:
                problems.append(f"--set {argument}: name a key of the arm; {suggest('', Arm.model_fields)}")
                return None
            path.append(labels.index(part))
            node = node[labels.index(part)]
            continue
        if not isinstance(node, dict):
            at = ".".join(map(str, path))
            problems.append(f"--set {argument}: {at} is no table, it has no key {shown(part)}")
            return None
        path.append(part)
        if last:
            node[part] = _value(text.strip())
        else:
            node = node.setdefault(part, {})
    return tuple(path)


def _value(text: str) -> Any:
    """The value as TOML, falling back to the text itself."""
    try:
        read = tomllib.loads(f"v = {text}")
    except (ValueError, RecursionError):
        return text
    return read["v"] if list(read) == ["v"] else text
