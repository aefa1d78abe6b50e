"""`tokenopt calibrate`."""

from __future__ import annotations

from pathlib import Path

import click

from tokenopt.cli import say
from tokenopt.cli.options import debug_option
from tokenopt.cli.posttraining_measured import calibrate_posttraining


@click.group("calibrate")
def command() -> None:
    """Fit the physical parameters to measured rows."""


command.add_command(calibrate_posttraining)


@command.command("serving")
@click.option("--data", "files", type=click.Path(path_type=Path, dir_okay=False), multiple=True,
              help="Measured rows (columns of a concurrency sweep or of published measurements), repeatable; the bundled "
              "rows by default.")  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), help="Calibration file to write (TOML), from concurrency sweeps."
)
@click.option("--families", "families_out", type=click.Path(path_type=Path),
              help="File of further families and engine generations to write (TOML), from published measurements, fitted on "
              "top.")  # fmt: skip
@debug_option
def serving(files: tuple[Path, ...], out: Path | None, families_out: Path | None, debug: bool) -> None:  # noqa: ARG001
    """Fit the serving model: one global set with shrunken deviations per engine, family and format.

    Families of other vendors and generations of engines deviate from that, fitted on published measurements. The same
    rows give the same files, to the byte.
    """
    from tokenopt.errors import SpecError
    from tokenopt.measured.published_validate import split_files
    from tokenopt.report.files import check_writable

    if out is None and families_out is None:
        raise SpecError("nothing to write: give --out, --families or both")
    for path in (out, families_out):
        if path is not None:
            check_writable(path)
    curves, published = split_files(files)
    if out is not None:
        _sweeps(tuple(curves), out)
    if families_out is not None:
        _families(published, families_out, out)


def _families(files: list[Path], families_out: Path, base: Path | None) -> None:
    """Fits families and generations over the calibration in `base`, the shipped one by default."""
    from tokenopt.catalog.engines import load_calibration
    from tokenopt.measured import published_validate as published
    from tokenopt.plugins import default_registry
    from tokenopt.report.files import write_atomically

    registry = default_registry()
    compiled = published.load_published(files or [published.BUNDLED_PUBLISHED], registry)
    write_atomically(
        families_out, published.calibration_text(compiled, registry, load_calibration(base) if base else None).encode()
    )
    say(f"{len(compiled.rows)} published rows read, {len(compiled.refused)} not predictable; {families_out} written")


def _sweeps(files: tuple[Path, ...], out: Path) -> None:
    """Fits the calibration on concurrency sweeps."""
    from tokenopt.measured.fit import to_toml
    from tokenopt.measured.validate import BUNDLED_ROWS, calibrate, load, seen_names
    from tokenopt.plugins import default_registry
    from tokenopt.report.files import write_atomically

    cleaned, compiled = load(files, default_registry())
    fit, spread = calibrate(compiled)
    newest = max((row.date for row in compiled.rows if row.date), default="")
    versions = sorted({f"{row.engine} {row.version}" for row in compiled.rows if row.version})
    header = {
        "name": f"serving {newest}",
        "basis": "calibrated",
        "as_of": newest,
        "rows": str(len(compiled.rows)),
        "source": ", ".join(sorted({row.source for row in compiled.rows}))
        + f" ({', '.join(file.name for file in files or (BUNDLED_ROWS,))})",
        "engine_versions": ", ".join(versions),
    }
    write_atomically(out, to_toml(fit, header, seen_names(compiled), spread).encode())
    dropped = sum(len(ids) for ids in cleaned.dropped.values())
    say(
        f"{len(compiled.rows)} rows fitted, {dropped} dropped by rules, {len(compiled.refused)} not predictable; {out} written"
    )
