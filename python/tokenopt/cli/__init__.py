"""The command line: one file a command, imported when it is called.

Data go to stdout, everything else to stderr. Exit codes are those of :class:`tokenopt.errors.ExitCode`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from tokenopt.errors import ExitCode, TokenoptError

COMMANDS = {
    "search": "Find the cheapest way to serve a model within limits.",
    "train": "Find the cheapest way to train a model within a deadline and a chip budget.",
    "posttrain": "Find the cheapest hardware for each stage of RLHF, GRPO, DPO and the like.",
    "explain": "Break one configuration down: time, memory, what binds.",
    "simulate": "Simulate one replica request by request: latency percentiles, queues.",
    "hardware": "List accelerators, or show one with its sources.",
    "models": "List models, or show one (catalogue key or config.json).",
    "prices": "List offers with their age and source; update, import, history, diff.",
    "tco": "Work out what an owned chip costs per hour, term by term.",
    "measured": "Keep measured benchmarks: import, list, show, remove, export.",
    "claims": "Check published claims against measurements and the model.",
    "plugins": "List plugins and what each contributes.",
    "compare": "Set accelerators side by side: tokens, energy, memory for the money.",
    "crossover": "Map the cheapest accelerator over two inputs; find where it changes.",
    "sensitivity": "Show which inputs move the answer, and how likely each accelerator is the cheapest.",
    "lifecycle": "Spread training over served tokens: cost, break-even, net present value.",
    "roi": "Set token revenue against infrastructure cost.",
    "fleet": "Find the cheapest mix of offers for several workloads.",
    "calibrate": "Fit the physical parameters to measured rows.",
    "validate": "Score predictions against measured rows.",
}


class LazyGroup(click.Group):
    """A group whose commands are imported only when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Command names in the order of their documentation."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Imports one command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"tokenopt.cli.{cmd_name}")
        return module.command  # type: ignore[no-any-return]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Lists commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="tokenopt", message="tokenopt %(version)s")
def cli() -> None:
    """The cheapest hardware, layout and batching for a model, and how sure we are."""


def run(arguments: Sequence[str]) -> int:
    """Runs the command line.

    Args:
        arguments: Arguments without the program's name.

    Returns:
        The exit code.
    """
    is_debugging = "--debug" in arguments or bool(os.environ.get("TOKENOPT_DEBUG"))
    if sys.stdout is None:
        # Started with its output closed: whoever did so wants none.
        _drop_stdout()
    try:
        outcome: Any = cli.main(list(arguments), prog_name="tokenopt", standalone_mode=False)
        # What is still buffered must fail here, inside the handlers, not at shutdown.
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        say("interrupted")
        return ExitCode.INTERRUPTED
    except KeyboardInterrupt:
        say("interrupted")
        return ExitCode.INTERRUPTED
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        say(f"error: {error.format_message()}")
        if context is not None:
            say(f"hint: `{context.command_path} --help` lists the options")
        return ExitCode.USAGE
    except TokenoptError as error:
        if is_debugging:
            raise
        say(f"error: {error.message}")
        for hint in error.hints:
            say(f"hint: {hint}")
        return error.exit_code
    except (BrokenPipeError, SystemExit):
        # The reader went away (for instance `| head`): nothing is wrong. Tables are drawn by a library that then leaves
        # by SystemExit, which nothing else raises here.
        _drop_stdout()
        return ExitCode.FOUND
    except Exception as error:
        if is_debugging:
            raise
        _drop_stdout()
        if isinstance(error, OSError) and error.strerror:
            place = f" {error.filename}" if error.filename else ""
            say(f"error: the system refused{place}: {error.strerror}")
        else:
            say(f"error: tokenopt failed on its own fault: {type(error).__name__}: {error}")
            say("hint: run it again with --debug and report the traceback")
        return ExitCode.ERROR
    return outcome if isinstance(outcome, int) else ExitCode.FOUND


def _drop_stdout() -> None:
    """Lets the interpreter shut down without a second complaint about an output that cannot be written."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


def say(text: str) -> None:
    """A line for people, on stderr."""
    click.echo(text, err=True)
