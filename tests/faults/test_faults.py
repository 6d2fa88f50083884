"""Faults on hosts of their own: a short form in every run of the suite, at least 200 with `make test-faults`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from grokscale.spec import Resolved
from grokscale.store import Store
from tests.faults import campaign
from tests.faults.breaking import Disk, Server, Site
from tests.faults.campaign import Planned
from tests.hosts import Network, RayHosts, ray_hosts
from tests.test_service import resolved

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

pytest.importorskip("ray.dashboard.optional_deps", reason="Ray Jobs need ray[default]")
pytestmark = pytest.mark.fault
COUNT = int(os.environ.get("GROKSCALE_FAULTS", "0"))  # of the full form; 0 is the short form
EACH = 16  # faults in one sweep
TRIES = 3  # sweeps of the short form, until every fault has found what it breaks
GO_ON = bool(os.environ.get("GROKSCALE_FAULTS_GO_ON"))  # with the campaign that was cut short
KINDS = [kind for kind in os.environ.get("GROKSCALE_FAULTS_KINDS", "").split(";") if kind]  # only these, if any
LONGER: dict[str, Any] = {"search": {"trials": 20, "seeds": 2, "parallel": 4}, "confirm": {"seeds": 4}}


@dataclass(frozen=True)
class Place:
    hosts: RayHosts
    client: JobSubmissionClient
    disk: Disk
    network: Network


def network_of(hosts: int) -> Network:
    """OSError also where GROKSCALE_FAULTS_LOOPBACK says to do as if there were none."""
    if os.environ.get("GROKSCALE_FAULTS_LOOPBACK"):
        raise OSError("GROKSCALE_FAULTS_LOOPBACK is set")
    return Network(hosts)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """Two hosts, and a disk that may be full."""
    try:
        network = network_of(3)
    except OSError as error:
        pytest.skip(f"no network namespaces here, MOST FAULTS NOT TRIED: {error}")
    disk = Disk()  # before the hosts, so that they see it
    try:
        with ray_hosts(2, network, cpus=1) as hosts:  # so that two trials at once train on both
            yield Place(hosts, hosts.client(), disk, network)
    finally:
        disk.close()
        network.close()


@pytest.fixture(scope="module")
def loopback() -> Iterator[RayHosts]:
    """Two nodes of this very host, where there can be no hosts of their own."""
    try:
        network_of(1).close()
    except OSError:
        with ray_hosts(2, cpus=1) as hosts:
            yield hosts
    else:
        pytest.skip("there are network namespaces: the same is tried on hosts of their own")


def whole(hosts: RayHosts, folder: Path, *sweeps: Resolved) -> tuple[Store, float]:
    """Sweeps that nothing happened to, one after the other in one store; the seconds of the last."""
    store, seconds = Store(folder), 0.0
    for one in sweeps:
        round_ = campaign.until_done(Site(hosts, hosts.client(), one, store))
        assert round_.submits == 1
        seconds = round_.seconds
    return store, seconds


def go_through(
    names: Sequence[str], hosts: RayHosts, folder: Path, undisturbed: Store, disk: Disk | None = None
) -> int:
    """One sweep through these faults, in this order; how many submits it took.

    A fault may find nothing to break: then in another sweep; one that does not survive is never tried again.
    """
    planned, submits = [Planned(name, at) for name, at in zip(names, (2, 5, 8, 10), strict=False)], 0
    for number in range(TRIES):
        site = Site(hosts, hosts.client(), resolved(), Store(folder / str(number)), disk)
        round_ = campaign.judge(site, campaign.until_done(site, planned), undisturbed)
        assert round_.survived, round_
        submits += round_.submits
        planned = [Planned(moment.fault, moment.stored) for moment in round_.moments if not moment.hit]
        if not planned:
            return submits
    raise AssertionError(f"found nothing to break in {TRIES} sweeps: {planned}")


KILLED = ["worker SIGKILL", "node killed, a new one joins"]


@pytest.mark.skipif(bool(COUNT), reason="the full form is asked for")
def test_one_sweep_through_faults(place: Place, tmp_path: Path) -> None:
    """A worker and a node die, the disk is full, and the driver dies, one after the other, in the same sweep."""
    undisturbed, _ = whole(place.hosts, tmp_path / "undisturbed", resolved())
    names = [*KILLED, "disk full in the store", "driver SIGKILL"]
    assert go_through(names, place.hosts, place.disk.folder, undisturbed, place.disk) >= 3


@pytest.mark.skipif(bool(COUNT), reason="the full form is asked for")
def test_one_sweep_through_kills_where_hosts_cannot_be_made(loopback: RayHosts, tmp_path: Path) -> None:
    undisturbed, _ = whole(loopback, tmp_path / "undisturbed", resolved())
    assert go_through([*KILLED, "driver SIGKILL"], loopback, tmp_path, undisturbed) >= 2


@pytest.mark.skipif(not COUNT, reason="make test-faults")
def test_many_sweeps_through_many_faults(place: Place, tmp_path: Path) -> None:
    one, other = resolved(**LONGER), resolved(**LONGER, name="beside")
    alone, seconds = whole(place.hosts, tmp_path / "alone", one)
    both: Store | None = None
    rounds = campaign.kept() if GO_ON else []
    server = None
    try:
        before = len(rounds)
        rng = np.random.default_rng(7 + before)
        plans = campaign.dealt(10 * COUNT, EACH, alone.replicas().num_rows, rng, KINDS)
        for number, planned in enumerate(plans):
            if sum(len(round_.came) for round_ in rounds) >= COUNT:
                break
            asked, server = one, None
            if any(fault.fault.startswith("MLflow") for fault in planned):
                server = Server(f"{place.network.net}.254")
                server.start()
                asked = resolved(**LONGER, tracking=server.uri)
            store: Any = Store(place.disk.folder / str(number))
            site = Site(place.hosts, place.client, asked, store, place.disk, server, other)
            try:
                round_ = campaign.until_done(site, planned)
                round_.undisturbed = seconds
            except AssertionError:
                place.hosts.keep_logs(tmp_path / "ray")
                raise
            if site.beside and both is None:
                both, _ = whole(place.hosts, tmp_path / "both", one, other)
            rounds.append(campaign.judge(site, round_, both or alone if site.beside else alone))
            campaign.keep(rounds)
            campaign.RESULTS.write_text(campaign.table(rounds))
            print(number, rounds[-1], file=sys.__stderr__, flush=True)
            if server is not None:
                server.close()
            if rounds[-1].survived:
                place.disk.clear()
    finally:
        if server is not None:
            server.close()
    assert all(round_.survived for round_ in rounds[before:]), campaign.table(rounds)
