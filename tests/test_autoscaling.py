"""A sweep on a cluster that grows: Ray's own autoscaler, which starts nodes on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grokscale.store import Store
from tests.hosts import RayHosts
from tests.test_service import resolved, verb, write
from tests.test_sweep import trained_twice

pytest.importorskip("ray.dashboard.optional_deps", reason="Ray Jobs need ray[default]")


def growing(hosts: RayHosts, nodes: int) -> dict[str, Any]:
    """An autoscaler's configuration: a head that trains nothing, and at most so many nodes of one CPU."""
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "growing", "max_workers": nodes, "idle_timeout_minutes": 10, "upscaling_speed": 1.0,
        "provider": {
            "type": "fake_multinode", "gcs_address": f"127.0.0.1:{hosts.gcs}", "use_node_id_as_ip": True,
            "disable_node_updaters": True, "disable_launch_config_check": True,
        },
        "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False,
        "rsync_exclude": [], "rsync_filter": [], **{f"{name}_commands": [] for name in commands},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 1, "object_store_memory": 80_000_000}, "node_config": {}, "min_workers": 0,
                "max_workers": nodes,
            },
        },
    }  # fmt: skip


def test_a_cluster_grows_to_what_a_sweep_can_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From none to all the nodes that it may have, though one trial at a time is all that has no room."""
    hosts = RayHosts(cpus=0)
    hosts.own = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    hosts.growth = hosts.folder / "growing.json"
    hosts.growth.write_text(json.dumps(growing(hosts, 2)))
    try:
        hosts.start(1)
        hosts.admit(monkeypatch)
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{hosts.gcs}")
        # Not as a job: these nodes share one folder, and the first that has no work removes what travelled.
        said = verb(tmp_path, "sweep", str(write(tmp_path)))
        assert "Speed-up over plain" in said
        monkeypatch.delenv("RAY_ADDRESS")
        reply = hosts.client()._do_request("GET", "/api/v0/nodes").json()["data"]["result"]["result"]
    finally:
        hosts.close()
    trained = [node for node in reply if node["resources_total"].get("CPU") == 1]
    assert len(trained) == 2 and len(reply) == 3, reply
    store = Store(tmp_path / "runs")
    assert store.rows("trials", sweep_id=resolved().sweep_id, state="ended") and trained_twice(store) == []
