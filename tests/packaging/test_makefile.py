"""`make` on a machine that lacks something says in one line what to install, before it touches anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASICS = ("sh", "awk", "cat", "cmp", "cut", "dirname", "env", "find", "grep", "mkdir", "printf", "sed", "sort", "test")
PYTHON = f'exec {sys.executable} "$@"'
OLD_PYTHON = "exit 1"
NEW_RUST = 'echo "$(basename $0) 1.95.0 (0000000 2026-01-01)"'
OLD_RUST = 'echo "$(basename $0) 1.70.0 (0000000 2023-06-01)"'
NO_TOOLCHAIN = "echo no default is configured >&2; exit 1"
COMPILER = "exit 0"
COMPLETE = {"python3": PYTHON, "cargo": NEW_RUST, "rustc": NEW_RUST, "cc": COMPILER}

Make = Callable[..., subprocess.CompletedProcess[str]]


def _script(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Runs make with nothing on the path but the usual small tools and what a test adds."""
    program = shutil.which("make")
    if program is None:
        pytest.skip("make is not installed")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in (*BASICS, "basename"):
        found = shutil.which(name)
        if found is not None:
            (tools / name).symlink_to(found)

    def run(
        *arguments: str, have: dict[str, str], folder: Path = tmp_path / "have"
    ) -> subprocess.CompletedProcess[str]:
        for name, body in have.items():
            _script(folder / name, body)
        path = os.pathsep.join((str(folder), str(tools)))
        return subprocess.run(
            [program, *arguments, f"VENV={tmp_path / 'venv'}"],
            cwd=ROOT, env={"PATH": path, "HOME": str(tmp_path / "home")}, capture_output=True, text=True,
            timeout=60, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return run


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"python3": None}, "Python 3.11 or newer is missing: install python3"),
        ({"python3": OLD_PYTHON}, "Python 3.11 or newer is missing: install python3"),
        ({"cargo": None, "rustc": None}, "Rust toolchain (cargo) is missing: install it with rustup"),
        ({"cargo": NO_TOOLCHAIN, "rustc": NO_TOOLCHAIN}, "run `rustup default stable`"),
        ({"cargo": OLD_RUST, "rustc": OLD_RUST}, "Rust 1.70.0 is too old"),
        ({"cc": None}, "C linker (cc) is missing: install gcc or clang"),
    ],
    ids=["no python", "old python", "no rust", "no toolchain", "old rust", "no linker"],
)
@pytest.mark.parametrize("target", ["search", "test", "lint"])
def test_a_missing_tool_gives_one_line(make: Make, target: str, changed: dict[str, str | None], says: str) -> None:
    have = {name: body for name, body in {**COMPLETE, **changed}.items() if body is not None}
    process = make(target, have=have)
    assert process.returncode != 0
    assert process.stdout == ""
    (line,) = process.stderr.splitlines()
    assert says in line


def test_a_complete_machine_passes_the_check(make: Make) -> None:
    process = make("check-tools", have=COMPLETE)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""


def test_a_python_of_the_users_choice_is_taken(make: Make, tmp_path: Path) -> None:
    _script(tmp_path / "elsewhere" / "mypython", PYTHON)
    have = {name: body for name, body in COMPLETE.items() if name != "python3"}
    assert make("check-tools", f"PYTHON={tmp_path / 'elsewhere' / 'mypython'}", have=have).returncode == 0


def test_rustup_is_found_where_home_is_not_the_one_it_was_installed_for(make: Make, tmp_path: Path) -> None:
    rustup_home = tmp_path / "other" / ".rustup"
    rustup_home.mkdir(parents=True)
    proxy = f'test "${{RUSTUP_HOME:-}}" = {rustup_home} || exit 1\n{NEW_RUST}'
    have = {**COMPLETE, "cargo": proxy, "rustc": proxy}
    process = make("check-tools", have=have, folder=tmp_path / "other" / ".cargo" / "bin")
    assert process.returncode == 0, process.stderr


def test_help_lists_every_target(make: Make) -> None:
    process = make("help", have={})
    assert process.returncode == 0
    listed = {line.split()[1] for line in process.stdout.splitlines()}
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = (line for line in text.splitlines() if line.startswith(".PHONY:"))
    assert listed == set(phony.split()[1:]) - {"check-tools", "force"}
