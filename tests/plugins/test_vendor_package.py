"""A vendor who has only CONTRIBUTING.md can ship a chip: the files printed there are installed and searched."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def vendor_files() -> dict[str, str]:
    """The files that CONTRIBUTING.md prints: a fenced block after a line that names the file in backticks and bold."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\*\*`(acme/[^`]+)`\*\*\n+```[a-z]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))


def test_a_plugin_written_from_contributing_alone_shows_up_in_search(tmp_path: Path) -> None:
    files = vendor_files()
    assert set(files) == {
        "acme/pyproject.toml", "acme/tokenopt_acme/__init__.py", "acme/tokenopt_acme/accelerators.toml",
        "acme/tokenopt_acme/engines.toml", "acme/tests/test_acme.py",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--target", str(site), str(tmp_path / "acme")],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*command: str) -> str:
        process = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=120, cwd=tmp_path
        )
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout

    answer = json.loads(run("-m", "tokenopt", "search", "--slo-ms", "50", "--target-tps", "1e5", "--format", "json"))
    assert "acme-one" in {solution["accelerator"] for solution in answer["by_accelerator"]}
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", "acme/tests")
