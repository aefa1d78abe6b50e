"""`tokenopt posttrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tokenopt.cli import say
from tokenopt.cli.options import chip_options, debug_option, parse_quotes, price_options
from tokenopt.cli.output import FORMATS, check_output, progress, write_answer
from tokenopt.errors import PluginError


@click.command("posttrain")
@click.option("--policy", default="llama-3.1-8b", show_default=True, metavar="NAME|PATH", help="Model that is trained.")
@click.option("--algorithm", default="grpo", show_default=True, help="ppo, grpo, dapo, dpo or reward-model.")
@click.option(
    "--reward", metavar="NAME|PATH", help="Reward model; by default the policy's size for ppo, else a verifier."
)
@click.option("--critic", metavar="NAME|PATH", help="Critic of ppo; the policy's size by default.")
@click.option(
    "--reference", metavar="NAME|PATH", help="Reference of the KL term; the policy before training by default."
)
@click.option(
    "--kl/--no-kl", default=True, show_default=True, help="Whether the reference's log-probabilities are needed."
)
@click.option(
    "--old-logprobs/--no-old-logprobs",
    default=True,
    show_default=True,
    help="Whether the trainer works the policy's log-probabilities out again.",
)
@click.option("--prompts", type=float, default=256, show_default=True, help="Prompts (or preference pairs) of a step.")
@click.option("--samples", type=float, help="Answers to each prompt; by default 1 for ppo, 16 for grpo and dapo.")
@click.option(
    "--oversample",
    type=float,
    default=1.0,
    show_default=True,
    help="Answers generated over answers trained on (dynamic sampling).",
)
@click.option("--prompt-len", type=float, default=512, show_default=True, help="Prompt length, tokens.")
@click.option("--response-len", type=float, default=2048, show_default=True, help="Mean answer length, tokens.")
@click.option("--max-response-len", type=float, help="Length at which answers are cut; four times the mean by default.")
@click.option(
    "--response-spread",
    type=float,
    default=0.7,
    show_default=True,
    help="Standard deviation of answer lengths over their mean.",
)
@click.option("--steps", type=float, default=500, show_default=True, help="Steps of the run.")
@click.option("--tokens", type=float, help="Tokens to train on, instead of --steps.")
@click.option("--epochs", type=float, default=1, show_default=True, help="Passes of an update over a step's answers.")
@click.option("--minibatches", type=int, default=1, show_default=True, help="Optimizer steps of one pass.")
@click.option(
    "--verifier-seconds",
    type=float,
    default=0.0,
    show_default=True,
    help="Time a step waits for verifiers off the accelerators.",
)
@click.option(
    "--lora-rank", type=int, default=0, show_default=True, help="Rank of adapters; 0 = all weights are trained."
)
@click.option(
    "--optimizer",
    default="adam32",
    show_default=True,
    help="State the optimizer keeps: adam32, adam16, adam8, momentum or host-adam32.",
)
@click.option(
    "--precision",
    multiple=True,
    default=("bf16",),
    show_default=True,
    help="Formats of updates that compete: bf16, fp8, mxfp8, mxfp4, nvfp4, int8 or any; repeatable.",
)
@click.option(
    "--asynchronous", is_flag=True, help="Let generation overlap with training on the answers of the step before."
)
@click.option(
    "--placement",
    default="any",
    show_default=True,
    help="any, colocated (all stages on the same chips), split (generation apart) or separate.",
)
@click.option("--engine", metavar="NAME[@DATE]", help="Serving engine that generates; the best by default.")
@click.option("--deadline-days", type=float, help="Limit on the wall time, days; 30 by default.")
@click.option("--max-chips", type=int, default=256, show_default=True, help="Most chips that may be paid for.")
@chip_options
@price_options
@click.option("--software", default="", metavar="NAME",
              help="Post-training software whose calibration is used (nemo-rl, verl, openrlhf ...); the mean of all by "
              "default.")  # fmt: skip
@click.option("--host-gb-per-s", type=float,
              help="Rate at which a chip moves state to host memory and back, GB/s; calibrated by default.")  # fmt: skip
@click.option("--phase-overhead-s", type=float,
              help="Waking and sleeping when a pool changes its stage, s; calibrated by default.")  # fmt: skip
@click.option(
    "--mtbf-hours",
    type=float,
    default=50_700.0,
    show_default=True,
    help="Chip-hours between failures that stop the run.",
)
@click.option(
    "--restart-s", type=float, default=600.0, show_default=True, help="Time to replace the part and start again, s."
)
@click.option("--storage-gb-per-s", type=float, default=0.122, show_default=True, help="Storage rate per chip, GB/s.")
@click.option("--top", type=int, default=10, show_default=True, help="Plans in `best`.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="Form of the answer; csv and parquet hold one row a stage and accelerator.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the answer to this file instead of the terminal.")
@click.option("--strict", is_flag=True, help="Fail when a plugin is broken instead of skipping it.")
@debug_option
def command(output_format: str, out: Path | None, strict: bool, debug: bool, **flags: Any) -> None:  # noqa: ARG001
    """Find the cheapest hardware for each stage of post-training, and the cheapest plan for all of them.

    Stages: generation, reward, reference and policy log-probabilities, critic values, updates, new weights to the
    engines. Exit code 3: nothing meets the limits.
    """
    check_output(output_format, out)
    from tokenopt.plugins import load_plugins
    from tokenopt.posttraining import compile_posttraining, run_posttraining
    from tokenopt.posttraining_request import PosttrainRequest

    flags["price"] = parse_quotes(flags["price"])
    registry = load_plugins(strict=strict)
    problem = compile_posttraining(PosttrainRequest(**flags), registry)
    problems = [*registry.problems, *problem.notes]
    if strict and problems:
        raise PluginError(problems[0])
    with progress("searching"):
        result = run_posttraining(problem, registry)
    for note in result.notes:
        say(f"warning: {note}")
    from tokenopt.report.posttraining_tables import posttrain_text

    write_answer(result, output_format, out, posttrain_text)
