"""What a row says of where it was trained."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from grokscale.parts import processor, provenance
from tests.trials import trial

INTEL = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 207\nmodel name\t: Intel(R) Xeon(R)\n"
AMD = INTEL.replace("GenuineIntel", "AuthenticAMD").replace("6\n", "25\n").replace("207", "17")
ARM = "processor\t: 0\nBogoMIPS\t: 2100.00\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("described", "named"), [(INTEL, "GenuineIntel-6-207"), (AMD, "AuthenticAMD-25-17"), (ARM, "0x41-0xd40")]
)
def test_a_processor_is_named_by_maker_family_and_model(described: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"{described}\n{described.replace('207', '208')}", encoding="utf-8")
    assert processor(path) == named


def test_where_the_kernel_does_not_say_python_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert processor(tmp_path / "none") == "arm64"
    (tmp_path / "says nothing").write_text("hwid : 7\n")
    assert processor(tmp_path / "says nothing") == "arm64"


def test_rows_of_two_processors_are_of_two_classes_of_numerics(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same instructions for torch, and the same model name for who rents them out."""
    found = []
    for named in ("GenuineIntel-6-207", "AuthenticAMD-25-17"):
        monkeypatch.setattr("grokscale.parts.processor", lambda named=named: named)
        found.append(provenance(trial("parity-mlp2"), "cpu"))
    first, second = found
    assert first["device"] == f"cpu-{torch.backends.cpu.get_cpu_capability()}-genuineintel-6-207".lower()
    assert first["numerics"] != second["numerics"]
    assert all(row["numerics"].startswith(f"{row['device']}/fp32/eager/torch-{torch.__version__}/") for row in found)
