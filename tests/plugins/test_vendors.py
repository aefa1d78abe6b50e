"""The catalogue is wide enough for a decision: five vendors in one table, each figure with its source."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import tokenopt
from tokenopt.errors import TokenoptError
from tokenopt.plugins import PluginRegistry
from tokenopt.records import Engine

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("model", ["gpt-oss-120b", "llama-3.1-70b", "deepseek-r1"])
def test_one_search_compares_five_vendors(model: str) -> None:
    result = tokenopt.search(model=model, slo_ms=100, target_tps=1e5)
    assert {"nvidia", "amd", "google", "aws", "intel"} <= {solution.vendor for solution in result.by_accelerator}


def test_a_search_never_uses_the_network(tmp_path: Path) -> None:
    script = (
        "import socket\n"
        "def refuse(*_, **__): raise AssertionError('a search used the network')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import tokenopt; assert tokenopt.search(model='llama-3.1-8b', hardware='h100-sxm').best"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert process.returncode == 0, process.stderr


def test_weights_are_expanded_where_no_engine_stores_them() -> None:
    result = tokenopt.search(model="gpt-oss-120b", hardware=["gaudi3", "h100-sxm"], slo_ms=100, target_tps=1e5)
    formats = {solution.accelerator: solution.weight_precision for solution in result.by_accelerator}
    assert formats["h100-sxm"] == "mxfp4"
    assert formats["gaudi3"] in ("fp8", "bf16")
    (note,) = [item for item in result.assumptions if item.name == "dequantised"]
    assert "gaudi3" in note.why
    assert "h100-sxm" not in note.why
    heavier = {solution.accelerator: solution.weight_gb_per_chip for solution in result.by_accelerator}
    assert heavier["gaudi3"] > 0
    assert not [item for item in tokenopt.search(model="gpt-oss-120b", hardware="h100-sxm").assumptions
                if item.name == "dequantised"]  # fmt: skip


def test_a_stated_precision_is_never_widened() -> None:
    with pytest.raises(TokenoptError, match="no engine on gaudi3 serves gpt-oss-120b with precision mxfp4"):
        tokenopt.search(model="gpt-oss-120b", hardware="gaudi3", precision="mxfp4")


def test_announced_parts_need_to_be_asked_for(registry: PluginRegistry) -> None:
    announced = {chip.key for chip in registry.accelerators.values() if chip.status == "announced"}
    assert announced
    price = dict.fromkeys(announced, 5.0)
    without = tokenopt.search(model="llama-3.1-70b", price=price, slo_ms=100)
    assert not announced & {solution.accelerator for solution in without.by_accelerator}
    within = tokenopt.search(model="llama-3.1-70b", price=price, slo_ms=100, announced=True)
    assert announced <= {solution.accelerator for solution in within.by_accelerator}


def test_topologies_are_told_apart(registry: PluginRegistry) -> None:
    chips = registry.accelerators
    assert {chip.scale_up_topology for chip in chips.values()} >= {
        "switched",
        "mesh",
        "torus",
        "ring",
        "pcie",
        "single",
    }
    assert {chips[key].scale_up_topology for key in ("tpu-v5p", "tpu-v7", "trn2")} == {"torus"}
    assert {chips[key].scale_up_topology for key in ("gaudi3", "mi300x")} == {"mesh"}
    assert {chips[key].scale_up_topology for key in ("l4", "l40s", "a10g")} == {"pcie"}


def test_no_source_is_a_placeholder(registry: PluginRegistry) -> None:
    for chip in registry.accelerators.values():
        for name, source in chip.sources.items():
            assert "see note" not in source.reference, f"{chip.key} {name}"
            assert len(source.reference) > 5


def test_every_family_has_an_engine(registry: PluginRegistry) -> None:
    def runs(chip_vendor: str, family: str) -> Callable[[Engine], bool]:
        return lambda engine: engine.vendor == chip_vendor and (not engine.families or family in engine.families)

    for vendor in ("nvidia", "amd", "google", "aws", "intel", "huawei"):
        for family in {chip.family for chip in registry.accelerators.values() if chip.vendor == vendor}:
            assert any(map(runs(vendor, family), registry.engines)), (vendor, family)


def test_each_package_stands_alone() -> None:
    for file in ROOT.glob("plugins/tokenopt-*/pyproject.toml"):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        assert project["dependencies"] == ["tokenopt"], file
        assert list((file.parent / "tests").glob("test_*.py")), f"{file.parent.name} has no tests of its own"
        assert (file.parent / "README.md").exists()
