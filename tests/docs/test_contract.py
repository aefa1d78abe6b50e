"""The documents keep their promises: fields, examples, targets."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tokenopt.problem import Assumption
from tokenopt.serve import (
    Handover,
    Interval,
    Layout,
    OfferAnswer,
    OtherMode,
    Pool,
    SearchResult,
    Solution,
    Speculation,
)

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "record",
    [SearchResult, Solution, OfferAnswer, Layout, Pool, Handover, Speculation, OtherMode, Interval, Assumption],
)
def test_every_field_of_the_answer_is_documented(record: type) -> None:
    text = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    missing = [field.name for field in dataclasses.fields(record) if f"`{field.name}`" not in text]
    assert not missing


def test_documented_fields_exist() -> None:
    text = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    documented = {
        name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    known = {field.name for record in (SearchResult, Solution) for field in dataclasses.fields(record)}
    assert documented == known | {"schema"}


@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
def test_examples_of_the_readme_run(code: str, tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr


def _commands(text: str) -> list[str]:
    shell = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    return [line.partition(" #")[0].strip() for line in shell.splitlines() if line.startswith("tokenopt ")]


@pytest.mark.parametrize("command", [line for line in _commands(README) if "path/to" not in line])
def test_commands_of_the_readme_run(command: str, tmp_path: Path) -> None:
    import shlex

    process = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)], capture_output=True, text=True, timeout=120, check=False,
        cwd=tmp_path, env={**os.environ, "COLUMNS": "160", "NO_COLOR": "1"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr


def test_the_readme_has_commands_and_examples() -> None:
    assert len(_commands(README)) >= 3
    assert "```python\n" in README


def test_targets_that_documents_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    for document in DOCUMENTS:
        named = set(re.findall(r"(?:`|^)make ([a-z-]+)", document.read_text(encoding="utf-8"), re.MULTILINE))
        assert named <= targets, f"{document.name} names {sorted(named - targets)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_nothing_is_left_to_fill_in(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert not re.search(r"\b(TODO|TBD|FIXME|XXX|FIDELITY|SPEED)\b", text)
    for name, body in re.findall(r"<!-- begin: (.+?) -->(.*?)<!-- end: \1 -->", text, re.DOTALL):
        assert body.strip(), f"the part {name!r} is empty: run `make docs` or `make bench`"
    assert text.count("<!-- begin: ") == text.count("<!-- end: ")
