"""`tokenopt validate`."""

from __future__ import annotations

import json
from collections.abc import Callable
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
@click.option("--leave-out", help="Refit without each shape, layout, group (model on an accelerator), model or accelerator, and "
              "score what was left out; of published measurements also family and vendor.")  # fmt: skip
@click.option("--anchors", type=click.IntRange(0, 10), default=0, help="Random measured points of each stack that shift its "
              "prediction; they are not scored.")  # fmt: skip
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
    anchors: int,
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
    from tokenopt.measured.csv_rows import nothing_predicted
    from tokenopt.measured.published_validate import BUNDLED_PUBLISHED, split_files

    curves, published = split_files([*files, *([BUNDLED_PUBLISHED] if use_published else [])])
    if published:
        from tokenopt.cli.validate_published import validate_published

        if curves:
            raise SpecError(f"{curves[0]} and {published[0]} have different columns, validate them one after the other")
        validate_published(published, leave_out, rows_out, output_format)
        return
    cleaned, compiled = validate.load(files, default_registry(), may_be_empty=not (leave_out or anchors))
    label, predictions, picked = validate.row_predictions(compiled, leave_out, anchors)
    result = validate.score(label, cleaned, compiled, predictions, picked)
    if rows_out is not None:
        write_atomically(rows_out, validate.rows_csv(cleaned, compiled, predictions).encode())
        say(f"rows written to {rows_out}")
    if not compiled.rows:
        raise nothing_predicted(files, (*cleaned.unusable.values(), *compiled.refused.values()))
    if output_format == "json":
        click.echo(json.dumps(validate.to_dict(result), indent=2))
        return
    from tokenopt.report.errors import error_cell, print_errors

    columns = ["rows", *(f"{name} %\nmed/P90/bias" for name in ("TPOT", "tokens/s/chip", "TTFT"))]

    def line(name: str, errors: dict[str, validate.Errors]) -> list[str]:
        return [name, str(errors["tpot_ms"].n), *map(error_cell, errors.values())]

    lines = [line(f"all ({result.label})", result.overall)]
    for slice_name, names in result.by.items():
        lines += [line(f"{slice_name} {name}", errors) for name, errors in names.items()]
    unscored = {**result.dropped, **result.refused, f"{validate.QUEUED}, not scored": result.queued}
    print_errors(columns, lines, {f": {rule}": count for rule, count in unscored.items()})


def _decision_options(function: Callable[..., None]) -> Callable[..., None]:
    """Options of the commands that judge decisions."""
    for option in (
        debug_option,
        click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table", show_default=True,
                     help="Form of the answer."),
        click.option("--leave-out", help="Refit without each shape, layout, group, model or accelerator first."),
        click.option("--data", "files", type=click.Path(path_type=Path, dir_okay=False), multiple=True,
                     help="Measured concurrency sweeps, repeatable; the bundled rows by default."),
    ):  # fmt: skip
        function = option(function)
    return function


@command.command("ranking")
@_decision_options
def ranking(files: tuple[Path, ...], leave_out: str | None, output_format: str, debug: bool) -> None:  # noqa: ARG001
    """Whether the accelerator that is predicted to be the cheapest is the measured cheapest.

    For each model, workload and interactivity at which at least three accelerators were measured, at the owner's cost of a
    hyperscaler. A choice within 10% of the least measured cost is right.
    """
    from tokenopt.measured import decisions, validate
    from tokenopt.plugins import default_registry

    registry = default_registry()
    _, compiled = validate.load(files, registry)
    label, predictions, _ = validate.row_predictions(compiled, leave_out)
    found = decisions.rank(compiled, predictions, decisions.owner_prices(registry))
    summary = decisions.ranking_summary(found, label)
    if output_format == "json":
        click.echo(json.dumps(summary, indent=2))
        return
    wrong = [entry for entry in found if not entry.is_right]
    share = f", {100.0 * summary['share']:.0f}%" if found else ""
    click.echo(f"{summary['right']} of {len(found)} choices are right{share} ({label}).")
    for entry in wrong:
        cost = f"at {entry.ratio:.2f} times its cost" if entry.ratio else "not measured there"
        click.echo(
            f"  {entry.model} {entry.isl:.0f}/{entry.osl:.0f} at {entry.min_interactivity:.0f} tokens/s/user: "
            f"{entry.chosen} instead of {entry.cheapest}, {cost}"
        )


@command.command("regret")
@_decision_options
def regret(files: tuple[Path, ...], leave_out: str | None, output_format: str, debug: bool) -> None:  # noqa: ARG001
    """What it costs to choose layout and batch by prediction instead of by measurement.

    For each measured curve set (model, accelerator, engine, precision, lengths) at 20, 50 and 100 tokens/s/user: measured
    cost of the configuration that is predicted to be the cheapest, over the least measured cost.
    """
    from tokenopt.measured import decisions, validate
    from tokenopt.plugins import default_registry

    registry = default_registry()
    _, compiled = validate.load(files, registry)
    label, predictions, _ = validate.row_predictions(compiled, leave_out)
    found = decisions.regrets(compiled, predictions, decisions.owner_prices(registry))
    summary = decisions.regret_summary(found, label)
    if output_format == "json":
        click.echo(json.dumps(summary, indent=2))
        return
    if not found:
        click.echo("No curve set has enough points.")
        return
    click.echo(
        f"Regret over {len(found)} choices: median {summary['median_percent']:.1f}%, P90 {summary['p90_percent']:.1f}% "
        f"({label}). {summary['misses_limit_by_over_10_percent']} choices miss their limit by over 10%."
    )
    for entry in sorted(found, key=lambda entry: -entry.percent)[:10]:
        click.echo(
            f"  {entry.percent:5.1f}%  {entry.model} on {entry.accelerator}, {entry.engine} {entry.weight_precision}, "
            f"{entry.isl:.0f}/{entry.osl:.0f} at {entry.min_interactivity:.0f} tokens/s/user"
        )


@command.command("training")
@click.option("--data", "files", type=click.Path(path_type=Path, dir_okay=False), multiple=True,
              help="Measured steps (columns of published training tables), repeatable; the bundled ones by "
              "default.")  # fmt: skip
@click.option("--leave-out", help="Refit without each group (model on an accelerator in a format), model, accelerator, "
              "framework or source, and score what was left out.")  # fmt: skip
@click.option("--anchors", type=click.IntRange(0, 1), default=0, show_default=True,
              help="Correct each prediction by so many other measured steps of the same model, accelerator, format and "
              "source; rows without one are not scored.")  # fmt: skip
@click.option("--search-layouts", is_flag=True, help="Ignore printed layouts: search the fastest that fits, one row a "
              "group.")  # fmt: skip
@click.option(
    "--rows", "rows_out", type=click.Path(path_type=Path), help="Write measured and predicted values of every row."
)
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table", show_default=True,
              help="Form of the answer.")  # fmt: skip
@debug_option
def training(
    files: tuple[Path, ...],
    leave_out: str | None,
    anchors: int,
    search_layouts: bool,
    rows_out: Path | None,
    output_format: str,
    debug: bool,  # noqa: ARG001
) -> None:
    """Score the training model: median APE, MAPE, P90 and bias of training tokens/s per chip.

    Without --leave-out the shipped calibration predicts, also rows it was fitted on.
    """
    from tokenopt.errors import SpecError
    from tokenopt.measured import training_validate as validate
    from tokenopt.measured.csv_rows import nothing_predicted
    from tokenopt.measured.validate import Errors
    from tokenopt.plugins import default_registry
    from tokenopt.report.files import check_writable, write_atomically

    if rows_out is not None:
        check_writable(rows_out)
    if search_layouts and leave_out:
        raise SpecError("--search-layouts scores the shipped calibration, it does not go with --leave-out")
    registry = default_registry()
    compiled = validate.load(files, registry, may_be_empty=not (leave_out or search_layouts or anchors))
    if search_layouts:
        compiled = validate.without_layouts(compiled, registry)
    if leave_out:
        compiled, predictions = validate.leave_out_predictions(compiled, leave_out)
        label = f"refitted without the {leave_out}"
    else:
        compiled, predictions = validate.calibrated_predictions(compiled)
        label = "shipped calibration, layouts searched" if search_layouts else "shipped calibration"
    if anchors:
        predictions = validate.anchored(compiled, predictions)
        label += ", one anchor"
    result = validate.score(label, compiled, predictions)
    if rows_out is not None:
        from tokenopt.measured.posttraining_fit import columns_of_steps

        steps = columns_of_steps(files, registry, leave_out)
        write_atomically(rows_out, validate.rows_csv(compiled, predictions, steps).encode())
        say(f"rows written to {rows_out}")
        if not compiled.rows and not any("reason" not in step for step in steps.values()):
            raise nothing_predicted(files, compiled.refused.values())
    elif not compiled.rows:
        raise nothing_predicted(files, compiled.refused.values())
    if output_format == "json":
        click.echo(json.dumps(validate.to_dict(result), indent=2))
        return
    from tokenopt.report.errors import percent, print_errors

    columns = ["rows", "median %", "MAPE", "P90", "bias"]

    def line(name: str, errors: Errors) -> list[str]:
        cells = (
            [percent(errors.median), percent(errors.mape), percent(errors.p90), percent(errors.bias, sign="+")]
            if errors.n
            else ["-"] * 4
        )
        return [name, str(errors.n), *cells]

    lines = [line("all", result.overall)]
    for slice_name, names in result.by.items():
        lines += [line(f"{slice_name} {name}", errors) for name, errors in names.items()]
    print_errors(
        columns,
        lines,
        {
            **{f"predicted, not scored: {reason}": count for reason, count in result.unscored.items()},
            **{f"not predicted: {reason}": count for reason, count in result.refused.items()},
        },
        title=f"Training tokens/s per chip, {result.label}",
    )
