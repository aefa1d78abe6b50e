"""Engines, and the resolution of calibrated parameters: one global physical set, with deviations where data support them.

A calibration file holds ``[global]`` values and tables of deviations ``[engine.NAME]``, ``[family.NAME]``,
``[format.NAME]`` and ``[stack."ENGINE FAMILY"]``. A deviation is a factor on the level above, so that what was never
measured inherits the level above unchanged; far from the prior it acts on the distance to the physical bounds, which
no sum of deviations leaves. ``[generation.NAME]`` holds seconds that a generation of an engine adds. A second file holds the
deviations of families that the first was not fitted on: plain factors on the value.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, get_args

from tokenopt.errors import PluginError, SpecError
from tokenopt.records import KV_FORMATS, WEIGHT_FORMATS, Accelerator, Confidence, Engine, Source

LEVELS = ("engine", "family", "format", "stack", "kernel", "release")
"""Levels of deviation, the most general first: `stack` names engine and family, `kernel` engine, family and format, `release`
engine and quarter of the software."""

_CALIBRATIONS = Path(__file__).parent / "data" / "calibration"


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted parameter set.

    Attributes:
        name: Name and date, e.g. `serving 2026-04-27`.
        basis: What the parameters rest on.
        as_of: Date of the newest row behind it.
        base: Value of every parameter.
        deviations: Factors by level (`engine`, `family`, `format`, `kernel`, `release`), name and parameter.
        seen: Names with measured rows behind them, by level.
        spread: Log standard deviation of measured over predicted time per token, by novelty class.
        source: Where the data come from.
        fitted: Parameters whose global value was fitted; the others hold their prior.
        accuracy: Median and P90 of the error in percent, by what was left out and quantity.
        family_spread: Log standard deviation of measured over predicted time of a left-out model, by family that was
            fitted on top.
        over: Calibration that its deviations stand on; empty for one that stands alone.
    """

    name: str
    basis: str
    as_of: str
    base: Mapping[str, float]
    deviations: Mapping[str, Mapping[str, Mapping[str, float]]]
    seen: Mapping[str, tuple[str, ...]]
    spread: Mapping[str, float]
    source: str
    fitted: tuple[str, ...] = ()
    accuracy: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    family_spread: Mapping[str, float] = field(default_factory=dict)
    over: str = ""


def load_engines_toml(source: Path | str) -> list[Engine]:
    """Reads engines from TOML.

    Args:
        source: A file, or the TOML text itself.

    Returns:
        Engine records.

    Raises:
        PluginError: Names the file, the engine and the field that cannot be used.
    """
    where = source.name if isinstance(source, Path) else "engines"
    try:
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        entries = tomllib.loads(text).get("engine", [])
        return [_engine(entry) for entry in entries]
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise PluginError(f"{where} cannot be read: {type(error).__name__} {error}") from error


def _engine(entry: Mapping[str, Any]) -> Engine:
    for name, legal in (("weight_formats", WEIGHT_FORMATS), ("kv_formats", KV_FORMATS)):
        unknown = [item for item in entry[name] if item not in legal]
        if unknown:
            raise ValueError(f"{entry['name']} {name} has {unknown[0]!r}, expected {', '.join(legal)}")
    source = entry["source"]
    if source["confidence"] not in get_args(Confidence):
        raise ValueError(f"{entry['name']} source confidence is {source['confidence']!r}")
    return Engine(
        name=entry["name"],
        version=str(entry["version"]),
        as_of=str(entry["as_of"]),
        vendor=entry["vendor"],
        families=tuple(entry["families"]),
        weight_formats=tuple(entry["weight_formats"]),
        kv_formats=tuple(entry["kv_formats"]),
        parameters={name: float(value) for name, value in entry.get("parameters", {}).items()},
        source=Source(source["reference"], source["confidence"], note=source.get("note", "")),
        max_batch=_max_batch(entry),
    )


def _max_batch(entry: Mapping[str, Any]) -> int | None:
    value = entry.get("max_batch")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"{entry['name']} max_batch is {value!r}, expected a whole number of at least 1")
    return value


def engines_for(accelerator: Accelerator, engines: Sequence[Engine], wanted: str | None = None) -> list[Engine]:
    """The serving engines that run on an accelerator, the newest calibration of each.

    Args:
        accelerator: The chip.
        engines: All engines of the catalogue.
        wanted: `NAME` or `NAME@DATE`: only that engine, in its newest state at that date.

    Returns:
        One engine a name, in order of name.
    """
    name, _, as_of = (wanted or "").partition("@")
    newest: dict[str, Engine] = {}
    for engine in engines:
        runs_here = engine.vendor == accelerator.vendor and (
            not engine.families or accelerator.family in engine.families
        )
        is_wanted = (not name or engine.name == name) and (not as_of or engine.as_of <= _end_of(as_of))
        if engine.kind != "serving" or not runs_here or not is_wanted:
            continue
        known = newest.get(engine.name)
        if known is None or engine.as_of > known.as_of:
            newest[engine.name] = engine
    return [newest[key] for key in sorted(newest)]


def _end_of(as_of: str) -> str:
    """The last day of a date given as year, year-month or full date, in a form that compares as text."""
    try:
        parts = [int(part) for part in as_of.split("-")]
        first = date(*[*parts, 1, 1][:3])
    except (ValueError, TypeError):
        raise SpecError(f"engine date is {as_of!r}, expected YYYY, YYYY-MM or YYYY-MM-DD") from None
    return first.isoformat() if len(parts) == 3 else as_of + "-99"


@cache
def default_calibration() -> Calibration:
    """The newest calibration that ships with tokenopt, with the newest deviations of further families on top."""
    families = sorted(_CALIBRATIONS.glob("families-*.toml"))
    base = base_calibration()
    return with_families(base, load_calibration(families[-1])) if families else base


@cache
def base_calibration() -> Calibration:
    """The newest calibration on concurrency sweeps, or the priors of the physical parameters where none was fitted."""
    shipped = sorted(_CALIBRATIONS.glob("serving-*.toml"))
    if shipped:
        return load_calibration(shipped[-1])
    return Calibration(
        name="priors",
        basis="uncalibrated",
        as_of="",
        base=parameter_priors(),
        deviations={},
        seen={},
        spread={},
        source="centres of the physical priors",
    )


def with_families(base: Calibration, further: Calibration) -> Calibration:
    """A calibration with the families and generations of another on top; what the first has stays as it is.

    Args:
        base: Calibration with global values.
        further: Deviations that were fitted over it.

    Returns:
        Both in one.
    """
    deviations = {
        level: {**further.deviations.get(level, {}), **base.deviations.get(level, {})}
        for level in sorted({*base.deviations, *further.deviations})
    }
    seen = {
        level: tuple(sorted({*base.seen.get(level, ()), *further.seen.get(level, ())}))
        for level in sorted({*base.seen, *further.seen})
    }
    return replace(base, deviations=deviations, seen=seen, family_spread=further.family_spread)


def with_own(base: Calibration, path: Path) -> tuple[Calibration, str]:
    """A calibration with a file of the user's: deviations over it, or another one in its place.

    Args:
        base: The shipped calibration.
        path: What `tokenopt calibrate` wrote.

    Returns:
        Both in one, and what to distrust about it; empty = nothing.

    Raises:
        SpecError: As for :func:`load_calibration`.
    """
    own = load_calibration(path)
    if not own.over:
        return with_families(own, base), ""
    seen = {
        level: tuple(sorted({*base.seen.get(level, ()), *own.seen.get(level, ())}))
        for level in sorted({*base.seen, *own.seen})
    }
    doubt = (
        ""
        if own.over == base.name
        else (
            f"{path} was fitted over {own.over}, the calibration is now {base.name}: "
            "run `tokenopt calibrate serving --mine` again"
        )
    )
    both = with_stacks(base, own.deviations.get("stack", {}))
    return replace(both, name=f"{base.name} with {own.name}", seen=seen), doubt


def with_stacks(base: Calibration, factors: Mapping[str, Mapping[str, float]]) -> Calibration:
    """A calibration with further factors on parameters of stacks (`ENGINE FAMILY`), on top of those it has."""
    known = base.deviations.get("stack", {})
    stacks = dict(known)
    for name, own in factors.items():
        shipped = known.get(name, {})
        stacks[name] = {
            **shipped,
            **{parameter: shipped.get(parameter, 1.0) * factor for parameter, factor in own.items()},
        }
    return replace(base, deviations={**base.deviations, "stack": stacks})


def load_calibration(path: Path) -> Calibration:
    """Reads a calibration file.

    Raises:
        SpecError: Names the file and what is wrong with it.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        header = data["calibration"]
        base = {
            **parameter_priors(),
            **{name: float(value) for name, value in (data["global"] if "over" not in header else {}).items()},
        }
        deviations = {
            level: {
                name: {parameter: float(factor) for parameter, factor in values.items()}
                for name, values in data.get(level, {}).items()
            }
            for level in (*LEVELS, "generation")
        }
        used = {name for level in deviations.values() for factors in level.values() for name in factors}
        unknown = sorted((set(base) | used) - set(parameter_priors()))
        if unknown:
            raise SpecError(f"{path.name}: unknown parameter {unknown[0]}")
        return Calibration(
            name=header["name"],
            basis=header["basis"],
            as_of=str(header["as_of"]),
            base=base,
            deviations=deviations,
            seen={level: tuple(names) for level, names in data.get("seen", {}).items()},
            spread={name: float(value) for name, value in data.get("spread", {}).items()},
            source=header["source"],
            fitted=tuple(data.get("uncertainty", {})),
            accuracy=data.get("accuracy", {}),
            family_spread={name: float(value) for name, value in data.get("family_spread", {}).items()},
            over=str(header.get("over", "")),
        )
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise SpecError(f"calibration {path} cannot be read: {type(error).__name__} {error}") from error


@cache
def _parameter_table() -> tuple[dict[str, Any], ...]:
    from tokenopt import _core

    return tuple(json.loads(_core.serving_parameters()))


def parameter_priors() -> dict[str, float]:
    """Prior centre of every serving parameter, by name, in the core's order."""
    return {entry["name"]: entry["prior"] for entry in _parameter_table()}


def parameter_bounds() -> dict[str, tuple[float, float]]:
    """Physical bounds of every serving parameter."""
    return {entry["name"]: (entry["low"], entry["high"]) for entry in _parameter_table()}


def resolve_parameters(
    calibration: Calibration,
    engine: str,
    family: str,
    weight_precision: str,
    overrides: Mapping[str, float] | None = None,
    generation: str = "",
    as_of: str = "",
) -> dict[str, float]:
    """Parameters of one stack.

    Args:
        calibration: The fitted set.
        engine: Engine name.
        family: Architecture family of the accelerator.
        weight_precision: Weight format.
        overrides: Absolute values that the engine's own plugin ships.
        generation: Generation of the engine; empty for current ones.
        as_of: Date of the engine's release (year, quarter `YYYY-Qn`, month or day); the newest release where empty.

    Returns:
        Every parameter, inside its physical bounds.
    """
    from tokenopt import _core

    names = list(calibration.base)
    log_factors = dict(zip(names, _core.log_factors_of([list(calibration.base.values())])[0], strict=True))
    later: dict[str, float] = {}
    for level, name, factors in _deviations(calibration, engine, family, weight_precision, as_of):
        is_later = level == "family" and not _has_kernels(calibration, name)
        for parameter, factor in factors.items():
            if is_later:
                later[parameter] = later.get(parameter, 1.0) * factor
            else:
                log_factors[parameter] += math.log(factor)
    values = dict(zip(names, _core.parameters_at([list(log_factors.values())])[0], strict=True))
    for parameter, factor in later.items():
        values[parameter] *= factor
    for parameter, seconds in calibration.deviations.get("generation", {}).get(generation, {}).items():
        values[parameter] += seconds
    values.update(overrides or {})
    bounds = parameter_bounds()
    return {name: min(max(value, bounds[name][0]), bounds[name][1]) for name, value in values.items()}


def parameter_refusal(engine: Engine) -> str:
    """Why the parameters of an engine's plugin cannot be used; empty = they can."""
    known = parameter_priors()
    for name, value in engine.parameters.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            return f"engine {engine.name}@{engine.as_of} of {engine.vendor}: unknown parameter {name!r}" + (
                f", did you mean {near[0]}?" if near else ""
            )
        if not math.isfinite(value):
            return f"engine {engine.name}@{engine.as_of} of {engine.vendor}: parameter {name} is {value}"
    return ""


def parameter_origins(
    calibration: Calibration,
    engine: str,
    family: str,
    weight_precision: str,
    overrides: Mapping[str, float] | None = None,
    as_of: str = "",
) -> dict[str, str]:
    """Where each parameter of a stack comes from; arguments as for :func:`resolve_parameters`.

    Returns:
        By parameter: the prior or the global value, then each level that changes it with its factor.
    """
    origins = {name: ["global fit" if name in calibration.fitted else "prior"] for name in calibration.base}
    for level, name, factors in _deviations(calibration, engine, family, weight_precision, as_of):
        for parameter, factor in factors.items():
            origins[parameter].append(f"{level} {name} x{factor:.3g}")
    for parameter in overrides or {}:
        origins[parameter] = [f"engine plugin {engine}"]
    return {name: ", ".join(parts) for name, parts in origins.items()}


def _deviations(
    calibration: Calibration, engine: str, family: str, weight_precision: str, as_of: str = ""
) -> Iterator[tuple[str, str, Mapping[str, float]]]:
    """Level, name and factors of every deviation that applies to a stack, the most general first."""
    levels = (
        ("engine", engine),
        ("family", family),
        ("format", weight_precision),
        ("stack", f"{engine} {family}"),
        ("kernel", f"{engine} {family} {weight_precision}"),
        ("release", f"{engine} {release_quarter(calibration, engine, as_of)}"),
    )
    for level, name in levels:
        factors = calibration.deviations.get(level, {}).get(name)
        if factors:
            yield level, name, factors


def _has_kernels(calibration: Calibration, family: str) -> bool:
    """Whether the calibration was fitted on a family itself, its kernels included."""
    return any(name.split(" ")[1] == family for name in calibration.deviations.get("kernel", {}))


def quarter_of(as_of: str) -> str:
    """Quarter `YYYY-Qn` of a date given as day, month, quarter or year; of a year its last quarter."""
    year, _, rest = as_of.partition("-")
    if rest.startswith("Q"):
        return f"{year}-{rest}"
    month = int(rest[:2]) if rest[:2].isdigit() else 12
    return f"{year}-Q{(month + 2) // 3}"


def release_quarter(calibration: Calibration, engine: str, as_of: str = "") -> str:
    """The newest measured release of an engine that a date allows, the oldest where none is as old; empty = none."""
    names = calibration.deviations.get("release", {})
    known = sorted(quarter for name in names for of, _, quarter in [name.rpartition(" ")] if of == engine and quarter)
    if not known:
        return ""
    allowed = [quarter for quarter in known if not as_of or quarter <= quarter_of(as_of)]
    return allowed[-1] if allowed else known[0]


@dataclass(frozen=True, slots=True)
class Novelty:
    """How new a case is to a calibration, and what that does to the interval.

    Attributes:
        name: Novelty class.
        factors: Factors on cost at P10 and P90.
    """

    name: str
    factors: tuple[float, float]


_P90_OF_NORMAL = 1.2816
"""Standard normal quantile at 90%."""

_UNCALIBRATED_SPREAD = 0.45
"""Log standard deviation before any calibration: physical priors miss measured time per token by a factor of up to 2."""


LAYOUT_KINDS = ("tp", "dp", "pools")
"""What layouts differ by most: tensor parallelism alone, attention data parallelism, and pools that prefill and decode."""

MOST_EXTRAPOLATION = 2.0
"""A batch beyond this many times the largest one that was measured is as new as another kind of layout."""

_UP_TO = " up to "


def layout_kind(is_disaggregated: bool, attn_dp: int) -> str:
    """Kind of a layout, of :data:`LAYOUT_KINDS`."""
    return "pools" if is_disaggregated else "dp" if attn_dp > 1 else "tp"


def seen_layout(model: str, accelerator: str, kind: str, largest_batch: float) -> str:
    """Entry of a calibration's `seen.layout`: a kind of layout, and the largest batch a rank ran in it."""
    return f"{model} {accelerator} {kind}{_UP_TO}{largest_batch:.0f}"


def _largest_batch(calibration: Calibration, model: str, accelerator: str, kind: str) -> float:
    """Largest batch of a rank that was measured; 0 where the kind of layout never was."""
    found = 0.0
    for entry in calibration.seen.get("layout", ()):
        name, _, largest = entry.rpartition(_UP_TO)
        if name == f"{model} {accelerator} {kind}":
            found = max(found, float(largest))
    return found


def novelty(
    calibration: Calibration, accelerator: Accelerator, model: str, kind: str = "", batch_per_rank: float = 0.0
) -> Novelty:
    """The interval of a stack: residual spread of the calibration, wider the less of the case was measured.

    Args:
        calibration: The fitted set.
        accelerator: The chip.
        model: Model key.
        kind: Kind of layout; empty = whatever was measured.
        batch_per_rank: Running requests of an attention rank.

    Returns:
        Class and factors.
    """
    pair = f"{model} {accelerator.key}"
    seen = calibration.seen
    if pair in seen.get("pair", ()):
        largest = _largest_batch(calibration, model, accelerator.key, kind) if kind else math.inf
        name = "seen" if batch_per_rank <= MOST_EXTRAPOLATION * largest else "new_layout"
    elif accelerator.key in seen.get("accelerator", ()):
        name = "new_model" if model not in seen.get("model", ()) else "new_pair"
    elif accelerator.family in seen.get("family", ()):
        name = "new_accelerator"
    else:
        name = "new_family"
    spread = calibration.spread.get(name, _UNCALIBRATED_SPREAD)
    spread = max(spread, calibration.family_spread.get(accelerator.family, 0.0))
    factor = math.exp(_P90_OF_NORMAL * spread)
    return Novelty(name, (1.0 / factor, factor))
