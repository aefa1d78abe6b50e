"""Writes the generated parts of README and docs, or checks that they are up to date."""

from __future__ import annotations

import argparse
import difflib
import os
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from blocks import ROOT, block_names, replace_block, write_atomically

FILES = ("README.md", "docs/cli.md", "docs/claims.md")
STABLE = ("cli help", "trust")
"""Parts that `--check` compares; answers depend on the day and on the machine."""


OF_THE_USER = frozenset({"price-store", "own-prices"})


def run(*arguments: str) -> str:
    """Output of the command line at a fixed width."""
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    process = subprocess.run(
        [sys.executable, "-m", "tokenopt", *arguments], capture_output=True, text=True, env=environment, check=True
    )
    return "\n".join(line.rstrip() for line in process.stdout.splitlines()).strip()


def cli_help() -> str:
    """Help of every command."""
    from tokenopt.cli import cli

    parts = []
    for names in _commands(cli, ()):
        parts.append(f"## {' '.join(('tokenopt', *names))}\n\n```text\n{run(*names, '--help')}\n```")
    return "\n\n".join(parts)


def _commands(command: Any, names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Names of a command and of those below it."""
    import click

    yield names
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from _commands(command.get_command(context, name), (*names, name))


def answer() -> str:
    """The answer of the main job in five lines."""
    lines = run("search", "--slo-ms", "50", "--target-tps", "1e6").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("Cheapest:"))
    block = []
    for line in lines[start:]:
        if not line:
            break
        block.append(line)
    return "```text\n" + "\n".join(block) + "\n```"


def trust() -> str:
    """What an answer rests on, counted from the catalogue."""
    from tokenopt.catalog.engines import default_calibration
    from tokenopt.catalog.models import bundled_model_keys
    from tokenopt.plugins import default_registry

    registry = default_registry()
    calibration = default_calibration()
    accelerators = registry.accelerators.values()
    confidences = Counter(chip.sources["*"].confidence for chip in accelerators if "*" in chip.sources)
    terms = Counter(offer.term for offer in registry.offers)
    doubtful = sum(bool(offer.suspect) for offer in registry.offers)
    days = sorted(offer.as_of for offer in registry.offers if _is_day(offer.as_of))
    rows = {
        "efficiencies": f"{calibration.basis}: {calibration.source}"
        + (f", data to {calibration.as_of}" if calibration.as_of else ""),
        "accelerators": f"{len(accelerators)} from {len({chip.vendor for chip in accelerators})} vendors; "
        f"main source of each: {_counts(confidences)}",
        "models": f"{len(bundled_model_keys())} bundled, each counted from its architecture",
        "prices": f"{len(registry.offers)} ({_counts(terms)}), those with a full date from {days[0]} to {days[-1]}; "
        f"{doubtful} are doubtful and not ranked",
    }
    lines = ["| part | rests on |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in rows.items())]
    if calibration.accuracy:
        lines += ["", *_accuracy(calibration.accuracy)]
    return "\n".join(lines)


LEFT_OUT = {
    "in-sample": "nothing (in-sample)",
    "shape": "model, accelerator, format and lengths",
    "accelerator": "an accelerator of a known family",
    "group": "a model on an accelerator",
    "model": "a model",
    "in-sample pools": "nothing (in-sample), disaggregated pools",
    "group pools": "a model on an accelerator, disaggregated pools",
}


def _accuracy(accuracy: Any) -> Iterator[str]:
    """Errors of the shipped calibration, as its file holds them."""
    yield "| refitted without | time per token | tokens/s per chip | time to first token |"
    yield "| --- | --- | --- | --- |"
    for what, text in LEFT_OUT.items():
        cells = [
            " / ".join(f"{value:.1f}" for value in accuracy[what][quantity])
            for quantity in ("tpot", "output_tps_per_chip", "ttft")
        ]
        yield f"| {text} | {' | '.join(cells)} |"
    yield ""
    yield "Median / P90 of the absolute error in percent, `tokenopt validate serving --leave-out NAME`; see docs/accuracy.md."


def _is_day(text: str) -> bool:
    year, *rest = text.split("-")
    return len(rest) == 2 and all(part.isdigit() for part in (year, *rest))


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common())


def claims() -> str:
    """Published claims, checked; without what the user has measured."""
    with tempfile.TemporaryDirectory() as empty:
        os.environ["TOKENOPT_DATA_DIR"] = empty
        try:
            return run("claims", "--format", "markdown")
        finally:
            del os.environ["TOKENOPT_DATA_DIR"]


PARTS = {"claims": claims, "cli help": cli_help, "answer": answer, "trust": trust}


def bundled_plugins() -> list[str]:
    """Entry points of the repository's own packages.

    What else is installed must not change the docs, nor what the user's store and prices.toml hold.
    """
    names: list[str] = []
    for path in sorted([ROOT / "pyproject.toml", *ROOT.glob("plugins/tokenopt-*/pyproject.toml")]):
        names += tomllib.loads(path.read_text(encoding="utf-8"))["project"]["entry-points"]["tokenopt"]
    return [name for name in names if name not in OF_THE_USER]


def main() -> int:
    """Writes or checks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only check")
    is_check = parser.parse_args().check
    os.environ["TOKENOPT_LOAD_PLUGINS"] = ",".join(bundled_plugins())
    stale = []
    for name in FILES:
        file = ROOT / name
        text = new = file.read_text(encoding="utf-8")
        for part in block_names(text):
            if part in PARTS and (part in STABLE or not is_check):
                new = replace_block(new, part, PARTS[part]())
        if new == text:
            continue
        stale.append(name)
        if is_check:
            print("\n".join(difflib.unified_diff(text.splitlines(), new.splitlines(), name, "generated", lineterm="")))
        else:
            write_atomically(file, new)
            print(f"{name} written")
    if is_check and stale:
        print(f"out of date: {', '.join(stale)}; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
