"""Each part keeps to its own work: formulas in Rust, no Python in the core, plugins on the public API only."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "tokenopt"
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/tokenopt-*/pyproject.toml"))

PUBLIC_TO_PLUGINS = {
    "tokenopt", "tokenopt.hookspecs", "tokenopt.records", "tokenopt.errors", "tokenopt.units", "tokenopt.testing",
    "tokenopt.catalog.accelerators", "tokenopt.catalog.engines", "tokenopt.catalog.models",
    "tokenopt.prices.currency", "tokenopt.prices.names", "tokenopt.prices.sources",
}  # fmt: skip
HEAVY = {"numpy", "scipy", "rich", "httpx", "polars", "pandas", "pyarrow"}
PHYSICAL = re.compile(r"flops|hbm|bytes")
UNIT_ONLY = re.compile(r"[A-Z][A-Z0-9_]*")
DISPLAY_ONLY = {("report/explanation.py", "memory['activation_bytes_per_token'] * solution.chunk_tokens")}
"""Products that only spell out a line of `explain` from two numbers of the core's answer."""


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _words(node: ast.expr) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def _is_conversion(node: ast.expr) -> bool:
    """A number, or a constant of `units`: scaling a figure is not computing with it."""
    return (isinstance(node, ast.Constant) and isinstance(node.value, (int, float))) or (
        isinstance(node, ast.Name) and UNIT_ONLY.fullmatch(node.id) is not None
    )


def formulas(tree: ast.Module) -> Iterator[str]:
    """Products, quotients and powers of a physical quantity with anything but a unit."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.Div, ast.FloorDiv, ast.Pow))):
            continue
        if _is_conversion(node.left) or _is_conversion(node.right):
            continue
        if any(PHYSICAL.search(word) for side in (node.left, node.right) for word in _words(side)):
            yield ast.unparse(node)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_python_holds_no_formula(file: Path) -> None:
    where = str(file.relative_to(PACKAGE))
    found = [text for text in formulas(_tree(file)) if (where, text) not in DISPLAY_ONLY]
    assert found == [], f"{where} computes {found[0]}: formulas of time, memory and cost belong to the Rust core"


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("t = flops / peak_flops", 1),
        ("t = weight_bytes / chip.hbm_bytes_per_s", 1),
        ("m = counts['weight_bytes'] * share", 1),
        ("m = counts['weight_bytes'] / 1e9", 0),
        ("m = hbm_gib * GIB", 0),
        ("cost = usd * low", 0),
    ],
)
def test_a_formula_is_recognised(code: str, count: int) -> None:
    assert len(list(formulas(ast.parse(code)))) == count


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_heavy_imports_are_inside_functions(file: Path) -> None:
    for node in _tree(file).body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        heavy = {name.split(".")[0] for name in names} & HEAVY
        assert not heavy, f"{file.relative_to(PACKAGE)} imports {', '.join(heavy)} as soon as it is imported"


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_plugins_use_the_public_api_only(plugin: Path) -> None:
    files = sorted((plugin / "src").rglob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(_tree(file)):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            foreign = {name for name in names if name.split(".")[0] == "tokenopt"} - PUBLIC_TO_PLUGINS
            assert not foreign, f"{file.relative_to(ROOT)} imports {', '.join(foreign)}, which is not public to plugins"


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_plugin_packages_are_declared_alike(plugin: Path) -> None:
    project = tomllib.loads((plugin / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == plugin.name
    assert project["license"] == "Apache-2.0"
    assert any(requirement.startswith("tokenopt") for requirement in project["dependencies"])
    assert (plugin / project["readme"]).is_file()
    (module,) = project["entry-points"]["tokenopt"].values()
    assert (plugin / "src" / module / "__init__.py").is_file()


def test_the_core_has_no_python_in_it() -> None:
    manifest = tomllib.loads((ROOT / "rust" / "tokenopt-core" / "Cargo.toml").read_text(encoding="utf-8"))
    assert not {"pyo3", "numpy"} & {*manifest["dependencies"], *manifest.get("dev-dependencies", {})}
    for file in (ROOT / "rust" / "tokenopt-core" / "src").rglob("*.rs"):
        assert "pyo3" not in file.read_text(encoding="utf-8"), file.name
