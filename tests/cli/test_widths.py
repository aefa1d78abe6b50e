"""Tables fit the terminal: nothing in them is cut at usual widths."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

COMMANDS = (
    ("validate", "serving"),
    ("validate", "serving", "--published"),
    ("validate", "training"),
    ("explain", "--hardware", "h200-sxm", "--mode", "disagg"),
    ("search", "--model", "llama-3.1-8b", "--hardware", "h200-sxm", "--mode", "disagg"),
)


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nothing_is_cut(command: tuple[str, ...], width: int, tokenopt: Run) -> None:
    process = tokenopt(*command, env={"COLUMNS": str(width)})
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert not [line for line in lines if "…" in line]
    # Sentences are not wrapped for a reader that searches them; tables are.
    ruled = [line for line in lines if "──" in line]
    assert ruled
    assert max(map(len, ruled)) <= width


def test_errors_show_rows_and_three_figures_of_each_quantity(tokenopt: Run) -> None:
    table = tokenopt("validate", "serving", env={"COLUMNS": "80"}).stdout.splitlines()
    whole = next(line for line in table if line.startswith(" all (shipped"))
    rows, *cells = whole.split()[2:]
    assert int(rows) > 1000
    assert [cell.count("/") for cell in cells] == [2, 2, 2]
