"""`tokenopt prices`: the list of offers, and the commands around the store."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import date
from typing import TYPE_CHECKING

import click

from tokenopt.cli.options import debug_option
from tokenopt.cli.prices_store import COMMANDS, fits

if TYPE_CHECKING:
    from tokenopt.records import Offer


class _ListByDefault(click.Group):
    """A group that lists where its first argument names no command: `tokenopt prices h100-sxm` lists H100 prices."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts `list` in front of arguments that are its own."""
        wants_group_help = bool(args) and args[0] in ctx.help_option_names
        if not wants_group_help and (not args or args[0] not in self.commands):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group("prices", cls=_ListByDefault)
def command() -> None:
    """List prices; fetch, import and compare them.

    `tokenopt prices [ACCELERATOR] [OPTIONS]` is short for `tokenopt prices list`. A search reads the snapshot, what
    `update` and `import` have stored, and your prices.toml; it never uses the network.
    """


@command.command("list")
@click.argument("accelerator", required=False)
@click.option("--provider", metavar="GLOB", help="Only providers that match.")
@click.option("--region", metavar="GLOB", help="Only regions that match.")
@click.option("--term", help="Only this kind of price.")
@click.option("--max-age", type=click.IntRange(0), metavar="DAYS", help="Leave out older and undated prices.")
@click.option(
    "--as-of", type=click.DateTime(["%Y-%m-%d"]), help="What the store alone held at the end of this day (UTC)."
)
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table", show_default=True,
              help="Form of the answer.")  # fmt: skip
@debug_option
def list_prices(
    accelerator: str | None,
    provider: str | None,
    region: str | None,
    term: str | None,
    max_age: int | None,
    as_of: date | None,
    output_format: str,
    debug: bool,  # noqa: ARG001
) -> None:
    """List offers, cheapest first, with the day each was seen; doubtful ones are marked.

    ACCELERATOR is a key or a glob.
    """
    from tokenopt.cli import say
    from tokenopt.errors import MissingDataError
    from tokenopt.plugins import default_registry
    from tokenopt.prices.store import read_offers
    from tokenopt.report.tables import Column, listing_console, offer_rows, plain_table

    today = date.today()
    registry = default_registry()
    known = registry.offers if as_of is None else read_offers(as_of=as_of.date())  # type: ignore[attr-defined]
    for problem in registry.problems:
        say(f"warning: {problem}")

    def is_fresh(offer: Offer) -> bool:
        age = offer.age_days(today)
        return max_age is None or (age is not None and age <= max_age)

    offers = sorted(
        (
            offer
            for offer in known
            if fits(offer.accelerator, accelerator)
            and fits(offer.provider, provider)
            and fits(offer.region, region)
            and (term is None or offer.term == term)
            and is_fresh(offer)
        ),
        key=lambda offer: (offer.accelerator, offer.usd_per_chip_hr),
    )
    if not offers:
        wanted = (accelerator, provider, region, term, f"of at most {max_age} days" if max_age is not None else None)
        raise MissingDataError(
            f"no offer matches {' '.join(filter(None, wanted)) or 'anything'}", ["`tokenopt prices` lists all"]
        )
    if output_format == "json":
        click.echo(json.dumps({"schema": 1, "offers": [asdict(offer) for offer in offers]}, indent=2))
        return
    console = listing_console()
    columns: list[Column] = [("accelerator", "left"), ("provider", "left"), ("instance", "left", 3),
               ("region", "left", 2), ("term", "left"), ("$/chip-hr", "right"), ("chips", "right", 1), ("as of", "left"),
               ("age", "left", 4), ("mark", "left")]  # fmt: skip
    console.print(plain_table(columns, offer_rows(offers, today), console.width))
    suspects = sum(bool(offer.suspect) for offer in offers)
    console.print(f"{len(offers)} offers, {suspects} suspect (shown, never ranked)")


for _command in COMMANDS:
    command.add_command(_command)
