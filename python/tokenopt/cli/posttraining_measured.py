"""`tokenopt calibrate posttraining` and `tokenopt validate posttraining`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from tokenopt.cli import say
from tokenopt.cli.options import debug_option

_DATA_HELP = "Measured steps (columns of published training tables), repeatable; the bundled rows by default."


@click.command("posttraining")
@click.option("--data", "files", type=click.Path(path_type=Path, dir_okay=False), multiple=True, help=_DATA_HELP)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Calibration file to write.")
@debug_option
def calibrate_posttraining(files: tuple[Path, ...], out: Path, debug: bool) -> None:  # noqa: ARG001
    """Fit what the software of reinforcement-learning steps adds to the models of serving and training."""
    from tokenopt.measured import posttraining_fit as fit
    from tokenopt.plugins import default_registry
    from tokenopt.report.files import check_writable, write_atomically

    check_writable(out)
    entries = fit.read_entries(files)
    compiled = fit.compile_rl(entries, default_registry())
    fit.require_measured(compiled)
    used = {row.id for row in compiled.rows if row.step_time_s is not None}
    newest = max((entry.get("date") or "" for entry in entries if entry["id"] in used), default="")
    write_atomically(out, fit.to_toml(fit.calibrate(compiled, newest)).encode())
    say(f"{len(used)} steps fitted, {len(compiled.refused)} not predictable; {out} written")


@click.command("posttraining")
@click.option("--data", "files", type=click.Path(path_type=Path, dir_okay=False), multiple=True, help=_DATA_HELP)
@click.option(
    "--leave-out",
    help="Refit without each model, stack, group (model on an accelerator) or row (eight folds), and "
    "score what was left out.",
)
@click.option(
    "--rows", "rows_out", type=click.Path(path_type=Path), help="Write measured and predicted values of every row."
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Form of the answer.",
)
@debug_option
def validate_posttraining(
    files: tuple[Path, ...],
    leave_out: str | None,
    rows_out: Path | None,
    output_format: str,
    debug: bool,  # noqa: ARG001
) -> None:
    """Score step times of reinforcement learning: median APE, MAPE, P90 and bias by software.

    Without --leave-out the shipped calibration predicts, also rows it was fitted on.
    """
    from tokenopt.catalog.posttraining import default_posttraining_calibration
    from tokenopt.measured import posttraining_fit as fit
    from tokenopt.plugins import default_registry
    from tokenopt.report.files import check_writable, write_atomically

    if rows_out is not None:
        check_writable(rows_out)
    compiled = fit.compile_rl(fit.read_entries(files), default_registry())
    fit.require_measured(compiled, at_least=1)
    if leave_out:
        seconds = fit.left_out(fit.RlCalibrator(compiled), leave_out)
        label = f"refitted without the {leave_out}"
    else:
        calibration = default_posttraining_calibration()
        seconds = fit.calibrated_predictions(compiled, calibration)
        label = calibration.name
    scores = fit.score(compiled.rows, seconds)
    if rows_out is not None:
        write_atomically(rows_out, fit.rows_csv(compiled, seconds).encode())
        say(f"written to {rows_out}")
    if output_format == "json":
        answer: dict[str, Any] = {"schema": 1, "parameters": label, "scores": scores, "refused": compiled.refused}
        click.echo(json.dumps(answer, indent=2))
        return
    from tokenopt.report.tables import listing_console, plain_table

    console = listing_console()
    rows = [
        [
            name,
            f"{entry['rows']:.0f}",
            *(
                f"{entry[key]:+.1f}" if key == "bias" else f"{entry[key]:.1f}"
                for key in ("median", "mape", "p90", "bias")
            ),
        ]
        for name, entry in scores.items()
    ]
    columns = [("software", "left"), *((name, "right") for name in ("steps", "median", "MAPE", "P90", "bias"))]
    console.print(plain_table(columns, rows, console.width, title=f"Step time, {label}: error in %"))
    console.print(f"{len(compiled.refused)} rows not predictable; --rows FILE gives the reasons", soft_wrap=True)
