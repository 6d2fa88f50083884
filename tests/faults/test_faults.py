"""Faults on hosts of their own: a short form in every run of the suite, all moments with `make test-faults`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from grokscale.store import Store
from tests.faults import campaign
from tests.hosts import Network, RayHosts, ray_hosts
from tests.test_service import resolved

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

pytest.importorskip("ray.dashboard.optional_deps", reason="Ray Jobs need ray[default]")
pytestmark = pytest.mark.fault
MOMENTS = int(os.environ.get("GROKSCALE_FAULT_MOMENTS", "0"))  # of every fault; 0 is the short form


@dataclass(frozen=True)
class Place:
    hosts: RayHosts
    client: JobSubmissionClient
    undisturbed: Store
    seconds: float


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Two hosts, and a sweep on them to which nothing happened."""
    try:
        network = Network(3)
    except OSError as error:
        pytest.skip(f"no network namespaces here, FAULTS NOT TRIED: {error}")
    try:
        with ray_hosts(2, network) as hosts:
            client = hosts.client()
            store, began = Store(tmp_path_factory.mktemp("undisturbed")), time.monotonic()
            assert campaign.until_done(hosts, client, resolved(), store) == (1, True)
            yield Place(hosts, client, store, time.monotonic() - began)
    finally:
        network.close()


def check(moment: campaign.Moment) -> None:
    assert moment.survived, moment


@pytest.mark.skipif(bool(MOMENTS), reason="the full form is asked for")
def test_one_sweep_through_every_fault(place: Place, tmp_path: Path) -> None:
    """A worker, a node and the driver die, one after the other, in the same sweep."""
    faults = [(2, campaign.kill_worker), (6, campaign.replace_node), (10, campaign.kill_driver)]
    moment = campaign.tried(
        "all", place.hosts, place.client, resolved(), Store(tmp_path), faults, place.undisturbed
    )
    check(moment)
    assert moment.submits == 2


@pytest.mark.skipif(not MOMENTS, reason="make test-faults")
def test_every_fault_at_many_moments(place: Place, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    total = len(place.undisturbed.replicas())
    done: list[campaign.Moment] = []
    for number in range(MOMENTS):
        for name, fault in campaign.FAULTS.items():
            at = int(rng.integers(0, total - 4))
            store: Any = Store(tmp_path / f"{number}-{name.split()[0]}")
            done.append(campaign.tried(
                name, place.hosts, place.client, resolved(), store, [(at, fault)], place.undisturbed
            ))  # fmt: skip
            campaign.RESULTS.write_text(campaign.table(done, place.seconds))
            check(done[-1])
