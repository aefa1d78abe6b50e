"""`tokenopt validate serving` on published measurements of other vendors and scenarios."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tokenopt.cli import say


def validate_published(files: list[Path], leave_out: str | None, rows_out: Path | None, output_format: str) -> None:
    """Scores files with the columns of published measurements and prints the errors by class."""
    from tokenopt.measured import published_validate as published
    from tokenopt.measured.csv_rows import nothing_predicted
    from tokenopt.plugins import default_registry
    from tokenopt.report.files import write_atomically

    registry = default_registry()
    compiled = published.load_published(files, registry, may_be_empty=not leave_out)
    label, predictions = published.predictions(compiled, registry, leave_out)
    result = published.score(label, compiled, predictions, registry)
    if rows_out is not None:
        write_atomically(rows_out, published.rows_csv(compiled, predictions, registry).encode())
        say(f"rows written to {rows_out}")
    if not compiled.rows:
        raise nothing_predicted(files, compiled.refused.values())
    if output_format == "json":
        click.echo(json.dumps(published.to_dict(result), indent=2))
        return
    from tokenopt.report.errors import error_cell, print_errors

    shown = {"primary": "time per token", "ttft_ms": "TTFT"}
    columns = ["rows", *(f"{name} %\nmed/P90/bias" for name in shown.values())]

    def line(name: str, errors: dict[str, published.Errors]) -> list[str]:
        return [name, str(errors["primary"].n), *(error_cell(errors[key]) for key in shown)]

    lines = [line(f"all ({result.label})", result.overall)]
    for slice_name, of in result.by.items():
        lines += [line(f"{slice_name} {name}", errors) for name, errors in of.items()]
    print_errors(
        columns,
        lines,
        {
            **{f"predicted, not scored: {reason}": count for reason, count in result.unscored.items()},
            **{f"not predicted: {reason}": count for reason, count in result.refused.items()},
        },
    )
