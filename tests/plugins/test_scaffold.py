"""`tokenopt plugins new` and `check`: the skeleton is a whole package, and the kit finds what is wrong with one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tokenopt import plugins
from tokenopt.conformance import check_package
from tokenopt.errors import PluginError, SpecError
from tokenopt.scaffold import new_plugin

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


def test_the_skeleton_of_the_repository_is_the_one_that_ships() -> None:
    assert (ROOT / "plugins" / "template").resolve() == (ROOT / "python" / "tokenopt" / "plugin_template").resolve()


def test_the_skeleton_is_copied_renamed_built_installed_and_checked(tmp_path: Path, tokenopt: Run) -> None:
    made = tokenopt("plugins", "new", "blue-chip", "--to", str(tmp_path))
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "tokenopt-blue-chip"
    texts = {path: path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert not [path for path, text in texts.items() if "template" in f"{path.relative_to(tmp_path)}{text}".lower()]
    checked = tokenopt("plugins", "check", str(folder), "--format", "json")
    assert checked.returncode == 0, checked.stdout
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--target", str(site), str(folder)],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    environment = {"PYTHONPATH": str(site)}
    listed = json.loads(tokenopt("plugins", "list", "--format", "json", env=environment).stdout)["plugins"]
    (status,) = [plugin for plugin in listed if plugin["name"] == "blue-chip"]
    assert status["status"] == "ok"
    assert status["contributed"] == {"tokenopt_accelerators": 1, "tokenopt_engines": 1, "tokenopt_prices": 1}
    for name in ("blue-chip", "tokenopt-blue-chip", "tokenopt_blue_chip"):
        assert tokenopt("plugins", "check", name, env=environment).returncode == 0
    answer = json.loads(
        tokenopt("search", "--hardware", "blue-chip-1", "--slo-ms", "50", "--format", "json", env=environment).stdout
    )
    assert answer["best"][0]["offer"]["provider"] == "blue-chip-cloud"
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder / "tests")],
        capture_output=True, text=True, check=False, timeout=120, cwd=folder, env={**os.environ, **environment},
    )  # fmt: skip
    assert tests.returncode == 0, tests.stdout


@pytest.mark.parametrize("name", ["", "Acme!", "1st", "template", "tokenopt", "prices", "a b", "../x", "class"])
def test_bad_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="name is"):
        new_plugin(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    new_plugin("tokenopt-acme", tmp_path)
    with pytest.raises(SpecError, match="is there already"):
        new_plugin("acme", tmp_path)


FAULTS = {
    "unit": ("hbm_usable_gib = 140.4", "hbm_usable_gib = 0.001", "is the unit right"),
    "sparsity": ("fp8 = 2000", "fp8 = 8000", "peaks_are_dense"),
    "order": ("fp8 = 2000", "fp8 = 500", "narrower_floats_are_not_slower"),
    "power": ("system_w = 1300", "system_w = 300", "topology_is_consistent"),
    "family": ('families = ["broken-a"]', 'families = ["broken-b"]', "families_belong_to_described_chips"),
    "bounds": (
        'kv_formats = ["bf16", "fp8"]',
        'kv_formats = ["bf16", "fp8"]\nparameters = { nonsense = 1.0 }',
        "nonsense",
    ),
    "price": ("usd_per_chip_hr=2.00", "usd_per_chip_hr=2000.00", "offers_are_usable"),
    "version": ("TOKENOPT_HOOK_API_VERSION = 1\n", "", "the_hook_api_version_is_stated"),
    "future": ("TOKENOPT_HOOK_API_VERSION = 1\n", "TOKENOPT_HOOK_API_VERSION = 2\n", "hook API version 2"),
    "spelling": ("def tokenopt_prices", "def tokenopt_prises", "tokenopt_prises"),
    "import": ("from pathlib import Path", "from pathlib import Paths", "Paths"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_kit_finds_it(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, told = FAULTS[fault]
    folder = new_plugin("broken", tmp_path)
    changed = 0
    for path in folder.rglob("src/**/*"):
        if path.is_file() and old in path.read_text():
            path.write_text(path.read_text().replace(old, new))
            changed += 1
    assert changed == 1
    monkeypatch.delitem(sys.modules, "tokenopt_broken", raising=False)
    failed = [result for result in check_package(str(folder)) if result.problem]
    assert failed
    assert any(told in f"{result.check} {result.problem}" for result in failed), failed


def test_a_hook_that_hangs_does_not_hang_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "TIME_LIMIT_S", 0.5)
    folder = new_plugin("hanging", tmp_path)
    (file,) = folder.glob("src/*/__init__.py")
    file.write_text(
        file.read_text().replace("    return load_engines_toml", "    while True: pass\n    return load_engines_toml")
    )
    (failed,) = [result for result in check_package(str(folder)) if result.problem]
    assert "took longer than 0.5 s" in failed.problem


def test_what_is_not_there_is_named(tmp_path: Path, tokenopt: Run) -> None:
    with pytest.raises(PluginError, match="no installed package or plugin 'nothing'"):
        check_package("nothing")
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    with pytest.raises(PluginError, match="names no plugin"):
        check_package(str(tmp_path))
    assert tokenopt("plugins", "check", "nothing").returncode == 1
    assert tokenopt("plugins", "new", "No Name").returncode == 2


@pytest.mark.parametrize("package", sorted(plugins.OWN_PACKAGES))
def test_our_own_packages_pass(package: str) -> None:
    assert [result for result in check_package(package) if result.problem] == []
