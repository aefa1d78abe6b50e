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
@click.option("--mine", is_flag=True, help="Fit what your own measurements (`measured import`) say beyond the shipped "
              "calibration; written beside the store by default, where a search picks it up.")  # fmt: skip
@debug_option
def serving(
    files: tuple[Path, ...],
    out: Path | None,
    families_out: Path | None,
    mine: bool,
    debug: bool,  # noqa: ARG001
) -> None:
    """Fit the serving model: one global set with shrunken deviations per engine, family and format.

    Families of other vendors and generations of engines deviate from that, fitted on published measurements. The same
    rows give the same files, to the byte.
    """
    from tokenopt.errors import SpecError
    from tokenopt.measured.published_validate import split_files
    from tokenopt.report.files import check_writable

    if mine:
        if files or families_out:
            raise SpecError("--mine reads the measured store: give it without --data and --families")
        _mine(out)
        return
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


def _mine(out: Path | None) -> None:
    """Fits the user's own measurements over the shipped calibration."""
    from tokenopt.measured.mine import calibrate_mine, to_toml
    from tokenopt.plugins import default_registry
    from tokenopt.prices.store import own_calibration_path
    from tokenopt.report.files import check_writable, write_atomically
    from tokenopt.report.tables import Column, listing_console, plain_table

    file = out or own_calibration_path()
    if out is None:
        file.parent.mkdir(parents=True, exist_ok=True)
    check_writable(file)
    fits, compiled, skipped = calibrate_mine(default_registry())
    write_atomically(file, to_toml(fits, compiled).encode())
    columns: list[Column] = [("stack", "left"), ("points", "right"), ("as shipped", "right"), ("fitted", "right"),
                             ("left out", "right")]  # fmt: skip
    lines = [
        [fit.stack, f"{fit.points:,}", f"{fit.before:.1f}%", f"{fit.after:.1f}%", f"{fit.left_out:.1f}%"]
        for fit in fits
    ]
    console = listing_console()
    console.print(plain_table(columns, lines, console.width, title="Median error of time per output token"))
    for reason, count in sorted(skipped.items(), key=lambda item: -item[1]):
        click.echo(f"{count:,} points left out: {reason}")
    say(f"{file} written; `tokenopt search --calibration shipped` searches without it")


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
    calibrated = calibrate(compiled)
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
    write_atomically(
        out,
        to_toml(calibrated.fit, header, seen_names(compiled), calibrated.spread, accuracy=calibrated.accuracy).encode(),
    )
    dropped = sum(len(ids) for ids in cleaned.dropped.values())
    say(
        f"{len(compiled.rows)} rows fitted, {dropped} dropped by rules, {len(compiled.refused)} not predictable; {out} written"
    )


@command.command("training")
@click.option("--data", "files", type=click.Path(path_type=Path, dir_okay=False), multiple=True,
              help="Measured steps (columns of published training tables), repeatable; the bundled ones by "
              "default.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Calibration file to write (TOML).")
@debug_option
def training(files: tuple[Path, ...], out: Path, debug: bool) -> None:  # noqa: ARG001
    """Fit the training model: one global set with shrunken deviations per accelerator, software and format.

    The same rows give the same file, to the byte.
    """
    from tokenopt.measured.fit import to_toml
    from tokenopt.measured.training_data import BUNDLED_ROWS
    from tokenopt.measured.training_validate import calibrate, load, seen_names
    from tokenopt.plugins import default_registry
    from tokenopt.report.files import check_writable, write_atomically

    check_writable(out)
    compiled = load(files, default_registry())
    fit, spread = calibrate(compiled)
    scored = [row for row in compiled.rows if not row.unscored]
    newest = max((row.date for row in scored if row.date), default="")
    header = {
        "name": f"training {newest}",
        "basis": "calibrated",
        "as_of": newest,
        "rows": str(len(scored)),
        "source": ", ".join(sorted({row.source for row in scored}))
        + f" ({', '.join(file.name for file in files or (BUNDLED_ROWS,))})",
        "releases": ", ".join(sorted({row.release for row in scored if row.release})),
    }
    write_atomically(out, to_toml(fit, header, seen_names(compiled), spread, "training").encode())
    unscored = len(compiled.rows) - len(scored)
    say(
        f"{len(scored)} rows fitted, {unscored} left out by rules, {len(compiled.refused)} not predictable; {out} written"
    )
