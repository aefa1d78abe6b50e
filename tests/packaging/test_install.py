"""What is built installs into an empty environment, with its declared dependencies only, and answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/tokenopt-*/pyproject.toml"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Wheels of tokenopt and of every plugin in the repository."""
    folder = tmp_path_factory.mktemp("wheels")
    maturin = Path(sys.executable).with_name("maturin")
    _run([str(maturin), "build", "--release", "--locked", "--quiet", "--out", str(folder)], ROOT)
    _run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index",
         "--wheel-dir", str(folder), *map(str, PLUGINS)],
        ROOT,
    )  # fmt: skip
    found = sorted(folder.glob("*.whl"))
    assert len(found) == 1 + len(PLUGINS)
    return found


def _run(command: list[str], folder: Path, env: dict[str, str] | None = None) -> str:
    process = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=900, check=False, stdin=subprocess.DEVNULL
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_plugins_wheel_holds_its_data(wheels: list[Path], plugin: Path) -> None:
    (wheel,) = (path for path in wheels if path.name.startswith(plugin.name.replace("-", "_") + "-"))
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path for path in (plugin / "src").rglob("*") if path.suffix in (".py", ".toml", ".csv", ".json")]
    assert files
    for path in files:
        assert str(path.relative_to(plugin / "src")) in names


def test_the_wheel_has_stub_type_marker_licence_and_library(wheels: list[Path]) -> None:
    (wheel,) = (path for path in wheels if path.name.startswith("tokenopt-"))
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("tokenopt/_core.pyi", "tokenopt/py.typed", "tokenopt/_core.abi3.so"):
        assert wanted in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "-abi3-" in wheel.name


@pytest.mark.timeout(1200)  # pip fetches and unpacks every dependency, which a busy machine does slowly
def test_a_clean_install_answers(wheels: list[Path], tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "TOKENOPT_LOAD_PLUGINS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["HOME"] = str(tmp_path)
    _run([str(binaries / "python"), "-m", "pip", "install", "--quiet", *map(str, wheels)], tmp_path, environment)
    _run([str(binaries / "python"), "-m", "pip", "check"], tmp_path, environment)
    tokenopt = str(binaries / "tokenopt")
    assert "search" in _run([tokenopt, "--help"], tmp_path, environment)
    plugins = json.loads(_run([tokenopt, "plugins", "list", "--format", "json"], tmp_path, environment))["plugins"]
    assert {plugin["status"] for plugin in plugins} == {"ok"}
    assert {plugin["package"] for plugin in plugins} == {"tokenopt", *(path.name for path in PLUGINS)}
    main_job = [tokenopt, "search", "--slo-ms", "50", "--target-tps", "1e6", "--format", "json"]
    answer = json.loads(_run(main_job, tmp_path, environment))
    assert len(answer["by_accelerator"]) >= 12
    assert all(solution["tpot_ms"] <= 50 for solution in answer["best"])

    # A new vendor's package is written, built, installed and checked with nothing but what the wheels brought.
    _run([tokenopt, "plugins", "new", "acme"], tmp_path, environment)
    _run(
        [str(binaries / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "./tokenopt-acme"],
        tmp_path,
        environment,
    )
    _run([tokenopt, "plugins", "check", "tokenopt-acme"], tmp_path, environment)
    answer = json.loads(_run([*main_job, "--hardware", "acme-1"], tmp_path, environment))
    assert answer["best"][0]["accelerator"] == "acme-1"
