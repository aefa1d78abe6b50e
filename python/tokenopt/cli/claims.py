"""`tokenopt claims`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tokenopt.cli import say
from tokenopt.cli.options import debug_option


@click.command("claims")
@click.argument("keys", nargs=-1)
@click.option("--file", "file", type=click.Path(path_type=Path, dir_okay=False), help="Your own file of claims (TOML).")
@click.option("--basis", type=click.Choice(["both", "measured"]), default="both", show_default=True,
              help="Whether the model is asked too.")  # fmt: skip
@click.option("--format", "output_format", type=click.Choice(["table", "json", "markdown"]), default="table",
              show_default=True, help="Form of the answer.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Write the answer to this file instead of the terminal.")
@debug_option
def command(
    keys: tuple[str, ...],
    file: Path | None,
    basis: str,
    output_format: str,
    out: Path | None,
    debug: bool,  # noqa: ARG001
) -> None:
    """Check published claims about cost per token against what was measured and what the model predicts.

    KEYS chooses claims; all by default. Prices, operating points and sources stand in a file that --file replaces.
    """
    from tokenopt.decide.claims import check_claims
    from tokenopt.plugins import default_registry
    from tokenopt.report import claims as report
    from tokenopt.report.files import check_writable, write_atomically

    if out is not None:
        check_writable(out)
    results = check_claims(default_registry(), path=file, only=keys, predict=basis == "both")
    if output_format == "json":
        text = json.dumps({"schema": 1, "claims": [result.to_dict() for result in results]}, indent=2) + "\n"
    elif output_format == "markdown":
        text = report.markdown(results)
    else:
        text = report.table(results)
    if out is None:
        click.echo(text, nl=False)
    else:
        write_atomically(out, text.encode())
        say(f"written to {out}")
