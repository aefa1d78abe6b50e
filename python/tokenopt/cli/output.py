"""Where an answer goes: the terminal or a file, in the form that was asked for; and a sign of life while it is worked out."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import click

from tokenopt.cli import say
from tokenopt.errors import SpecError

FORMATS = ("table", "json", "csv", "parquet")
PROGRESS_AFTER_S = 1.0


def check_output(output_format: str, out: Path | None) -> None:
    """Refuses an output that cannot be written, before anything is computed."""
    if out is not None:
        from tokenopt.report.files import check_writable

        check_writable(out)
    elif output_format == "parquet":
        raise SpecError("--format parquet needs --out FILE")


def write_answer(result: Any, output_format: str, out: Path | None, as_text: Callable[..., str]) -> None:
    """Writes an answer.

    Args:
        result: The answer, with `to_json` and `rows`.
        output_format: One of :data:`FORMATS`.
        out: File, None = the terminal.
        as_text: Makes the table: answer, width and `is_terminal` to text.
    """
    from tokenopt.report import files

    if output_format == "table":
        content = _table_text(result, out, as_text).encode()
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


def _table_text(result: Any, out: Path | None, as_text: Callable[..., str]) -> str:
    from rich.console import Console

    terminal = Console()
    return as_text(result, terminal.width, is_terminal=terminal.is_terminal and out is None)


@contextlib.contextmanager
def progress(what: str) -> Iterator[None]:
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
