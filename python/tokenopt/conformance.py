"""Running the conformance kit on a package by name, without pytest."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tokenopt.errors import PluginError

_GROUP = "tokenopt"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check of one hook.

    Attributes:
        plugin: Entry-point name.
        hook: Hook whose records were checked; empty where the plugin could not even be loaded.
        check: Name of the check.
        rule: What it asks for.
        problem: What is wrong; empty = nothing.
    """

    plugin: str
    hook: str
    check: str
    rule: str
    problem: str


def check_package(package: str) -> list[CheckResult]:
    """Runs the class of every hook that a package implements.

    Args:
        package: Name of an installed package, of one of its plugins, or a folder with a `pyproject.toml`.

    Returns:
        One result a check.

    Raises:
        PluginError: There is no such package, or it has no plugin.
    """
    from tokenopt.testing import CLASSES

    results: list[CheckResult] = []
    for name, load in _plugins(package):
        module, problem = load()
        if module is None:
            results.append(CheckResult(name, "", "loads", "The module is imported and names its hooks right.", problem))
            continue
        results.append(CheckResult(name, "", "loads", "The module is imported and names its hooks right.", ""))
        for hook, kind in CLASSES.items():
            if not hasattr(module, hook):
                continue
            checks = type(kind.__name__, (kind,), {"plugin": module})()
            for check, method in inspect.getmembers(checks, inspect.ismethod):
                if check.startswith("test_"):
                    rule = (inspect.getdoc(method) or "").splitlines()[0]
                    results.append(CheckResult(name, hook, check.removeprefix("test_"), rule, _problem(method)))
    return results


def _problem(method: object) -> str:
    try:
        method()  # type: ignore[operator]
    except AssertionError as error:
        return str(error).split("\n", 1)[0] or "does not hold"
    except Exception as error:
        # A hook of a plugin may raise anything.
        return f"{type(error).__name__}: {error}"
    return ""


class _Loader:
    """Imports one plugin module and holds its hooks against the specifications."""

    def __init__(self, module: str, path: Path | None = None) -> None:
        self._module = module
        self._path = path

    def __call__(self) -> tuple[ModuleType | None, str]:
        from tokenopt.plugins import registry_of

        if self._path is not None:
            sys.path.insert(0, str(self._path))
        try:
            module = importlib.import_module(self._module)
        except Exception as error:
            return None, f"import raised {type(error).__name__}: {error}"
        finally:
            if self._path is not None:
                sys.path.remove(str(self._path))
        if not isinstance(module, ModuleType):
            return None, "the entry point is not a module"
        registry = registry_of([module])
        if registry.problems:
            return None, registry.problems[0]
        # A hook that hangs would hang the checks: it is asked once under the time limit of a search.
        registry.collect_all()
        hung = [problem for problem in registry.problems if "took longer than" in problem]
        return (None, hung[0]) if hung else (module, "")


def _plugins(package: str) -> Iterator[tuple[str, _Loader]]:
    folder = Path(package)
    if (folder / "pyproject.toml").exists():
        yield from _of_folder(folder)
        return
    wanted = package.lower().replace("_", "-")
    found = [
        point
        for point in importlib.metadata.entry_points(group=_GROUP)
        if wanted in (point.name.lower(), (point.dist.name if point.dist else "").lower().replace("_", "-"))
    ]
    if not found:
        raise PluginError(
            f"no installed package or plugin {package!r}, and no folder of that name with a pyproject.toml",
            ["`tokenopt plugins` lists what is installed"],
        )
    for point in found:
        yield point.name, _Loader(point.module)


def _of_folder(folder: Path) -> Iterator[tuple[str, _Loader]]:
    file = folder / "pyproject.toml"
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        points = dict(project["entry-points"][_GROUP])
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise PluginError(
            f"{file} names no plugin: expected a table [project.entry-points.{_GROUP}] ({type(error).__name__})"
        ) from error
    source = folder / "src" if (folder / "src").is_dir() else folder
    for name, module in points.items():
        yield str(name), _Loader(str(module), source.resolve())
