"""`tokenopt validate`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tokenopt.cli import say
from tokenopt.cli.options import debug_option
from tokenopt.cli.posttraining_measured import validate_posttraining


@click.group("validate")
def command() -> None:
    """Score predictions against measured rows."""


command.add_command(validate_posttraining)


@command.command("serving")
@click.option("--data", "files", type=click.Path(path_type=Path, dir_okay=False), multiple=True,
              help="Measured rows (columns of a concurrency sweep), repeatable; the bundled rows by default.")  # fmt: skip
@click.option("--published", "use_published", is_flag=True,
              help="Score the bundled published measurements: other vendors, older chips, other scenarios.")  # fmt: skip
@click.option("--leave-out", help="Refit without each shape, group (model on an accelerator), model or accelerator, and score "
              "what was left out; of published measurements also family and vendor.")  # fmt: skip
@click.option(
    "--rows", "rows_out", type=click.Path(path_type=Path), help="Write measured and predicted values of every row."
)
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table", show_default=True,
              help="Form of the answer.")  # fmt: skip
@debug_option
def serving(
    files: tuple[Path, ...],
    use_published: bool,
    leave_out: str | None,
    rows_out: Path | None,
    output_format: str,
    debug: bool,  # noqa: ARG001
) -> None:
    """Score the serving model: median APE, MAPE, P90 and bias of TPOT, throughput per chip and TTFT.

    Without --leave-out the shipped calibration predicts, also rows it was fitted on.
    """
    from tokenopt.measured import validate
    from tokenopt.plugins import default_registry
    from tokenopt.report.files import check_writable, write_atomically

    if rows_out is not None:
        check_writable(rows_out)
    from tokenopt.errors import SpecError
    from tokenopt.measured.published_validate import BUNDLED_PUBLISHED, split_files

    curves, published = split_files([*files, *([BUNDLED_PUBLISHED] if use_published else [])])
    if published:
        from tokenopt.cli.validate_published import validate_published

        if curves:
            raise SpecError(f"{curves[0]} and {published[0]} have different columns, validate them one after the other")
        validate_published(published, leave_out, rows_out, output_format)
        return
    cleaned, compiled = validate.load(files, default_registry())
    if leave_out:
        predictions = validate.leave_out_predictions(compiled, leave_out)
        label = f"refitted without the {leave_out}"
    else:
        predictions = validate.calibrated_predictions(compiled)
        label = "shipped calibration"
    result = validate.score(label, cleaned, compiled, predictions)
    if rows_out is not None:
        write_atomically(rows_out, validate.rows_csv(cleaned, compiled, predictions).encode())
        say(f"rows written to {rows_out}")
    if output_format == "json":
        click.echo(json.dumps(validate.to_dict(result), indent=2))
        return
    from rich.console import Console

    from tokenopt.report.tables import plain_table

    columns = [("slice", "left"), ("rows", "right")] + [
        (f"{name} med / P90 / bias %", "right") for name in ("TPOT", "tokens/s/chip", "TTFT")
    ]

    def line(name: str, errors: dict[str, validate.Errors]) -> list[str]:
        cells = [f"{item.median:.1f} / {item.p90:.1f} / {item.bias:+.1f}" for item in errors.values()]
        return [name, str(errors["tpot_ms"].n), *cells]

    lines = [line(f"all ({result.label})", result.overall)]
    for slice_name, names in result.by.items():
        lines += [line(f"{slice_name} {name}", errors) for name, errors in names.items()]
    console = Console(highlight=False)
    console.print(plain_table(columns, lines))
    for rule, count in {
        **result.dropped,
        **result.refused,
        "queue in front of the server, not scored": result.queued,
    }.items():
        console.print(f"{count:5d} rows: {rule}")
