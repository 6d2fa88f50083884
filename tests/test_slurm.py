"""cluster/slurm.sbatch from its first line to its last, with stand-ins for Slurm's commands and a real Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from grokscale.store import Store
from tests.hosts import MARK, Network, kill_marked, marked
from tests.test_cli import environment
from tests.test_service import PATIENCE_S, resolved, write

SCRIPT = Path(__file__).parent.parent / "cluster/slurm.sbatch"
SCONTROL = '#!/bin/sh\n[ "$1 $2" = "show hostnames" ] && echo "$3" | tr , "\\n"\n'
# A step on node nK runs in the namespace of host K.
SRUN = """#!/bin/bash
while [ "${{1#--}}" != "$1" ]; do case $1 in --nodelist=n*) node=${{1#--nodelist=n}} ;; esac; shift; done
if [ "$1" = hostname ]; then echo "{net}.$node"; else exec ip netns exec "{name}$node" "$@"; fi
"""


@pytest.fixture
def network() -> Iterator[Network]:
    try:
        made = Network(2)
    except OSError as error:
        pytest.skip(f"no network namespaces here, NOT TRIED: {error}")
    yield made
    made.close()


def test_a_sweep_on_two_nodes(network: Network, tmp_path: Path) -> None:
    folder, store = tmp_path / "bin", Store(tmp_path / "runs")
    folder.mkdir()
    scripts = {
        "scontrol": SCONTROL, "srun": SRUN.format(net=network.net, name=network.name),
        "grokscale": f'#!/bin/sh\nexec "{sys.executable}" -m grokscale.cli "$@"\n',
        "ray": f'#!/bin/sh\nexec "{sys.executable}" -m ray.scripts.scripts "$@"\n',
    }  # fmt: skip
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    mark = f"slurm-{network.name}"
    file, id_ = write(tmp_path), resolved().sweep_id
    slurm = {
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "n1,n2", "SLURM_CPUS_ON_NODE": "2", MARK: mark, "TMPDIR": "/tmp",
        "PATH": os.pathsep.join([str(folder), os.environ["PATH"]]),
    }  # fmt: skip
    bare = {name: value for name, value in environment().items() if not name.startswith("RAY_")}
    try:
        # The driver runs on the first node, as the batch step of Slurm does.
        done = subprocess.run(
            ["ip", "netns", "exec", network.space(1), "bash", str(SCRIPT), str(file), store.root],
            env=bare | slurm, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        left = marked(mark)
    finally:
        kill_marked(mark)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Speed-up over plain" in done.stdout
    assert {row["state"] for row in store.trials(sweep_id=id_).to_pylist()} == {"ended"}
    assert not list((tmp_path / "runs").glob("slurm-*")) and not list(Path("/tmp").glob("gs-4711-*"))
    assert left == [], "processes of the job outlived it"


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    done = subprocess.run(["bash", str(SCRIPT), "one.toml"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "usage: sbatch" in done.stderr
