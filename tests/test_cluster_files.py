"""The files of cluster/: each says what it is, and is what the program it is for would take."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from grokscale import track

CLUSTER = Path(__file__).parent.parent / "cluster"
FILES = [CLUSTER / name for name in (
    "Dockerfile", "local.compose.yaml", "ray-cluster.yaml", "slurm.sbatch", "kuberay/raycluster.yaml",
    "kuberay/rayjob.yaml",
)]  # fmt: skip
SHELL = [CLUSTER / "slurm.sbatch", CLUSTER.parent / ".ci/run"]

# Keys by the Compose specification, those of a service by what its chapter on services lists.
COMPOSE = {"name", "services", "networks", "volumes", "secrets", "configs"}
SERVICE = {
    "image", "build", "command", "entrypoint", "environment", "env_file", "ports", "expose", "volumes", "networks",
    "depends_on", "healthcheck", "restart", "secrets", "configs", "shm_size", "user", "working_dir", "deploy", "scale",
    "profiles", "read_only", "tmpfs", "init", "labels", "mem_limit", "cpus", "stop_signal", "stop_grace_period",
}  # fmt: skip
HEALTH = {"test", "interval", "timeout", "retries", "start_period", "start_interval", "disable"}
# Fields of KubeRay's ray.io/v1 (ray-operator/apis/ray/v1/*_types.go; authOptions since 1.5.1), and which must be there.
RAY_CLUSTER = {
    "headGroupSpec", "workerGroupSpecs", "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions",
    "headServiceAnnotations", "suspend", "managedBy", "gcsFaultToleranceOptions",
}  # fmt: skip
HEAD_GROUP = {"serviceType", "headService", "enableIngress", "rayStartParams", "template", "resources", "labels"}
WORKER_GROUP = {
    "groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams", "template", "scaleStrategy",
    "idleTimeoutSeconds", "suspend", "resources", "labels",
}  # fmt: skip
AUTOSCALER = {
    "resources", "image", "imagePullPolicy", "env", "envFrom", "volumeMounts", "securityContext", "idleTimeoutSeconds",
    "upscalingMode", "version",
}  # fmt: skip
RAY_JOB = {
    "activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata", "clusterSelector",
    "submitterConfig", "managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML", "jobId", "submissionMode",
    "entrypointResources", "entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished",
    "shutdownAfterJobFinishes", "suspend",
}  # fmt: skip
POD = {"securityContext", "containers", "initContainers", "volumes", "nodeSelector", "tolerations", "affinity"}
CONTAINER = {
    "name", "image", "command", "args", "env", "envFrom", "ports", "resources", "volumeMounts", "securityContext",
    "imagePullPolicy", "lifecycle", "livenessProbe", "readinessProbe",
}  # fmt: skip

# What the fields used here hold, by the same sources, wherever they stand; YAML makes a bool or a number of what is to
# be a string, and the API server refuses it.
TYPES: dict[str, Any] = {
    "rayVersion": str, "entrypoint": str, "runtimeEnvYAML": str, "enableInTreeAutoscaling": bool, "suspend": bool,
    "shutdownAfterJobFinishes": bool, "runAsNonRoot": bool, "replicas": int, "minReplicas": int, "maxReplicas": int,
    "idleTimeoutSeconds": int, "ttlSecondsAfterFinished": int, "backoffLimit": int, "activeDeadlineSeconds": int,
    "runAsUser": int, "fsGroup": int, "name": str, "image": str, "groupName": str,
    "mountPath": str, "claimName": str, "key": str, "operator": str, "effect": str, "value": str, "containers": list,
    "volumes": list, "volumeMounts": list, "workerGroupSpecs": list, "tolerations": list, "nodeSelector": dict,
}  # fmt: skip


def mistyped(table: Any, where: str = "") -> list[str]:
    """Fields that hold something of another type than TYPES says."""
    if isinstance(table, list):
        return [one for n, value in enumerate(table) for one in mistyped(value, f"{where}[{n}]")]
    if not isinstance(table, dict):
        return []
    wrong = [f"{where}.{key}" for key, value in table.items() if key in TYPES and type(value) is not TYPES[key]]
    return wrong + [one for key, value in table.items() for one in mistyped(value, f"{where}.{key}")]


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / name).read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_begins_with_what_it_is(path: Path) -> None:
    head = "".join(line for line in path.read_text().splitlines(True)[:24] if line.startswith("#"))
    for words in (("What it starts:", "What it makes:"), ("How:", "Make it:"), ("How to stop it:", "Remove it:"),
                  ("What it costs:",), ("Tried:",)):  # fmt: skip
        assert any(f"# {word}" in head for word in words), f"{path.name} does not say {words[0]}"
    assert max(map(len, path.read_text().splitlines())) <= 150


def test_no_file_is_forgotten() -> None:
    examples = {CLUSTER / "env.example", CLUSTER / "mlflow-auth.ini.example"}
    assert {path for path in CLUSTER.rglob("*") if path.is_file()} == {*FILES, *examples}


def test_no_file_holds_a_secret_or_opens_a_port() -> None:
    for path in CLUSTER.rglob("*"):
        if not path.is_file():
            continue
        for line in path.read_text().splitlines():
            found = re.match(r"(?i)\s*(?:- )?\w*(?:password|secret\w*key|token)\s*[:=]\s*(\S+)", line)
            assert not found or found[1].startswith("${"), f"{path.name}: {line}"
    for name, service in load("local.compose.yaml")["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_compose() -> None:
    tables = load("local.compose.yaml")
    assert {key for key in tables if not key.startswith("x-")} <= COMPOSE
    services = tables["services"]
    assert set(services) == {"head", "worker", "mlflow", "postgres", "objects", "bucket"}
    for name, service in services.items():
        assert set(service) <= SERVICE and ("image" in service or "build" in service), name
        assert set(service.get("healthcheck", {})) <= HEALTH
        assert all(isinstance(value, str) for value in service.get("environment", {}).values()), name
        assert isinstance(service["image"], str) and isinstance(service.get("command", ""), str | list), name
        assert all(isinstance(one, str) for key in ("ports", "volumes", "secrets", "networks")
                   for one in service.get(key, [])), name  # fmt: skip
        assert set(service.get("networks", [])) <= set(tables["networks"])
        assert set(service.get("secrets", [])) <= set(tables["secrets"])
        after = service.get("depends_on", [])
        assert set(after) <= set(services)
        for other, how in after.items() if isinstance(after, Mapping) else ():
            assert how["condition"] in ("service_started", "service_healthy", "service_completed_successfully")
            assert how["condition"] != "service_healthy" or "healthcheck" in services[other]
        named = [one.split(":")[0] for one in service.get("volumes", []) if one[0] not in "./$"]
        assert set(named) <= set(tables["volumes"]), name
    wanted = set(re.findall(r"\$\{(\w+)", (CLUSTER / "local.compose.yaml").read_text().partition("name: grokscale")[2]))
    given = set(re.findall(r"^(\w+)=", (CLUSTER / "env.example").read_text(), re.MULTILINE))
    assert wanted == given


def test_mlflow_of_the_compose_file_takes_its_options() -> None:
    """Every option of its command is one of `mlflow server`'s."""
    words = load("local.compose.yaml")["services"]["mlflow"]["command"].split()
    assert words[:2] == ["mlflow", "server"]
    said = subprocess.run(
        [sys.executable, "-m", "mlflow", "server", "--help"], capture_output=True, text=True, check=True
    )
    known = set(re.findall(r"--[a-z-]+", said.stdout))
    assert {word for word in words if word.startswith("--")} <= known


def test_tracking_of_the_compose_file() -> None:
    """MLflow asks for accounts and answers to named hosts; the driver, which runs on the head, knows where it is."""
    services = load("local.compose.yaml")["services"]
    words = services["mlflow"]["command"].split()
    given = dict(pairwise(words))
    assert given["--app-name"] == "basic-auth" and "mlflow_auth" in services["mlflow"]["secrets"]
    environment = services["head"]["environment"]
    host = environment[track.VARIABLE].removeprefix("http://")
    assert host in given["--allowed-hosts"].split(",") and "*" not in given["--allowed-hosts"]
    assert host == f"mlflow:{given['--port']}" and {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"} <= set(
        environment)  # fmt: skip
    assert set(services["head"]["networks"]) & set(services["mlflow"]["networks"])


def ray_options(words: str) -> Iterator[str]:
    return (word.partition("=")[0] for word in words.split() if word.startswith("--"))


def test_ray_start_takes_its_options_everywhere() -> None:
    from ray.scripts.scripts import start

    known = {name for option in start.params for name in (*option.opts, *option.secondary_opts)}
    said = [load("local.compose.yaml")["services"][name]["command"] for name in ("head", "worker")]
    config = load("ray-cluster.yaml")
    said += [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    for path in ("raycluster.yaml", "rayjob.yaml"):
        spec = load(f"kuberay/{path}")["spec"]
        spec = spec.get("rayClusterSpec", spec)
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        said += [" ".join(f"--{key}" for key in group["rayStartParams"]) for group in groups]
    said.append(" ".join(re.findall(r"^start .*$|ray start .*$", (CLUSTER / "slurm.sbatch").read_text(), re.MULTILINE)))
    assert len(said) == 9
    for words in said:
        assert set(ray_options(words)) <= known, words


def test_ray_itself_takes_its_cluster_file() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    config = util.prepare_config(load("ray-cluster.yaml"))
    util.validate_config(config)
    spot = config["available_node_types"]["spot"]
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} and spot["min_workers"] == 0
    assert config["max_workers"] == spot["max_workers"] and config["head_node_type"] == "head"


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_kuberay(name: str) -> None:
    tables = load(f"kuberay/{name}.yaml")
    assert set(tables) == {"apiVersion", "kind", "metadata", "spec"} and tables["apiVersion"] == "ray.io/v1"
    assert tables["kind"] == {"raycluster": "RayCluster", "rayjob": "RayJob"}[name]
    assert re.fullmatch(r"[a-z0-9-]{1,40}", tables["metadata"]["name"])
    spec = tables["spec"]
    if name == "rayjob":
        assert set(spec) <= RAY_JOB and spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode")
        assert set(yaml.safe_load(spec["runtimeEnvYAML"])) == {"env_vars"}
        spec = spec["rayClusterSpec"]
    assert mistyped(tables) == []
    assert set(spec) <= RAY_CLUSTER and spec["authOptions"] == {"mode": "token"}
    assert set(spec["autoscalerOptions"]) <= AUTOSCALER
    assert {"rayStartParams", "template"} <= set(spec["headGroupSpec"]) <= HEAD_GROUP
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in spec["workerGroupSpecs"]:
        assert {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"} <= set(group) <= WORKER_GROUP
        assert 0 <= group["minReplicas"] <= group.get("replicas", group["minReplicas"]) <= group["maxReplicas"]
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        assert set(pod) <= POD
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {"name", "image"} <= set(container) <= CONTAINER
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_dockerfile() -> None:
    text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    known = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "CMD"}
    assert {line.split()[0] for line in lines} <= known
    for line in lines:
        if line.startswith("COPY"):
            assert all((CLUSTER.parent / name).exists() for name in line.split()[1:-1]), line
    assert "-c constraints.txt" in text and lines[-1].startswith("CMD") and "USER grok" in lines


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    if shutil.which("shellcheck") is None:
        said = "NOT CHECKED: shellcheck is not installed; apt-get install shellcheck"
        pytest.fail(said) if os.environ.get("CI") else pytest.skip(said)
    done = subprocess.run(["shellcheck", "--shell=bash", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
