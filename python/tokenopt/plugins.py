"""Finding, loading and guarding plugins.

A plugin is a Python module named by an entry point of group ``tokenopt``. One that cannot be imported, raises, hangs,
hands over unusable records or claims another's key is named and skipped; the others load unchanged.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from types import ModuleType
from typing import Any, Generic, TypeVar

import pluggy

from tokenopt.errors import PluginError
from tokenopt.hookspecs import HOOK_API_VERSION, PROJECT, TokenoptSpecs
from tokenopt.records import Accelerator, Engine, Measurement, Model, Offer, PriceSource

ENTRY_POINT_GROUP = "tokenopt"
LOAD_VARIABLE = "TOKENOPT_LOAD_PLUGINS"
"""Environment variable: a comma-separated list of entry-point names that alone are loaded (for tests and debugging)."""
TIME_LIMIT_S = 5.0
MAX_RECORDS = 100_000

Record = TypeVar("Record")


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
    """

    name: str
    package: str
    version: str
    hooks: tuple[str, ...] = ()
    contributed: dict[str, int] = field(default_factory=dict)
    status: str = "ok"
    message: str = ""

    def label(self) -> str:
        """Package and version, for messages."""
        return f"{self.package} {self.version}".strip()


@dataclass(frozen=True, slots=True)
class _Kind(Generic[Record]):
    """One hook: the records it may return and what makes them usable."""

    hook: str
    record: type[Record]
    key: Callable[[Record], str] | None
    refusal: Callable[[Record], str]


class PluginRegistry:
    """What all loaded plugins contribute. Hooks are called when their records are first asked for."""

    def __init__(self, manager: pluggy.PluginManager, plugins: list[PluginStatus], strict: bool) -> None:
        self._manager = manager
        self._strict = strict
        self._cache: dict[str, list[Any]] = {}
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
        """Offers of every price source."""
        return self._collect(_OFFERS)

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

    def collect_all(self) -> None:
        """Calls every hook, so that each plugin's status is complete."""
        for kind in _KINDS:
            self._collect(kind)

    def _collect(self, kind: _Kind[Record]) -> list[Record]:
        if kind.hook not in self._cache:
            self._cache[kind.hook] = self._call(kind)
        return self._cache[kind.hook]

    def _call(self, kind: _Kind[Record]) -> list[Record]:
        taken: list[Record] = []
        owner: dict[str, PluginStatus] = {}
        implementations = {impl.plugin_name: impl for impl in getattr(self._manager.hook, kind.hook).get_hookimpls()}
        for status in self.plugins:
            implementation = implementations.get(status.name)
            if implementation is None:
                continue
            try:
                records = _call_guarded(implementation.function, kind)
                clash = next((key for key in _keys(records, kind) if key in owner), None)
                if clash is not None:
                    raise PluginError(
                        f"{kind.hook}: key {clash} is already provided by {owner[clash].label()}; "
                        f"what {status.label()} says of it is not used"
                    )
            except PluginError as error:
                self._report(status, error.message)
                continue
            taken.extend(records)
            owner.update(dict.fromkeys(_keys(records, kind), status))
            status.contributed[kind.hook] = len(records)
        return taken

    def _report(self, status: PluginStatus, message: str) -> None:
        text = f"plugin {status.name} ({status.label()}): {message}"
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
    for entry_point in _entry_points():
        distribution = entry_point.dist
        status = PluginStatus(
            name=entry_point.name,
            package=distribution.name if distribution else "unknown package",
            version=distribution.version if distribution else "",
        )
        try:
            if any(known.name == status.name for known in statuses):
                raise PluginError("another package already uses this entry-point name")
            module = _import_guarded(entry_point)
            _check_api_version(module)
            _register(manager, module, status)
        except PluginError as error:
            text = f"plugin {status.name} ({status.label()}): {error.message}"
            if strict:
                raise PluginError(text) from error
            status.status, status.message = "skipped", text
        statuses.append(status)
    return PluginRegistry(manager, statuses, strict)


@cache
def default_registry() -> PluginRegistry:
    """The plugins of this process, loaded once."""
    return load_plugins()


def _entry_points() -> list[importlib.metadata.EntryPoint]:
    """Entry points in a fixed order: our own package first, then `tokenopt-*`, then third parties, each by name."""
    wanted = os.environ.get(LOAD_VARIABLE)
    names = {name.strip() for name in wanted.split(",")} if wanted is not None else None

    def rank(entry_point: importlib.metadata.EntryPoint) -> tuple[int, str, str]:
        package = entry_point.dist.name if entry_point.dist else ""
        normalised = package.lower().replace("_", "-")
        first = 0 if normalised == PROJECT else 1 if normalised.startswith(f"{PROJECT}-") else 2
        return first, normalised, entry_point.name

    found = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    return sorted((point for point in found if names is None or point.name in names), key=rank)


def _register(manager: pluggy.PluginManager, module: ModuleType, status: PluginStatus) -> None:
    try:
        manager.register(module, name=status.name)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        manager.unregister(module)
        first_line = str(error).strip().splitlines()[0]
        raise PluginError(f"hook does not match a specification: {first_line}") from error
    callers = manager.get_hookcallers(module) or []
    status.hooks = tuple(sorted(caller.name for caller in callers))


def _check_api_version(module: ModuleType) -> None:
    version = getattr(module, "TOKENOPT_HOOK_API_VERSION", HOOK_API_VERSION)
    if version != HOOK_API_VERSION:
        raise PluginError(
            f"written for hook API version {version}, this tokenopt has {HOOK_API_VERSION}; "
            "install a release of the plugin made for it"
        )


def _import_guarded(entry_point: importlib.metadata.EntryPoint) -> ModuleType:
    loaded = _within_time_limit(entry_point.load, "import")
    if not isinstance(loaded, ModuleType):
        raise PluginError("the entry point is not a module")
    return loaded


def _call_guarded(function: Callable[..., Any], kind: _Kind[Record]) -> list[Record]:
    def call() -> list[Any]:
        answer = function()
        if not isinstance(answer, Iterable) or isinstance(answer, (str, bytes, Mapping)):
            raise PluginError(f"{kind.hook} returned {type(answer).__name__}, expected records")
        return list(islice(answer, MAX_RECORDS + 1))

    records: list[Record] = _within_time_limit(call, kind.hook)
    if len(records) > MAX_RECORDS:
        raise PluginError(f"{kind.hook} returned more than {MAX_RECORDS:,} records")
    for record in records:
        if not isinstance(record, kind.record):
            raise PluginError(f"{kind.hook} returned a {type(record).__name__}, expected {kind.record.__name__}")
        try:
            refusal = kind.refusal(record)
        except (TypeError, ValueError, AttributeError) as error:
            refusal = f"a field has the wrong type ({error})"
        if refusal:
            raise PluginError(f"{kind.hook}: {refusal}")
    return records


def _within_time_limit(work: Callable[[], Any], what: str) -> Any:
    """Runs `work`; a plugin that hangs is left behind on a daemon thread, which cannot keep the process alive."""
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True, name=f"tokenopt plugin {what}")
    thread.start()
    thread.join(TIME_LIMIT_S)
    if thread.is_alive():
        raise PluginError(f"{what} took longer than {TIME_LIMIT_S:g} s")
    if failure:
        error = failure[0]
        if isinstance(error, PluginError):
            raise error
        raise PluginError(f"{what} raised {type(error).__name__}: {error}") from error
    return outcome[0]


def _keys(records: Iterable[Record], kind: _Kind[Record]) -> list[str]:
    return [kind.key(record) for record in records] if kind.key else []


def accelerator_refusal(record: Accelerator) -> str:
    """Why an accelerator record cannot be used; empty when it can."""
    figures = {
        "hbm_bytes": record.hbm_bytes,
        "hbm_bytes_per_s": record.hbm_bytes_per_s,
        "chips_per_node": record.chips_per_node,
        "tdp_w": record.tdp_w,
        "scale_up_domain_chips": record.scale_up_domain_chips,
        **{f"peak_flops.{name}": value for name, value in record.peak_flops.items()},
    }
    if record.system_w is not None:
        figures["system_w"] = record.system_w
    if record.capex_usd is not None:
        figures["capex_usd"] = record.capex_usd
    for name, value in figures.items():
        if not math.isfinite(value) or value <= 0:
            return f"{record.key}: {name} is {value}, expected a finite number above 0"
    for name, value in (
        ("scale_up_bytes_per_s", record.scale_up_bytes_per_s),
        ("scale_out_bytes_per_s", record.scale_out_bytes_per_s),
    ):
        if not math.isfinite(value) or value < 0:
            return f"{record.key}: {name} is {value}, expected a finite number of at least 0"
    if "bf16" not in record.peak_flops:
        return f"{record.key}: peak_flops has no bf16 figure"
    if not record.key or record.key != record.key.lower().strip():
        return f"key {record.key!r} must be lower case without spaces around it"
    if not record.sources:
        return f"{record.key}: no source; a figure without a source is refused"
    return ""


def offer_refusal(record: Offer) -> str:
    """Why an offer cannot be used; empty when it can."""
    where = f"{record.provider} {record.instance_type} for {record.accelerator}"
    if not math.isfinite(record.usd_per_chip_hr) or record.usd_per_chip_hr <= 0:
        return f"{where}: usd_per_chip_hr is {record.usd_per_chip_hr}, expected a finite number above 0"
    if record.chips_per_instance < 1 or record.minimum_instances < 1:
        return f"{where}: chips_per_instance and minimum_instances must be at least 1"
    return ""


def _engine_refusal(record: Engine) -> str:
    bad = [name for name, value in record.parameters.items() if not math.isfinite(value)]
    return f"{record.name}: parameter {bad[0]} is not finite" if bad else ""


def _price_source_refusal(record: PriceSource) -> str:
    if not record.name or record.name != record.name.lower().strip():
        return f"price source name {record.name!r} must be lower case without spaces around it"
    if not callable(record.parse) or not callable(record.recognises):
        return f"{record.name}: parse and recognises must be callable"
    return ""


def _no_refusal(record: object) -> str:  # noqa: ARG001
    return ""


_ACCELERATORS = _Kind("tokenopt_accelerators", Accelerator, lambda record: record.key, accelerator_refusal)
_ENGINES = _Kind(
    "tokenopt_engines",
    Engine,
    lambda record: f"{record.name}@{record.as_of} for {record.vendor} {' '.join(record.families)}",
    _engine_refusal,
)
_OFFERS = _Kind("tokenopt_prices", Offer, None, offer_refusal)
_PRICE_SOURCES = _Kind("tokenopt_price_sources", PriceSource, lambda record: record.name, _price_source_refusal)
_MODELS = _Kind("tokenopt_models", Model, lambda record: record.key, _no_refusal)
_MEASUREMENTS = _Kind("tokenopt_measurements", Measurement, lambda record: record.id, _no_refusal)
_KINDS: tuple[_Kind[Any], ...] = (_ACCELERATORS, _ENGINES, _OFFERS, _PRICE_SOURCES, _MODELS, _MEASUREMENTS)
