"""One arm against the registry: what it fixes, what it searches, where it starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from grokscale.entries import Method
from grokscale.errors import suggest
from grokscale.spec.resolved import Address, ResolvedArm, Tables
from grokscale.spec.settings import (
    FIXED_KEYS,
    Refused,
    check_optimiser,
    chosen,
    coerce,
    distribution,
    ends,
    fits,
    plain,
    range_text,
)
from grokscale.spec.tables import Arm, Knob
from grokscale.spec.trial import canonical_json
from grokscale.spec.where import Path, shown

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from grokscale.spec.resolve import Resolver


class ArmResolver:
    """One arm on top of the base tables."""

    def __init__(
        self,
        parent: Resolver,
        i: int,
        arm: Arm,
        chain: list[Method],
        base: Tables,
        shared: dict[Address, Knob],
    ) -> None:
        self.parent, self.i, self.spec, self.chain, self.shared = parent, i, arm, chain, shared
        self.base = base
        self.tables: Tables = {s: dict(table) for s, table in base.items()}
        for method in chain:
            self.tables[f"method:{method.name}"] = {k: plain(v) for k, v in method.defaults.items()}

    def say(self, key: str, name: str, text: str) -> None:
        self.parent.say(("arm", self.i, key, name), text)

    def run(self) -> ResolvedArm:
        fixed = self.fix()
        space, zeros = self.searched(fixed)
        self.starting_points(space, zeros)
        self.check(space)
        flat = {address: self.flat(address) for address in [*space, *fixed]}
        own = {
            self.flat((f"method:{m.name}", k)): self.tables[f"method:{m.name}"][k]
            for m in self.chain for k in m.defaults if (f"method:{m.name}", k) not in space
        }  # fmt: skip
        return ResolvedArm(
            name=self.spec.name,
            methods=tuple(m.name for m in self.chain),
            fixed=own | {flat[a]: self.value(a) for a in fixed},
            defaults={flat[a]: self.value(a) for a in space},
            space={flat[a]: range_ for a, range_ in space.items()},
            zeros=tuple(flat[a] for a in space if a in zeros),
            points=(),
            tables=self.tables,
            addresses={flat[a]: a for a in space},
        )

    def value(self, address: Address) -> Any:
        """The setting as it stands; None for one that this arm's optimiser does not read."""
        return self.tables[address[0]].get(address[1])

    def flat(self, address: Address) -> str:
        """The key under which this arm's parameters hold a setting."""
        section, key = address
        if section.startswith("method:"):
            return key if len(self.chain) == 1 else f"{section.removeprefix('method:')}.{key}"
        taken = key == "name" or (len(self.chain) == 1 and key in self.chain[0].defaults)
        if section == "optimiser" and not taken:
            return key
        return f"{section}.{key}"

    def address(self, key: str) -> Address | None:
        """What a key of `set`, `default` or `space` means: a method's own knob first, then the rest."""
        if len(self.chain) == 1 and key in self.chain[0].defaults:
            return f"method:{self.chain[0].name}", key
        head, _, tail = key.partition(".")
        for method in self.chain:
            if head == method.name and tail in method.defaults:
                return f"method:{method.name}", tail
        return self.parent.shared_address(key, self.base)

    def known(self) -> Iterable[str]:
        own = [self.flat((f"method:{m.name}", k)) for m in self.chain for k in m.defaults]
        rest = [self.flat(("optimiser", k)) for k in self.tables["optimiser"]]
        return [*own, *rest, *(f"{s}.{k}" for s in ("task", "model") for k in self.tables[s] if k != "name")]

    def unknown(self, table: str, key: str) -> None:
        if self.base.get(key.partition(".")[0]) == {}:
            return  # of an unknown task or model, which is a problem of its own
        if key in ("task.name", "model.name"):
            self.say(table, key, "an experiment has one task and one model; write a second experiment")
        else:
            self.say(
                table,
                key,
                f"unknown key for method {', '.join(self.spec.methods)}; {suggest(key, self.known())}",
            )

    def fix(self) -> list[Address]:
        """Write `set`, and the optimiser that the methods bring, into the tables; the addresses that `set` fixes."""
        found: list[Address] = []
        optimiser: dict[str, Any] = {}
        spelled: dict[str, str] = {}
        for key, value in self.spec.set.items():
            address = self.address(key)
            if address is None:
                self.unknown("set", key)
                continue
            typed = self.typed("set", key, address, value)
            if typed is None:
                continue
            found.append(address)
            spelled[address[1]] = key
            if address[0] == "optimiser":
                optimiser[address[1]] = typed
            else:
                self.tables[address[0]][address[1]] = typed
        own = {k: v for m in self.chain for k, v in m.optimiser.items()}
        if own and "name" not in optimiser:
            rates = {k: self.base["optimiser"][k] for k in ("lr", "wd") if k in self.base["optimiser"]}
            optimiser = rates | own | optimiser
        if optimiser:

            def path(key: str) -> Path:
                return "arm", self.i, "set", spelled.get(key, key)

            self.tables["optimiser"] = self.parent.optimiser(self.base["optimiser"], optimiser, path)
        return found

    def typed(self, table: str, key: str, address: Address, value: Any) -> Any:
        """The value in its one spelling, or None with a problem noted."""
        section, name = address
        try:
            if section == "optimiser":
                return check_optimiser(name, value)
            range_ = self.method_space(address)
            if range_ is not None and chosen(value, range_):
                return value
            return coerce(value, self.tables[section][name])
        except Refused as error:
            self.say(table, key, str(error))
            return None

    def method_space(self, address: Address) -> BaseDistribution | None:
        section, knob = address
        return next((m.space.get(knob) for m in self.chain if section == f"method:{m.name}"), None)

    def searched(self, fixed: list[Address]) -> tuple[dict[Address, BaseDistribution], set[Address]]:
        """(range of every searched knob, own ones first; those that may be 0 besides)."""
        space: dict[Address, BaseDistribution] = {}
        zeros: set[Address] = set()
        knobs: dict[Address, tuple[Path, Knob]] = {}
        for key, knob in self.spec.space.items():
            address = self.address(key)
            if address is None:
                self.unknown("space", key)
            elif address[1] in FIXED_KEYS and address[0] == "optimiser":
                self.say("space", key, f"{address[1]} is not for a search; make one [[arm]] per value")
            elif address in fixed:
                self.say("space", key, "is fixed in set and searched in space; take one of them out")
            elif not address[0].startswith("method:") and "optimiser.name" not in self.spec.set:
                self.say(
                    "space", key,
                    "is shared: its range must be the same for every arm, in [space] (only an arm that sets"
                    " optimiser.name may have ranges of its own)")  # fmt: skip
            elif self.value(address) is None:
                self.say("space", key, f"has no effect on {self.tables['optimiser']['name']}: take it out")
            else:
                knobs[address] = (("arm", self.i, "space", key), knob)
        wanted = self.wanted(fixed)
        for method in self.chain:
            for name, range_ in method.space.items():
                address = (f"method:{method.name}", name)
                if address not in fixed and address not in knobs and (wanted is None or address in wanted):
                    space[address] = range_
        for address, knob in self.shared.items():
            reads = address[0] != "optimiser" or address[1] in self.tables["optimiser"]
            if address not in fixed and address not in knobs and reads:
                knobs[address] = (("space", self.x_key(address)), knob)
        for address, (path, knob) in knobs.items():
            try:
                space[address] = distribution(knob, self.value(address))
                self.check_ends(path, address, space[address])
                if knob.default is not None:
                    self.tables[address[0]][address[1]] = (
                        knob.default
                        if chosen(knob.default, space[address])
                        else coerce(knob.default, self.value(address))
                    )
            except Refused as error:
                self.parent.say(path, str(error))
                space.pop(address, None)
                continue
            if knob.zero:
                zeros.add(address)
            if not fits(self.value(address), space[address], knob.zero):
                allowed, got = range_text(space[address], knob.zero), shown(self.value(address))
                hint = "from the presets; give it one: default = ..." if knob.default is None else ""
                self.parent.say(
                    path, f"the default must lie in the range, {allowed}, got {got} {hint}".rstrip()
                )
        own_first = sorted(space, key=lambda address: not address[0].startswith("method:"))
        return {address: space[address] for address in own_first}, zeros

    def x_key(self, address: Address) -> str:
        """The spelling of a shared address in [space]."""
        spellings = (
            (address[1], f"{address[0]}.{address[1]}") if address[0] == "optimiser" else (".".join(address),)
        )
        return next((s for s in spellings if s in self.parent.x.space), spellings[0])

    def check_ends(self, path: Path, address: Address, range_: BaseDistribution) -> None:
        """Refused where an end of the range is no value of the optimiser's key."""
        if address[0] == "optimiser":
            for end in ends(range_):
                check_optimiser(address[1], end)
                if (
                    address[1] == "decay"
                    and self.tables["optimiser"]["name"] == "adamw"
                    and end != "decoupled"
                ):
                    raise Refused(f'must be "decoupled" for adamw, got {shown(end)}; adam has the others')

    def wanted(self, fixed: list[Address]) -> set[Address] | None:
        """The own knobs that `search` names; None = all that have a range."""
        if self.spec.search is None:
            return None
        found: set[Address] = set()
        own = [self.flat((f"method:{m.name}", k)) for m in self.chain for k in m.space]
        for key in self.spec.search:
            address = self.address(key)
            path = ("arm", self.i, "search")
            if address is None or not address[0].startswith("method:"):
                self.parent.say(path, f"unknown knob {shown(key)}; {suggest(key, own)}")
            elif address in fixed:
                self.parent.say(path, f"{shown(key)} is fixed in set and searched; take one of them out")
            elif self.method_space(address) is None and key not in self.spec.space:
                self.parent.say(path, f"{shown(key)} has no range of its own; give it one in the arm's space")
            else:
                found.add(address)
        return found

    def starting_points(self, space: dict[Address, BaseDistribution], zeros: set[Address]) -> None:
        """Write the arm's `default` into the tables."""
        for key, value in self.spec.default.items():
            address = self.address(key)
            if address is None:
                self.unknown("default", key)
            elif address not in space:
                searched = [self.flat(a) for a in space]
                self.say(
                    "default",
                    key,
                    f"is not searched, so it has no starting point: use set; {suggest(key, searched)}",
                )
            else:
                typed = self.typed("default", key, address, value)
                if typed is None:
                    continue
                if fits(typed, space[address], address in zeros):
                    self.tables[address[0]][address[1]] = typed
                else:
                    allowed = range_text(space[address], address in zeros)
                    self.say("default", key, f"must lie in the range, {allowed}, got {shown(typed)}")

    def check(self, space: dict[Address, BaseDistribution]) -> None:
        """Ask the factories: at the settings as they stand and at both ends of every range."""
        parent = self.parent

        for method in self.chain:
            section = f"method:{method.name}"
            table = self.tables[section]
            if parent.build(partial(method.factory, **table), table, partial(self.place, section)) is None:
                continue
            tried = [{**table, a[1]: end} for a, r in space.items() if a[0] == section for end in ends(r)]
            for knobs in tried:
                parent.build(
                    partial(method.factory, **knobs), table, partial(self.place, section, tables=("space",))
                )
        built = parent.built
        if any(self.tables[s] != self.base[s] for s in ("task", "model")):
            task = parent.registry.tasks.get(self.tables["task"].get("name", ""))
            model = parent.registry.models.get(self.tables["model"].get("name", ""))
            built = parent.build_both(task, model, self.tables, self.place)
        for method in self.chain:
            if method.inputs and built is not None and built.inputs.kind not in method.inputs:
                key = "method" if self.spec.method else "name"
                name, allowed = shown(self.tables["task"]["name"]), " or ".join(method.inputs)
                parent.say(
                    ("arm", self.i, key),
                    f"{method.name} works on tasks whose rows are {allowed} (parity, toy, mnist and the like), and "
                    f"{name} gives {built.inputs.kind}; take another task, or take the arm out",
                )

    def place(self, section: str, name: str, tables: tuple[str, ...] = ("set", "default")) -> Path:
        """Where this arm says what a setting is; its name where it does not."""
        written = ((table, key) for table in tables for key in getattr(self.spec, table))
        found = next((one for one in written if self.address(one[1]) == (section, name)), None)
        return ("arm", self.i, *found) if found else ("arm", self.i, "name")


def with_points(arms: list[ResolvedArm]) -> tuple[ResolvedArm, ...]:
    """The arms with what each is asked first.

    Own defaults with the shared settings of every arm (its own first), as far as they lie in its space; then
    its own defaults with every zero in turn.
    """
    return tuple(replace(arm, points=_points(arm, arms)) for arm in arms)


def _points(arm: ResolvedArm, arms: list[ResolvedArm]) -> tuple[dict[str, Any], ...]:
    points = [arm.defaults]
    for other in arms:
        point = dict(arm.defaults)
        for key, (section, name) in arm.addresses.items():
            value = other.tables.get(section, {}).get(name)
            shared = not section.startswith("method:")
            if shared and value is not None and fits(value, arm.space[key], key in arm.zeros):
                point[key] = value
        points.append(point)
    points += [{**arm.defaults, key: coerce(0, arm.defaults[key])} for key in arm.zeros]
    unique: dict[str, dict[str, Any]] = {}
    for point in points:
        unique.setdefault(canonical_json(point), point)
    return tuple(unique.values())
