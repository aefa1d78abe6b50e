"""The architecture holds: imports point one way, the command line starts light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "python" / "tokenopt"

LAYERS = [
    {"errors", "units", "records", "fields", "_core"},
    {"hookspecs"},
    {"catalog"},
    {"plugins", "prices"},
    {"request", "training_request", "posttraining_request", "problem", "training_problem", "measured", "traces"},
    {"measured_basis"},
    {"serve", "training", "posttraining", "verification"},
    {"breakdown", "decide", "testing", "scaffold", "plugin_template"},
    {"conformance", "simulation"},
    {"report"},
    {"cli", "web", "__main__"},
]
"""From the bottom up: a module imports only from its own layer or below."""


def _layer(module: str) -> int:
    top = module.split(".")[1] if "." in module else ""
    return next((index for index, names in enumerate(LAYERS) if top in names), -1)


def _imports(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tokenopt."):
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names if alias.name.startswith("tokenopt."))
    return names


# `report` types its arguments with what `serve` returns, under TYPE_CHECKING only; it stands above it in the layers.
@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_one_way(file: Path) -> None:
    module = "tokenopt." + ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
    own = _layer(module)
    if module == "tokenopt.__init__":
        return
    assert own >= 0, f"{module} has no layer: give it one in this test"
    for imported in _imports(file):
        # The sentence of a failed write is an error class, the rest of `report` stays above.
        assert _layer(imported) <= own, f"{module} imports {imported}, which stands above it"


@pytest.mark.parametrize("command", ["import tokenopt", "import tokenopt.cli; tokenopt.cli.run(['--help'])"])
def test_the_start_is_light(command: str) -> None:
    heavy = "{'numpy', 'scipy', 'rich', 'polars', 'pandas', 'httpx', 'tokenopt._core', 'pluggy'}"
    script = f"import sys; {command}; print(sorted({heavy} & set(sys.modules)), file=sys.stderr)"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert process.stderr.strip().endswith("[]"), process.stderr
