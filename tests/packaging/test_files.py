"""What must be in the wheel is tracked, and the ignore list swallows no data."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _git(*arguments: str) -> list[str]:
    process = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if process.returncode not in (0, 1):
        pytest.skip("not a git checkout")
    return process.stdout.splitlines()


def test_no_data_file_is_ignored() -> None:
    data = [
        str(path.relative_to(ROOT))
        for folder in ("python", "plugins")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".toml", ".csv", ".pyi", ".typed")
        and "egg-info" not in str(path)
        and "build" not in path.relative_to(ROOT).parts
    ]
    assert len(data) > 100
    assert _git("check-ignore", *data) == []


@pytest.mark.slow
def test_the_wheel_holds_everything(tmp_path: Path) -> None:
    import sys

    maturin = Path(sys.executable).parent / "maturin"
    subprocess.run(
        [str(maturin), "build", "--release", "--locked", "--quiet", "--out", str(tmp_path)],
        cwd=ROOT,
        check=True,
        timeout=600,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "python" / "tokenopt").rglob("*"):
        if path.is_file() and path.suffix in (".py", ".pyi", ".toml", ".typed", ".csv"):
            assert str(path.relative_to(ROOT / "python")) in names
