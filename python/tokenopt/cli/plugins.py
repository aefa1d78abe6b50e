"""`tokenopt plugins`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from tokenopt.cli.options import debug_option
from tokenopt.errors import ExitCode


@click.group("plugins", invoke_without_command=True)
@click.pass_context
@debug_option
def command(ctx: click.Context, debug: bool) -> None:  # noqa: ARG001
    """List plugins: version, hooks, what each contributes, and what is wrong with it."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_plugins)


@command.command("list")
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table", show_default=True,
              help="Form of the answer.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Exit with 1 when any plugin is not ok.")
def list_plugins(output_format: str = "table", strict: bool = False) -> None:
    """List plugins."""
    from tokenopt.plugins import load_plugins
    from tokenopt.report.tables import Column, listing_console, plain_table

    registry = load_plugins()
    registry.collect_all()
    if output_format == "json":
        click.echo(json.dumps({"schema": 1, "plugins": [asdict(status) for status in registry.plugins]}, indent=2))
        _fail_if(strict and bool(registry.problems))
        return
    console = listing_console()
    columns: list[Column] = [
        ("plugin", "left"),
        ("package", "left", 1),
        ("version", "left"),
        ("contributes", "left"),
        ("status", "left"),
    ]
    console.print(
        plain_table(
            columns,
            [
                [
                    status.name,
                    status.package,
                    status.version,
                    ", ".join(f"{n} {hook.removeprefix('tokenopt_')}" for hook, n in status.contributed.items()),
                    status.status,
                ]
                for status in registry.plugins
            ],
            console.width,
        )
    )
    for problem in registry.problems:
        console.print(problem, soft_wrap=True)
    for status in registry.plugins:
        for note in status.notes:
            console.print(f"plugin {status.name}: {note}", soft_wrap=True)
    _fail_if(strict and bool(registry.problems))


def _fail_if(is_wrong: bool) -> None:
    if is_wrong:
        raise click.exceptions.Exit(ExitCode.ERROR)


@command.command("show")
@click.argument("name")
def show_plugin(name: str) -> None:
    """Show one plugin and what it contributes."""
    from tokenopt.errors import SpecError
    from tokenopt.plugins import load_plugins
    from tokenopt.report.tables import listing_console, print_mapping

    registry = load_plugins()
    registry.collect_all()
    known = {status.name: status for status in registry.plugins}
    if name not in known:
        raise SpecError(f"plugin {name!r} is not installed", [f"installed: {', '.join(sorted(known))}"])
    print_mapping(listing_console(), name, asdict(known[name]))


@command.command("check")
@click.argument("package")
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table", show_default=True,
              help="Form of the answer.")  # fmt: skip
@debug_option
def check_plugin(package: str, output_format: str, debug: bool) -> None:  # noqa: ARG001
    """Run the conformance kit on a PACKAGE: an installed one, or a folder with a pyproject.toml.

    Exits with 1 when a check fails.
    """
    from tokenopt.conformance import check_package
    from tokenopt.report.tables import listing_console, plain_table

    results = check_package(package)
    failed = [result for result in results if result.problem]
    if output_format == "json":
        click.echo(json.dumps({"schema": 1, "checks": [asdict(result) for result in results]}, indent=2))
    else:
        console = listing_console()
        rows = [
            [result.plugin, result.hook.removeprefix("tokenopt_"), result.check.replace("_", " "),
             "failed" if result.problem else "ok"]
            for result in results
        ]  # fmt: skip
        console.print(
            plain_table(
                [("plugin", "left"), ("hook", "left"), ("check", "left"), ("result", "left")], rows, console.width
            )
        )
        for result in failed:
            where = f"{result.hook} {result.check}".strip()
            console.print(f"{where}: {result.problem} ({result.rule})", soft_wrap=True)
        console.print(f"{len(results) - len(failed)} of {len(results)} checks of {package} passed")
    if failed:
        raise click.exceptions.Exit(ExitCode.ERROR)


@command.command("new")
@click.argument("name")
@click.option("--to", type=click.Path(file_okay=False, path_type=Path), help="Folder in which the package is made.")
@debug_option
def new_plugin(name: str, to: Path | None, debug: bool) -> None:  # noqa: ARG001
    """Write a plugin package tokenopt-NAME that builds, installs and passes the conformance kit."""
    from tokenopt.scaffold import new_plugin as write

    folder = write(name, to)
    click.echo(
        f"{folder} written: put your figures into it, then `tokenopt plugins check {folder}` and `pip install {folder}`"
    )
