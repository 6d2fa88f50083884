"""An experiment against the registry: every name, type and range checked; presets and defaults filled in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from grokscale.entries import Measure, Method, ModelEntry, Registry, TaskEntry, undeclared
from grokscale.errors import InputError, suggest
from grokscale.spec.arms import ArmResolver, with_points
from grokscale.spec.resolved import Address, Resolved, ResolvedArm, Tables
from grokscale.spec.settings import (
    ALWAYS,
    FIXED_KEYS,
    OPTIMISER_SETTINGS,
    OPTIMISERS,
    Refused,
    coerce,
    optimiser_table,
    plain,
)
from grokscale.spec.tables import Arm, Experiment, Knob
from grokscale.spec.trial import ENGINE_VERSION
from grokscale.spec.where import Path, shown


def resolve(experiment: Experiment, registry: Registry) -> Resolved:
    """Check an experiment against the registry and fill in presets and defaults.

    Raises InputError with all problems: unknown method, task, model or knob; a value of the wrong type; one
    that a factory refuses; a default outside its range.
    """
    return Resolver(experiment, registry).run()


Place = Callable[[str, str], Path]
"""(section, key) -> where the file says it, or would."""


class Resolver:
    """Holds what one resolution needs in many places: the experiment, the registry, the problems so far."""

    def __init__(self, experiment: Experiment, registry: Registry) -> None:
        self.x = experiment
        self.registry = registry
        self.problems: list[str] = []
        self.built: Any = None  # what the task's factory makes of [task]; None without one
        self.roles: Mapping[str, Any] = {}  # the network's tensors, where it could be built

    def run(self) -> Resolved:
        x, registry = self.x, self.registry
        task = registry.tasks.get(x.task.name)
        if task is None:
            self.say(
                ("task", "name"), f"unknown task {shown(x.task.name)}; {suggest(x.task.name, registry.tasks)}"
            )
        base: Tables = {"task": self.task_table(task), "model": {}, "optimiser": {}}
        given = {k: getattr(x.optimiser, k) for k in type(x.optimiser).model_fields}
        given = {k: v for k, v in given.items() if v is not None}
        base["optimiser"] = self.optimiser(task.optimiser if task else {}, given, lambda k: ("optimiser", k))
        base["model"] = self.model_table(task)
        model = registry.models.get(base["model"].get("name", ""))
        self.built = self.build_both(task, model, base, lambda section, key: (section, key))
        shared = self.shared_space(base)
        arms = [self.arm(i, arm, base, shared) for i, arm in enumerate(x.arm)]
        self.metrics()
        self.papers(task)
        data = {arm.name: self.data(task, arm.tables["task"]) for arm in arms if arm is not None}
        if self.problems or task is None:
            raise InputError(list(dict.fromkeys(self.problems)))
        versions: dict[str, int | str] = {"engine": ENGINE_VERSION, f"task:{task.name}": task.version}
        if model:
            versions[f"model:{model.name}"] = model.version
        for name in sorted({m for arm in x.arm for m in arm.methods}):
            versions[f"method:{name}"] = registry.methods[name].version
        versions |= {f"plugin:{module}": sha for module, sha in sorted(registry.plugins.items())}
        return Resolved(
            experiment=x,
            horizon=x.horizon if x.horizon is not None else task.horizon,
            threshold=x.task.threshold if x.task.threshold is not None else task.threshold,
            arms=with_points([arm for arm in arms if arm is not None]),
            data=data,
            versions=versions,
        )

    def say(self, path: Path, text: str) -> None:
        self.problems.append(f"{self.x.where.at(path)}: {text}")

    # ------------------------------------------------------------------------------- base tables

    def task_table(self, task: TaskEntry | None) -> dict[str, Any]:
        fields = [k for k in type(self.x.task).model_fields if k != "name"]
        return self.options("task", self.x.task.options, task, fields)

    def model_table(self, task: TaskEntry | None) -> dict[str, Any]:
        preset = task.model if task else {}
        name = self.x.model.name or preset.get("name")
        if name is None:
            if task:
                self.say(
                    ("model",),
                    f"is missing: the task has no usual model; {suggest('', self.registry.models)}",
                )
            return {}
        entry = self.registry.models.get(name)
        if entry is None:
            self.say(("model", "name"), f"unknown model {shown(name)}; {suggest(name, self.registry.models)}")
            return {}
        usual = {k: v for k, v in preset.items() if k != "name"} if preset.get("name") == name else {}
        return self.options("model", usual | self.x.model.options, entry, [])

    def options(
        self, section: str, given: Mapping[str, Any], entry: TaskEntry | ModelEntry | None, fields: list[str]
    ) -> dict[str, Any]:
        """A complete [task] or [model] table: the entry's defaults, then what is given."""
        if entry is None:
            return {}
        table: dict[str, Any] = {"name": entry.name, **{k: plain(v) for k, v in entry.defaults.items()}}
        for key, value in given.items():
            path = (section, key)
            if key not in entry.defaults:
                self.say(
                    path,
                    f"unknown key for {section} {entry.name}; {suggest(key, [*entry.defaults, *fields])}",
                )
                continue
            try:
                table[key] = coerce(value, entry.defaults[key])
            except Refused as error:
                self.say(path, str(error))
        return table

    def optimiser(
        self, preset: Mapping[str, Any], given: Mapping[str, Any], path: Callable[[str], Path]
    ) -> dict[str, Any]:
        table, unread = optimiser_table(preset, given)
        for key in unread:
            reads = suggest(key, [*OPTIMISERS[table["name"]], *ALWAYS])
            self.say(path(key), f"has no effect on {table['name']}: take it out; {reads}")
        if table["name"] == "adamw" and table["decay"] != "decoupled":
            self.say(
                path("decay"),
                f'must be "decoupled" for adamw, got {shown(table["decay"])}; adam has the others',
            )
        return table

    def build_both(
        self, task: TaskEntry | None, model: ModelEntry | None, tables: Tables, place: Place
    ) -> Any:
        """Ask the task's factory, and with what it makes the model's; the task, None where there is none."""
        if task is None:
            return None
        options = options_of(tables["task"])
        built = self.build(partial(task.factory, **options), tables["task"], partial(place, "task"))
        if built is not None and model is not None:
            make = partial(model.build, built, **options_of(tables["model"]))
            known = len(self.problems)
            net = self.build(make, tables["model"], partial(place, "model"))
            if len(self.problems) > known:
                return built
            if wanting := undeclared(net):
                self.say(place("model", "name"), wanting)
            else:
                self.roles = self.roles or net.roles
        return built

    def build(self, make: Callable[[], Any], table: Mapping[str, Any], place: Callable[[str], Path]) -> Any:
        """What a factory makes; its ValueError is a problem at the key that its text names.

        place: of a key in the file. Where the text names several keys, one that was written is meant.
        """
        try:
            return make()
        except (ValueError, OverflowError, OSError, RuntimeError, TypeError) as error:
            # torch says the last two of sizes that it cannot count, with a trace of its own below the first line
            text = str(error).partition("\nException raised from")[0]
            places = {key: re.search(rf"\b{re.escape(key)}\b", text) for key in table if key != "name"}
            named = sorted((found.start(), key) for key, found in places.items() if found)
            paths = [place(key) for _, key in named] or [place("name")]
            self.say(next((path for path in paths if self.is_written(path)), paths[0]), text)
            return None

    def data(self, task: TaskEntry | None, table: Mapping[str, Any]) -> str:
        """The hash of the files that a task reads; "" where it reads none."""
        if task is None or task.data is None or self.problems:
            return ""
        return self.build(partial(task.data, **options_of(table)), table, lambda key: ("task", key)) or ""

    def is_written(self, path: Path) -> bool:
        """Does the file, or an override, say what stands at this path?"""
        match path:
            case ("task" | "model" as section, str(key)):
                return key in getattr(self.x, section).options
            case ("arm", int(i), str(table), str(key)):
                return key in getattr(self.x.arm[i], table)
        return False

    def metrics(self) -> None:
        """Every measure of [metrics] with its methods, and the columns of theirs that [[endpoint]] reads."""
        path, methods = ("metrics", "names"), self.registry.methods
        entries: list[Measure | None] = []
        for written in self.x.metrics.names:
            name, *about = written.split(":")
            entries.append(entry := self.registry.measures.get(name))
            if entry is None:
                self.say(path, f"unknown measure {shown(name)}; {suggest(name, self.registry.measures)}")
            elif len(about) != entry.methods:
                form = ":".join([name, *["METHOD"] * entry.methods])
                self.say(path, f'must be written "{form}", got {shown(written)}')
            elif unknown := [method for method in about if method not in methods]:
                hint = suggest(unknown[0], methods)
                self.say(path, f"unknown method {shown(unknown[0])} in {shown(written)}; {hint}")
            else:
                pairs = [(method, methods[method].factory(**methods[method].defaults)) for method in about]
                self.build(partial(entry.factory, *pairs), {}, lambda key: path)
        known = [entry for entry in entries if entry]
        for i, one in enumerate(self.x.endpoint):
            if not one.measure or len(known) < len(entries) or not self.roles:
                continue  # unknown measures, or a model that could not be built, have been said
            if not any(entry.gives(one.measure, self.roles) for entry in known):
                hint = suggest(one.measure, [column for entry in known for column in entry.called(self.roles)])
                text = f"{shown(one.measure)} is no column of what metrics.names measures; {hint}"
                self.say(("endpoint", i, "measure"), text)

    def papers(self, task: TaskEntry | None) -> None:
        """A published value counts what this experiment counts as grokked."""
        counted = self.x.task.threshold or (task.threshold if task else None)
        for i, paper in enumerate(self.x.paper):
            if None not in (counted, paper.threshold) and paper.threshold != counted:
                text = f"{shown(paper.id)} counts from {paper.threshold:g}, this experiment from {counted:g}"
                self.say(("paper", i, "threshold"), f"{text}: set task.threshold, or take it out")

    # -------------------------------------------------------------------------------------- spaces

    def shared_space(self, base: Tables) -> dict[Address, Knob]:
        """[space] by address; problems for keys that are no shared setting."""
        found: dict[Address, Knob] = {}
        for key, knob in self.x.space.items():
            path = ("space", key)
            address = self.shared_address(key, base)
            if address is None and base.get(key.partition(".")[0]) == {}:
                continue  # of an unknown task or model, which is a problem of its own
            if address is None:
                knob_name = key.rpartition(".")[2]
                owner = next(
                    (m.name for m in self.registry.methods.values() if knob_name in m.defaults), None
                )
                hint = f"a knob of {owner} belongs into its arm: space = {{ {key} = ... }}; " if owner else ""
                allowed = [k for k in OPTIMISER_SETTINGS if k not in FIXED_KEYS]
                sections = [f"{s}.{k}" for s in ("task", "model") for k in base[s] if k != "name"]
                self.say(path, f"unknown key; {hint}{suggest(key, allowed + sections)}")
            elif address[1] in FIXED_KEYS:
                self.say(path, f"{address[1]} is not for a search; make one [[arm]] per value")
            else:
                self.both_ways(path, address, knob)
                found[address] = knob
                if address[0] == "optimiser":
                    self.somebody_reads(path, address[1], base["optimiser"]["name"])
        return found

    def somebody_reads(self, path: Path, key: str, name: str) -> None:
        """A shared knob may mean nothing to some arms' optimisers, but not to all."""
        readers = sorted({str(arm.set.get("optimiser.name", name)) for arm in self.x.arm})
        if not any(key in ALWAYS | OPTIMISERS.get(reader, {}) for reader in readers):
            self.say(path, f"has no effect on {', '.join(readers)}: take it out")

    def both_ways(self, path: Path, address: Address, knob: Knob) -> None:
        """A setting that is both written and searched from another default: one of them would be ignored."""
        section, key = address
        if knob.default is None:
            return
        if section == "optimiser":
            written = getattr(self.x.optimiser, key)
        else:
            written = getattr(self.x, section).options.get(key)
        if written is not None and written != knob.default:
            place = self.x.where.key(path)
            hint = f"set {place}.default instead, or take {place} out"
            self.say((section, key), f"is searched ({place}): {shown(written)} would have no effect; {hint}")

    def shared_address(self, key: str, base: Tables) -> Address | None:
        head, dot, tail = key.partition(".")
        if not dot:
            return ("optimiser", key) if key in OPTIMISER_SETTINGS else None
        if head == "optimiser":
            return ("optimiser", tail) if tail == "name" or tail in OPTIMISER_SETTINGS else None
        return (head, tail) if head in ("task", "model") and tail in base[head] and tail != "name" else None

    # ---------------------------------------------------------------------------------------- arms

    def arm(self, i: int, arm: Arm, base: Tables, shared: dict[Address, Knob]) -> ResolvedArm | None:
        chain = self.chain(i, arm)
        if chain is None:
            return None
        return ArmResolver(self, i, arm, chain, base, shared).run()

    def chain(self, i: int, arm: Arm) -> list[Method] | None:
        unknown = [name for name in arm.methods if name not in self.registry.methods]
        for name in unknown:
            key = "method" if arm.method else "name"
            more = "" if arm.method else '; an arm with a label of its own says method = "..."'
            allowed = suggest(name, self.registry.methods)
            self.say(("arm", i, key), f"unknown method {shown(name)}; {allowed}{more}")
        return None if unknown else [self.registry.methods[name] for name in arm.methods]


def options_of(table: Mapping[str, Any]) -> dict[str, Any]:
    """A [task] or [model] table without its name: what a factory is called with."""
    return {k: v for k, v in table.items() if k != "name"}
