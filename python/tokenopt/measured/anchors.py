"""Anchors: one or two measured points of a stack that shift its prediction.

An anchor moves two factors of one stack, on its decode steps and on its prefill, by as much as the measured points ask for
beyond their own noise: with no point the calibration stands, with many the points do. Other stacks are not touched.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenopt.catalog.engines import Calibration, resolve_parameters
from tokenopt.errors import SpecError
from tokenopt.measured.rows import CompiledRows, compile_rows
from tokenopt.measured.serving_data import clean
from tokenopt.plugins import PluginRegistry
from tokenopt.problem import Assumption, CompiledProblem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DECODE, PREFILL = "decode_anchor", "prefill_anchor"
NEW_SD = (0.2, 0.4)
SEEN_SD = (0.05, 0.15)
"""Log standard deviation of what decode steps and prefill of a stack deviate by from prediction: of one whose model was not
calibrated on its accelerator, and of one that was, where little is left to learn from two points."""
NOISE = (0.1, 0.5)
"""Log standard deviation of a point around its stack's curve, time per output token and time to first token."""
STEP = 1e-4
ITERATIONS = 8

StackKey = tuple[str, str, str, str]
"""Model, accelerator, engine and weight precision."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """What the measured points of a stack ask for.

    Attributes:
        decode: Factor on its decode steps.
        prefill: Factor on its prefill.
        points: Measured points behind it.
    """

    decode: float
    prefill: float
    points: int


def fit_anchors(
    compiled: CompiledRows,
    sets: NDArray[np.float64],
    stacks: Sequence[object],
    picked: Sequence[int],
    is_seen: Sequence[bool],
) -> NDArray[np.float64]:
    """Parameter sets of all rows, those of stacks with a picked row anchored.

    Args:
        compiled: Rows.
        sets: One parameter set a row.
        stacks: Stack of each row.
        picked: Rows whose measurement anchors their stack.
        is_seen: Whether the model of each row was calibrated on its accelerator.

    Returns:
        One parameter set a row.
    """
    import numpy as np

    from tokenopt import _core

    names = [entry["name"] for entry in json.loads(_core.serving_parameters())]
    columns = [names.index(DECODE), names.index(PREFILL)]
    rows = np.array(sorted(picked), dtype=np.int64)
    owners = sorted({stacks[row] for row in rows}, key=str)
    owner_of = np.array([owners.index(stacks[row]) for row in rows])
    measured = np.log([[compiled.rows[row].tpot_s, compiled.rows[row].ttft_s or np.nan] for row in rows])
    noise = np.array(NOISE)
    seen_owners = {stacks[row] for row in rows if is_seen[row]}
    prior_sds = np.array([SEEN_SD if owner in seen_owners else NEW_SD for owner in owners])
    log_factors = np.zeros((len(owners), 2))

    def logs(factors: NDArray[np.float64]) -> NDArray[np.float64]:
        moved = sets[rows].copy()
        moved[:, columns] = np.array(_at(names, columns, factors[owner_of]))
        predicted = compiled.predict_jobs(rows, np.arange(len(rows)), moved)
        residual: NDArray[np.float64] = np.nan_to_num(np.log(predicted[:, :2]) - measured, nan=0.0)
        residual /= noise
        return residual

    for _ in range(ITERATIONS):
        here = logs(log_factors)
        slopes = []
        for index in (0, 1):
            moved = log_factors.copy()
            moved[:, index] += STEP
            slopes.append((logs(moved) - here) / STEP)
        for owner in range(len(owners)):
            own = owner_of == owner
            jacobian = np.stack([slope[own].ravel() for slope in slopes], axis=1)
            hessian = jacobian.T @ jacobian + np.diag(prior_sds[owner] ** -2)
            gradient = jacobian.T @ here[own].ravel() + log_factors[owner] / prior_sds[owner] ** 2
            log_factors[owner] -= np.linalg.solve(hessian, gradient)
    anchored = sets.copy()
    for owner, name in enumerate(owners):
        own_rows = [index for index, stack in enumerate(stacks) if stack == name]
        anchored[np.ix_(own_rows, columns)] = _at(names, columns, log_factors[owner : owner + 1])
    return anchored


def _at(names: Sequence[str], columns: Sequence[int], log_factors: NDArray[np.float64]) -> list[list[float]]:
    """Values of the two anchor parameters, inside their bounds."""
    from tokenopt import _core

    sets = []
    for pair in log_factors:
        line = [0.0] * len(names)
        for column, value in zip(columns, pair, strict=True):
            line[column] = float(value)
        sets.append(line)
    return [[values[column] for column in columns] for values in _core.parameters_at(sets)]


def random_picks(stacks: Sequence[object], is_usable: Sequence[bool], points: int) -> list[int]:
    """`points` rows of each stack that has at least twice as many, at random but the same in every run."""
    members: dict[object, list[int]] = {}
    for index, (stack, usable) in enumerate(zip(stacks, is_usable, strict=True)):
        if usable:
            members.setdefault(stack, []).append(index)
    chosen: list[int] = []
    for stack in sorted(members, key=str):
        if len(members[stack]) >= 2 * points:
            chosen += random.Random(f"{stack} {points}").sample(members[stack], points)
    return chosen


def read_anchors(path: Path, registry: PluginRegistry, calibration: Calibration) -> dict[StackKey, Anchor]:
    """Anchors of a file of the user's own measured points.

    Args:
        path: CSV or JSON (a list of objects) with `model`, `accelerator`, `engine`, `weight_precision`, `isl`, `osl`,
            `concurrency`, `tp`, `tpot_ms`, `ttft_ms`; optionally the other columns of `validate serving`.
        registry: Plugins that describe the accelerators.
        calibration: What the anchors shift.

    Returns:
        Anchor by stack.

    Raises:
        SpecError: The file cannot be read, or a point cannot be predicted.
    """
    import numpy as np

    entries = _entries(path)
    for number, entry in enumerate(entries, 1):
        entry.setdefault("id", f"point {number}")
        entry["mode"] = entry.get("mode") or "agg"
        missing = [name for name in ("model", "accelerator", "engine", "tp", "tpot_ms") if not entry.get(name)]
        if missing:
            raise SpecError(f"anchor {path}: {entry['id']} has no {missing[0]}")
    cleaned = clean(entries)
    compiled = compile_rows(cleaned.rows, registry)
    problems = {**cleaned.unusable, **compiled.refused}
    if problems:
        name, reason = next(iter(problems.items()))
        raise SpecError(f"anchor {path}: {name}: {reason}")
    sets = np.array(
        [
            list(resolve_parameters(calibration, engine, family, precision, as_of=release).values())
            for engine, family, precision, release in compiled.levels
        ]
    )[compiled.sets]
    if np.isnan(compiled.predict_jobs(np.arange(len(sets)), np.arange(len(sets)), sets)[:, 0]).any():
        raise SpecError(f"anchor {path}: a point does not fit in the accelerator's memory")
    keys: list[StackKey] = [
        (row.model, row.accelerator, row.engine, compiled.levels[level][2])
        for row, level in zip(compiled.rows, compiled.sets, strict=True)
    ]
    is_seen = [f"{row.model} {row.accelerator}" in calibration.seen.get("pair", ()) for row in compiled.rows]
    anchored = fit_anchors(compiled, sets, keys, range(len(keys)), is_seen)
    from tokenopt import _core

    names = [entry["name"] for entry in json.loads(_core.serving_parameters())]
    return {
        key: Anchor(float(values[names.index(DECODE)]), float(values[names.index(PREFILL)]), keys.count(key))
        for key, values in zip(keys, anchored, strict=True)
    }


def anchored(problem: CompiledProblem, registry: PluginRegistry) -> CompiledProblem:
    """A problem whose stacks are shifted by the measured points of its request.

    Raises:
        SpecError: The file cannot be used, or none of its points is of a stack in scope.
    """
    path = Path(str(problem.request.anchor))
    anchors = read_anchors(path, registry, problem.calibration)
    applied: list[Assumption] = []
    for info, stack in zip(problem.stacks, problem.core["stacks"], strict=True):
        key = (problem.model.key, info.accelerator.key, info.engine.name, info.weight_precision)
        anchor = anchors.get(key)
        if anchor is None:
            continue
        stack["parameters"] = {**stack["parameters"], DECODE: anchor.decode, PREFILL: anchor.prefill}
        text = f"decode steps x{anchor.decode:.2f}, prefill x{anchor.prefill:.2f}"
        why = f"{anchor.points} measured points of {path.name}"
        assumption = Assumption(f"anchor {info.accelerator.key} {info.engine.name} {info.weight_precision}", text, why)
        if assumption not in applied:
            applied.append(assumption)
    if not applied:
        raise SpecError(
            f"anchor {path}: none of its points is of a stack in scope: {', '.join(' '.join(key) for key in anchors)}"
        )
    return replace(problem, assumptions=[*problem.assumptions, *applied])


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            read: Any = json.loads(text)
            entries = read if isinstance(read, list) else [read]
            if not all(isinstance(entry, Mapping) for entry in entries):
                raise SpecError(f"anchor {path} holds no list of objects")
            found = [{name: "" if value is None else str(value) for name, value in entry.items()} for entry in entries]
        else:
            found = [{**entry} for entry in csv.DictReader(text.splitlines())]
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise SpecError(f"anchor {path} cannot be read: {error}") from error
    if not found:
        raise SpecError(f"anchor {path} holds no point")
    return found
