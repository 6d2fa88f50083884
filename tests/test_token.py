"""The token of every Ray that is started: a fresh one by a local sweep, a file of its owner's by a script."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "cluster/slurm.sbatch"
SAID = 'print(os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]'
# Whoever has imported Ray before us has had it read another mode.
HOST = f"""
import os, ray
from grokscale.tuner import Cluster
cluster = Cluster(1, 0)
cluster.start()
{SAID}, ray.get_runtime_context().gcs_address, flush=True)
input()
cluster.close()
"""
CLIENT = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    print(len(GcsClient(address=sys.argv[1]).get_all_node_info(timeout=30)))
except AuthenticationError:
    print("refused")
"""


@pytest.fixture
def bare() -> dict[str, str]:
    """This environment without anything that is for Ray."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def python(code: str, *words: str, env: dict[str, str]) -> str:
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout


def test_there_is_no_token_where_the_mode_or_the_cluster_is_given(bare: dict[str, str]) -> None:
    code = "import os, grokscale.tuner; print(sorted(n for n in os.environ if n.startswith('RAY_A') and 'AUTH' in n))"
    assert python(code, env={**bare, "RAY_AUTH_MODE": "disabled"}) == "['RAY_AUTH_MODE']\n"
    assert python(code, env={**bare, "RAY_ADDRESS": "127.0.0.1:1"}) == "[]\n"


def test_a_ray_of_our_own_has_a_fresh_token_and_refuses_who_has_not_got_it(bare: dict[str, str]) -> None:
    mode, first = python(f"import os, grokscale.tuner; {SAID})", env=bare).split()
    assert mode == "token" and re.fullmatch("[0-9a-f]{64}", first)
    host = subprocess.Popen(
        [sys.executable, "-c", HOST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=bare
    )
    assert host.stdin is not None and host.stdout is not None
    try:
        mode, token, address = host.stdout.readline().split()
        assert mode == "token" and re.fullmatch("[0-9a-f]{64}", token) and token != first
        given = {
            "its own": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}, "none": {"RAY_AUTH_MODE": "disabled"},
            "another": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token[::-1]},
        }  # fmt: skip
        said = {name: python(CLIENT, address, env=bare | variables).strip() for name, variables in given.items()}
        assert said == {"its own": "1", "none": "refused", "another": "refused"}
    finally:
        host.communicate("\n")
    assert host.returncode == 0


def test_the_token_of_a_slurm_job_is_for_its_owner_only_and_goes_with_it(tmp_path: Path, bare: dict[str, str]) -> None:
    """Slurm's commands are stand-ins; the first step fails, and so does the job."""
    folder, store = tmp_path / "bin", tmp_path / "runs"
    folder.mkdir()
    scripts = {
        "scontrol": "echo n1",
        "srun": 'exec >&2; stat --format=%a "$RAY_AUTH_TOKEN_PATH" "$(dirname "$RAY_AUTH_TOKEN_PATH")"; '
        'cat "$RAY_AUTH_TOKEN_PATH"; exit 3',
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "4712", "SLURM_JOB_NODELIST": "n1", "TMPDIR": str(tmp_path),
        "PATH": os.pathsep.join([str(folder), os.environ["PATH"]]),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", 'umask 022; exec bash "$@"', "-", str(SCRIPT), "one.toml", str(store)],
        env=bare | slurm, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    of_file, of_folder, token = done.stderr.split()
    assert (of_file, of_folder) == ("600", "700") and re.fullmatch("[0-9a-f]{64}", token)
    assert not list(store.iterdir()) and {path.name for path in tmp_path.iterdir()} == {"bin", "runs"}
