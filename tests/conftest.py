"""Fixtures that several test folders share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.prices.fake_api import price_api, price_sources, price_store  # noqa: F401
from tokenopt.plugins import PluginRegistry, default_registry

ROOT = Path(__file__).parents[1]

# Whoever runs the tests has prices of their own; no answer here, nor of a process started here, may rest on them.
_EMPTY = tempfile.mkdtemp(prefix="tokenopt-tests-")
os.environ["TOKENOPT_DATA_DIR"] = _EMPTY
os.environ["TOKENOPT_PRICES_FILE"] = str(Path(_EMPTY) / "prices.toml")
Path(os.environ["TOKENOPT_PRICES_FILE"]).touch()


@pytest.fixture(scope="session")
def registry() -> PluginRegistry:
    """The installed plugins."""
    return default_registry()


@pytest.fixture
def tokenopt(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line in its own process."""

    def run(*arguments: str, env: dict[str, str] | None = None, width: int = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tokenopt", *arguments],
            capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
            env={**os.environ, "COLUMNS": str(width), "NO_COLOR": "1", **(env or {})},
        )  # fmt: skip

    return run


@pytest.fixture
def fake_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a distribution with one plugin module on the path, as pip would."""

    def install(name: str, source: str, version: str = "1.0") -> None:
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[tokenopt]\n{name} = {module}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


def answer_of(process: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON answer of a process that must have succeeded."""
    assert process.returncode == 0, process.stderr
    parsed: dict[str, Any] = json.loads(process.stdout)
    return parsed
