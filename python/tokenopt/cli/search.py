"""`tokenopt search`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import click

from tokenopt.cli import say
from tokenopt.cli.options import (
    debug_option,
    limit_options,
    parse_quotes,
    price_options,
    scope_options,
    workload_options,
)
from tokenopt.errors import PluginError, SpecError

FORMATS = ("table", "json", "csv", "parquet")
PROGRESS_AFTER_S = 1.0


@click.command("search")
@workload_options
@limit_options
@scope_options
@price_options
@click.option("--objective", default="cost", show_default=True, help="What to minimise: cost, energy, or throughput "
              "(per chip, maximised).")  # fmt: skip
@click.option("--top", type=int, default=10, show_default=True, help="Layouts in `best`.")
@click.option("--exhaustive", is_flag=True, help="Evaluate every configuration instead of skipping what cannot win.")
@click.option("--threads", type=int, default=0, help="Threads of the core; 0 = all.")
@click.option("--format", "output_format", type=click.Choice(FORMATS), default="table", show_default=True,
              help="Form of the answer.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Write the answer to this file instead of the terminal.")
@click.option("--strict", is_flag=True, help="Fail when a plugin is broken instead of skipping it.")
@debug_option
def command(output_format: str, out: Path | None, strict: bool, debug: bool, **flags: Any) -> None:  # noqa: ARG001
    """Find the cheapest hardware, layout and batching that meets the limits.

    The table shows the cheapest configuration of each accelerator. Exit code 3: nothing meets the limits.
    """
    if out is not None:
        from tokenopt.report.files import check_writable

        check_writable(out)
    elif output_format == "parquet":
        raise SpecError("--format parquet needs --out FILE")
    from tokenopt.plugins import load_plugins
    from tokenopt.problem import SearchRequest
    from tokenopt.serve import compile_request, run

    flags["price"] = parse_quotes(flags["price"])
    registry = load_plugins(strict=strict)
    problem = compile_request(SearchRequest(**flags), registry)
    problems = [*registry.problems, *problem.notes]
    if strict and problems:
        raise PluginError(problems[0])
    with _progress("searching"):
        result = run(problem, registry)
    for note in result.notes:
        say(f"warning: {note}")
    _write(result, output_format, out)


def _write(result: Any, output_format: str, out: Path | None) -> None:
    from tokenopt.report import files

    if output_format == "table":
        content = _table_text(result, out).encode()
    elif output_format == "json":
        content = (result.to_json() + "\n").encode()
    elif output_format == "csv":
        content = files.to_csv(result.rows()).encode()
    else:
        content = files.to_parquet(result.rows())
    if out is not None:
        files.write_atomically(out, content)
        say(f"written to {out}")
    else:
        # Names in prices and sources may hold letters that a narrow terminal encoding lacks.
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        click.echo(content.decode().encode(encoding, "replace").decode(encoding), nl=False)


def _table_text(result: Any, out: Path | None) -> str:
    from rich.console import Console

    from tokenopt.report.tables import search_text

    terminal = Console()
    return search_text(result, terminal.width, is_terminal=terminal.is_terminal and out is None)


@contextlib.contextmanager
def _progress(what: str) -> Iterator[None]:
    """A spinner with the elapsed time on a terminal, once the work takes longer than a second."""
    if not sys.stderr.isatty():
        yield
        return
    done = Event()

    def show() -> None:
        if done.wait(PROGRESS_AFTER_S):
            return
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            bar.add_task(what, total=None)
            while not done.is_set():
                time.sleep(0.1)

    watcher = Thread(target=show, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
