"""`tokenopt calibrate`."""

from __future__ import annotations

from pathlib import Path

import click

from tokenopt.cli import say
from tokenopt.cli.options import debug_option


@click.group("calibrate")
def command() -> None:
    """Fit the physical parameters to measured rows."""


@command.command("serving")
@click.option("--data", "files", type=click.Path(path_type=Path, dir_okay=False), multiple=True,
              help="Measured rows (columns of a concurrency sweep), repeatable; the bundled rows by default.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Calibration file to write (TOML).")
@debug_option
def serving(files: tuple[Path, ...], out: Path, debug: bool) -> None:  # noqa: ARG001
    """Fit the serving model: one global set with shrunken deviations per engine, family and format.

    The same rows give the same file, to the byte.
    """
    from tokenopt.measured.fit import to_toml
    from tokenopt.measured.validate import BUNDLED_ROWS, calibrate, load, seen_names
    from tokenopt.plugins import default_registry
    from tokenopt.report.files import check_writable, write_atomically

    check_writable(out)
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
