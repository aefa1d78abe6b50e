"""`tokenopt hardware`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from tokenopt.cli.options import debug_option


@click.command("hardware")
@click.argument("key", required=False)
@click.option("--vendor", help="Only this vendor.")
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table", show_default=True,
              help="Form of the answer.")  # fmt: skip
@debug_option
def command(key: str | None, vendor: str | None, output_format: str, debug: bool) -> None:  # noqa: ARG001
    """List accelerators, or show KEY with the source of every figure and the engines that run on it."""
    from tokenopt.catalog.engines import engines_for
    from tokenopt.plugins import default_registry
    from tokenopt.problem import SearchRequest, select_accelerators
    from tokenopt.report.tables import Column, listing_console, plain_table, print_mapping
    from tokenopt.units import bytes_to_gib

    registry = default_registry()
    request = SearchRequest(hardware=(key,) if key else (), vendor=(vendor,) if vendor else (), announced=True)
    chips = select_accelerators(request, registry)
    if output_format == "json":
        click.echo(json.dumps({"schema": 1, "accelerators": [asdict(chip) for chip in chips]}, indent=2))
        return
    console = listing_console()
    if key and len(chips) == 1:
        chip = chips[0]
        facts = {name: value for name, value in asdict(chip).items() if name != "sources"}
        print_mapping(console, chip.name, facts)
        print_mapping(
            console,
            "sources",
            {
                name: f"{item.reference} ({', '.join(filter(None, (item.confidence, item.as_of)))}) {item.note}".strip()
                for name, item in chip.sources.items()
            },
        )
        print_mapping(
            console,
            "engines",
            {
                f"{engine.name}@{engine.as_of}": f"{engine.version}; weights {', '.join(engine.weight_formats)}; "
                f"KV {', '.join(engine.kv_formats)}"
                for engine in engines_for(chip, registry.engines)
            },
        )
        return
    columns: list[Column] = [("key", "left"), ("vendor", "left"), ("year", "right", 5), ("GiB", "right"), ("TB/s", "right"),
               ("bf16", "right"), ("fp8", "right"), ("fp4", "right"), ("GB/s link", "right", 2), ("domain", "right", 3),
               ("fabric", "left", 4), ("status", "left", 1)]  # fmt: skip

    def peak(value: float | None) -> str:
        return f"{value / 1e12:,.0f}" if value else ""

    console.print(
        plain_table(
            columns,
            [
                [
                    chip.key,
                    chip.vendor,
                    str(chip.launch_year),
                    f"{bytes_to_gib(chip.hbm_bytes):,.1f}",
                    f"{chip.hbm_bytes_per_s / 1e12:,.2f}",
                    *(peak(chip.peak_flops.get(f)) for f in ("bf16", "fp8", "fp4")),
                    f"{chip.scale_up_bytes_per_s / 1e9:,.0f}",
                    f"{chip.scale_up_domain_chips}",
                    chip.scale_up_topology,
                    chip.status,
                ]
                for chip in chips
            ],
            console.width,
        )
    )
    console.print(
        f"{len(chips)} accelerators of {len({chip.vendor for chip in chips})} vendors; peaks in dense TFLOP/s"
    )
