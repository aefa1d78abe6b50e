"""`tokenopt train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tokenopt.cli import say
from tokenopt.cli.options import (
    chip_options,
    debug_option,
    layout_options,
    parse_quotes,
    price_options,
    run_options,
)
from tokenopt.cli.output import FORMATS, check_output, progress, write_answer
from tokenopt.errors import PluginError


@click.command("train")
@click.option(
    "--model",
    default="llama-3.1-8b",
    show_default=True,
    metavar="NAME|PATH",
    help="Catalogue key, Hugging Face id, or path of a config.json.",
)
@click.option("--tokens", type=float, default=1e12, show_default=True, help="Tokens to train on.")
@click.option("--seq-len", type=float, default=8192, show_default=True, help="Sequence length, tokens.")
@click.option(
    "--global-batch",
    type=float,
    default=4e6,
    show_default=True,
    help="Batch of a step: tokens from one sequence's length up, sequences below.",
)
@click.option("--global-batch-unit", default="auto", show_default=True, help="auto, tokens or sequences.")
@click.option(
    "--batch-tolerance",
    type=float,
    metavar="SHARE",
    help="Share by which a layout may round the batch; by default 0.05 for tokens, 0 for sequences.",
)
@click.option("--recipe", default="pretrain", show_default=True, help="pretrain, sft, lora, dpo or reward-model.")
@click.option("--lora-rank", type=int, default=16, show_default=True, help="Rank of the adapters of --recipe lora.")
@click.option(
    "--document-tokens",
    type=float,
    help="Length of the documents packed into a sequence; attention stops at their borders.",
)
@click.option(
    "--optimizer",
    default="adam32",
    show_default=True,
    help="State the optimizer keeps: adam32, adam16, adam8, momentum or host-adam32 (in host memory).",
)
@click.option(
    "--precision",
    multiple=True,
    default=("bf16",),
    show_default=True,
    help="Formats that compete: bf16, fp8, mxfp8, mxfp4, nvfp4, int8 or any; repeatable.",
)
@click.option("--deadline-days", type=float, help="Limit on the wall time, days; 90 by default.")
@click.option("--max-chips", type=int, help="Most chips that may be paid for; 100,000 by default.")
@click.option("--min-chips", type=int, default=1, show_default=True, help="Least chips that train.")
@click.option("--max-usd", type=float, help="Most USD for the run.")
@chip_options
@price_options
@layout_options
@run_options
@click.option("--objective", default="cost", show_default=True, help="What to minimise: cost, time or energy.")
@click.option("--top", type=int, default=10, show_default=True, help="Layouts in `best`.")
@click.option("--exhaustive", is_flag=True, help="Evaluate every configuration instead of skipping what cannot win.")
@click.option("--threads", type=int, default=0, help="Threads of the core; 0 = all.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="Form of the answer.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the answer to this file instead of the terminal.")
@click.option("--strict", is_flag=True, help="Fail when a plugin is broken instead of skipping it.")
@debug_option
def command(output_format: str, out: Path | None, strict: bool, debug: bool, **flags: Any) -> None:  # noqa: ARG001
    """Find the cheapest hardware and layout for a training run within a deadline and a chip budget.

    The tables show the cheapest run of each accelerator and the trade-off of days against money. Exit code 3: nothing
    meets the limits.
    """
    check_output(output_format, out)
    from tokenopt.plugins import load_plugins
    from tokenopt.training import compile_training, run_training
    from tokenopt.training_request import TrainRequest

    flags["price"] = parse_quotes(flags["price"])
    registry = load_plugins(strict=strict)
    problem = compile_training(TrainRequest(**flags), registry)
    problems = [*registry.problems, *problem.notes]
    if strict and problems:
        raise PluginError(problems[0])
    with progress("searching"):
        result = run_training(problem, registry)
    for note in result.notes:
        say(f"warning: {note}")
    from tokenopt.report.training_tables import train_text

    write_answer(result, output_format, out, train_text)
