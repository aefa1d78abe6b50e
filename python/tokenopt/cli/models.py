"""`tokenopt models`."""

from __future__ import annotations

import json

import click

from tokenopt.cli.options import debug_option


@click.command("models")
@click.argument("name", required=False)
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table", show_default=True,
              help="Form of the answer.")  # fmt: skip
@debug_option
def command(name: str | None, output_format: str, debug: bool) -> None:  # noqa: ARG001
    """List models, or show NAME: a catalogue key, a Hugging Face id, or the path of a config.json."""
    from tokenopt.catalog.models import bundled_model_keys, count_parameters, load_bundled_model, resolve_model
    from tokenopt.plugins import default_registry
    from tokenopt.report.tables import listing_console, plain_table, print_mapping

    extra = default_registry().models
    models = [resolve_model(name, extra)] if name else [*map(load_bundled_model, bundled_model_keys()), *extra.values()]
    counted = [(model, count_parameters(model.architecture)) for model in models]
    if output_format == "json":
        entries = [
            {
                "key": model.key,
                "hf_id": model.hf_id,
                "architecture": dict(model.architecture),
                "published_parameters": model.published_parameters,
                "counts": counts,
                "source": model.source.reference,
                "notes": model.notes,
            }
            for model, counts in counted
        ]
        click.echo(json.dumps({"schema": 1, "models": entries}, indent=2))
        return
    console = listing_console()
    if name:
        model, counts = counted[0]
        facts = {
            "hf_id": model.hf_id,
            "parameters": f"{counts['total_parameters'] / 1e9:,.2f} B counted"
            + (f", {model.published_parameters / 1e9:,.2f} B published" if model.published_parameters else ""),
            "active": f"{counts['active_parameters'] / 1e9:,.2f} B with embeddings, "
            f"{counts['active_parameters_no_embedding'] / 1e9:,.2f} B without",
            "weights": f"{counts['weight_bytes'] / 1e9:,.1f} GB in {json.dumps(model.architecture['native_formats'])}",
            "KV cache": f"{counts['kv_bytes_per_token']:,.0f} bytes per token and "
            f"{counts['state_bytes_per_request'] / 1e6:,.1f} MB per request in 16 bits",
            "context": f"{model.architecture['max_context']:,}",
            "source": model.source.reference,
            "notes": model.notes or "-",
        }
        print_mapping(console, model.key, facts)
        for group in model.architecture["layers"]:
            console.print(f"  {group['count']} x {json.dumps(group['mixer'])} + {json.dumps(group['ffn'])}")
        return
    console.print(
        plain_table(
            [
                ("key", "left"),
                ("hugging face", "left", 1),
                ("B", "right"),
                ("B active", "right"),
                ("weights GB", "right", 2),
                ("context", "right", 3),
            ],
            [
                [
                    model.key,
                    model.hf_id,
                    f"{counts['total_parameters'] / 1e9:,.1f}",
                    f"{counts['active_parameters'] / 1e9:,.1f}",
                    f"{counts['weight_bytes'] / 1e9:,.1f}",
                    f"{model.architecture['max_context']:,}",
                ]
                for model, counts in counted
            ],
            console.width,
        )
    )
    console.print(f"{len(counted)} models")
