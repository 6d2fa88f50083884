"""cluster/slurm.sbatch from its first line to its last, with stand-ins for Slurm's commands and a real Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grokscale.store import Store
from tests.hosts import MARK, Network, kill_marked, marked
from tests.test_cli import environment
from tests.test_service import PATIENCE_S, resolved, write

SCRIPT = Path(__file__).parent.parent / "cluster/slurm.sbatch"
SCONTROL = '#!/bin/sh\n[ "$1 $2" = "show hostnames" ] && echo "$3" | tr , "\\n"\n'
# A step on node nK runs in the namespace of host K; Ray of the others comes once a trial has begun on the first.
SRUN = """#!/bin/bash
while [ "${{1#--}}" != "$1" ]; do case $1 in --nodelist=n*) node=${{1#--nodelist=n}} ;; esac; shift; done
if [ "$1" = hostname ]; then echo "{net}.$node"; exit; fi
[ "$node" = 1 ] || read -r _ <{begun}
exec ip netns exec "{name}$node" "$@"
"""
# A worker that has begun a trial goes on once every host has begun one.
PLUGIN = """
import os, sys
from pathlib import Path
from tests.faults.breaking import until

if "default_worker" in sys.argv[0]:
    seen = Path({seen!r})
    (seen / os.readlink("/proc/self/ns/net")).touch()
    fifo = os.open({begun!r}, os.O_RDWR)  # held open: what is written waits for whoever reads it
    os.write(fifo, b"begun\\n")
    until(lambda: len(list(seen.iterdir())) == {nodes}, "a trial on every host", 90)
"""


@pytest.fixture
def network() -> Iterator[Network]:
    try:
        made = Network(2)
    except OSError as error:
        pytest.skip(f"no network namespaces here, NOT TRIED: {error}")
    yield made
    made.close()


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_sweep_on_the_nodes_of_a_job(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: int
) -> None:
    """Every node trains, one that joins late too."""
    folder, seen, begun, store = tmp_path / "bin", tmp_path / "seen", tmp_path / "begun", Store(tmp_path / "runs")
    folder.mkdir()
    seen.mkdir()
    os.mkfifo(begun)
    plugin = f"together_on_{nodes}"
    (tmp_path / f"{plugin}.py").write_text(PLUGIN.format(seen=str(seen), begun=str(begun), nodes=nodes))
    scripts = {
        "scontrol": SCONTROL, "srun": SRUN.format(net=network.net, name=network.name, begun=begun),
        "grokscale": f'#!/bin/sh\nexec "{sys.executable}" -m grokscale.cli "$@"\n',
        "ray": f'#!/bin/sh\nexec "{sys.executable}" -m ray.scripts.scripts "$@"\n',
    }  # fmt: skip
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    mark = f"slurm-{network.name}"
    monkeypatch.syspath_prepend(str(tmp_path))
    changes: dict[str, Any] = {"plugin": plugin, "search": {"trials": 2, "seeds": 2, "parallel": 2}}
    file, id_ = write(tmp_path, **changes), resolved(**changes).sweep_id
    slurm = {
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": ",".join(f"n{n}" for n in range(1, nodes + 1)),
        "SLURM_CPUS_ON_NODE": "1", MARK: mark, "TMPDIR": "/tmp",
        "PATH": os.pathsep.join([str(folder), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]]),
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
    assert "tried again" not in (store.sweep_dir(id_) / "log.txt").read_text(), "a host stood idle"
    spaces = [Path("/run/netns", network.space(n)).stat().st_ino for n in range(1, nodes + 1)]
    assert {path.name for path in seen.iterdir()} == {f"net:[{inode}]" for inode in spaces}
    assert {row["state"] for row in store.trials(sweep_id=id_).to_pylist()} == {"ended"}
    assert not list((tmp_path / "runs").glob("slurm-*")) and not list(Path("/tmp").glob("gs-4711-*"))
    assert left == [], "processes of the job outlived it"


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    done = subprocess.run(["bash", str(SCRIPT), "one.toml"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "usage: sbatch" in done.stderr
