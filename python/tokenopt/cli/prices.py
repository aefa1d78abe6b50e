"""`tokenopt prices`."""

from __future__ import annotations

import fnmatch
import json
from dataclasses import asdict
from datetime import date

import click

from tokenopt.cli.options import debug_option


@click.command("prices")
@click.argument("accelerator", required=False)
@click.option("--provider", help="Only providers that match this glob.")
@click.option("--term", help="Only this kind of price.")
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table", show_default=True,
              help="Form of the answer.")  # fmt: skip
@debug_option
def command(
    accelerator: str | None,
    provider: str | None,
    term: str | None,
    output_format: str,
    debug: bool,  # noqa: ARG001
) -> None:
    """List offers, cheapest first, with the day each was seen; doubtful ones are marked.

    ACCELERATOR is a key or a glob.
    """
    from tokenopt.errors import MissingDataError
    from tokenopt.plugins import default_registry
    from tokenopt.report.tables import Column, listing_console, offer_rows, plain_table

    offers = sorted(
        (
            offer
            for offer in default_registry().offers
            if (accelerator is None or fnmatch.fnmatch(offer.accelerator, accelerator.lower()))
            and (provider is None or fnmatch.fnmatch(offer.provider.lower(), provider.lower()))
            and (term is None or offer.term == term)
        ),
        key=lambda offer: (offer.accelerator, offer.usd_per_chip_hr),
    )
    if not offers:
        raise MissingDataError(
            f"no offer matches {' '.join(filter(None, (accelerator, provider, term))) or 'anything'}",
            ["`tokenopt prices` lists all"],
        )
    if output_format == "json":
        click.echo(json.dumps({"schema": 1, "offers": [asdict(offer) for offer in offers]}, indent=2))
        return
    console = listing_console()
    columns: list[Column] = [("accelerator", "left"), ("provider", "left"), ("instance", "left", 3),
               ("region", "left", 2), ("term", "left"), ("$/chip-hr", "right"), ("chips", "right", 1), ("as of", "left"),
               ("age", "left", 4), ("mark", "left")]  # fmt: skip
    console.print(plain_table(columns, offer_rows(offers, date.today()), console.width))
    suspects = sum(bool(offer.suspect) for offer in offers)
    console.print(f"{len(offers)} offers, {suspects} suspect (shown, never ranked)")
