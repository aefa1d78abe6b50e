"""Flags that several commands share, and what they become."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from tokenopt.errors import SpecError

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _stack(*decorators: Decorator) -> Decorator:
    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


debug_option = click.option("--debug", is_flag=True, help="Show the traceback of an error.")

workload_options = _stack(
    click.option("--model", default="gpt-oss-120b", show_default=True, metavar="NAME|PATH",
                 help="Catalogue key, Hugging Face id, or path of a config.json."),
    click.option("--isl", type=float, default=1024, show_default=True, help="Prompt length, tokens."),
    click.option("--osl", type=float, default=1024, show_default=True, help="Output length, tokens."),
    click.option("--prefix-hit", type=float, default=0.0, show_default=True,
                 help="Share of the prompt found in the prefix cache, 0 to 1."),
)  # fmt: skip

limit_options = _stack(
    click.option("--slo-ms", type=float, help="Limit on time per output token, ms."),
    click.option("--tpot-ms", type=float, help="The same as --slo-ms."),
    click.option("--ttft-ms", type=float, help="Limit on time to first token, ms."),
    click.option("--e2e-ms", type=float, help="Limit on the whole request, ms."),
    click.option("--min-interactivity", type=float, metavar="TPS", help="Least output tokens/s that a user sees."),
    click.option("--target-tps", type=float, help="Output tokens/s of the whole fleet."),
    click.option("--target-rps", type=float, help="Requests/s of the whole fleet."),
    click.option("--max-chips", type=int, help="Most chips the fleet may pay for."),
    click.option("--utilization", type=float, default=1.0, show_default=True,
                 help="Share of the sized throughput that is used on average."),
)  # fmt: skip

traffic_options = _stack(
    click.option("--arrival", help="closed (a fixed number of clients; the default) or poisson (independent users)."),
    click.option("--percentile", metavar="P", help="Latencies and limits hold for this share of requests: p50, p90, p99 ...; "
                 "the mean by default."),
    click.option("--trace", type=click.Path(), metavar="FILE", help="Serve the lengths, spread and bursts of these requests: "
                 "CSV (arrival, isl, osl) or JSON lines."),
)  # fmt: skip

scope_options = _stack(
    click.option("--hardware", multiple=True, metavar="GLOB", help="Accelerator keys; repeatable, globs allowed."),
    click.option("--vendor", multiple=True, help="Vendors; repeatable."),
    click.option("--announced", is_flag=True, help="Include accelerators that are announced but do not ship yet."),
    click.option("--engine", metavar="NAME[@DATE]", help="Serving engine; the newest calibration by default."),
    click.option("--calibration", metavar="FILE", help="Calibration file, or `shipped`; by default the shipped one with your "
                 "own on top (`calibrate serving --mine`)."),
    click.option("--anchor", metavar="FILE", help="Measured points of a stack (CSV or JSON) that shift its prediction."),
    click.option("--precision", help="Weight precision (native, bf16, fp8, int8, int4, mxfp4, nvfp4, fp4)."),
    click.option("--kv-precision", help="KV-cache precision (bf16, fp8, fp4)."),
)  # fmt: skip


def _owners_inputs(_: click.Context, __: click.Parameter, inputs: tuple[str, ...]) -> Mapping[str, float | str]:
    """``NAME=VALUE`` texts of --tco by name; `convention` alone is a word.

    Raises:
        SpecError: A text has another form.
    """
    given: dict[str, float | str] = {}
    for text in inputs:
        name, separator, value = text.partition("=")
        name = name.strip().lower()
        try:
            given[name] = value.strip().replace("-", "_") if name.endswith("convention") else float(value)
        except ValueError:
            separator = ""
        if not separator or not name:
            raise SpecError(
                f"--tco is {text!r}, expected NAME=VALUE, for instance usd_per_kwh=0.06 or h100-sxm:capex_usd=28000"
            )
    return given


mode_options = _stack(
    click.option("--mode", type=click.Choice(["auto", "agg", "disagg"]), default="auto", show_default=True,
                 help="Prefill and decode on the same chips (agg), in pools of their own (disagg), or whichever is "
                 "better."),
    click.option("--prefill-hardware", multiple=True, metavar="GLOB", help="Accelerators that may prefill in pools of "
                 "their own; repeatable."),
    click.option("--decode-hardware", multiple=True, metavar="GLOB", help="Accelerators that may decode in pools of "
                 "their own; repeatable."),
    click.option("--mixed-hardware", is_flag=True, help="Let the two pools sit on different accelerators of one "
                 "vendor, provider and region."),
    click.option("--kv-overlap", type=float, default=0.0, show_default=True,
                 help="Share of the cache transfer that hides behind the prefill, 0 to 1."),
)  # fmt: skip

speculation_options = _stack(
    click.option("--spec", default="auto", show_default=True, metavar="off|auto|K",
                 help="Speculative decoding: tokens drafted per step; auto tries 0 to 3 where the model can draft."),
    click.option("--acceptance", type=float, help="Chance that a drafted token is accepted, 0 to 1."),
    click.option("--accepted-tokens", type=float, help="Output tokens a request gains in a step of K drafted ones; "
                 "instead of --acceptance."),
    click.option("--draft-model", metavar="NAME|PATH", help="Model that drafts; by default the model's own "
                 "multi-token-prediction head."),
    click.option("--max-batch", type=int, help="Most requests that decode at once on an attention rank; by default "
                 "the engine's own limit."),
)  # fmt: skip

price_options = _stack(
    click.option("--provider", multiple=True, metavar="GLOB", help="Providers; repeatable, globs allowed."),
    click.option("--region", multiple=True, metavar="GLOB", help="Regions; repeatable, globs allowed."),
    click.option("--term", help="Rank only this kind of price: on-demand, reserved-1y, reserved-3y, rental, spot, "
                 "marketplace or owned."),
    click.option("--spot", is_flag=True, help="Rank spot and marketplace offers too."),
    click.option("--price", multiple=True, metavar="KEY=USD", help="Your own quote per chip-hour; repeatable."),
    click.option("--prices-max-age", type=int, metavar="DAYS", help="Leave out older prices."),
    click.option("--tco", multiple=True, metavar="[KEY:]NAME=VALUE", callback=_owners_inputs,
                 help="Input of the owner's cost with --term owned (`tokenopt tco` lists them); repeatable."),
    click.option("--pue", type=float, default=1.25, show_default=True, help="Facility power over IT power."),
)  # fmt: skip

chip_options = _stack(
    click.option("--hardware", multiple=True, metavar="GLOB", help="Accelerator keys; repeatable, globs allowed."),
    click.option("--vendor", multiple=True, help="Vendors; repeatable."),
    click.option("--announced", is_flag=True, help="Include accelerators that are announced but do not ship yet."),
)  # fmt: skip

layout_options = _stack(
    click.option("--tp", type=int, multiple=True, help="Try only this tensor parallelism; repeatable."),
    click.option("--pp", type=int, multiple=True, help="Try only so many pipeline stages; repeatable."),
    click.option("--vpp", type=int, multiple=True, help="Try only so many chunks of layers a stage; repeatable."),
    click.option("--cp", type=int, multiple=True, help="Try only this context parallelism; repeatable."),
    click.option("--ep", type=int, multiple=True, help="Try only this expert parallelism; repeatable."),
    click.option("--dp", type=int, multiple=True, help="Try only this data parallelism; repeatable."),
    click.option("--micro-batch", type=int, multiple=True, help="Try only this micro-batch, sequences; repeatable."),
    click.option("--sharding", multiple=True, help="Try only zero0, zero1, zero2 or zero3; repeatable."),
    click.option("--recompute", multiple=True, help="Try only none, selective or full; repeatable."),
    click.option("--schedule", multiple=True, help="Try only 1f1b or zero-bubble; repeatable."),
)  # fmt: skip

run_options = _stack(
    click.option("--ramp-tokens", type=float, default=0.0, show_default=True,
                 help="Tokens at the start that run slower (batch ramp, first faults)."),
    click.option("--ramp-speed", type=float, default=0.5, show_default=True,
                 help="Speed of that ramp as a share of the full speed."),
    click.option("--eval-every", type=int, default=0, help="Steps between evaluations."),
    click.option("--eval-seconds", type=float, default=0.0, help="Pause of one evaluation, s."),
    click.option("--startup-hours", type=float, default=0.0, show_default=True,
                 help="Hours paid for before the first step."),
    click.option("--spare-share", type=float, default=0.0, show_default=True,
                 help="Chips kept idle to replace broken ones, as a share of those that train."),
    click.option("--mtbf-hours", type=float, default=50_700.0, show_default=True,
                 help="Chip-hours between failures that stop the run."),
    click.option("--detection-s", type=float, default=60.0, show_default=True,
                 help="Time until a failure is noticed, s."),
    click.option("--restart-s", type=float, default=600.0, show_default=True,
                 help="Time to replace the part and start again, s."),
    click.option("--checkpoint-interval-s", type=float,
                 help="Training time between checkpoints, s; by default the one that loses least."),
    click.option("--checkpoint-stall-s", type=float,
                 help="Pause of a checkpoint, s; by default its bytes over the storage rate."),
    click.option("--storage-gb-per-s", type=float, default=0.122, show_default=True,
                 help="Storage rate per chip, GB/s."),
    click.option("--withdrawals-per-month", type=float, default=0.1, show_default=True,
                 help="Withdrawals of a spot instance in a month."),
    click.option("--withdrawal-wait-s", type=float, default=0.0, show_default=True,
                 help="Wait for another instance after a withdrawal, s."),
)  # fmt: skip


def parse_quotes(quotes: tuple[str, ...]) -> Mapping[str, float]:
    """``KEY=USD`` texts as numbers.

    Raises:
        SpecError: A text has another form.
    """
    prices: dict[str, float] = {}
    for quote in quotes:
        key, separator, amount = quote.partition("=")
        try:
            prices[key.strip().lower()] = float(amount)
        except ValueError:
            separator = ""
        if not separator:
            raise SpecError(f"--price is {quote!r}, expected KEY=USD per chip-hour, for instance b200-sxm=2.10")
    return prices


sale_options = _stack(
    click.option("--sell", type=float, metavar="USD", help="Price per 1M tokens sold, input and output together."),
    click.option("--sell-input", type=float, metavar="USD", help="Price per 1M input tokens; with --sell-output."),
    click.option("--sell-output", type=float, metavar="USD", help="Price per 1M output tokens; with --sell-input."),
)  # fmt: skip

answer_options = _stack(
    click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table",
                 show_default=True, help="Form of the answer."),
    click.option("--out", type=click.Path(path_type=Path), help="Write the answer to a file instead."),
)  # fmt: skip


def sale_price(flags: dict[str, Any]) -> float | None:
    """Takes the flags of :data:`sale_options` out of `flags`; the price per 1M tokens, None where none is given.

    Raises:
        SpecError: The flags contradict each other, or one of a pair is missing.
    """
    whole, given, sold = (flags.pop(name) for name in ("sell", "sell_input", "sell_output"))
    if (given is None) != (sold is None):
        raise SpecError("--sell-input and --sell-output belong together: give both, or --sell alone")
    if given is None:
        return whole  # type: ignore[no-any-return]
    if whole is not None:
        raise SpecError("--sell and --sell-input both name the price: give one of them")
    from tokenopt.decide.roi import blended_usd_per_m_tokens

    return blended_usd_per_m_tokens(flags["isl"], flags["osl"], given, sold)


def write_answer(answer: Mapping[str, Any], table: Callable[[], str], output_format: str, out: Path | None) -> None:
    """Prints an answer in the wanted form, or writes it to a file whole."""
    from tokenopt.report.files import check_writable, write_atomically

    text = json.dumps(answer, indent=2, allow_nan=False) + "\n" if output_format == "json" else table()
    if out is None:
        click.echo(text, nl=False)
        return
    check_writable(out)
    write_atomically(out, text.encode())
