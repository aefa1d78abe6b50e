"""Finding, loading and guarding plugins.

A plugin is a Python module named by an entry point of group ``tokenopt``. One that cannot be imported, raises, hangs,
hands over unusable records or claims another's key is named and skipped; the others load unchanged. What is taken over
is copied into plain data first: no code of a plugin runs after its hook has returned (price sources apart, which run
when the user asks for new prices).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from types import ModuleType
from typing import Any, Generic, TypeVar

import pluggy

from tokenopt.catalog.plain import plain_record
from tokenopt.catalog.refusals import (
    accelerator_refusal,
    deployer_refusal,
    engine_refusal,
    measurement_refusal,
    model_refusal,
    offer_refusal,
    price_source_refusal,
)
from tokenopt.errors import PluginError, TokenoptError
from tokenopt.hookspecs import HOOK_API_VERSION, PROJECT, TokenoptSpecs
from tokenopt.prices.merge import newest_offers
from tokenopt.records import Accelerator, Deployer, Engine, Measurement, Model, Offer, PriceSource

ENTRY_POINT_GROUP = "tokenopt"
LOAD_VARIABLE = "TOKENOPT_LOAD_PLUGINS"
"""Environment variable: a comma-separated list of entry-point names that alone are loaded (for tests and debugging)."""
TIME_LIMIT_S = 5.0
MAX_RECORDS = 100_000
"""What one hook of one plugin may take and hand over."""
OWN_TIME_LIMIT_S = 60.0
OWN_MAX_RECORDS = 2_000_000
"""The same for tokenopt's own package: its plugins read the user's store, which may hold every list there is."""

OWN_PACKAGES = frozenset(
    {
        "tokenopt-amd", "tokenopt-aws", "tokenopt-google", "tokenopt-intel", "tokenopt-more", "tokenopt-nvidia",
        "tokenopt-prices-aws", "tokenopt-prices-azure", "tokenopt-prices-clouds", "tokenopt-prices-gcp",
        "tokenopt-prices-gpuhunt", "tokenopt-prices-oci", "tokenopt-prices-skypilot", "tokenopt-prices-snapshot",
    }
)  # fmt: skip
"""Packages of this repository: they keep their keys against any third party, whatever it is called."""

_MAX_MESSAGE = 300
_PRINT_LOCK = threading.RLock()

Record = TypeVar("Record")


class _TimeLimitError(PluginError):
    """A plugin did not answer in time."""


@dataclass(slots=True)
class PluginStatus:
    """What became of one plugin.

    Attributes:
        name: Entry-point name.
        package: Distribution that provides it.
        version: Version of the distribution.
        hooks: Hooks it implements.
        contributed: Records taken per hook; filled as hooks are called.
        status: `ok`, `partial` (some hook was refused) or `skipped`.
        message: Why it is not ok.
        notes: What is worth knowing though nothing is wrong, for instance offers for accelerators nobody describes.
    """

    name: str
    package: str
    version: str
    hooks: tuple[str, ...] = ()
    contributed: dict[str, int] = field(default_factory=dict)
    status: str = "ok"
    message: str = ""
    notes: list[str] = field(default_factory=list)

    def label(self) -> str:
        """Package and version, for messages."""
        return f"{self.package} {self.version}".strip()


@dataclass(frozen=True, slots=True)
class _Kind(Generic[Record]):
    """One hook: the records it may return, what makes them usable, and keys that are taken before any plugin is asked."""

    hook: str
    record: type[Record]
    key: Callable[[Record], str] | None
    refusal: Callable[[Record], str]
    reserved: Callable[[], Iterable[str]] = tuple


class PluginRegistry:
    """What all loaded plugins contribute. Hooks are called when their records are first asked for."""

    def __init__(self, manager: pluggy.PluginManager, plugins: list[PluginStatus], strict: bool) -> None:
        self._manager = manager
        self._strict = strict
        self._cache: dict[str, list[Any]] = {}
        self._taken: dict[str, list[Offer]] = {}
        self._offers: list[Offer] | None = None
        self._hung: set[str] = set()
        self.plugins = plugins
        self.problems: list[str] = [status.message for status in plugins if status.status != "ok"]

    @property
    def accelerators(self) -> dict[str, Accelerator]:
        """Accelerators by key."""
        return {accelerator.key: accelerator for accelerator in self._collect(_ACCELERATORS)}

    @property
    def engines(self) -> list[Engine]:
        """Engines with their calibrations, all dates."""
        return self._collect(_ENGINES)

    @property
    def offers(self) -> list[Offer]:
        """Offers of every price source; of several prices of one thing the newest."""
        if self._offers is None:
            self._offers = newest_offers(self._collect(_OFFERS))
        return self._offers

    @property
    def price_sources(self) -> dict[str, PriceSource]:
        """Live price sources and price file formats by name, for `tokenopt prices update` and `import`."""
        return {source.name: source for source in self._collect(_PRICE_SOURCES)}

    @property
    def models(self) -> dict[str, Model]:
        """Models that plugins add to the bundled catalogue."""
        return {model.key: model for model in self._collect(_MODELS)}

    @property
    def measurements(self) -> list[Measurement]:
        """Measured operating points that plugins ship."""
        return self._collect(_MEASUREMENTS)

    @property
    def deployers(self) -> dict[str, Deployer]:
        """Writers of deployment files by name."""
        return {deployer.name: deployer for deployer in self._collect(_DEPLOYERS)}

    def collect_all(self) -> None:
        """Calls every hook, so that each plugin's status is complete."""
        for kind in _KINDS:
            self._collect(kind)
        self._note_unknown_accelerators()

    def _note_unknown_accelerators(self) -> None:
        """Offers for accelerators that no plugin describes cannot be ranked; that is worth a note, not a failure."""
        known = self.accelerators
        for status in self.plugins:
            unknown = Counter(
                offer.accelerator for offer in self._taken.get(status.name, ()) if offer.accelerator not in known
            )
            if unknown and not status.notes:
                keys = ", ".join(sorted(unknown)[:5]) + (", ..." if len(unknown) > 5 else "")
                status.notes.append(f"{unknown.total()} offers for accelerators that no plugin describes: {keys}")

    def _collect(self, kind: _Kind[Record]) -> list[Record]:
        if kind.hook not in self._cache:
            self._cache[kind.hook] = self._call(kind)
        return self._cache[kind.hook]

    def _call(self, kind: _Kind[Record]) -> list[Record]:
        taken: list[Record] = []
        owner: dict[str, str] = {}
        implementations = {impl.plugin_name: impl for impl in getattr(self._manager.hook, kind.hook).get_hookimpls()}
        for status in self.plugins:
            implementation = implementations.get(status.name)
            if implementation is None or status.name in self._hung:
                continue
            try:
                records = _call_guarded(implementation.function, kind, is_own=status.package == PROJECT)
                keys = [kind.key(record) for record in records] if kind.key else []
                if keys and not owner:
                    owner.update(dict.fromkeys(kind.reserved(), PROJECT))
                _refuse_clash(keys, owner, kind.hook, status)
            except PluginError as error:
                if isinstance(error, _TimeLimitError):
                    self._hung.add(status.name)
                self._report(status, error.message)
                continue
            taken.extend(records)
            owner.update(dict.fromkeys(keys, status.label()))
            status.contributed[kind.hook] = len(records)
            if kind.record is Offer:
                self._taken[status.name] = records  # type: ignore[assignment]
        return taken

    def _report(self, status: PluginStatus, message: str) -> None:
        text = _sentence(status, message)
        if self._strict:
            raise PluginError(text)
        status.status = "partial" if status.contributed else "skipped"
        status.message = text
        self.problems.append(text)


def load_plugins(strict: bool = False) -> PluginRegistry:
    """Finds and imports every plugin.

    Args:
        strict: Raise on the first plugin that is not ok, instead of skipping it.

    Returns:
        A registry; its hooks are called lazily.

    Raises:
        PluginError: With `strict`, naming the plugin and what is wrong with it.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(TokenoptSpecs)
    statuses: list[PluginStatus] = []
    entry_points, unreadable = _entry_points()
    for package, version, entry_point in entry_points:
        status = PluginStatus(name=_one_line(entry_point.name), package=package, version=version)
        try:
            if any(known.name == status.name for known in statuses):
                raise PluginError("another package already uses this entry-point name")
            module = _import_guarded(entry_point)
            _check_api_version(module)
            _register(manager, module, status)
        except PluginError as error:
            status.status, status.message = "skipped", _sentence(status, error.message)
            if strict:
                raise PluginError(status.message) from error
        statuses.append(status)
    for status in unreadable:
        if strict:
            raise PluginError(status.message)
    return PluginRegistry(manager, statuses + unreadable, strict)


def registry_of(modules: Iterable[ModuleType], strict: bool = False) -> PluginRegistry:
    """A registry of exactly these modules, installed or not; for tests of a plugin by itself.

    Args:
        modules: Plugin modules.
        strict: As for :func:`load_plugins`.

    Raises:
        PluginError: With `strict`, naming the plugin and what is wrong with it.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(TokenoptSpecs)
    statuses: list[PluginStatus] = []
    for module in modules:
        status = PluginStatus(name=_one_line(module.__name__), package=_one_line(module.__name__), version="")
        try:
            _check_api_version(module)
            _register(manager, module, status)
        except PluginError as error:
            status.status, status.message = "skipped", _sentence(status, error.message)
            if strict:
                raise PluginError(status.message) from error
        statuses.append(status)
    return PluginRegistry(manager, statuses, strict)


@cache
def default_registry() -> PluginRegistry:
    """The plugins of this process, loaded once."""
    return load_plugins()


def _entry_points() -> tuple[list[tuple[str, str, importlib.metadata.EntryPoint]], list[PluginStatus]]:
    """Package, version and entry point of every plugin in a fixed order, and packages whose metadata cannot be read.

    Our own package comes first, then those of this repository, then other `tokenopt-*`, then third parties, each by name.
    """
    wanted = os.environ.get(LOAD_VARIABLE)
    names = {name.strip() for name in wanted.split(",")} if wanted is not None else None
    unreadable: list[PluginStatus] = []
    found: Iterable[importlib.metadata.EntryPoint]
    try:
        found = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    except Exception:
        # One package with broken metadata fails the call for all: read them one by one to name it.
        found, unreadable = _entry_points_one_by_one()
    ranked = []
    for point in found:
        if names is None or point.name in names:
            package, version = _package_of(point)
            normalised = package.lower().replace("_", "-")
            if normalised == PROJECT:
                rank = 0
            elif normalised in OWN_PACKAGES:
                rank = 1
            else:
                rank = 2 if normalised.startswith(f"{PROJECT}-") else 3
            ranked.append(((rank, normalised, point.name), (package, version, point)))
    ranked.sort(key=lambda entry: entry[0])
    return [entry for _, entry in ranked], unreadable


def _entry_points_one_by_one() -> tuple[list[importlib.metadata.EntryPoint], list[PluginStatus]]:
    found: list[importlib.metadata.EntryPoint] = []
    unreadable: list[PluginStatus] = []
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        package = "unknown package"
        try:
            package = _one_line(str(distribution.metadata["Name"] or package))
            if package.lower() in seen:
                continue
            seen.add(package.lower())
            found.extend(point for point in distribution.entry_points if point.group == ENTRY_POINT_GROUP)
        except Exception as error:
            status = PluginStatus(name=package, package=package, version="", status="skipped")
            status.message = _sentence(status, f"its entry points cannot be read ({_describe(error)})")
            unreadable.append(status)
    return found, unreadable


def _package_of(point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """Name and version of the package behind an entry point, or words where its metadata lack them."""
    try:
        distribution = point.dist
        if distribution is None:
            return "unknown package", ""
        return _one_line(str(distribution.name or "unknown package")), _one_line(str(distribution.version or ""))
    except Exception:
        return "unknown package", ""


def _register(manager: pluggy.PluginManager, module: ModuleType, status: PluginStatus) -> None:
    known_as = manager.get_name(module)
    if known_as is not None:
        raise PluginError(f"its module {module.__name__} is already loaded as plugin {known_as}")
    try:
        manager.register(module, name=status.name)
        manager.check_pending()
    except Exception as error:
        manager.unregister(module)
        raise PluginError(f"hook does not match a specification: {_describe(error)}") from error
    callers = manager.get_hookcallers(module) or []
    status.hooks = tuple(sorted(caller.name for caller in callers))


def _check_api_version(module: ModuleType) -> None:
    version = getattr(module, "TOKENOPT_HOOK_API_VERSION", HOOK_API_VERSION)
    if type(version) is not int or version != HOOK_API_VERSION:
        shown = version if type(version) is int else f"of type {type(version).__name__}"
        raise PluginError(
            f"written for hook API version {shown}, this tokenopt has {HOOK_API_VERSION}; "
            "install a release of the plugin made for it"
        )


def _import_guarded(entry_point: importlib.metadata.EntryPoint) -> ModuleType:
    loaded = _within_time_limit(entry_point.load, "import", TIME_LIMIT_S)
    if not isinstance(loaded, ModuleType):
        raise PluginError("the entry point is not a module")
    return loaded


def _call_guarded(function: Callable[..., Any], kind: _Kind[Record], *, is_own: bool) -> list[Record]:
    """Records of one hook of one plugin, checked and copied into plain data, all within the time limit."""
    limit_s, most = (OWN_TIME_LIMIT_S, OWN_MAX_RECORDS) if is_own else (TIME_LIMIT_S, MAX_RECORDS)

    def call() -> list[Record]:
        answer = function()
        if not isinstance(answer, Iterable) or isinstance(answer, (str, bytes, Mapping)):
            raise PluginError(f"{kind.hook} returned {type(answer).__name__}, expected records")
        records = list(islice(answer, most + 1))
        if len(records) > most:
            raise PluginError(f"{kind.hook} returned more than {most:,} records")
        return [_checked(record, kind) for record in records]

    records: list[Record] = _within_time_limit(call, kind.hook, limit_s)
    return records


def _checked(record: Any, kind: _Kind[Record]) -> Record:
    if type(record) is not kind.record:
        raise PluginError(f"{kind.hook} returned a {type(record).__name__}, expected {kind.record.__name__}")
    try:
        plain: Record = plain_record(record)
    except ValueError as error:
        names = (getattr(record, name, None) for name in ("key", "name", "id", "provider"))
        label = next((f"{name}: " for name in names if isinstance(name, str)), "")
        raise PluginError(f"{kind.hook}: {label}{error}") from None
    refusal = kind.refusal(plain)
    if refusal:
        raise PluginError(f"{kind.hook}: {refusal}")
    return plain


def _refuse_clash(keys: list[str], owner: Mapping[str, str], hook: str, status: PluginStatus) -> None:
    """Refuses keys that another plugin, or the same one, has given already."""
    seen: set[str] = set()
    for key in keys:
        if key in owner:
            raise PluginError(
                f"{hook}: key {key} is already provided by {owner[key]}; what {status.label()} says of it is not used"
            )
        if key in seen:
            raise PluginError(f"{hook}: key {key} is given twice")
        seen.add(key)


def _within_time_limit(work: Callable[[], Any], what: str, limit_s: float) -> Any:
    """Runs `work`; one that hangs is stopped if it can be, and left behind on a daemon thread otherwise.

    Prints go to stderr: stdout carries the answer, which may be JSON.
    """
    outcome: list[Any] = []
    failure: list[PluginError] = []

    def run() -> None:
        try:
            outcome.append(work())
        except PluginError as error:
            failure.append(error)
        except BaseException as error:
            failure.append(PluginError(f"{what} raised {_describe(error)}"))

    thread = threading.Thread(target=run, daemon=True, name=f"tokenopt plugin {what}")
    with _PRINT_LOCK, contextlib.redirect_stdout(sys.stderr):
        thread.start()
        thread.join(limit_s)
        if thread.is_alive():
            _stop(thread)
            raise _TimeLimitError(f"{what} took longer than {limit_s:g} s")
    if failure:
        raise failure[0]
    return outcome[0]


def guarded(work: Callable[[], Any], what: str, limit_s: float = TIME_LIMIT_S) -> Any:
    """Runs a function that a plugin handed over; it can neither hang nor raise anything of its own.

    Args:
        work: The call.
        what: What is done, for the message.
        limit_s: Time limit, s.

    Returns:
        What it returns.

    Raises:
        TokenoptError: One that `work` raised on purpose, as it is.
        PluginError: It took longer than the limit, or raised anything else.
    """
    told: list[TokenoptError] = []

    def call() -> Any:
        try:
            return work()
        except TokenoptError as error:
            told.append(error)
            return None

    answer = _within_time_limit(call, what, limit_s)
    if told:
        raise told[0]
    return answer


def _stop(thread: threading.Thread) -> None:
    """Raises `SystemExit` in a thread, so that an endless Python loop does not keep a core busy for the whole search."""
    import ctypes

    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
    thread.join(0.1)


def _describe(error: BaseException) -> str:
    """Type and message of an exception on one line; an exception of a plugin may not even have a message."""
    try:
        message = str(error)
    except Exception:
        message = ""
    return _one_line(f"{type(error).__name__}: {message}" if message else type(error).__name__)


def _sentence(status: PluginStatus, message: str) -> str:
    return f"plugin {status.name} ({status.label()}): {_one_line(message)}"


def _one_line(text: str) -> str:
    """Printable text on one line of bearable length: what a plugin says reaches a terminal."""
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return words if len(words) <= _MAX_MESSAGE else words[: _MAX_MESSAGE - 3] + "..."


def _bundled_models() -> Iterator[str]:
    """Keys of the bundled models: they are found by name, without a hook, and nobody may take their place."""
    from tokenopt.catalog.models import bundled_model_keys

    return iter(bundled_model_keys())


_ACCELERATORS = _Kind("tokenopt_accelerators", Accelerator, lambda record: record.key, accelerator_refusal)
_ENGINES = _Kind(
    "tokenopt_engines",
    Engine,
    lambda record: f"{record.name}@{record.as_of} for {record.vendor} {' '.join(record.families)}".rstrip(),
    engine_refusal,
)
_OFFERS = _Kind("tokenopt_prices", Offer, None, offer_refusal)
_PRICE_SOURCES = _Kind("tokenopt_price_sources", PriceSource, lambda record: record.name, price_source_refusal)
_MODELS = _Kind("tokenopt_models", Model, lambda record: record.key, model_refusal, reserved=_bundled_models)
_MEASUREMENTS = _Kind("tokenopt_measurements", Measurement, lambda record: record.id, measurement_refusal)
_DEPLOYERS = _Kind("tokenopt_deployers", Deployer, lambda record: record.name, deployer_refusal)
_KINDS: tuple[_Kind[Any], ...] = (
    _ACCELERATORS,
    _ENGINES,
    _OFFERS,
    _PRICE_SOURCES,
    _MODELS,
    _MEASUREMENTS,
    _DEPLOYERS,
)
